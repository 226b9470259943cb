"""Readings that leave the device and come back: through pinned buffers, whatever their sizes, and to disk."""

from __future__ import annotations

import pytest
import torch
from helpers import config
from word_tokenizer import words

from wim_kernel.engines.local.prefix.transfer import BLOCK_BYTES, Transfer, copy_pairs, to_host

OPTIONS = {"threshold": 0, "margin_config": config(6), "answer_config": config(8, 8)}
CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    "count",
    [
        0,
        1,
        BLOCK_BYTES // 4 - 1,
        BLOCK_BYTES // 4,
        BLOCK_BYTES // 4 + 1,
        BLOCK_BYTES,
        3 * BLOCK_BYTES // 4 + 17,
    ],
)
def test_bytes_go_there_and_back(count):
    sources = [torch.randn(count, device=CUDA), torch.randn(5, 33, 8, device=CUDA).transpose(0, 1)[3:]]
    there = to_host(sources)
    back = [torch.full(item.shape, torch.nan, device=CUDA) for item in there]
    copy_pairs(list(zip(there, back, strict=True)))
    assert all(torch.equal(found, wanted) for found, wanted in zip(back, sources, strict=True))


def test_what_is_computed_before_is_what_is_copied():
    """The copies go on a stream of their own, and wait for what the current one was given."""
    square = torch.randn(4096, 4096, device=CUDA)
    for _ in range(3):
        later = square
        for _ in range(40):
            later = (later @ square).clamp(-1, 1)
        (found,) = to_host([later])
        assert torch.equal(found, later.cpu())
    target, ones = torch.zeros(4096, 4096, device=CUDA), torch.ones(4096, 4096)
    Transfer(CUDA, 2**20).copy([(ones, target)])
    assert float((target + target).sum()) == 2.0 * 4096 * 4096


@pytest.mark.invariant(1)
@pytest.mark.parametrize("attention", ["auto", "parts"])
def test_a_reading_in_the_hosts_memory_or_on_disk_is_as_good_as_new(make_kernel, tmp_path, attention):
    kernel = make_kernel("llama", attention)
    document = [words(500, 1), words(130, 2), words(1, 3)]
    reading = kernel.read(document)
    wanted = reading.ask(words(6, 4), **OPTIONS)
    kernel.cache.evict_idle()
    assert [held.where for held in kernel.cache.held] == ["host"]
    found = kernel.read(document).ask(words(6, 4), **OPTIONS)
    assert found.usage.prefill_tokens == 0
    reading.save(tmp_path / "reading")
    kernel.cache.clear()
    loaded = kernel.load(tmp_path / "reading").ask(words(6, 4), **OPTIONS)
    assert loaded.usage.prefill_tokens == 0
    assert wanted.token_ids == found.token_ids == loaded.token_ids
    notes = [[margin.token_ids for margin in result.margins] for result in (wanted, found, loaded)]
    assert notes[0] == notes[1] == notes[2]
