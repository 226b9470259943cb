"""Fitting a model's calibration on examples: its retrieval heads, the spread of its signals, and their curves.

The examples are documents of a few passages each, with questions whose evidence is known (some have none). Several
documents are read as one, so that a question's evidence stands among passages on its own subject and on others. A
branch for each question behind this document measures the attention of every head, and the heads that rank evidence
best become the retrieval heads. Then, question by question until the time is up, the passages of the question's own
document are each read alone. Last, logistic curves over the scores are fitted on passages of the question's own
document, so that they tell evidence from passages that are only on its subject.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from wim_kernel.common.chunk import Chunk
from wim_kernel.engines.base import AnyEngine, AttentionProbe, Branch, Decoded, Head
from wim_kernel.run.document import EncodedDocument
from wim_kernel.run.relevance.calibration import SIGNALS, UNATTENDED_CURVE, Calibration
from wim_kernel.run.relevance.examples import Example
from wim_kernel.run.relevance.findings import LEAST_MASS, Findings, Floats
from wim_kernel.run.relevance.logistic import logistic
from wim_kernel.run.relevance.search import SHORTLIST, EvidenceSearch, asking_branch
from wim_kernel.text.prompts import Frame
from wim_kernel.text.run_text import Prompt, Text

logger = logging.getLogger(__name__)

HEADS = 8  # the number of retrieval heads
DOCUMENT_TOKENS = 4_000  # about the most tokens of examples that are joined into one document
LEAST_ALONE = 12  # the number of questions whose passages are read alone even if the time is up
FEW = (3, 4, 6, 8)  # sizes of the sets of passages on which the curve for few passages is fitted


@dataclass
class _ExampleQuestion:
    """A question of an example, within the document of several examples.

    Attributes:
        question: the question.
        findings: the signals of the document's passages.
        labels: 1 for passages with evidence, 0 for the others, (passages,).
        own: the passages of the question's own example.
        by_head: attention on each passage by each head, less that of a question about nothing, (heads, passages).
        alone: by passage, the attention on each of the own passages, read alone.
    """

    question: str
    findings: Findings | None
    labels: Floats
    own: list[int]
    by_head: Floats | None = None
    alone: dict[int, float] = field(default_factory=dict)

    def add_usage(self, decoded: Decoded) -> None:
        """Do nothing: a calibration's tokens are not reported."""


def calibrate(
    engine: AnyEngine,
    frame: Frame,
    lead: Callable[[str], Prompt],
    examples: Sequence[Example],
    seconds: float = 45.0,
) -> Calibration:
    """Fit a model's calibration.

    Args:
        engine: the engine; it must see attention.
        frame: the frame around documents.
        lead: a callback that makes the prompt with a question.
        examples: documents and questions with their evidence.
        seconds: about how long passages may be read alone; some always are.

    Raises:
        ValueError: unless some question has passages with evidence and passages without.
    """
    if not any(example.questions for example in examples):
        raise ValueError("No example has a question: give examples with questions.")
    begun = time.monotonic()
    head = tuple(engine.head(frame.system, frame.document))
    questions: list[_ExampleQuestion] = []
    window = (engine.window or 2**20) * 3 // 4
    for group in _groups(engine, examples, min(DOCUMENT_TOKENS, window)):
        questions += _attend(engine, head, frame.separator, lead, group)
    usable = [item for item in questions if 0 < item.labels.sum() < len(item.labels)]
    if not usable:
        raise ValueError("Examples need questions with evidence in some passages and none in others.")
    heads = _best_heads(usable)
    for item in questions:
        _keep_heads(item, heads)
    chosen = tuple(engine.heads[index] for index in heads)
    _read_alone(engine, head, lead, chosen, questions, begun + seconds)
    found = _fit(questions, chosen)
    logger.info(
        "Calibrated relevance for %s on %d questions in %.1f s.",
        engine.model_name,
        len(questions),
        time.monotonic() - begun,
    )
    return found


def _groups(engine: AnyEngine, examples: Sequence[Example], most: int) -> Iterator[list[Example]]:
    """Group the examples into documents, taken alternately from both ends, so that similar examples are kept apart."""
    order = [item for pair in zip(examples, reversed(examples), strict=True) for item in pair][
        : len(examples)
    ]
    group: list[Example] = []
    size = 0
    for example in order:
        tokens = sum(len(engine.encode(Text(passage))) + 2 for passage in example.passages)
        if group and size + tokens > most:
            yield group
            group, size = [], 0
        group.append(example)
        size += tokens
    if group:
        yield group


def _attend(
    engine: AnyEngine,
    head: tuple[int, ...],
    separator: str,
    lead: Callable[[str], Prompt],
    group: Sequence[Example],
) -> list[_ExampleQuestion]:
    """Read a group of examples as one document, their passages interleaved; measure all heads for all questions."""
    order = [
        (number, passage)
        for passage in range(max(len(example.passages) for example in group))
        for number, example in enumerate(group)
        if passage < len(example.passages)
    ]
    chunks = [Chunk(group[number].passages[passage]) for number, passage in order]
    encoded = EncodedDocument.encode(engine, head, chunks, separator)
    document, ids, ends = encoded.passages, list(encoded.tokens.ids()), encoded.tokens.ends
    prefix = engine.open()
    engine.reserve(prefix, len(ids))
    while prefix.tokens < len(ids):
        engine.extend(prefix, [ids], 0)
    questions = []
    for number, example in enumerate(group):
        for question, evidence, sentences in example.questions:
            labels = np.zeros(len(document))
            for chunk in (order.index((number, index)) for index in evidence):
                passages = document.of_chunk[chunk]
                exact = [
                    index
                    for index in passages
                    if any(item in document.passages[index].text for item in sentences)
                ]
                labels[exact or list(passages)] = 1
            own = [
                index for index, passage in enumerate(document.passages) if order[passage.chunk][0] == number
            ]
            questions.append(_ExampleQuestion(question, Findings.of(document, question), labels, own))

    def decode(branches: Sequence[Branch]) -> Iterator[tuple[int, Decoded] | None]:
        yield from decode_in_batches(engine, prefix, branches)

    search = EvidenceSearch(document, engine.heads, Calibration(), lead, decode, len(head))
    for item in search.attention(questions, ends[:-1], range(len(chunks)), len(ids)):
        assert item is not None, "`decode` yields finished branches only"
        number, mass, _ = item
        questions[number].by_head = np.add.reduceat(
            mass, [part.start for part in document.sentences_of], axis=1
        )
    return questions


def decode_in_batches(
    engine: AnyEngine, prefix: Any, branches: Sequence[Branch]
) -> Iterator[tuple[int, Decoded]]:
    """Decode branches in small batches, since the attention of all heads on a long prompt takes much memory."""
    size = min(16, engine.max_branches)
    for start in range(0, len(branches), size):
        for step in engine.decode(prefix, branches[start : start + size]):
            for progress in step:
                if progress.done is not None:
                    yield start + progress.branch, progress.done


def _best_heads(questions: Sequence[_ExampleQuestion]) -> list[int]:
    """The indexes of the heads that rank evidence best, by the mean area under the ROC curve over questions."""
    areas = np.mean([_area(item.by_head, item.labels) for item in questions if item.by_head is not None], 0)
    return [int(index) for index in np.argsort(-areas, kind="stable")[:HEADS]]


def _area(scores: Floats | None, labels: Floats) -> Floats:
    """Area under the ROC curve of each row of scores, (rows, passages)."""
    assert scores is not None
    ranks = scores.argsort(1).argsort(1) + 1
    good = labels.sum()
    return np.asarray((ranks[:, labels > 0].sum(1) - good * (good + 1) / 2) / (good * (len(labels) - good)))


def _keep_heads(item: _ExampleQuestion, heads: Sequence[int]) -> None:
    assert item.findings is not None
    assert item.by_head is not None
    mass = item.by_head[list(heads)].mean(0)
    item.findings.mass = [np.array([value]) for value in mass]
    item.by_head = None


def _read_alone(
    engine: AnyEngine,
    head: Sequence[int],
    lead: Callable[[str], Prompt],
    heads: tuple[Head, ...],
    questions: Sequence[_ExampleQuestion],
    deadline: float,
) -> None:
    """Read the passages of each question's own example alone, question by question until the deadline."""
    prefix = engine.open()
    engine.extend(prefix, [list(head)], 0)
    step = 7  # neighbouring questions are similar, so the order jumps over all examples
    order = [index for start in range(step) for index in range(start, len(questions), step)]
    for count, index in enumerate(order):
        if count >= LEAST_ALONE and time.monotonic() > deadline:
            break
        item = questions[index]
        assert item.findings is not None
        branches = []
        for passage in item.own:
            text = Text(item.findings.document.passages[passage].text)
            prompt = (text, *lead(item.question))
            end = len(head) + len(engine.encode(text))
            branches.append(asking_branch(len(head), prompt, AttentionProbe((len(head), end), heads)))
        for number, done in decode_in_batches(engine, prefix, branches):
            likelihood, attention = done.scores.likelihood, done.scores.attention
            item.findings.likelihood[item.own[number]] = np.nan if likelihood is None else likelihood
            item.alone[item.own[number]] = 0.0 if attention is None else float(attention.mean())


def _fit(questions: Sequence[_ExampleQuestion], heads: tuple[tuple[int, int], ...]) -> Calibration:
    """Fit the spreads of the signals, then the curves."""
    relative = [(item, item.findings.relative()) for item in questions if item.findings is not None]
    read_alone = [pair for pair in relative if not np.isnan(pair[0].findings.likelihood).all()]  # type: ignore[union-attr]
    spread = {
        "attention": float(np.concatenate([found["attention"] for _, found in relative]).std()),
        "lexical": float(np.concatenate([found["lexical"] for _, found in relative]).std()),
        "passage": float(np.concatenate([found["passage"][item.own] for item, found in read_alone]).std()),
    }
    alone = [np.log(np.maximum(list(item.alone.values()), LEAST_MASS)) for item, _ in read_alone]
    spread["alone"] = float(np.concatenate([masses - masses.max() for masses in alone]).std())
    spread = {name: max(value, 1e-3) for name, value in spread.items()}
    without_curves = Calibration(heads, spread, source="examples")
    curves = {}
    for name, signals in (*((name, (name,)) for name in SIGNALS), ("combined", SIGNALS)):
        scores, labels = [], []
        for item, _ in read_alone:
            assert item.findings is not None
            scores.append(item.findings.scores(without_curves, signals)[item.own])
            labels.append(item.labels[item.own])
        curves[name] = logistic(np.concatenate(scores), np.concatenate(labels))
    curves["unattended"] = UNATTENDED_CURVE
    curves["alone"] = _few_curve([item for item, _ in read_alone], without_curves)
    return Calibration(heads, spread, curves, "examples")


def _few_curve(questions: Sequence[_ExampleQuestion], calibration: Calibration) -> tuple[float, float]:
    """Fit the curve for few passages, each read alone, on random sets of passages of a question's own example."""
    random, scores, labels = np.random.default_rng(0), [], []
    for item in questions:
        for size in FEW:
            own = np.array(item.own)
            chosen = random.permutation(own)[: min(size, SHORTLIST)]
            evidence = own[item.labels[own] > 0]
            if len(evidence) and not item.labels[chosen].any():
                chosen[0] = evidence[0]
            assert item.findings is not None
            mass = [np.array([item.alone[int(index)]]) for index in chosen]
            found = replace(item.findings.only(chosen.tolist()), mass=[*mass], alone=True)
            scores.append(found.scores(calibration))
            labels.append(item.labels[chosen])
    return logistic(np.concatenate(scores), np.concatenate(labels))
