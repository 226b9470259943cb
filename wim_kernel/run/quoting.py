"""Verbatim margins: which sentences of a chunk are quoted, and how the quotation reads."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import regex

from wim_kernel.common.chunk import Chunk, Span
from wim_kernel.engines.base import Branch, Decoded
from wim_kernel.run.options import EVIDENCE_THRESHOLD
from wim_kernel.run.relevance.calibration import Calibration
from wim_kernel.run.relevance.findings import Findings
from wim_kernel.run.relevance.passages import quotable
from wim_kernel.text.run_text import Prompt, Text
from wim_kernel.text.speech import ADDED, Quotation, marked, quotations

GAP = " […] "  # between sentences that do not follow each other
WHOLE = 48  # tokens of a sentence that is quoted whole, however little room there is
SENTENCES = 3  # most sentences chosen by likelihood
CLOSE = 1.0  # a sentence so little behind the best of its passage, in spreads of the signals, is quoted too
# Sentences that begin so speak of what the sentence before them names.
_LEANS = regex.compile(
    r"[\"'“‘«(\s]*(?:he|she|it|they|him|her|his|its|their|this|that|these|those|there|then|here|er|sie|es|dies\w*|"
    r"il|elle|ils|elles|ce|cette|él|ella|ellos|esto|este|esta|ello|lui|lei|questo|questa)\b",
    regex.IGNORECASE,
)

Span2 = tuple[int, int]


@dataclass(frozen=True)
class Quote:
    """A quotation.

    Attributes:
        text: the sentences, in the chunk's order, with ``[…]`` where something between them is left out, and
            quotation marks in brackets where they are somebody's words and have none.
        spans: where each sentence stands in its source.
    """

    text: str
    spans: tuple[Span, ...]


def by_findings(findings: Findings, chunk: int, calibration: Calibration) -> list[Span2]:
    """The sentences of a chunk that are worth quoting, best first: of each passage that may hold evidence, the best.

    A sentence that leans on the one before it ("She sold it in May.") brings that one along.
    """
    mine = list(findings.document.of_chunk[chunk])
    if not mine:
        return []
    probability = findings.probabilities(calibration)["combined"]
    best = max(mine, key=lambda index: probability[index])
    worth = [index for index in mine if index == best or probability[index] >= EVIDENCE_THRESHOLD]
    chosen: list[Span2] = []
    for index in sorted(worth, key=lambda index: -probability[index]):
        sentences = findings.document.passages[index].sentences
        scores = findings.sentence_scores(calibration, index)
        for place in np.argsort(-scores, kind="stable"):
            if scores[place] < -CLOSE:
                break
            chosen.append(sentences[place])
            if place and _LEANS.match(findings.document.text_of(index, place)):
                chosen.append(sentences[place - 1])
    return list(dict.fromkeys(chosen))


def by_likelihood(
    asked: Sequence[tuple[Chunk, Prompt, int | None]],
    head_tokens: int,
    run: Callable[[Sequence[Branch]], Iterator[tuple[int, Decoded] | None]],
    count: Callable[[int, Decoded], None],
) -> Generator[None, None, list[list[Span2]]]:
    """The sentences of chunks, best first, by the question's likelihood after each one alone; no token is generated.

    Args:
        asked: each chunk, the question's lead-in, and which run of it is the question.
        head_tokens: where a document begins.
        run: runs branches.
        count: told of each branch's end, with the number of its chunk in ``asked``.

    Returns:
        For each chunk, its best sentences.
    """
    trials = [(number, span) for number, (chunk, _, _) in enumerate(asked) for span in quotable(chunk.text)]
    branches = []
    for number, span in trials:
        chunk, lead, scored = asked[number]
        sentence = (Text(chunk.text[slice(*span)]),)
        branches.append(Branch(head_tokens, sentence + lead, scored=None if scored is None else scored + 1))
    found: list[list[tuple[float, Span2]]] = [[] for _ in asked]
    for item in run(branches) if branches else ():
        if item is None:
            yield None
        else:
            number, span = trials[item[0]]
            count(number, item[1])
            found[number].append((-(item[1].scores.likelihood or 0.0), span))
    return [[span for _, span in sorted(ranked)[:SENTENCES]] for ranked in found]


def quote(chunk: Chunk, ranked: Sequence[Span2], most_tokens: int, size: Callable[[str], int]) -> Quote:
    """The best sentences that fit, in the chunk's order; the very best is cut short rather than left out.

    Args:
        chunk: what is quoted.
        ranked: sentences, best first.
        most_tokens: how long the quotation may be.
        size: counts tokens.
    """
    said = quotations(chunk.text)
    chosen: list[Span2] = []
    for span in ranked:
        if not chosen:
            chosen = [
                _cut_short(
                    chunk.text, span, max(most_tokens, WHOLE), lambda cut: size(_read(chunk, [cut], said))
                )
            ]
        elif size(chunk.text[slice(*span)]) < most_tokens:
            more = sorted([*chosen, span])
            if size(_read(chunk, more, said)) <= most_tokens:
                chosen = more
    return Quote(
        _read(chunk, chosen, said), tuple(source for span in chosen for source in chunk.locate(*span))
    )


def reads(text: str, sentences: Sequence[str]) -> bool:
    """Whether a margin's text is a quotation of these sentences: nothing else but white space, gaps and added marks."""
    between = rf"{ADDED}(?:\s*|{regex.escape(GAP)}){ADDED}"
    pattern = between.join(map(regex.escape, sentences))
    return bool(regex.fullmatch(f"{ADDED}{pattern}{ADDED}", text))


def _read(chunk: Chunk, spans: Sequence[Span2], said: Sequence[Quotation]) -> str:
    """Sentences as a quotation: gaps between them are marked, and what is somebody's words has quotation marks."""
    runs: list[Span2] = []
    for start, end in spans:
        if runs and not chunk.text[runs[-1][1] : start].strip():
            runs[-1] = runs[-1][0], end
        else:
            runs.append((start, end))
    return GAP.join(marked(chunk.text, runs, said))


def _cut_short(text: str, span: Span2, most_tokens: int, size: Callable[[Span2], int]) -> Span2:
    """As many whole words from the beginning of a sentence as fit."""
    start, end = span
    while size((start, end)) > most_tokens:
        shorter = start + int((end - start) * 0.8)
        space = text.rfind(" ", start + 1, shorter)
        end = space if space > start else shorter
        if end <= start + 1:
            break
    return start, start + len(text[start:end].rstrip())
