"""Passages: runs of whole sentences, the unit of the search for evidence.

A chunk of a thousand tokens is too long to be scored as one: most of it is about other things than the one sentence
that matters. A passage never crosses a chunk's end, and holds text of the chunk's sources only, no separators.
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
HEADING_CHARACTERS = 100  # a paragraph this short is taken for a heading, and joined with the next one


@dataclass(frozen=True)
class Passage:
    """A run of sentences of one chunk.

    Attributes:
        chunk: the chunk's index.
        text: the passage's text.
        sentences: the first character of each sentence in the chunk's text and one past its last, without white space
            around the sentence.
        cuts: the index of each sentence's first token among the chunk's tokens (separator included) and one past its
            last: begin, end, begin, end, ...
    """

    chunk: int
    text: str
    sentences: tuple[tuple[int, int], ...]
    cuts: tuple[int, ...]


class DocumentPassages:
    """The passages of a document, in order, and an index of their words.

    Args:
        chunks: the document's chunks.
        sizes: how many tokens each chunk has, separator included.
        starts: for each chunk, the character offset of each token in its text.
    """

    def __init__(
        self, chunks: Sequence[Chunk], sizes: Sequence[int], starts: Sequence[Sequence[int]]
    ) -> None:
        self.passages: list[Passage] = []
        self.of_chunk: list[range] = []
        self._sentence_indexes: dict[int, LexicalIndex] = {}
        for index, (chunk, size, begins) in enumerate(zip(chunks, sizes, starts, strict=True)):
            first = len(self.passages)
            self.passages += _cut(index, chunk, size, begins)
            self.of_chunk.append(range(first, len(self.passages)))

    def __len__(self) -> int:
        return len(self.passages)

    @cached_property
    def index(self) -> LexicalIndex:
        """The BM25 index of the passages."""
        return LexicalIndex([passage.text for passage in self.passages])

    def sentence_index(self, passage: int) -> LexicalIndex:
        """The BM25 index of a passage's sentences."""
        if passage not in self._sentence_indexes:
            texts = [self.text_of(passage, number) for number in range(len(self.passages[passage].sentences))]
            self._sentence_indexes[passage] = LexicalIndex(texts)
        return self._sentence_indexes[passage]

    @cached_property
    def sentences_of(self) -> list[slice]:
        """The range of each passage's sentences among all sentences of the document."""
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
        offsets = [offset for start, end in run for offset in (_with_space(chunk.text, start), end)]
        cuts = tuple(before + bisect.bisect_left(starts, offset) for offset in offsets)
        yield Passage(index, chunk.text[run[0][0] : run[-1][1]], tuple(run), cuts)


def _with_space(text: str, start: int) -> int:
    """The offset of a sentence's first token: tokenizers put the space before a word into the word's token."""
    return start - 1 if text[max(0, start - 1) : start] == " " else start


def _runs(chunk: Chunk) -> Iterator[list[tuple[int, int]]]:
    """The passages of a chunk, each a list of sentences: cut where a passage gets too long, or at a paragraph's end."""
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
    """The sentences of a text that hold a letter or digit, as character ranges without white space around them."""
    spans = []
    for start, end in sentence_spans(text):
        sentence = text[start:end]
        if any(char.isalnum() for char in sentence):
            spans.append((start + len(sentence) - len(sentence.lstrip()), start + len(sentence.rstrip())))
    return spans


def sourced(chunk: Chunk) -> list[tuple[int, str]]:
    """The runs of a chunk's text that come from its sources, each with its offset; separators are left out."""
    if not chunk.spans:
        return [(0, chunk.text)]
    runs: list[list[int]] = []
    for span in sorted(chunk.spans, key=lambda span: span.offset):
        if runs and runs[-1][1] >= span.offset:
            runs[-1][1] = max(runs[-1][1], span.offset + span.length)
        else:
            runs.append([span.offset, span.offset + span.length])
    return [(start, chunk.text[start:end]) for start, end in runs]
