"""Citations of an answer: its markers, each with the passages that its margin quotes and where they stand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from wim_kernel.common.chunk import Chunk, Span
from wim_kernel.common.citations import Citation, How
from wim_kernel.common.margins import Margin
from wim_kernel.run.grounding import SHORTEST, places_of
from wim_kernel.text.files import pages
from wim_kernel.text.locating import NOT_FOUND, Locator, Place
from wim_kernel.text.markers import MARKER
from wim_kernel.text.sentences import sentence_spans


@dataclass(frozen=True)
class Passage:
    """A passage that a margin quotes.

    Attributes:
        quote: its text; the margin's own if it is unlocated.
        start: its first character in the chunk's text; None if it is unlocated.
        located: how it was found.
    """

    quote: str
    start: int | None = None
    located: How = "unlocated"


def citations_of(answer: str, margins: Sequence[Margin]) -> tuple[Citation, ...]:
    """The citations of an answer, in its order.

    An answer without any marker gets citations for its sentences that a margin's passage has exactly. A sentence that a
    passage only resembles gets none: "she never sold it" resembles "she sold it" most of all.

    Args:
        answer: the answer's text, all of whose markers exist.
        margins: the margins in the answer's prompt, in the order of their numbers.
    """
    passages = [passages_of(margin) for margin in margins]
    found: list[Citation] = []
    for marker in MARKER.finditer(answer):
        number = int(marker[1])
        if 0 < number <= len(margins):
            cited = (_citation(margins[number - 1], passage) for passage in passages[number - 1])
            found += (replace(each, start=marker.start(), end=marker.end(), number=number) for each in cited)
    return tuple(found) if found else tuple(_unmarked(answer, margins, passages))


def passages_of(margin: Margin) -> list[Passage]:
    """What a margin quotes: its sentences if it is verbatim, otherwise what its chunk has of its text.

    A passage has text of one source. The sentences of a note that the chunk does not have are one unlocated passage.
    """
    text = margin.chunk.text
    quoted = [text[span.offset : span.offset + span.length] for span in margin.spans]
    if margin.spans and all(sentence in margin.text for sentence in quoted):
        return [Passage(text[start:end], start, "exact") for start, end in _joined(text, margin.spans)]
    note = margin.text.strip().removesuffix(NOT_FOUND).strip()
    placed = places_of(note, Locator(text))
    found = [each for _, place in placed if place is not None for each in _located(margin.chunk, place)]
    lost = [sentence for sentence, place in placed if place is None]
    if not found:
        return [Passage(note or margin.note.strip())]
    return [*found, Passage(" ".join(lost))] if lost else found


def _located(chunk: Chunk, place: Place) -> list[Passage]:
    """A place in a chunk as passages, one for each of its sources."""
    runs = _joined(chunk.text, chunk.locate(place.start, place.end)) or [(place.start, place.end)]
    return [Passage(chunk.text[start:end], start, place.how) for start, end in runs]


def _joined(text: str, spans: Iterable[Span]) -> list[tuple[int, int]]:
    """Characters of a chunk's text, in order; spans of one source with only white space between them are one run."""
    runs: list[tuple[int, int]] = []
    sources: list[str] = []
    for span in sorted(spans, key=lambda span: span.offset):
        end = span.offset + span.length
        if runs and sources[-1] == span.source_id and not text[runs[-1][1] : span.offset].strip():
            runs[-1] = runs[-1][0], max(end, runs[-1][1])
        else:
            runs.append((span.offset, end))
            sources.append(span.source_id)
    return runs


def _citation(margin: Margin, passage: Passage) -> Citation:
    """A citation of a passage, without its place in the answer."""
    chunk, title = margin.chunk, margin.chunk.metadata.get("title")
    spans = () if passage.start is None else chunk.locate(passage.start, passage.start + len(passage.quote))
    document = spans[0].source_id if spans else next(iter(chunk.source_ids), None)
    own = [span for span in spans if span.source_id == document]
    known = bool(own) and all(span.start is not None and span.end is not None for span in own)
    page_range = pages(own, chunk.metadata) if known else None
    return Citation(
        start=0,
        end=0,
        quote=passage.quote,
        margin=margin.index,
        document=document,
        source_start=own[0].start if known else None,
        source_end=own[-1].end if known else None,
        chunk_start=passage.start,
        page=None if page_range is None else page_range[0],
        title=title if isinstance(title, str) else None,
        located=passage.located,
    )


def _unmarked(
    answer: str, margins: Sequence[Margin], passages: Sequence[Sequence[Passage]]
) -> Iterator[Citation]:
    """Citations of the sentences of an answer that a located passage has exactly, of the most relevant margin."""
    ranked = sorted(range(len(margins)), key=lambda index: -margins[index].relevance)
    sources = [
        (margins[index], passage, passage.start, Locator(passage.quote))
        for index in ranked
        for passage in passages[index]
        if passage.start is not None
    ]
    for begin, stop in sentence_spans(answer):
        sentence = answer[begin:stop].strip()
        start = begin + answer[begin:stop].index(sentence)
        if len(sentence) < SHORTEST:
            continue
        for margin, passage, offset, locator in sources:
            place = locator.locate(sentence)
            if place is not None and place.how == "exact":
                quote = Passage(passage.quote[place.start : place.end], offset + place.start, "exact")
                yield replace(_citation(margin, quote), start=start, end=start + len(sentence))
                break
