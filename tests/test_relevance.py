"""Evidence: words, passages, what is known of them, calibrations, and what the embedded model finds with them."""

from __future__ import annotations

import copy
import itertools
import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import FREE, SHORT, TinyModel, config, scored_alone

from wim_kernel import (
    Answered,
    Chunk,
    Evidence,
    Margin,
    MarginRevised,
    MarginWritten,
    Reading,
    Span,
    WimKernel,
)
from wim_kernel.engines.local.selfcheck import reads_text
from wim_kernel.run.relevance import BY_NAME, calibration
from wim_kernel.run.relevance.calibration import SIGNALS, Calibration
from wim_kernel.run.relevance.examples import Example, packaged_examples
from wim_kernel.run.relevance.findings import FLOOR, Findings
from wim_kernel.run.relevance.lexical import LexicalIndex, words
from wim_kernel.run.relevance.logistic import logistic
from wim_kernel.run.relevance.passages import (
    HEADING_CHARACTERS,
    PASSAGE_CHARACTERS,
    DocumentPassages,
    quotable,
)
from wim_kernel.text.run_text import Text

QUESTION = "Who owned the Halcyon?"
SHIP = "The Halcyon was a brig of ninety tons. Elsa Brandt owned the Halcyon for eleven years."
CREW = "The Halcyon had a crew of nine. Most of the crew came from villages along the coast."
ROUTE = "The Halcyon sailed to Riga each spring. The ice was the worst danger of the route."
PASSAGES = [SHIP, CREW, ROUTE]
BRIEF = {"margin_config": config(24), "answer_config": config(4)}

# -- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        (" \n-- ... !", []),
        ("Who OWNED the ship?", ["who", "owned", "the", "ship"]),
        ("Straße, 1771!", ["strasse", "1771"]),
        ("cafe\u0301 CAF\u00c9", ["café", "café"]),
        ("Ποιος είχε", ["ποιοσ", "είχε"]),
        ("Кто владел", ["кто", "владел"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("مَن ملك", ["مَن", "ملك"]),
        ("東京都", ["東京", "京都", "都"]),
        ("GPT4は東京", ["gpt4", "は東", "東京", "京"]),
    ],
)
def test_words_of_many_languages(text: str, found: list[str]) -> None:
    assert words(text) == found


def test_words_are_weighted_by_how_rare_they_are() -> None:
    index = LexicalIndex(["the ship the ship the ship", "the harbour", "the ledger of Elsa", "the fog"])
    coverage = index.coverage("the ledger")
    assert coverage.argmax() == 2
    assert coverage[2] > 3 * coverage[[0, 1, 3]].max() > 0
    assert np.all((coverage >= 0) & (coverage <= 1))
    once, often = index.coverage("ship")[0], LexicalIndex(["ship fog", "fog fog"]).coverage("ship")[0]
    assert once != often
    assert index.coverage("ship ship ship").tolist() == index.coverage("ship").tolist()
    for nothing in ("", "?!", "zebra"):
        assert index.coverage(nothing).tolist() == [0, 0, 0, 0]


def test_coverage_is_bm25_over_the_best_that_there_could_be() -> None:
    passages = ["a b a c", "b d", "e e e e e e"]
    lengths, total = [4, 2, 6], 3
    index = LexicalIndex(passages)
    for place, counts in enumerate([{"a": 2, "b": 1}, {"a": 0, "b": 1}, {"a": 0, "b": 0}]):
        scale = 1.2 * (0.25 + 0.75 * lengths[place] / 4)
        rarity = {
            word: np.log(1 + (total - having + 0.5) / (having + 0.5)) for word, having in (("a", 1), ("b", 2))
        }
        wanted = sum(rarity[word] * count / (count + scale) for word, count in counts.items())
        assert index.coverage("a b zebra")[place] == pytest.approx(wanted / sum(rarity.values()))


def test_no_passages_and_passages_without_words() -> None:
    assert LexicalIndex([]).coverage("ship").shape == (0,)
    assert LexicalIndex(["", "--"]).coverage("ship").tolist() == [0, 0]


# -- passages ---------------------------------------------------------------------------------------------------------

LONG = " ".join(f"On day {day} the fog lay on the harbour and nobody sailed." for day in range(40))


def in_passages(*chunks: Chunk) -> DocumentPassages:
    """Passages of chunks of which each character is a token."""
    return DocumentPassages(
        chunks, [len(chunk.text) for chunk in chunks], [range(len(chunk.text)) for chunk in chunks]
    )


def test_passages_hold_every_sentence_once_and_in_order() -> None:
    chunks = [Chunk(LONG), Chunk("\n\n"), Chunk(""), Chunk("One.\n\nTwo? Three! --\n\n* * *"), Chunk("Tail")]
    document = in_passages(*chunks)
    assert [len(document.of_chunk[index]) for index in (1, 2, 4)] == [0, 0, 1]
    assert [index for mine in document.of_chunk for index in mine] == list(range(len(document)))
    for number, chunk in enumerate(chunks):
        mine = [document.passages[index] for index in document.of_chunk[number]]
        assert all(passage.chunk == number for passage in mine)
        assert [span for passage in mine for span in passage.sentences] == quotable(chunk.text)
        for passage in mine:
            begin, end = passage.sentences[0][0], passage.sentences[-1][1]
            assert passage.text == chunk.text[begin:end]
            assert len(passage.text) <= PASSAGE_CHARACTERS
    assert len(document.of_chunk[0]) > 3
    for index, passage in enumerate(document.passages):
        for place, (start, end) in enumerate(passage.sentences):
            assert document.text_of(index, place) == chunks[passage.chunk].text[start:end]
    assert [sentences.stop - sentences.start for sentences in document.sentences_of] == [
        len(passage.sentences) for passage in document.passages
    ]


def test_a_sentence_that_is_too_long_is_a_passage_of_its_own() -> None:
    endless = "and the fog lay " * 60
    document = in_passages(Chunk(f"A ship. {endless.strip()}. A gull."))
    assert [passage.text[:6] for passage in document.passages] == ["A ship", "and th", "A gull"]


def test_a_heading_goes_with_the_paragraph_below_it() -> None:
    paragraph = (
        "The brig left port in May, laden with rye, and was seen off the cape by two fishermen that night."
    )
    assert len(paragraph) < HEADING_CHARACTERS + 20
    first, second = f"{paragraph} Nobody saw her again.", f"{paragraph} She came home."
    document = in_passages(Chunk(f"The loss\n\n{first}\n\nThe return\n\n{second}"))
    assert [passage.text for passage in document.passages] == [
        f"The loss\n\n{first}",
        f"The return\n\n{second}",
    ]


def test_passages_leave_out_text_around_sources() -> None:
    text = "Title: a log\nElsa owned it. Fog fell."
    begin = text.index("Elsa")
    document = in_passages(Chunk(text, (Span("log", 0, len(text) - begin, begin, len(text) - begin),)))
    assert [passage.text for passage in document.passages] == ["Elsa owned it. Fog fell."]


@pytest.mark.parametrize(
    "text",
    [
        SHIP,
        f"  {SHIP}\n\n  {CREW} ",
        "Füße? <|im_end|> 🙂 Ende. Noch einer!",
        "東京は都です。大阪は違います。",
    ],
)
def test_token_cuts_agree_with_the_tokens_that_are_read(tiny_kernel: WimKernel, text: str) -> None:
    reading = tiny_kernel.read([ROUTE, text])
    document, decode = reading.document.passages, tiny_kernel.engine.codec.backend.decode
    assert document.of_chunk[1]
    for passage in document.passages:
        ids = reading.document.tokens.chunks[passage.chunk]
        for place, (start, end) in enumerate(passage.sentences):
            cut = ids[passage.cuts[2 * place] : passage.cuts[2 * place + 1]]
            said = decode(list(cut), skip_special_tokens=False)
            wanted = reading.chunks[passage.chunk].text[start:end]
            # A token belongs where it begins: the space before a sentence to the sentence or to what is before it.
            assert said.strip() == wanted


# -- findings ---------------------------------------------------------------------------------------------------------


def findings(document: DocumentPassages, seed: int = 0) -> Findings:
    """Findings of made-up signals."""
    random, found = np.random.default_rng(seed), Findings.of(document, QUESTION)
    found.mass = [random.exponential(0.01, len(passage.sentences)) for passage in document.passages]
    found.likelihood = random.normal(-3, 1, len(document))
    return found


def test_signals_are_relative_to_the_best_passage() -> None:
    document = in_passages(*map(Chunk, PASSAGES))
    for seed in range(20):
        relative = findings(document, seed).relative()
        assert set(relative) == set(SIGNALS)
        for name, values in relative.items():
            assert values.max() == 0
            assert values.min() >= FLOOR[name]
    nothing = Findings.of(document, "zebra").relative()
    assert all(values.tolist() == [0, 0, 0] for values in nothing.values())


def test_a_passage_that_was_not_measured_is_behind_those_that_were() -> None:
    found = findings(in_passages(*map(Chunk, PASSAGES)))
    found.likelihood = np.array([-2.0, np.nan, -3.0])
    assert found.relative()["passage"].tolist() == pytest.approx([0, -1.3, -1])
    found.mass[0] = None
    found.changed()
    assert found.relative()["attention"][0] == FLOOR["attention"]
    assert found.evidence(QUESTION, Chunk(SHIP), 0, Calibration()).attention is None


@pytest.mark.invariant(5)
def test_the_order_of_passages_permutes_their_scores() -> None:
    known = findings(in_passages(*map(Chunk, PASSAGES)))
    wanted = known.probabilities(Calibration())
    for order in itertools.permutations(range(3)):
        found = Findings.of(in_passages(*(Chunk(PASSAGES[index]) for index in order)), QUESTION)
        found.mass = [known.mass[index] for index in order]
        found.likelihood = known.likelihood[list(order)]
        for name, values in found.probabilities(Calibration()).items():
            assert values.tolist() == pytest.approx(wanted[name][list(order)].tolist())


def test_of_passages_read_alone_only_the_last_shortlist_counts() -> None:
    found = Findings.of(in_passages(*map(Chunk, PASSAGES)), QUESTION)
    found.measured = {0: -1.0, 1: -2.0}
    found.count_only([0, 1], [0, 1])
    found.measured[2] = -1.5
    found.count_only([0, 2], [0, 1, 2])
    assert found.likelihood.tolist() == pytest.approx([-1.0, np.nan, -1.5], nan_ok=True)


def test_a_chunk_without_text_has_no_evidence() -> None:
    document = in_passages(Chunk(""), Chunk(SHIP))
    assert findings(document).evidence(QUESTION, Chunk(""), 0, Calibration()).signals == {}


def test_another_round_only_makes_evidence_likelier() -> None:
    document = in_passages(*map(Chunk, PASSAGES))
    found = findings(document, 1)
    before = found.probabilities(Calibration())["combined"]
    found.again = findings(document, 2)
    found.changed()
    again = found.again.probabilities(Calibration())["combined"]
    assert found.probabilities(Calibration())["combined"].tolist() == np.maximum(before, again).tolist()


# -- calibrations -----------------------------------------------------------------------------------------------------

FOUND = Calibration(heads=((1, 2), (0, 3)), source="examples")


def test_a_calibration_is_read_back_as_it_was_written() -> None:
    read = Calibration.from_dict(json.loads(json.dumps(FOUND.to_dict())), "examples")
    assert read == FOUND
    assert read.is_found
    assert not Calibration().is_found
    curve = FOUND.probability("combined", np.array([-1000.0, 0.0, 1000.0]))
    assert np.all(np.diff(curve) > 0)
    assert np.all((curve > 0) & (curve <= 1))


DAMAGE = [
    {"version": 0},
    {"version": None},
    {"heads": [[1]]},
    {"heads": "no"},
    {"spread": {}},
    {"spread": {**FOUND.spread, "passage": 0}},
    {"spread": {**FOUND.spread, "passage": float("nan")}},
    {"spread": None},
    {"curves": {**FOUND.curves, "combined": [1.0]}},
    {"curves": {**FOUND.curves, "combined": ["a", "b"]}},
    {"curves": {**FOUND.curves, "alone": [float("inf"), 0]}},
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_invalid_calibrations_are_refused(damage: dict) -> None:
    with pytest.raises(ValueError, match=r"it|numbers|convert|unpack"):
        Calibration.from_dict({**FOUND.to_dict(), **damage}, "cache")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The user's cache folder."""
    monkeypatch.setattr(calibration, "user_cache_path", lambda *_, **__: tmp_path / "cache")
    return tmp_path / "cache"


def test_a_calibration_is_kept_and_known_again(cache) -> None:
    assert calibration.known("a model") is None
    calibration.keep("a model", FOUND)
    assert calibration.known("a model") == replace(FOUND, source="cache")
    assert [path.name for path in (cache / "calibrations").iterdir()] == ["a model.json"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"version": 99}', b"\xff\xfe\x00", b'{"version": 1}']
)
def test_a_damaged_file_is_said_and_not_used(cache, caplog, content: bytes) -> None:
    calibration.keep("a model", FOUND)
    (cache / "calibrations" / "a model.json").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert calibration.known("a model") is None
    assert "is not used" in caplog.text


def test_a_cache_that_cannot_be_written_is_said(cache, caplog) -> None:
    cache.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        calibration.keep("a model", FOUND)
        assert calibration.known("a model") is None
    assert "cannot be cached" in caplog.text


# -- fitting ----------------------------------------------------------------------------------------------------------


def test_logistic_finds_the_curve_that_data_came_from() -> None:
    random = np.random.default_rng(3)
    scores = random.normal(-1, 2, 40_000)
    labels = (random.random(40_000) < 1 / (1 + np.exp(-(1.7 * scores + 0.6)))).astype(float)
    slope, intercept = logistic(scores, labels)
    assert slope == pytest.approx(1.7, abs=0.1)
    assert intercept == pytest.approx(0.6, abs=0.1)


def test_logistic_is_finite_where_data_are_few_or_say_everything() -> None:
    apart = logistic(np.array([-2.0, -1.0, 1.0, 2.0]), np.array([0.0, 0.0, 1.0, 1.0]))
    assert apart[0] > 1
    assert np.isfinite(apart).all()
    for labels in (np.zeros(4), np.ones(4)):
        slope, intercept = logistic(np.array([-2.0, -1.0, 1.0, 2.0]), labels)
        assert np.isfinite([slope, intercept]).all()
        assert (intercept > 0) is bool(labels[0])
    slope, intercept = logistic(np.zeros(4), np.array([0.0, 0.0, 0.0, 1.0]))
    assert slope == pytest.approx(0)
    assert 1 / (1 + np.exp(-intercept)) == pytest.approx(0.25, abs=1e-3)


GOOD = {"passages": ["a", "b"], "questions": [{"question": "?", "evidence": [0], "sentences": ["a"]}]}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "has passages"),
        ({"passages": ["a"]}, "has passages"),
        ({**GOOD, "passages": None}, "has passages"),
        ({**GOOD, "questions": 3}, "has passages"),
        ({**GOOD, "questions": ["?"]}, "has passages"),
        ({**GOOD, "questions": [{"question": "?"}]}, "has passages"),
        ({**GOOD, "questions": [{"question": "?", "evidence": 0}]}, "has passages"),
        ({**GOOD, "questions": [{"question": "?", "evidence": [2]}]}, "indexes of the example's passages"),
        ({**GOOD, "questions": [{"question": "?", "evidence": [-1]}]}, "indexes of the example's passages"),
        ({**GOOD, "questions": [{"question": "?", "evidence": ["a"]}]}, "indexes of the example's passages"),
    ],
)
def test_invalid_examples_are_refused(data: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Example.from_dict(data)


def test_examples_are_read() -> None:
    assert Example.from_dict(GOOD) == Example(("a", "b"), (("?", frozenset({0}), ("a",)),))
    examples = packaged_examples()
    assert len(examples) > 10
    for example in examples:
        for _, evidence, sentences in example.questions:
            where = [example.passages[index] for index in evidence]
            assert all(any(sentence in passage for passage in where) for sentence in sentences)


# -- what random models find ------------------------------------------------------------------------------------------


def test_an_untrained_model_is_not_calibrated(kernel: WimKernel, cache) -> None:
    assert not kernel.engine.reads_text
    assert kernel.engine.heads
    assert kernel.find_calibration() == Calibration()
    assert not cache.exists()
    kernel.ask(QUESTION, PASSAGES, **SHORT)
    assert not cache.exists()


def test_a_tokenizer_that_has_no_word_of_a_probe_leaves_the_model_uncalibrated(
    tiny_model: TinyModel, smollm2, monkeypatch
) -> None:
    known = WimKernel(tiny_model("llama"), smollm2[1])
    monkeypatch.setattr(known.engine.codec, "encode", lambda text: [])
    assert not reads_text(known.model, known.engine.codec, torch.device("cpu"))


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


# -- what the embedded model finds ------------------------------------------------------------------------------------


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
    options = {**BRIEF, "margin_style": style, "margin_batch": 1}
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


def test_a_calibration_found_on_two_examples_is_used(smollm2, cache) -> None:
    kernel = WimKernel(*smollm2, calibration="off")
    assert kernel.find_calibration() == Calibration()
    examples = [
        {"passages": PASSAGES, "questions": [{"question": QUESTION, "evidence": [0]}]},
        Example(
            ("The Varn Canal is nine miles long.", "Agnes Pell dug the Varn Canal.", "Coal was its cargo."),
            (("Who dug the canal?", frozenset({1}), ()), ("What was its cargo?", frozenset({2}), ())),
        ),
    ]
    rough = kernel.read(PASSAGES).relevance(QUESTION)
    found = kernel.calibrate(examples, seconds=1)
    assert found.source == "examples"
    assert found.is_found
    assert 0 < len(found.heads) <= 8
    assert set(found.heads) <= set(kernel.engine.heads)
    assert kernel.find_calibration() is found
    assert Calibration.from_dict(found.to_dict(), "examples").heads == found.heads
    relevance = kernel.read(PASSAGES).relevance(QUESTION)
    assert relevance != pytest.approx(rough, abs=1e-3)
    other = WimKernel(*smollm2, calibration=found)
    assert other.read(PASSAGES).relevance(QUESTION) == pytest.approx(relevance, abs=1e-4)
    assert not cache.exists()  # the caller's own is the caller's to keep
    for wrong in ([{"passages": ["a"]}], [{"passages": ["a"], "questions": []}]):
        with pytest.raises(ValueError, match=r"[Ee]xample"):
            kernel.calibrate(wrong)
    assert kernel.find_calibration() is found


def test_where_attention_cannot_be_seen_there_is_nothing_to_calibrate(tiny_model: TinyModel, smollm2) -> None:
    kernel = WimKernel(tiny_model("llama"), smollm2[1], cache_mode="snapshot")
    with pytest.raises(ValueError, match="cannot see the model's attention"):
        kernel.calibrate()
    for name in ("attention", "combined"):
        options = {"relevance": name, **FREE}
        if name == "attention":
            with pytest.raises(ValueError, match="cannot see the model's attention"):
                kernel.ask(QUESTION, PASSAGES, **options)
        else:
            assert kernel.ask(QUESTION, PASSAGES, **options).relevance_by == "lexical+passage"
