"""Passages: runs of whole sentences, short enough that one signal speaks for all of a run.

Relevance is found passage by passage, since a chunk of a thousand tokens is mostly about other things than its one
sentence that matters. A passage never crosses a chunk's end, and holds text of the chunk's sources alone.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from wim_kernel.common.chunk import Chunk
from wim_kernel.run.relevance.lexical import LexicalIndex
from wim_kernel.text.sentences import sentence_spans

PASSAGE_CHARACTERS = 600  # about 130 tokens of English
HEADING_CHARACTERS = 100  # a paragraph this short is read together with the next one


@dataclass(frozen=True)
class Passage:
    """A run of sentences of one chunk.

    Attributes:
        chunk: the chunk's index.
        text: the run's text.
        sentences: where its sentences stand in the chunk's text, without white space around them.
        cuts: where these sentences begin and end among the chunk's tokens (what separates it from the chunk before it
            included): begin, end, begin, end, ...
    """

    chunk: int
    text: str
    sentences: tuple[tuple[int, int], ...]
    cuts: tuple[int, ...]


class DocumentPassages:
    """The passages of a document, in order, and an index of their words.

    Args:
        chunks: the document's chunks.
        sizes: how many tokens each chunk has in the reading, its separator included.
        starts: for each chunk, the characters of its text at which its tokens begin.
    """

    def __init__(
        self, chunks: Sequence[Chunk], sizes: Sequence[int], starts: Sequence[Sequence[int]]
    ) -> None:
        self.passages: list[Passage] = []
        self.of_chunk: list[range] = []
        for index, (chunk, size, begins) in enumerate(zip(chunks, sizes, starts, strict=True)):
            first = len(self.passages)
            self.passages += _cut(index, chunk, size, begins)
            self.of_chunk.append(range(first, len(self.passages)))

    def __len__(self) -> int:
        return len(self.passages)

    @cached_property
    def index(self) -> LexicalIndex:
        """The passages' words."""
        return LexicalIndex([passage.text for passage in self.passages])

    @cached_property
    def sentences_of(self) -> list[slice]:
        """Which sentences of all of the document each passage has."""
        ends = itertools.accumulate((len(passage.sentences) for passage in self.passages), initial=0)
        return [slice(start, end) for start, end in itertools.pairwise(ends)]

    def text_of(self, passage: int, sentence: int) -> str:
        """The text of a sentence of a passage."""
        item = self.passages[passage]
        start, end = item.sentences[sentence]
        first = item.sentences[0][0]
        return item.text[start - first : end - first]


def _cut(index: int, chunk: Chunk, size: int, starts: Sequence[int]) -> Iterator[Passage]:
    before = size - len(starts)
    for run in _runs(chunk):
        places = [place for start, end in run for place in (_with_space(chunk.text, start), end)]
        cuts = tuple(before + bisect.bisect_left(starts, place) for place in places)
        yield Passage(index, chunk.text[run[0][0] : run[-1][1]], tuple(run), cuts)


def _with_space(text: str, start: int) -> int:
    """Where the first token of a sentence begins: tokenizers put the space before a word into the word's token."""
    return start - 1 if text[max(0, start - 1) : start] == " " else start


def _runs(chunk: Chunk) -> Iterator[list[tuple[int, int]]]:
    """Sentences of a chunk, put together until a run is long enough, or a paragraph ends that is not a heading."""
    run: list[tuple[int, int]] = []
    for begin, text in sourced(chunk):
        for start, end in quotable(text):
            sentence = (begin + start, begin + end)
            if run:
                gap = chunk.text[run[-1][1] : sentence[0]]
                length = run[-1][1] - run[0][0]
                new_paragraph = gap.count("\n") > 1 and length > HEADING_CHARACTERS
                if new_paragraph or sentence[1] - run[0][0] > PASSAGE_CHARACTERS:
                    yield run
                    run = []
            run.append(sentence)
        if run:
            yield run
            run = []


def quotable(text: str) -> list[tuple[int, int]]:
    """Where the sentences of a text stand, without white space around them; none without a letter or digit."""
    spans = []
    for start, end in sentence_spans(text):
        sentence = text[start:end]
        if any(char.isalnum() for char in sentence):
            spans.append((start + len(sentence) - len(sentence.lstrip()), start + len(sentence.rstrip())))
    return spans


def sourced(chunk: Chunk) -> list[tuple[int, str]]:
    """The runs of a chunk's text that come from its sources, with where they begin; what stands around them is not."""
    if not chunk.spans:
        return [(0, chunk.text)]
    runs: list[list[int]] = []
    for span in sorted(chunk.spans, key=lambda span: span.offset):
        if runs and runs[-1][1] >= span.offset:
            runs[-1][1] = max(runs[-1][1], span.offset + span.length)
        else:
            runs.append([span.offset, span.offset + span.length])
    return [(start, chunk.text[start:end]) for start, end in runs]
