"""Finding a model's calibration on examples: its retrieval heads, how its signals spread, what they are worth.

The examples are documents of a few passages each, with questions whose evidence is known (some have none). Several
documents are read as one, so that a question's evidence stands among passages on its own subject and on others. All
questions are asked behind it with every head watched: that tells heads apart. Then, question by question while time
lasts, the passages of its own document are read alone. Logistic curves over the combined evidence are fitted last, on
passages of the question's own document: they tell evidence from what is merely about the same thing.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from typing import Any

import numpy as np

from wim_kernel.common.chunk import Chunk
from wim_kernel.engines.base import AnyEngine, AttentionProbe, Branch, Decoded, Head
from wim_kernel.run.document import EncodedDocument
from wim_kernel.run.relevance.calibration import SIGNALS, Calibration
from wim_kernel.run.relevance.findings import LEAST_MASS, Findings, Floats
from wim_kernel.run.relevance.search import SHORTLIST, EvidenceSearch, asking_branch
from wim_kernel.text.prompts import Frame
from wim_kernel.text.run_text import Prompt, Text

logger = logging.getLogger(__name__)

HEADS = 8  # how many retrieval heads are kept
TOGETHER_TOKENS = 4_000  # documents are put together up to about so many tokens
LEAST_ALONE = 12  # questions whose passages are read alone, whatever the time
FEW = (3, 4, 6, 8)  # sizes of sets of passages on which the curve for few passages is fitted


@dataclass(frozen=True)
class Example:
    """A document, and questions about it.

    Attributes:
        passages: its passages.
        questions: each question, the indexes of the passages that hold its evidence (none if it has no answer), and
            the sentences of them that do, where these are known.
    """

    passages: tuple[str, ...]
    questions: tuple[tuple[str, frozenset[int], tuple[str, ...]], ...]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Example:
        """An example from JSON data: ``passages``, and ``questions``, each with ``question`` and ``evidence``.

        ``sentences``, too, says which sentences of the evidence count.

        Raises:
            ValueError: if it is no such data.
        """
        try:
            passages = tuple(str(passage) for passage in data["passages"])
            asked = tuple(
                (str(item["question"]), frozenset(item["evidence"]), tuple(item.get("sentences", ())))
                for item in data["questions"]
            )
        except (KeyError, TypeError) as error:
            raise ValueError(
                "An example has passages, and questions with a question and the indexes of its evidence."
            ) from error
        if any(not evidence <= set(range(len(passages))) for _, evidence, _ in asked):
            raise ValueError("A question's evidence is given by indexes of the example's passages.")
        return cls(passages, asked)


def packaged() -> list[Example]:
    """The examples that come with the package."""
    text = files("wim_kernel.run.relevance").joinpath("examples.jsonl").read_text(encoding="utf-8")
    return [Example.from_dict(json.loads(line)) for line in text.splitlines()]


@dataclass
class _Asked:
    """A question of an example within a document of several.

    Attributes:
        question: what is asked.
        findings: what is known of the document's passages.
        labels: which of them hold evidence, (passages,).
        own: the passages of the question's own example.
        by_head: attention on every passage by every head, less the unasked, (heads, passages).
        alone: attention on its own passages, each read alone.
    """

    question: str
    findings: Findings | None
    labels: Floats
    own: list[int]
    by_head: Floats | None = None
    alone: dict[int, float] = field(default_factory=dict)

    def count(self, decoded: Decoded) -> None:
        """Nobody is billed for a calibration."""


def calibrate(
    engine: AnyEngine,
    frame: Frame,
    lead: Callable[[str], Prompt],
    examples: Sequence[Example],
    seconds: float = 45.0,
) -> Calibration:
    """Find a model's calibration.

    Args:
        engine: runs the model; it must see attention.
        frame: what stands around documents.
        lead: makes a question's prompt, the question in its hole.
        examples: documents and questions with their evidence.
        seconds: about how long passages may be read alone; some always are.

    Raises:
        ValueError: if no question has both evidence and passages without any.
    """
    if not any(example.questions for example in examples):
        raise ValueError("Examples without a question show nothing: give some with questions.")
    begun = time.monotonic()
    head = tuple(engine.head(frame.system, frame.document))
    asked: list[_Asked] = []
    window = (engine.window or 2**20) * 3 // 4
    for group in _groups(engine, examples, min(TOGETHER_TOKENS, window)):
        asked += _attend(engine, head, frame.separator, lead, group)
    telling = [item for item in asked if 0 < item.labels.sum() < len(item.labels)]
    if not telling:
        raise ValueError("Examples need questions with evidence in some passages and none in others.")
    heads = _best_heads(telling)
    for item in asked:
        _keep_heads(item, heads)
    chosen = tuple(engine.heads[index] for index in heads)
    _read_alone(engine, head, lead, chosen, asked, begun + seconds)
    found = _fit(asked, chosen)
    logger.info(
        "Calibrated relevance for %s on %d questions in %.1f s; it is kept for the next time.",
        engine.model_name,
        len(asked),
        time.monotonic() - begun,
    )
    return found


def _groups(engine: AnyEngine, examples: Sequence[Example], most: int) -> Iterator[list[Example]]:
    """Examples put together, in turn from both ends, so that like ones do not stand together."""
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
) -> list[_Asked]:
    """Read some examples as one document, their passages taking turns, and watch all heads at all questions."""
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
    asked = []
    for number, example in enumerate(group):
        for question, evidence, sentences in example.questions:
            labels = np.zeros(len(document))
            for place in (order.index((number, index)) for index in evidence):
                mine = document.of_chunk[place]
                said = [
                    index
                    for index in mine
                    if any(item in document.passages[index].text for item in sentences)
                ]
                labels[said or list(mine)] = 1
            own = [
                index for index, passage in enumerate(document.passages) if order[passage.chunk][0] == number
            ]
            asked.append(_Asked(question, Findings.of(document, question), labels, own))

    def run(branches: Sequence[Branch]) -> Iterator[tuple[int, Decoded] | None]:
        yield from decoded(engine, prefix, branches)

    search = EvidenceSearch(document, engine.heads, Calibration(), lead, run, len(head))
    for item in search.attention(asked, ends[:-1], range(len(chunks)), len(ids)):
        assert item is not None, "whole branches are asked for"
        number, mass, _ = item
        asked[number].by_head = np.add.reduceat(mass, [part.start for part in document.sentences_of], axis=1)
    return asked


def decoded(engine: AnyEngine, prefix: Any, branches: Sequence[Branch]) -> Iterator[tuple[int, Decoded]]:
    """Run branches, few at a time: all heads of a long prompt are a lot of memory."""
    size = min(16, engine.max_branches)
    for start in range(0, len(branches), size):
        for step in engine.decode(prefix, branches[start : start + size]):
            for progress in step:
                if progress.done is not None:
                    yield start + progress.branch, progress.done


def _best_heads(asked: Sequence[_Asked]) -> list[int]:
    """The heads that rank passages with evidence best, by the mean area under the curve over questions."""
    areas = np.mean([_area(item.by_head, item.labels) for item in asked if item.by_head is not None], 0)
    return [int(index) for index in np.argsort(-areas, kind="stable")[:HEADS]]


def _area(scores: Floats | None, labels: Floats) -> Floats:
    """Area under the ROC curve of each row of scores, (rows, passages)."""
    assert scores is not None
    ranks = scores.argsort(1).argsort(1) + 1
    good = labels.sum()
    return np.asarray((ranks[:, labels > 0].sum(1) - good * (good + 1) / 2) / (good * (len(labels) - good)))


def _keep_heads(item: _Asked, heads: Sequence[int]) -> None:
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
    asked: Sequence[_Asked],
    deadline: float,
) -> None:
    """Read the passages of questions' own examples alone, question by question while time lasts."""
    prefix = engine.open()
    engine.extend(prefix, [list(head)], 0)
    step = 7  # questions are taken from all over, since neighbours are alike
    order = [index for start in range(step) for index in range(start, len(asked), step)]
    for count, index in enumerate(order):
        if count >= LEAST_ALONE and time.monotonic() > deadline:
            break
        item = asked[index]
        assert item.findings is not None
        branches = []
        for passage in item.own:
            text = Text(item.findings.document.passages[passage].text)
            prompt = (text, *lead(item.question))
            end = len(head) + len(engine.encode(text))
            branches.append(asking_branch(len(head), prompt, AttentionProbe((len(head), end), heads)))
        for number, done in decoded(engine, prefix, branches):
            likelihood, attention = done.scores.likelihood, done.scores.attention
            item.findings.likelihood[item.own[number]] = np.nan if likelihood is None else likelihood
            item.alone[item.own[number]] = 0.0 if attention is None else float(attention.mean())


def _fit(asked: Sequence[_Asked], heads: tuple[tuple[int, int], ...]) -> Calibration:
    """Spreads of the signals, and the curves."""
    relative = [(item, item.findings.relative()) for item in asked if item.findings is not None]
    read_alone = [pair for pair in relative if not np.isnan(pair[0].findings.likelihood).all()]  # type: ignore[union-attr]
    spread = {
        "attention": float(np.concatenate([found["attention"] for _, found in relative]).std()),
        "lexical": float(np.concatenate([found["lexical"] for _, found in relative]).std()),
        "passage": float(np.concatenate([found["passage"][item.own] for item, found in read_alone]).std()),
    }
    alone = [np.log(np.maximum(list(item.alone.values()), LEAST_MASS)) for item, _ in read_alone]
    spread["alone"] = float(np.concatenate([masses - masses.max() for masses in alone]).std())
    spread = {name: max(value, 1e-3) for name, value in spread.items()}
    first = Calibration(heads, spread, source="examples")
    curves = {}
    for name, signals in (*((name, (name,)) for name in SIGNALS), ("combined", SIGNALS)):
        scores, labels = [], []
        for item, _ in read_alone:
            assert item.findings is not None
            scores.append(item.findings.scores(first, signals)[item.own])
            labels.append(item.labels[item.own])
        curves[name] = logistic(np.concatenate(scores), np.concatenate(labels))
    curves["alone"] = _few_curve([item for item, _ in read_alone], first)
    return Calibration(heads, spread, curves, "examples")


def _few_curve(asked: Sequence[_Asked], calibration: Calibration) -> tuple[float, float]:
    """The curve for a handful of passages on one subject, each read alone: sets out of a question's own example."""
    random, scores, labels = np.random.default_rng(0), [], []
    for item in asked:
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


def logistic(scores: Floats, labels: Floats, penalty: float = 0.1) -> tuple[float, float]:
    """Slope and intercept of a logistic curve, by Newton's method on the penalised log-likelihood.

    Args:
        scores: (n,).
        labels: (n,), 0 or 1.
        penalty: of the slope's square.
    """
    rate = np.clip(labels.mean(), 1e-3, 1 - 1e-3)
    inputs = np.stack([scores, np.ones_like(scores)], 1)
    weights = np.array([0.0, np.log(rate / (1 - rate))])
    ridge = np.array([penalty, 1e-6])

    def loss(at: Floats) -> float:
        z = inputs @ at
        return float((np.logaddexp(0, z) - labels * z).sum() + 0.5 * (ridge * at * at).sum())

    for _ in range(100):
        probability = 1 / (1 + np.exp(-np.clip(inputs @ weights, -40, 40)))
        gradient = inputs.T @ (probability - labels) + ridge * weights
        curvature = (
            (inputs * (probability * (1 - probability))[:, None]).T @ inputs
            + np.diag(ridge)
            + 1e-9 * np.eye(2)
        )
        step, scale = np.linalg.solve(curvature, gradient), 1.0
        while loss(weights - scale * step) > loss(weights) and scale > 1e-6:
            scale /= 2
        weights = weights - scale * step
        if np.abs(scale * step).max() < 1e-7:
            break
    return float(weights[0]), float(weights[1])
