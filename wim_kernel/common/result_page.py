"""A result as HTML: the answer with numbers to click, and the document with highlights and its margins beside it.

All text is escaped, and nothing is loaded: there is no script, and a whole page forbids them by its policy as well.
"""

from __future__ import annotations

import hashlib
import html
from collections.abc import Iterator, Sequence
from itertools import pairwise

from wim_kernel.common.citations import Citation
from wim_kernel.common.margins import Margin, WimResult

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
.wim-result { max-width: 72rem; margin: 0 auto; font: 1rem/1.5 system-ui, sans-serif; }
.wim-result h2 { font-size: 1.1rem; margin: 1rem 0 .3rem; }
.wim-result p, .wim-result .wim-text { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; }
.wim-result .wim-row { display: grid; grid-template-columns: minmax(0, 2fr) minmax(0, 1fr); gap: 1.5rem;
  border-top: 1px solid #8884; padding: .6rem 0; }
.wim-result aside { border-left: 3px solid #8884; padding-left: .7rem; font-size: .9rem; }
.wim-result aside.wim-kept { border-color: #d99a00; }
.wim-result .wim-about { opacity: .75; font-size: .85rem; }
.wim-result mark { background: #ffe58f; color: #000; }
.wim-result :target { outline: 2px solid #d99a00; }
.wim-result mark:target { background: #ffb83d; }
.wim-result a { color: inherit; font-weight: 600; }
@media (max-width: 40rem) { .wim-result .wim-row { grid-template-columns: minmax(0, 1fr); } }
"""


def page(result: WimResult) -> str:
    """A whole page; see `WimResult.to_html`."""
    title = escaped(result.question or "Summary")
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n'
        f"<style>:root {{ color-scheme: light dark; }}</style>\n</head>\n<body>\n{fragment(result)}\n</body>\n</html>\n"
    )


def fragment(result: WimResult) -> str:
    """The same as a part of a page, such as a notebook."""
    return _Fragment(result).html()


def live_fragment(result: WimResult, progress: str, name: str) -> str:
    """A result that is not finished, for a notebook: how far it is, its notes so far and its answer so far.

    Args:
        result: the margins, the answer's text and its citations, as far as they are known.
        progress: how far the work is.
        name: what the ids begin with.
    """
    return _Live(result, name).live_html(progress)


class _Fragment:
    """One result's HTML. Its ids begin with a digest, so that several results can share a page."""

    def __init__(self, result: WimResult, prefix: str | None = None) -> None:
        self.result = result
        known = f"{result.question}\0{result.answer}".encode(errors="replace")
        self.prefix = prefix or f"wim-{hashlib.blake2b(known, digest_size=4).hexdigest()}"
        in_prompt = [margin.index for margin in result.margins if margin.is_used]
        self.numbers = {index: number for number, index in reversed(list(enumerate(in_prompt, 1)))}

    def html(self) -> str:
        """The question, the answer, and the document's chunks with their margins."""
        result = self.result
        question = f"<h2>{escaped(result.question)}</h2>\n" if result.question else ""
        rows = "\n".join(self._row(margin) for margin in result.margins)
        early = (
            '\n<p class="wim-about">The rest of the document was not read.</p>'
            if result.stopped_early
            else ""
        )
        return (
            f'<div class="wim-result">\n<style>{_STYLE}</style>\n{question}<p>{"".join(self._answer())}</p>\n'
            f"<h2>Document</h2>\n{rows}{early}\n</div>"
        )

    def _answer(self) -> Iterator[str]:
        """The answer; each marker is a link, and each sentence without one is followed by a link."""
        answer, position = self.result.answer, 0
        first = {(each.start, each.end): each for each in reversed(self.result.citations)}
        for (start, end), citation in sorted(first.items()):
            link = f'<a href="#{self._target(citation)}" title="{escaped(citation.quote)}">'
            if citation.number is None:
                shown = self.numbers.get(citation.margin, citation.margin + 1)
                yield f"{escaped(answer[position:end])} {link}[{shown}]</a>"
            else:
                yield f"{escaped(answer[position:start])}{link}{escaped(answer[start:end])}</a>"
            position = end
        yield escaped(answer[position:])

    def _target(self, citation: Citation) -> str:
        """The id of what a citation leads to: its passage, or its margin if it was not located."""
        if citation.chunk_start is None:
            return f"{self.prefix}-m{citation.margin}"
        return f"{self.prefix}-c{citation.margin}-{citation.chunk_start}"

    def _row(self, margin: Margin) -> str:
        return (
            f'<div class="wim-row">\n<div class="wim-text">{"".join(self._chunk(margin))}</div>\n'
            f"{self._card(margin)}\n</div>"
        )

    def _chunk(self, margin: Margin) -> Iterator[str]:
        """A chunk's text, in which what is quoted or cited is marked."""
        text, ranges = margin.chunk.text, self._ranges(margin)
        cited = {start for start, _ in ranges}
        cuts = sorted({0, len(text), *(place for each in ranges for place in each)})
        for start, end in pairwise(cuts):
            if any(low <= start and end <= high for low, high in ranges):
                name = f' id="{self.prefix}-c{margin.index}-{start}"' if start in cited else ""
                yield f"<mark{name}>{escaped(text[start:end])}</mark>"
            else:
                yield escaped(text[start:end])

    def _ranges(self, margin: Margin) -> Sequence[tuple[int, int]]:
        """Characters of a chunk that a citation or the kept margin quotes."""
        spans = margin.spans if margin.kept else ()
        found = [(span.offset, span.offset + span.length) for span in spans]
        found += [
            (citation.chunk_start, citation.chunk_start + len(citation.quote))
            for citation in self.result.citations
            if citation.margin == margin.index and citation.chunk_start is not None
        ]
        return [(start, min(end, len(margin.chunk.text))) for start, end in found if end > start]

    def _card(self, margin: Margin) -> str:
        """A margin: its number in the prompt, its relevance, its text and the reader's remark."""
        number = f"[{self.numbers[margin.index]}] · " if margin.is_used else ""
        sources = ", ".join(margin.chunk.source_ids)
        about = f"{number}{sources} · relevance {margin.relevance:.2f}{self._found(margin)}"
        note = f"\n<p><em>{escaped(margin.note)}</em></p>" if margin.note.strip() else ""
        kept = ' class="wim-kept"' if margin.is_used else ""
        return (
            f'<aside id="{self.prefix}-m{margin.index}"{kept}><div class="wim-about">{escaped(about)}</div>\n'
            f"<p>{escaped(margin.text)}</p>{note}</aside>"
        )

    def _found(self, margin: Margin) -> str:
        """What is to be said of a note that does not stand in its chunk as it is."""
        cited = {
            each.located for each in self.result.citations if each.margin == margin.index and each.number
        }
        if margin.found_nowhere:
            return " · not found in the text"
        if cited != {"unlocated"}:
            return ""
        return " · in other words" if margin.evidence.get("located") else " · not found in the text"


class _Live(_Fragment):
    """A result without its document: numbers in the answer lead to the notes."""

    def live_html(self, progress: str) -> str:
        """Progress, the notes, and the answer."""
        cards = "\n".join(self._card(margin) for margin in self.result.margins if margin.is_shown)
        answer = f"<h2>Answer</h2>\n<p>{''.join(self._answer())}</p>" if self.result.answer else ""
        return (
            f'<div class="wim-result">\n<style>{_STYLE}</style>\n<div class="wim-about" role="status">'
            f"{escaped(progress)}</div>\n{cards}\n{answer}\n</div>"
        )

    def _target(self, citation: Citation) -> str:
        return f"{self.prefix}-m{citation.margin}"


def escaped(text: str) -> str:
    """Text that is only text, in elements and in attributes; a lone surrogate, which no file can hold, is a ``?``."""
    return html.escape(text.encode(errors="replace").decode())
