"""The text that `wim` shows: margins, costs and progress as lines, without characters that control a terminal."""

from __future__ import annotations

import json
import re
import time

from wim_kernel.common.chunk import Span
from wim_kernel.common.events import ChunkRead
from wim_kernel.common.margins import Margin, WimResult
from wim_kernel.text.files import STDIN, pages

# Control characters except tab and line feed, and marks that reorder or break lines.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def harmless(text: str) -> str:
    """Text with control pictures or replacement characters in place of characters that control a terminal."""
    return _CONTROLS.sub(lambda match: _picture(match[0]), text)


def _picture(character: str) -> str:
    code = ord(character)
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"


def json_line(data: object) -> str:
    """One line of JSON; only characters that control a terminal are escaped."""
    text = json.dumps(data, ensure_ascii=False, default=str)
    return _CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def margin_head(margin: Margin, *, revised: bool = False) -> str:
    """A line with a margin's number, relevance and place, and whether nothing of its note is in the text.

    ``revised`` says that it replaces an earlier line.
    """
    mark, again = "*" if margin.kept else " ", ", revised" if revised else ""
    line = (
        f"{mark} margin {margin.index + 1}{again}  relevance {margin.relevance:.2f}  {place(margin)}".rstrip()
    )
    return f"{line}  [not found in the text]" if margin.found_nowhere else line


def shown_note(margin: Margin) -> str | None:
    """A margin's note and a reader's remark on it, a line each at least; None if they are not shown."""
    if not margin.is_shown:
        return None
    return harmless("\n".join(text for text in (margin.text, margin.note) if text.strip()))


def place(margin: Margin) -> str:
    """The place of a margin's chunk, or of a verbatim margin's sentences: source, page, characters."""
    spans = margin.spans or margin.chunk.spans
    sources = dict.fromkeys(span.source_id for span in spans)
    return "; ".join(_place_in(source, spans, margin) for source in sources)


def _place_in(source: str, spans: tuple[Span, ...], margin: Margin) -> str:
    own = [
        span for span in spans if span.source_id == source and span.start is not None and span.end is not None
    ]
    words = [harmless("standard input" if source == STDIN else source)]
    page_range = pages(own, margin.chunk.metadata)
    if page_range is not None:
        first, last = page_range
        words.append(f"page {first}" if first == last else f"pages {first}-{last}")
    if own:
        words.append(f"chars {own[0].start:,}-{own[-1].end:,}")
    return ", ".join(words)


def cost(result: WimResult) -> str:
    """A line with an answer's cost."""
    usage = result.usage
    cached = "unknown" if usage.cached_tokens is None else f"{usage.cached_tokens:,}"
    stopped = "stopped early: " if result.stopped_early else ""
    return (
        f"{stopped}{usage.prefill_tokens:,} tokens read, {cached} cached, "
        f"{usage.prompt_tokens:,} of prompts, {usage.output_tokens:,} written, {result.timings.total:.1f} s"
    )


class Pace:
    """The speed of reading: tokens per second since the object was made, including the time of margins."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._fresh = 0
        self._before = 0

    def line(self, event: ChunkRead) -> str:
        """A progress line for a chunk."""
        if not event.cached:
            self._fresh += event.tokens - self._before
        self._before = event.tokens
        rate = self._fresh / max(time.perf_counter() - self._start, 1e-9)
        return (
            f"chunk {event.index + 1} of {event.chunks}, {event.tokens:,} of {event.total_tokens:,} tokens, "
            f"{rate:,.0f} tokens/s"
        )
