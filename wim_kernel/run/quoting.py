"""Verbatim margins: the sentences of a chunk that are quoted, and the text of the quotation."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import regex

from wim_kernel.common.chunk import Chunk, Span
from wim_kernel.engines.base import Branch, Decoded
from wim_kernel.run.relevance.calibration import Calibration
from wim_kernel.run.relevance.findings import Findings
from wim_kernel.run.relevance.passages import quotable, sourced
from wim_kernel.run.settings import EVIDENCE_THRESHOLD
from wim_kernel.text.locating import NOT_FOUND, locate
from wim_kernel.text.run_text import Prompt, Text
from wim_kernel.text.speech import ADDED, Quotation, marked, quotations

GAP = " […] "  # between sentences that do not follow each other
WHOLE = 48  # a sentence of at most so many tokens is quoted whole, even over the limit
SENTENCES = 3  # most sentences chosen by likelihood
JOIN_SAVES = 4  # two texts take at most so many tokens less together than apart
CLOSE = 1.0  # sentences at most so far below the best one of a passage are quoted, too; in spreads
# A sentence that begins with such a word refers to the sentence before it.
_REFERS_BACK = regex.compile(
    r"[\"'“‘«(\s]*(?:he|she|it|they|him|her|his|its|their|this|that|these|those|there|then|here|er|sie|es|dies\w*|"
    r"il|elle|ils|elles|ce|cette|él|ella|ellos|esto|este|esta|ello|lui|lei|questo|questa)\b",
    regex.IGNORECASE,
)

CharRange = tuple[int, int]
"""The first character of a sentence in its chunk's text, and one past the last."""


@dataclass(frozen=True)
class Quote:
    """A quotation.

    Attributes:
        text: the sentences, in the chunk's order, with ``[…]`` where something between them is left out, and
            quotation marks in brackets around quoted speech that lacks them.
        spans: where each sentence stands in its source.
    """

    text: str
    spans: tuple[Span, ...]


def by_findings(findings: Findings, chunk: int, calibration: Calibration) -> list[CharRange]:
    """The sentences of a chunk to quote, best first: the best sentences of each passage that may hold evidence.

    A sentence that refers back ("She sold it in May.") is quoted with the sentence before it.
    """
    own = list(findings.document.of_chunk[chunk])
    if not own:
        return []
    probability = findings.probabilities(calibration)["combined"]
    best = max(own, key=lambda index: probability[index])
    passages = [index for index in own if index == best or probability[index] >= EVIDENCE_THRESHOLD]
    chosen: list[CharRange] = []
    for index in sorted(passages, key=lambda index: -probability[index]):
        sentences = findings.document.passages[index].sentences
        scores = findings.sentence_scores(calibration, index)
        for number in np.argsort(-scores, kind="stable"):
            if scores[number] < -CLOSE:
                break
            chosen.append(sentences[number])
            if number and _REFERS_BACK.match(findings.document.text_of(index, number)):
                chosen.append(sentences[number - 1])
    return list(dict.fromkeys(chosen))


def likely_sentences(
    findings: Findings | None, chunk: Chunk, index: int, calibration: Calibration
) -> list[CharRange]:
    """The sentences of a chunk in passages that may hold evidence; all of its sentences, if nothing was searched."""
    own = list(findings.document.of_chunk[index]) if findings is not None else []
    if findings is None or not own:
        return quotable(chunk.text)
    probability = findings.probabilities(calibration)["combined"]
    best = max(own, key=lambda passage: probability[passage])
    return [
        sentence
        for passage in own
        if passage == best or probability[passage] >= EVIDENCE_THRESHOLD
        for sentence in findings.document.passages[passage].sentences
    ]


def by_likelihood(
    requests: Sequence[tuple[Chunk, Sequence[CharRange], Prompt, int | None]],
    head_tokens: int,
    decode: Callable[[Sequence[Branch]], Iterator[tuple[int, Decoded] | None]],
    add_usage: Callable[[int, Decoded], None],
) -> Generator[None, None, list[list[CharRange]]]:
    """The sentences of chunks, best first, by the question's likelihood after each sentence alone.

    No token is generated.

    Args:
        requests: for each chunk, the chunk, the sentences to choose from, the prompt with the question, and the index
            of the run that is the question.
        head_tokens: how many tokens stand before a document.
        decode: a callback that decodes branches.
        add_usage: a callback for each finished branch, which gets the index of its request.

    Returns:
        For each chunk, its best sentences.
    """
    trials = [(number, span) for number, (_, sentences, _, _) in enumerate(requests) for span in sentences]
    branches = []
    for number, span in trials:
        chunk, _, lead, scored = requests[number]
        sentence = (Text(chunk.text[slice(*span)]),)
        branches.append(Branch(head_tokens, sentence + lead, scored=None if scored is None else scored + 1))
    found: list[list[tuple[float, CharRange]]] = [[] for _ in requests]
    for item in decode(branches) if branches else ():
        if item is None:
            yield None
        else:
            number, span = trials[item[0]]
            add_usage(number, item[1])
            found[number].append((-(item[1].scores.likelihood or 0.0), span))
    return [[span for _, span in sorted(ranked)[:SENTENCES]] for ranked in found]


def quote(
    chunk: Chunk, ranked: Sequence[CharRange], most_tokens: int, count_tokens: Callable[[str], int]
) -> Quote:
    """Quote the best sentences that fit, in the chunk's order. If not even the best one fits, it is cut short.

    Args:
        chunk: the chunk that is quoted.
        ranked: its sentences, best first.
        most_tokens: the limit of the quotation, in tokens.
        count_tokens: a callback that counts a text's tokens.
    """
    said = quotations(chunk.text)
    chosen: list[CharRange] = []
    used = 0
    for span in dict.fromkeys(_with_speech(chunk, ranked, said)):
        if not chosen:
            chosen = [
                _cut_short(
                    chunk.text,
                    span,
                    max(most_tokens, WHOLE),
                    lambda cut: count_tokens(_read(chunk, [cut], said)),
                )
            ]
            used = count_tokens(_read(chunk, chosen, said))
        elif used + count_tokens(chunk.text[slice(*span)]) <= most_tokens + JOIN_SAVES:
            more = sorted([*chosen, span])
            together = count_tokens(_read(chunk, more, said))
            if together <= most_tokens:
                chosen, used = more, together
    return Quote(
        _read(chunk, chosen, said), tuple(source for span in chosen for source in chunk.locate(*span))
    )


def _with_speech(chunk: Chunk, ranked: Sequence[CharRange], said: Sequence[Quotation]) -> Iterator[CharRange]:
    """The ranked sentences; one that introduces a speech ("He said: “Go. …") is followed by the rest of the speech."""
    sentences: list[CharRange] = []
    for start, end in ranked:
        yield start, end
        introduced = [item for item in said if start < item.start < end < item.end]
        if introduced and any(map(str.isalnum, chunk.text[start : introduced[0].start])):
            sentences = sentences or _sentences(chunk)
            stop = introduced[0].end
            yield from (other for other in sentences if end <= other[0] and other[1] <= stop)


def _sentences(chunk: Chunk) -> list[CharRange]:
    return [(begin + start, begin + end) for begin, text in sourced(chunk) for start, end in quotable(text)]


@dataclass(frozen=True)
class Located:
    """Quotations by a model, found in the chunk.

    Attributes:
        text: the quotations in the chunk's own characters; those that are not in it as the model wrote them, marked.
        spans: where each quotation that was found stands in its source.
        located: the share of the quotations that was found, 0 to 1; None without quotations.
    """

    text: str
    spans: tuple[Span, ...]
    located: float | None


def locate_quotes(chunk: Chunk, quotes: Sequence[str]) -> Located:
    """Find in a chunk what a model says it copied from there; see `wim_kernel.text.locating`."""
    places = [locate(quote, chunk.text) for quote in quotes]
    found = sorted({(place.start, place.end) for place in places if place is not None})
    apart: list[CharRange] = []
    for start, end in found:
        if apart and start < apart[-1][1]:
            apart[-1] = apart[-1][0], max(end, apart[-1][1])
        else:
            apart.append((start, end))
    lost = [quote for quote, place in zip(quotes, places, strict=True) if place is None]
    pieces = [_read(chunk, apart, quotations(chunk.text))] if apart else []
    pieces += [f"{quote} {NOT_FOUND}" for quote in lost]
    return Located(
        GAP.join(pieces),
        tuple(source for span in apart for source in chunk.locate(*span)),
        1 - len(lost) / len(quotes) if quotes else None,
    )


def quoted_share(text: str, chunk: str) -> float | None:
    """The share of the quotations in a margin's text that a chunk has, 0 to 1.

    None without quotations, and for a text that `locate_quotes` did not write: one with lost ones without their remark.
    """
    quotes = [quote.removesuffix(NOT_FOUND).strip() for quote in text.split(GAP)]
    found = [locate(quote, chunk) is not None for quote in quotes if quote]
    if not found or not (all(found) or text.endswith(NOT_FOUND)):
        return None
    return sum(found) / len(found)


def reads(text: str, sentences: Sequence[str]) -> bool:
    """Whether a text consists of these sentences, with only white space, gaps and added quotation marks between.

    Lost quotations behind them, which `locate_quotes` marks as not in the text, do not count.
    """
    pieces = text.split(GAP)
    while len(pieces) > 1 and pieces[-1].endswith(NOT_FOUND):
        pieces.pop()
    text = GAP.join(pieces)
    between = rf"{ADDED}(?:\s*|{regex.escape(GAP)}){ADDED}"
    pattern = between.join(map(regex.escape, sentences))
    return bool(regex.fullmatch(f"{ADDED}{pattern}{ADDED}", text))


def _read(chunk: Chunk, spans: Sequence[CharRange], said: Sequence[Quotation]) -> str:
    """Sentences as a quotation: gaps between them are marked, and reported speech has quotation marks."""
    runs: list[CharRange] = []
    for start, end in spans:
        if runs and not chunk.text[runs[-1][1] : start].strip():
            runs[-1] = runs[-1][0], end
        else:
            runs.append((start, end))
    return GAP.join(marked(chunk.text, runs, said))


def _cut_short(
    text: str, span: CharRange, most_tokens: int, count_range: Callable[[CharRange], int]
) -> CharRange:
    """The first words of a sentence, as many as fit."""
    start, end = span
    while count_range((start, end)) > most_tokens:
        shorter = start + int((end - start) * 0.8)
        space = text.rfind(" ", start + 1, shorter)
        end = space if space > start else shorter
        if end <= start + 1:
            break
    return start, start + len(text[start:end].rstrip())
