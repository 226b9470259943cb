"""Saved readings: the same answers without reading again, and no file that could give wrong ones is used."""

from __future__ import annotations

import itertools
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Forked, in_child
from helpers import FREE, spying
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from wim_kernel import Chunk, Frame, OptionError, ReadingFileError, WimKernel
from wim_kernel.cache.disk import chain, read, write
from wim_kernel.cache.folder import SUFFIX, ReadingFolder
from wim_kernel.engines.document import TokenizedDocument
from wim_kernel.engines.packed import Packed

pytestmark = pytest.mark.slow
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

DOCUMENT = [
    Chunk.of("The gull sat on the mast. " * 3, "birds.txt", 0, {"page": 1}),
    Chunk.of("Elsa Brandt owned the ship, they say. " * 3, "owners.txt", 40),
    Chunk.of("Nobody else did.", "owners.txt", 400),
]
QUESTION = "Who owned the ship?"
OPTIONS = {"threshold": 0, **FREE}
KINDS = [
    "llama",
    "gemma3",
    "lfm2",
    "qwen3_next",
]  # full and sliding attention, short convolutions, recurrent states


@pytest.fixture(scope="module")
def make(tiny_model, smollm2):
    """Kernels on tiny models."""

    def kernel(kind: str = "llama", **options) -> WimKernel:
        return WimKernel(tiny_model(kind), smollm2[1], **options)

    return kernel


@pytest.mark.invariant(1)
@pytest.mark.filterwarnings("ignore:.*cannot share a prefix")
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_reading_answers_the_same_and_is_not_read_again(make, tmp_path, kind):
    kernel = make(kind)
    reading = kernel.read(DOCUMENT)
    before = reading.ask(QUESTION, **OPTIONS)
    reading.save(tmp_path / "ship")
    other = make(kind)
    with spying(other.model) as spy:
        loaded = other.load(tmp_path / "ship")
        assert loaded.prefill().prefill_tokens == 0
        assert spy.tokens == 0
    after = loaded.ask(QUESTION, **OPTIONS)
    assert after.usage.prefill_tokens == 0
    assert after.usage.cached_tokens == before.usage.prefill_tokens
    assert after.token_ids == before.token_ids
    assert [m.token_ids for m in after.margins] == [m.token_ids for m in before.margins]
    assert [m.relevance for m in after.margins] == pytest.approx([m.relevance for m in before.margins])
    assert loaded.chunks == reading.chunks
    assert loaded.prompt_ids(after) == reading.prompt_ids(before)


@pytest.mark.filterwarnings("ignore:.*cannot share a prefix")
@pytest.mark.parametrize("kind", KINDS)
def test_part_of_a_packed_reading_serves_a_document_that_begins_alike(make, kind):
    kernel = make(kind)
    kernel.read(DOCUMENT).prefill()
    (entry,) = kernel.cache._entries
    packed = kernel.engine.pack(entry.prefix, entry.tokens)
    part = kernel.read(DOCUMENT).document.tokens.part(range(2))
    ids = list(part.ids())
    kernel.cache.clear()
    prefix = kernel.engine.unpack(packed, ids, len(ids) + 50)
    assert prefix.tokens == len(ids)
    kernel.cache.add(prefix, part)
    changed = [*DOCUMENT[:2], Chunk("And then there was fog.")]
    again = kernel.read(changed).ask(QUESTION, **OPTIONS)
    assert again.usage.cached_tokens == part.tokens(2)
    fresh = make(kind).read(changed).ask(QUESTION, **OPTIONS)
    assert again.token_ids == fresh.token_ids
    assert [m.token_ids for m in again.margins] == [m.token_ids for m in fresh.margins]


def test_nothing_in_a_file_is_pickled(make, tmp_path):
    make().read(DOCUMENT).save(tmp_path / "ship")
    with safe_open(tmp_path / "ship", framework="pt") as file:
        assert "ids" in file.keys()  # noqa: SIM118


def refused(kernel: WimKernel, path: Path) -> str:
    with pytest.raises(ReadingFileError) as caught:
        kernel.load(path)
    assert str(path) in str(caught.value)
    return caught.value.reason


def test_a_file_of_something_else_is_refused_with_the_reason(make, tmp_path, tiny_model, smollm2):
    path = tmp_path / "ship"
    make().read(DOCUMENT).save(path)
    assert "its model is LlamaForCausalLM and here it is Qwen2ForCausalLM" in refused(make("qwen2"), path)
    assert "chat template or frame" in refused(make(frame=Frame(system="Be brief.")), path)
    model = tiny_model("llama")
    with torch.no_grad():
        weight = model.model.layers[1].mlp.up_proj.weight
        weight[0, 0] += 1
    try:
        assert "its weights" in refused(WimKernel(model, smollm2[1]), path)
    finally:
        with torch.no_grad():
            weight[0, 0] -= 1
    halves = type(model)(model.config).to(torch.bfloat16).eval()
    halves.load_state_dict(model.state_dict())
    assert "its dtype is torch.float32" in refused(WimKernel(halves, smollm2[1]), path)
    assert "No such file" in refused(make(), tmp_path / "none")
    (tmp_path / "text").write_text("Elsa Brandt owned the ship, and this is no file of ours.")
    assert refused(make(), tmp_path / "text")


def test_metadata_that_is_no_data_is_written_as_text(make, tmp_path):
    make().read([Chunk("Elsa owned it.", metadata={"path": tmp_path})]).save(tmp_path / "ship")
    assert make().load(tmp_path / "ship").chunks[0].metadata == {"path": str(tmp_path)}


SMALL = TokenizedDocument((1, 2), ((3, 4, 5),))


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    """A small file, its bytes, and what it holds."""
    path = tmp_path_factory.mktemp("saved") / "small"
    packed = Packed({"0.keys": torch.arange(60.0).view(2, 5, 6)}, {"windows": {"0": None}}, 5)
    write(path, SMALL, packed, {"model": "this"}, {"chunks": []})
    return path, path.read_bytes()


@given(st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_that_matters_is_noticed(small_file, tmp_path, data):
    _, good = small_file
    bad = bytearray(good)
    if data.draw(st.booleans()):
        for place in data.draw(st.lists(st.integers(0, len(good) - 1), min_size=1, max_size=4, unique=True)):
            bad[place] ^= data.draw(st.integers(1, 255))
    else:
        bad = bad[: data.draw(st.integers(0, len(good) - 1))]
    path = tmp_path / "bad"
    path.write_bytes(bytes(bad))
    try:
        saved = read(path, {"model": "this"})
    except ReadingFileError:
        return
    # only what means nothing may differ: white space behind the header, or how its JSON is spelled
    assert saved.document == SMALL
    assert torch.equal(saved.packed.tensors["0.keys"], torch.arange(60.0).view(2, 5, 6))


@needs_fork
def test_killed_while_saving_leaves_a_whole_file(tmp_path):
    path = tmp_path / "ship"

    def save() -> None:
        for number in itertools.count():
            packed = Packed({"0.keys": torch.full((8, 4000, 64), float(number))}, {}, 2)
            write(path, TokenizedDocument((1,), ((number,),)), packed, {"model": "this"})
            print(number, flush=True)

    for wait in (0.01, 0.03, 0.05, 0.08):
        with Forked(save) as writer:
            writer.stdout.readline()
            time.sleep(wait)
            writer.kill()
        saved = read(path, {"model": "this"})
        number = saved.document.chunks[0][0]
        assert torch.equal(saved.packed.tensors["0.keys"], torch.full((8, 4000, 64), float(number)))


@needs_fork
def test_a_full_disk_is_said_and_leaves_what_was_there(tmp_path):
    path = tmp_path / "ship"
    document = TokenizedDocument((1,), ((2,),))

    def save() -> None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with pytest.raises(ReadingFileError, match="cannot be written"):
            write(path, document, Packed({"0.keys": torch.zeros(100_000)}, {}, 2), {"model": "this"})

    write(path, document, Packed({"0.keys": torch.ones(3)}, {}, 2), {"model": "this"})
    in_child(save)
    assert torch.equal(read(path, {"model": "this"}).packed.tensors["0.keys"], torch.ones(3))
    assert os.listdir(tmp_path) == ["ship"]


# -- a folder of them ------------------------------------------------------------------------------------------------


def test_chains_tell_common_beginnings():
    def of(head, *chunks):
        return chain(TokenizedDocument(head, chunks))

    first, second = of((1, 2), (3,), (4, 5)), of((1, 2), (3,), (4, 6))
    assert first[:2] == second[:2]
    assert first[2] != second[2]
    assert of((1,), (2, 3))[-1] != of((1, 2), (3,))[-1]


def one(number: int, size: int = 1000) -> tuple[TokenizedDocument, Packed]:
    return TokenizedDocument((1,), ((number,),)), Packed(
        {"0.keys": torch.full((size,), float(number))}, {}, 2
    )


def test_a_folder_keeps_to_its_budget_and_forgets_what_was_used_longest_ago(tmp_path):
    folder, identity = ReadingFolder(tmp_path, 20_000), {"model": "this"}
    for number in range(4):
        os.utime(folder.put(*one(number), identity), (number, number))
    first, _ = folder.best(one(0)[0], identity)
    assert first is not None
    assert folder.load(first, identity) is not None  # used now
    folder.put(*one(4), identity)
    assert folder.nbytes <= 20_000
    assert folder.best(one(0)[0], identity)[1] == 1
    assert folder.best(one(1)[0], identity)[1] == 0  # only the head is shared
    assert folder.best(one(0)[0], {"model": "another"}) == (None, 0)


def test_a_damaged_file_in_a_folder_is_deleted_and_what_was_left_unfinished_goes(tmp_path):
    folder, identity = ReadingFolder(tmp_path, 10**6), {"model": "this"}
    path = folder.put(*one(1), identity)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))
    assert folder.load(path, identity) is None
    assert not path.exists()
    left = tmp_path / f".x{SUFFIX}.1.2.unfinished"
    left.write_bytes(b"half")
    folder.trim()
    assert left.exists()  # its writer may be at work
    os.utime(left, (1, 1))
    folder.trim()
    assert not left.exists()


@pytest.mark.parametrize("path", [None, 3, b"x", "a\0b", ["x"]])
def test_save_and_load_refuse_what_is_no_path(kernel: WimKernel, path: Any) -> None:
    reading = kernel.read(["One."])
    for use in (reading.save, kernel.load, ReadingFolder):
        with pytest.raises(OptionError, match="has to be a path"):
            use(path)
