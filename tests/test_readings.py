"""Live readings: found again by what they hold, within a budget, never one in use."""

from __future__ import annotations

import pytest
from helpers import FREE, spying
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wim_kernel import MemoryBudgetError, WimKernel
from wim_kernel.cache.lease import Lease
from wim_kernel.text.run_text import Text

A, B, C, D = (
    f"{name} and a zebra sat in the boat that night." for name in ("Anna", "Berta", "Carla", "Dora")
)


@pytest.fixture(scope="module")
def kernel(tiny_model, smollm2):
    return WimKernel(tiny_model("qwen2"), smollm2[1])


@pytest.fixture(autouse=True)
def fresh(kernel):
    kernel.cache.clear()


def prefilled(kernel, chunks):
    return kernel.read(chunks).prefill().prefill_tokens


def size(kernel, chunks):
    return kernel.read(chunks).tokens


@pytest.mark.invariant(1)
def test_the_longest_run_of_leading_chunks_is_found(kernel):
    assert prefilled(kernel, [A, B]) == size(kernel, [A, B])
    assert prefilled(kernel, [A, B]) == 0
    assert prefilled(kernel, [A, B, C]) == size(kernel, [A, B, C]) - size(kernel, [A, B])  # grows at its end
    assert prefilled(kernel, [A, B, D]) == size(kernel, [A, B, D]) - size(
        kernel, [A, B]
    )  # goes on differently
    assert prefilled(kernel, [A]) == 0
    assert prefilled(kernel, [B, A]) == size(kernel, [B, A])  # leading chunks only
    assert prefilled(kernel, [A, B, C]) == prefilled(kernel, [A, B, D]) == 0
    assert len(kernel.cache) == 3


@pytest.mark.invariant(2)
def test_a_fork_is_a_copy_and_both_stay_right(kernel):
    alone = {}
    for chunks in ((A, B, C), (A, B, D), (A, D)):
        kernel.cache.clear()
        alone[chunks] = kernel.read(chunks).ask("Who?", threshold=0, **FREE)
    kernel.cache.clear()
    readings = {chunks: kernel.read(chunks) for chunks in alone}
    for _ in range(2):
        for chunks, reading in readings.items():
            result = reading.ask("Who?", threshold=0, **FREE)
            assert result.answer == alone[chunks].answer
            assert [m.text for m in result.margins] == [m.text for m in alone[chunks].margins]


@pytest.mark.invariant(2)
def test_readings_that_differ_in_the_middle_fork(kernel):
    first, second = kernel.read([A, B, C]), kernel.read([A, B, D])
    with spying(kernel.model) as spy:
        streams = [reading.stream("Who?", threshold=0, **FREE) for reading in (first, second)]
        results = {}
        while streams:
            for stream in list(streams):
                event = next(stream, None)
                if event is None:
                    streams.remove(stream)
                elif hasattr(event, "result"):
                    results[stream] = event.result
    (zebra,) = kernel.engine.encode(Text(" zebra"))
    assert spy.count(zebra) == 4  # A and B once for both, C, D
    kernel.cache.clear()
    answers = [
        kernel.read(chunks).ask("Who?", threshold=0, **FREE).answer for chunks in ([A, B, C], [A, B, D])
    ]
    assert [result.answer for result in results.values()] == answers


def test_eviction_takes_the_least_recently_used(kernel, tiny_model, smollm2):
    one = kernel.engine.prefix_bytes(len(kernel._head) + size(kernel, [A]))
    small = WimKernel(tiny_model("qwen2"), smollm2[1], budget_bytes=int(2.7 * one))
    for chunk in (A, B):
        prefilled(small, [chunk])
    assert prefilled(small, [A]) == 0  # used again
    assert prefilled(small, [C]) > 0  # B goes
    assert len(small.cache) == 2
    assert small.cache.nbytes <= small.cache.budget.engine
    assert prefilled(small, [A]) == 0
    assert prefilled(small, [B]) > 0


def test_eviction_spares_readings_in_use(kernel, tiny_model, smollm2):
    one = kernel.engine.prefix_bytes(len(kernel._head) + size(kernel, [A]))
    small = WimKernel(tiny_model("qwen2"), smollm2[1], budget_bytes=int(1.5 * one))
    expected = small.read([A]).ask("Who?", threshold=0, **FREE)
    small.cache.clear()
    stream = small.read([A]).stream("Who?", threshold=0, **FREE)
    next(stream)
    for chunk in (B, C):
        small.read([chunk]).ask("Who?", **FREE)
    assert list(stream)[-1].result.answer == expected.answer
    assert small.cache.nbytes <= small.cache.budget.engine  # back within it once nobody reads


def test_a_document_over_the_budget_is_refused(tiny_model, smollm2):
    small = WimKernel(tiny_model("qwen2"), smollm2[1], budget_bytes=1000)
    with pytest.raises(MemoryBudgetError, match="budget is 1,000") as error:
        small.read([A]).ask("Who?", **FREE)
    assert error.value.needed > error.value.budget == 1000
    assert len(small.cache) == 0


def test_a_closed_reading_reads_again(kernel):
    reading = kernel.read([A, B])
    before = reading.ask("Who?", threshold=0, **FREE)
    reading.close()
    assert len(kernel.cache) == 0
    after = reading.ask("Who?", threshold=0, **FREE)
    assert after.usage.prefill_tokens == reading.tokens
    assert after.answer == before.answer


def test_held_lists_live_readings(kernel):
    stream = kernel.read([A, B]).stream("Who?", **FREE)
    next(stream)
    (held,) = kernel.cache.held
    assert held.in_use
    assert held.nbytes == kernel.cache.nbytes > 0
    list(stream)
    (held,) = kernel.cache.held
    assert (held.in_use, held.chunks) == (False, 2)
    assert held.tokens == len(kernel._head) + size(kernel, [A, B])


def test_room_is_allocated_once(kernel):
    reading = kernel.read([A, B, C])
    stream = reading.stream_margins("Who?", **FREE)
    next(stream)
    (entry,) = kernel.cache._entries
    buffers = {index: layer.keys.data_ptr() for index, layer in entry.prefix.layers.items()}
    list(stream)
    assert buffers == {index: layer.keys.data_ptr() for index, layer in entry.prefix.layers.items()}
    assert entry.prefix.layers[0].keys.shape[1] == len(kernel._head) + reading.tokens


@pytest.mark.slow
@pytest.mark.invariant(1)
@given(
    documents=st.lists(
        st.lists(st.sampled_from([A, B, C, D]), min_size=1, max_size=4), min_size=1, max_size=6
    )
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_shared_leading_chunks_are_prefilled_once(kernel, documents):
    kernel.cache.clear()
    seen: set[tuple[str, ...]] = set()
    for document in documents:
        known = max((n for n in range(len(document) + 1) if tuple(document[:n]) in seen), default=0)
        expected = size(kernel, document) - (size(kernel, document[:known]) if known else 0)
        assert prefilled(kernel, document) == expected
        seen |= {tuple(document[: n + 1]) for n in range(len(document))}


def test_a_lease_plans_its_chunks_at_once(kernel):
    """Somebody who comes between a reader's look and its reading goes on in a copy, and does not take over the plan."""

    def tokens(*chunks):
        return kernel.read(chunks).document.tokens

    left = Lease(kernel.cache, tokens(A, B))
    list(left.read(0))
    left.close()  # B was planned, and never read
    reader, late = Lease(kernel.cache, tokens(A, C)), None
    try:
        assert kernel.cache.plan(reader.entry, reader.document, 1)
        late = Lease(kernel.cache, tokens(A, D))
        list(reader.read(1))
        list(late.read(1))
        assert reader.entry is not late.entry
        for lease, last in ((reader, C), (late, D)):
            assert lease.prefix.ids == list(tokens(A, last).ids())
    finally:
        reader.close()
        if late is not None:
            late.close()
