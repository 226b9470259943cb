"""A chunk and an answer as HTML. All text is escaped, so that none of a document's own markup is ever markup here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

from wim_integrations.page.turn import Range
from wim_kernel import Citation, Margin
from wim_kernel.common.result_page import escaped


def passage_name(margin: int, start: int, end: int) -> str:
    """The name of a passage, which is the same in links and in the document."""
    return f"passage-{margin}-{start}-{end}"


def target(citation: Citation) -> str:
    """The name of what a citation leads to: its passage, or its margin's card if it was not located."""
    if citation.chunk_start is None:
        return card_name(citation.margin)
    return passage_name(citation.margin, citation.chunk_start, citation.chunk_start + len(citation.quote))


def card_name(margin: int) -> str:
    """The id of a margin's card."""
    return f"margin-{margin}"


def chunk_name(index: int) -> str:
    """The id of a chunk in the document."""
    return f"chunk-{index}"


def place_name(margin: Margin, ranges: Sequence[Range]) -> str:
    """The name of what a margin's place leads to: its first passage, or its chunk."""
    return passage_name(margin.index, *ranges[0]) if ranges else chunk_name(margin.index)


def named_ranges(index: int, ranges: Iterable[Range]) -> dict[str, Range]:
    """Ranges of a chunk by their passages' names."""
    return {passage_name(index, start, end): (start, end) for start, end in ranges}


def chunk_html(text: str, passages: Mapping[str, Range]) -> str:
    """A chunk's text with its passages marked.

    Passages may overlap: a mark lists the names of all passages that it belongs to in ``data-passage``.
    """
    return "".join(_marked(text, passages))


def _marked(text: str, passages: Mapping[str, Range]) -> Iterator[str]:
    cuts = {0, len(text), *(place for each in passages.values() for place in each if place <= len(text))}
    for start, end in pairwise(sorted(cuts)):
        names = [name for name, (low, high) in passages.items() if low <= start and end <= high]
        piece = escaped(text[start:end])
        yield f'<mark data-passage="{" ".join(names)}" tabindex="-1">{piece}</mark>' if names else piece


def answer_html(answer: str, citations: Sequence[Citation], sources: Sequence[Margin]) -> str:
    """An answer whose numbers are links to passages; a sentence that is cited without a number gets one.

    Args:
        answer: the answer's text.
        citations: its citations.
        sources: the margins in its prompt, in the order of their numbers.
    """
    return "".join(_linked(answer, citations, sources))


def _linked(answer: str, citations: Sequence[Citation], sources: Sequence[Margin]) -> Iterator[str]:
    numbers = {margin.index: number for number, margin in enumerate(sources, 1)}
    first = {(each.start, each.end): each for each in reversed(citations)}
    position = 0
    for (start, end), citation in sorted(first.items()):
        number = citation.number or numbers.get(citation.margin, citation.margin + 1)
        name = escaped(target(citation))
        link = (
            f'<a class="wim-number" href="#{name}" data-show="{name}" title="{escaped(citation.quote)}" '
            f'aria-label="Source {number}">[{number}]</a>'
        )
        if citation.number is None:
            yield f"{escaped(answer[position:end])} {link}"
        else:
            yield f"{escaped(answer[position:start])}{link}"
        position = end
    yield escaped(answer[position:])
