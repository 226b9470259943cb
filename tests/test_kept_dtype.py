"""Readings kept in 8 bits: how small they are, how near they come back, and what does not mix."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from helpers import FREE
from hypothesis import given
from hypothesis import strategies as st

from wim_kernel import OptionError, ReadingFileError, WimKernel
from wim_kernel.engines.local.engine import LocalEngine
from wim_kernel.engines.local.prefix.quantised import GROUP, Quantised, quantised_keys, quantised_values
from wim_kernel.engines.local.prefix.shared import SharedPrefix

QUESTION = "Who owned the ship?"
OPTIONS = {"threshold": 0, **FREE}
CHUNKS = ["The gull sat on the mast. " * 20, "Elsa Brandt owned the ship. " * 20]


@pytest.fixture
def make(tiny_model, smollm2):
    """Kernels on a tiny model."""

    def kernel(kind: str = "llama", **options) -> WimKernel:
        return WimKernel(tiny_model(kind), smollm2[1], **options)

    return kernel


def prefix_of(kernel: WimKernel) -> SharedPrefix:
    return cast(SharedPrefix, kernel.cache._entries[0].prefix)


@given(
    tokens=st.integers(1, 2 * GROUP + 3),
    heads=st.integers(1, 3),
    seed=st.integers(0, 2**20),
    offset=st.sampled_from([0.0, 300.0]),
)
def test_numbers_come_back_within_half_a_step_of_their_range(tokens, heads, seed, offset):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(tokens, heads, 8, generator=generator)
    numbers[..., 3] += offset  # a channel that is large in all tokens
    keys, values = quantised_keys(numbers), quantised_values(numbers)
    by_group = torch.cat([(part.amax(0) - part.amin(0)).expand_as(part) for part in numbers.split(GROUP)])
    by_token = (numbers.amax(-1, keepdim=True) - numbers.amin(-1, keepdim=True)).expand_as(numbers)
    for quantised, ranges in ((keys, by_group), (values, by_token)):
        assert quantised.codes.dtype == torch.uint8
        back = quantised.restored(torch.float32)
        assert ((back - numbers).abs() <= ranges / 255 / 2 + 1e-4).all()


def test_numbers_that_came_back_are_stored_as_before():
    numbers = torch.randn(GROUP + 40, 2, 16, generator=torch.Generator().manual_seed(1))
    for quantise in (quantised_keys, quantised_values):
        first = quantise(numbers)
        assert torch.equal(quantise(first.restored(torch.float32)).codes, first.codes)


def test_constant_numbers_come_back_exactly():
    for quantise in (quantised_keys, quantised_values):
        numbers = torch.full((5, 2, 4), -2.5)
        assert torch.equal(quantise(numbers).restored(torch.bfloat16), numbers.bfloat16())


def test_parts_are_found_by_name():
    quantised = quantised_keys(torch.randn(3, 1, 4))
    again = Quantised.of({**quantised.named("7.keys"), "other": torch.ones(1)}, "7.keys")
    assert torch.equal(again.restored(torch.float32), quantised.restored(torch.float32))


@pytest.mark.parametrize("kind", ["llama", "gemma3", "qwen3_next"])
def test_a_reading_comes_back_from_a_file_a_quarter_the_size(make, tmp_path, kind):
    exact, small = make(kind), make(kind, kept_dtype="int8")
    for kernel, name in ((exact, "exact"), (small, "small")):
        reading = kernel.read(CHUNKS)
        reading.margins(QUESTION, **OPTIONS)
        reading.save(tmp_path / name)
    before = prefix_of(small)
    keys = {index: layer.keys[:, : before.tokens].clone() for index, layer in before.layers.items()}
    small.cache.clear()
    result = small.load(tmp_path / "small").ask(QUESTION, **OPTIONS)
    assert result.usage.prefill_tokens == 0
    for index, layer in prefix_of(small).layers.items():
        found = layer.keys[:, : before.tokens]
        assert 0 < (found - keys[index]).norm() < 0.01 * keys[index].norm()
    if kind == "llama":  # the others keep states too, as they are
        packed = [
            make("llama", kept_dtype=dtype).engine.pack(before, before.tokens) for dtype in (None, "int8")
        ]
        assert packed[1].nbytes < 0.34 * packed[0].nbytes


def test_leading_chunks_of_a_kept_reading_are_used(make, tmp_path):
    kernel = make(kept_dtype="int8", cache_dir=tmp_path)
    kernel.read(CHUNKS).margins(QUESTION, **OPTIONS)
    assert kernel.cache.flush() == 1
    kernel.cache.clear()
    reading = kernel.read([CHUNKS[0], "Nobody else did."])
    result = reading.ask(QUESTION, **OPTIONS)
    assert 0 < result.usage.prefill_tokens < reading.tokens / 2


def test_evicted_readings_take_less_of_the_hosts_memory(make):
    sizes = []
    for dtype in (None, "int8"):
        kernel = make(kept_dtype=dtype, host_budget_bytes=2**30)
        kernel.read(CHUNKS).margins(QUESTION, **OPTIONS)
        kernel.cache.evict_idle()
        sizes.append(kernel.cache.host_nbytes)
        assert kernel.read(CHUNKS).ask(QUESTION, **OPTIONS).usage.prefill_tokens == 0
    assert 0 < sizes[1] < 0.34 * sizes[0]


@pytest.mark.parametrize(("saved", "loaded"), [("int8", None), (None, "int8")])
def test_exact_and_small_files_do_not_mix(make, tmp_path, saved, loaded):
    reading = make(kept_dtype=saved).read(CHUNKS)
    reading.margins(QUESTION, **OPTIONS)
    reading.save(tmp_path / "reading")
    with pytest.raises(ReadingFileError, match="its kept_dtype is"):
        make(kept_dtype=loaded).load(tmp_path / "reading")


def test_another_backend_with_another_layout_reads_the_same(make, monkeypatch):
    kernel = make(kept_dtype="int8")
    kernel.read(CHUNKS).margins(QUESTION, **OPTIONS)
    prefix, engine = prefix_of(kernel), cast(LocalEngine, kernel.engine)
    packed = engine.pack(prefix, prefix.tokens)
    backs = []
    for by_token in (True, False):
        monkeypatch.setattr(engine.backend, "by_token", by_token)
        backs.append(cast(SharedPrefix, engine.unpack(packed, prefix.ids, prefix.tokens)).layers[0])
    assert backs[0].keys.stride() != backs[1].keys.stride()
    assert torch.equal(backs[0].keys, backs[1].keys)
    assert torch.allclose(backs[0].values, prefix.layers[0].values[:, : prefix.tokens], atol=0.05)


@pytest.mark.filterwarnings("ignore:.*cannot share a prefix")
def test_wrong_options_are_refused(make):
    with pytest.raises(OptionError, match="kept_dtype is 'int8' or None, not 'int4'"):
        make(kept_dtype="int4")
    with pytest.raises(OptionError, match="branches share a prefix"):
        make(kept_dtype="int8", cache_mode="snapshot")
