"""A device that runs out of memory: fewer branches at a time, then a clear error, and a kernel that stays good."""

from __future__ import annotations

import pytest
import torch
from helpers import FREE

from wim_kernel import DeviceMemoryError, WimKernel
from wim_kernel.engines.local.prefix.shared import SharedPrefix

CHUNKS = [f"The gull sat on mast {number}. " for number in range(6)]
QUESTION = "Who owned the ship?"
OPTIONS = {"threshold": 0, **FREE}


@pytest.fixture
def kernel(tiny_model, smollm2) -> WimKernel:
    return WimKernel(tiny_model("llama"), smollm2[1])


class Device:
    """Has memory for so many branches, and for so many tokens of readings."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, branches: int = 100, readings: int = 100) -> None:
        self.branches, self.asked, self.refused = branches, [], 0
        branch, extend = SharedPrefix.branch, SharedPrefix.extend

        def limited(prefix, lengths, room):
            self.asked.append(len(lengths))
            if len(lengths) > self.branches:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return branch(prefix, lengths, room)

        def full(prefix, ids):
            if self.kernel is not None and len(self.kernel.cache) > readings:
                self.refused += 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return extend(prefix, ids)

        self.kernel: WimKernel | None = None
        monkeypatch.setattr(SharedPrefix, "branch", limited)
        monkeypatch.setattr(SharedPrefix, "extend", full)


@pytest.mark.invariant(3)
def test_branches_are_halved_and_nothing_is_lost_or_told_twice(kernel, monkeypatch):
    reading = kernel.read(CHUNKS)
    reading.prefill()
    wanted = reading.ask_many([QUESTION, "Which mast?"], **OPTIONS)
    device = Device(monkeypatch, branches=3)
    found = reading.ask_many([QUESTION, "Which mast?"], **OPTIONS)
    assert max(device.asked) > 3
    assert [r.token_ids for r in found] == [r.token_ids for r in wanted]
    for result, other in zip(found, wanted, strict=True):
        assert [m.token_ids for m in result.margins] == [m.token_ids for m in other.margins]
        assert [m.relevance for m in result.margins] == pytest.approx(
            [m.relevance for m in other.margins], abs=1e-4
        )
        assert result.usage.output_tokens == other.usage.output_tokens
        assert result.usage.prompt_tokens == other.usage.prompt_tokens


@pytest.mark.invariant(6)
def test_no_memory_for_one_branch_is_a_clear_error_and_the_kernel_stays_good(kernel, monkeypatch):
    reading = kernel.read(CHUNKS)
    wanted = reading.ask(QUESTION, **OPTIONS)
    with monkeypatch.context() as patch:
        Device(patch, branches=0)
        with pytest.raises(DeviceMemoryError, match=r"decode 1 branches together \(CUDA out of memory\)"):
            reading.ask(QUESTION, **OPTIONS)
    assert reading.ask(QUESTION, **OPTIONS).token_ids == wanted.token_ids
    assert not any(item.in_use for item in kernel.cache.held)


def test_idle_readings_are_evicted_when_memory_runs_out(kernel, monkeypatch):
    kernel.read(["Fog lay on the harbour."]).prefill()
    device = Device(monkeypatch, readings=1)
    device.kernel = kernel
    result = kernel.read(CHUNKS).ask(QUESTION, **OPTIONS)
    assert device.refused == 1
    assert len(kernel.cache) == 1
    assert result.answer
