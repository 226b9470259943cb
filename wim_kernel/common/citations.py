"""Citations: which words of an answer come from which words of a document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from wim_kernel.common import plain_data
from wim_kernel.common.errors import MarginsError

How = Literal["exact", "fuzzy", "unlocated"]
"""How a quote was found in its chunk; see `wim_kernel.text.locating`."""


@dataclass(frozen=True)
class Citation:
    """One reference of an answer to one passage of a document.

    A reference to a margin that quotes two places is two citations with the same characters of the answer.

    Attributes:
        start: the first character in the answer: of the marker, such as ``[1]``, or of a sentence without one.
        end: one past the last character in the answer.
        quote: the passage in the chunk's own characters; if it is unlocated, the margin's text.
        margin: the index of the margin, which is its chunk's.
        number: the margin's number in the prompt, which the marker shows; None for a sentence without a marker.
        document: the source's id; None for a chunk without one.
        source_start: the quote's first character in the source; None if not known.
        source_end: one past its last character in the source; None if not known.
        chunk_start: the quote's first character in the chunk's text; None if it is unlocated.
        page: the page on which the quote begins, from 1, for sources with pages; otherwise None.
        title: the source's title, if the chunk's metadata has one.
        located: ``"exact"`` if the chunk has the quote, up to how it is set; ``"fuzzy"`` if it has nearly the same
            words; ``"unlocated"`` if it has neither, as with a note in the model's own words.
    """

    start: int
    end: int
    quote: str
    margin: int
    number: int | None = None
    document: str | None = None
    source_start: int | None = None
    source_end: int | None = None
    chunk_start: int | None = None
    page: int | None = None
    title: str | None = None
    located: How = "unlocated"

    def to_dict(self) -> dict[str, Any]:
        """The citation as plain JSON data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Citation:
        """Read back what `to_dict` wrote.

        Raises:
            MarginsError: if it is something else.
        """
        try:
            known = plain_data.mapping("data", data)
            located = plain_data.string("located", known.get("located"))
            if located not in get_args(How):
                raise plain_data.WrongTypeError("located", f"one of {get_args(How)}", located)
            return cls(
                start=plain_data.count("start", known.get("start")),
                end=plain_data.count("end", known.get("end")),
                quote=plain_data.string("quote", known.get("quote")),
                margin=plain_data.count("margin", known.get("margin")),
                number=plain_data.count_or_none("number", known.get("number")),
                document=plain_data.string_or_none("document", known.get("document")),
                source_start=plain_data.count_or_none("source_start", known.get("source_start")),
                source_end=plain_data.count_or_none("source_end", known.get("source_end")),
                chunk_start=plain_data.count_or_none("chunk_start", known.get("chunk_start")),
                page=plain_data.count_or_none("page", known.get("page")),
                title=plain_data.string_or_none("title", known.get("title")),
                located=located,  # type: ignore[arg-type]
            )
        except plain_data.WrongTypeError as error:
            raise MarginsError(f"Citation.from_dict reads what Citation.to_dict wrote: {error}.") from error
