"""What random models and the embedded model find: exact scores, their order, rounds, and streams."""

from __future__ import annotations

import copy
import itertools
import json

import numpy as np
import pytest
import torch
from halcyon import BRIEF, CREW, FOUND, PASSAGES, QUESTION, ROUTE, SHIP
from helpers import SHORT, TinyModel, config, scored_alone

from wim_kernel import (
    Answered,
    Evidence,
    Margin,
    MarginRevised,
    MarginWritten,
    Reading,
    WimKernel,
)
from wim_kernel.run.relevance import BY_NAME
from wim_kernel.run.relevance.calibration import SIGNALS
from wim_kernel.run.relevance.findings import FLOOR
from wim_kernel.text.run_text import Text


def attended(
    reading: Reading, ids: list[int], question: str, spans: list[tuple[int, int]], model
) -> np.ndarray:
    """Attention of the question's tokens on spans, by the model's own eager code: mean over all heads."""
    asked = reading.kernel.engine.encode(Text(" " + question))
    start = next(at for at in range(len(ids), 0, -1) if ids[at : at + len(asked)] == asked)
    with torch.inference_mode():
        layers = model(torch.tensor([ids]), output_attentions=True).attentions
    weights = torch.cat(layers, 1)[0, :, start : start + len(asked)].mean((0, 1))
    return np.array([float(weights[begin:end].sum()) for begin, end in spans])


@pytest.mark.invariant(3)
@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_attention_equals_that_of_the_model_alone(tiny_model: TinyModel, smollm2, kind: str) -> None:
    kernel = WimKernel(tiny_model(kind), smollm2[1])
    reading = kernel.read(PASSAGES)
    margins = reading.margins(QUESTION, threshold=0, relevance="attention", **SHORT)
    eager = copy.deepcopy(tiny_model(kind))
    eager.set_attn_implementation("eager")
    begins = list(reading.document.tokens.ends)
    spans = [
        (begins[passage.chunk] + begin, begins[passage.chunk] + end)
        for passage in reading.document.passages.passages
        for begin, end in zip(passage.cuts[::2], passage.cuts[1::2], strict=True)
    ]
    (ids,) = {tuple(reading.prompt_ids(margin)) for margin in margins}
    other = reading.prompt_ids(reading.margins("N/A", threshold=0, relevance="attention", **SHORT)[0])
    mass = attended(reading, list(ids), QUESTION, spans, eager) - attended(
        reading, other, "N/A", spans, eager
    )
    passages = np.add.reduceat(mass, [0, 2, 4])
    wanted = np.log(np.maximum(passages, 1e-5))
    wanted = np.maximum(wanted - wanted.max(), FLOOR["attention"])
    assert [margin.evidence["attention"] for margin in margins] == pytest.approx(wanted.tolist(), abs=0.02)


@pytest.mark.invariant(3)
@pytest.mark.parametrize("path", ["shared", "snapshot"])
def test_passages_read_alone_equal_plain_passes(tiny_model: TinyModel, smollm2, path: str) -> None:
    kernel = WimKernel(tiny_model("llama"), smollm2[1], cache_mode=path)
    reading = kernel.read(PASSAGES)
    lead = kernel.engine.encode(Text("\n\nQuestion about the document above:", trusted=True))
    asked, head = kernel.engine.encode(Text(" " + QUESTION)), list(reading.document.tokens.head)
    alone = [
        scored_alone(kernel.model, head + kernel.engine.encode(Text(passage)) + lead, asked)
        for passage in PASSAGES
    ]
    evidence = reading.evidence(QUESTION, relevance="passage", margin_style="free")
    assert [item.passage for item in evidence] == pytest.approx(
        [value - max(alone) for value in alone], abs=1e-4
    )
    assert np.argsort(reading.relevance(QUESTION, relevance="passage")).tolist() == np.argsort(alone).tolist()


def test_a_summary_finds_every_chunk_relevant(kernel: WimKernel) -> None:
    reading = kernel.read([SHIP, "", CREW])
    assert reading.relevance("", task="summarise") == [1, 0, 1]


@pytest.mark.parametrize("options", [{"stop_when": "enough", "margin_batch": 1}, {"rounds": 2}])
def test_notes_in_prompts_never_pass_the_window(tiny_model: TinyModel, smollm2, options: dict) -> None:
    kernel, reached = WimKernel(tiny_model("llama"), smollm2[1], window=200, calibration=FOUND), []

    def note(_module: object, _args: object, kwargs: dict[str, torch.Tensor]) -> None:
        reached.append(int(kwargs["position_ids"].max()))

    hook = kernel.model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        kernel.read(PASSAGES).margins(QUESTION, threshold=0, **options, **SHORT)
    finally:
        hook.remove()
    assert 100 < max(reached) < 200


def test_usage_counts_the_weighed_sentences(tiny_model: TinyModel, smollm2) -> None:
    kernel = WimKernel(tiny_model("llama"), smollm2[1], cache_mode="snapshot")
    reading, options = kernel.read(PASSAGES), {"margin_style": "verbatim", "threshold": 0, **SHORT}
    questions = [QUESTION, "What was the worst danger of all?"]
    together = reading.ask_many(questions, **options)
    for question, result in zip(questions, together, strict=True):
        alone = reading.ask(question, **options)
        assert result.usage.prompt_tokens == alone.usage.prompt_tokens + (
            len(kernel._head) if result is together[0] else 0
        )


@pytest.fixture
def trained(real_kernel: WimKernel) -> WimKernel:
    """The embedded model, with nothing read."""
    real_kernel.cache.clear()
    return real_kernel


@pytest.mark.invariant(5)
def test_few_passages_are_ranked_the_same_in_every_order(trained: WimKernel) -> None:
    found = {}
    for order in itertools.permutations(range(3)):
        margins = trained.read([PASSAGES[index] for index in order]).margins(QUESTION, **BRIEF)
        found[order] = {index: margin for index, margin in zip(order, margins, strict=True)}
    first = found[0, 1, 2]
    assert first[0].kept
    assert "Elsa Brandt owned the Halcyon" in first[0].text
    assert max(first, key=lambda index: first[index].relevance) == 0
    for margins in found.values():
        for index, margin in margins.items():
            assert margin.relevance == pytest.approx(first[index].relevance, abs=1e-3)
            assert (margin.kept, margin.text) == (first[index].kept, first[index].text)


def test_margins_say_what_their_relevance_is_made_of(trained: WimKernel) -> None:
    margins = trained.read(PASSAGES).margins(QUESTION, **BRIEF)
    for margin in margins:
        assert set(margin.evidence) == set(SIGNALS)
        assert all(value <= 0 for value in margin.evidence.values())
        assert Margin.from_dict(json.loads(json.dumps(margin.to_dict()))).evidence == margin.evidence
    for name in SIGNALS:
        assert max(margin.evidence[name] for margin in margins) == 0


@pytest.mark.parametrize("name", [name for name in BY_NAME if name != "rating"])  # a chat model's own
def test_each_relevance_by_name(trained: WimKernel, name: str) -> None:
    margins = trained.read(PASSAGES).margins(QUESTION, relevance=name, threshold=0, **BRIEF)
    assert all(0 <= margin.relevance <= 1 for margin in margins)
    assert all(margin.kept and margin.text in PASSAGES[margin.index] for margin in margins)
    if name in ("combined", "attention", "lexical", "passage"):
        assert max(margins, key=lambda margin: margin.relevance).index == 0
        assert name == "combined" or name in margins[0].evidence
    measured = {"likelihood": "likelihood", "decision": "decision", "second-call": "judgement"}.get(name)
    assert measured is None or all(measured in margin.evidence for margin in margins)


def test_a_score_of_ones_own_sees_every_signal(trained: WimKernel) -> None:
    seen: list[Evidence] = []

    def score(evidence: Evidence) -> float:
        seen.append(evidence)
        return evidence.probabilities["attention"]

    relevance = trained.read(PASSAGES).relevance(QUESTION, relevance=score)
    assert [evidence.chunk.text for evidence in seen] == PASSAGES
    for evidence, value in zip(seen, relevance, strict=True):
        assert value == pytest.approx(evidence.probabilities["attention"])
        assert set(evidence.signals) == {*SIGNALS, "likelihood", "likelihood_before"}
        assert set(evidence.probabilities) == {*SIGNALS, "combined"}
    plain = trained.read(PASSAGES).evidence(QUESTION)
    for own, one in zip(seen, plain, strict=True):
        assert [own.attention, own.lexical, own.passage] == pytest.approx(
            [one.attention, one.lexical, one.passage], abs=1e-4
        )


def test_rounds_only_add_margins(trained: WimKernel) -> None:
    reading = trained.read(PASSAGES)
    once = reading.margins("Where did the brig that Elsa Brandt owned sail to?", **BRIEF)
    twice = reading.margins("Where did the brig that Elsa Brandt owned sail to?", rounds=2, **BRIEF)
    assert any(margin.kept for margin in once)
    for before, after in zip(once, twice, strict=True):
        assert after.relevance >= before.relevance - 1e-4
        assert after.kept or not before.kept
        assert bool(after.text) is after.kept


@pytest.mark.parametrize("style", ["verbatim", "free"])
def test_stopping_when_the_notes_are_enough(trained: WimKernel, style: str) -> None:
    options = {**BRIEF, "margin_style": style, "margin_batch": 1, "margin_config": config(8)}
    result = trained.read(PASSAGES).ask(QUESTION, stop_when="enough", **options)
    read = len(result.margins)
    assert result.stopped_early is (read < len(PASSAGES))
    assert result.usage.prefill_tokens == trained.read(PASSAGES).tokens_through(read)
    assert not trained.read([ROUTE]).ask("What is a zebra?", threshold=1, stop_when="enough", **options).kept
    with pytest.raises(ValueError, match='"enough"'):
        trained.read(PASSAGES).ask(QUESTION, stop_when="plenty", **options)
    with pytest.raises(ValueError, match="use one of them"):
        trained.read(PASSAGES).ask(QUESTION, stop_when="enough", stop_after=1, **options)


SEA = [
    f"{SHIP} No one else had a share in her.\n\n"
    "A brig has two masts, both of them square-rigged. She carries more canvas than a schooner of her "
    "length would.",
    f"{CREW} None of them could swim.\n\n"
    "The cook was called Anders. He had lost a finger to a winch in his youth, and it never troubled him.",
    f"{ROUTE} It closed the gulf in March.\n\n"
    "Other captains waited until May. By then the price of rye had fallen, and the voyage hardly paid.",
    "The harbour of Tolmere faces west. A breakwater was begun in 1840 and never finished for want of stone.",
    "The customs house burned in 1851. All registers of ownership before that year were lost in it, to the last.\n\n"
    "It was built "
    "again in brick, at the expense of the town, and opened on a wet Monday in the spring.",
    "In the end Jonas Fenn bought the Halcyon from her owner for a song, and never paid all of it.\n\n"
    "He broke her up, and his barn still has "
    "her beams. Visitors are shown them on Sundays, for a small fee.",
]


@pytest.mark.parametrize("style", ["verbatim", "free"])
def test_a_stream_comes_to_what_asking_comes_to(trained: WimKernel, style: str) -> None:
    options = {**BRIEF, "margin_style": style, "margin_batch": 2, "margin_tokens": 16}
    reading = trained.read(SEA)
    assert len(reading.document.passages) > 8  # too many for each to be read alone
    events = list(reading.stream(QUESTION, **options))
    asked = reading.ask(QUESTION, **{**options, "margin_batch": None})
    (streamed,) = (event.result for event in events if isinstance(event, Answered))
    assert any(margin.kept for margin in asked.margins)
    assert streamed.answer == asked.answer
    for one, other in zip(streamed.margins, asked.margins, strict=True):
        assert (one.index, one.text, one.kept) == (other.index, other.text, other.kept)
        assert one.relevance == pytest.approx(other.relevance, abs=1e-4)
        assert one.evidence == pytest.approx(other.evidence, abs=1e-3)
    told = {event.margin.index: event.margin for event in events if isinstance(event, MarginWritten)}
    assert sorted(told) == list(range(len(SEA)))
    revised = {event.margin.index: event.margin for event in events if isinstance(event, MarginRevised)}
    final = {margin.index: margin for margin in streamed.margins}
    for index, margin in revised.items():
        assert margin == final[index]
        assert (margin, margin.evidence) != (told[index], told[index].evidence)
    for index in set(final) - set(revised):
        assert (told[index].text, told[index].kept) == (final[index].text, final[index].kept)
