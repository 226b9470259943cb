"""Where a text may be cut: between sentences, otherwise between words, otherwise between graphemes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import regex
from sentencex import segment  # type: ignore[import-untyped]

CountTokens = Callable[[str], int]

# A sentence over the budget is cut into parts of about a sixteenth of the budget, which are packed like sentences.
_PARTS = 16

_PARAGRAPH_BREAK = re.compile(r"\n[^\S\n]*\n\s*|\u2029\s*")
# Quotation marks, without apostrophes inside words.
_QUOTES = re.compile(r"""["“”„‟]|(?<!\w)['\u2018\u2019`]|['\u2019](?!\w)""")
# The characters between a full stop and the next sentence. A quotation mark that opens in one language and closes in
# another is taken as closing if no word follows it.
_CLOSING = re.compile(r"""(?:[”\u2019)\]]|["'“\u2018](?!\w))*\s*""")
_WIDE_SPACES = re.compile(r"[^\S\x00-\x7f\u2029]")
_SEPARATORS = "|,;\t"
_ROW_ENDS = (*"{}()[]<>;:,|=\\",)
_FEWEST_ROWS = 3
_LONG_ROW = 240
_WIDE = 60
_SURROGATES = re.compile("[\ud800-\udfff]")
# Combining marks, joiners, skin tones, which belong to the character before them.
_EXTENDS = regex.compile(r"[\p{GCB=Extend}\p{GCB=SpacingMark}\p{GCB=ZWJ}]")
_WORD = regex.compile(rf"(?:\S|\s++(?={_EXTENDS.pattern}))++\s*+|\s++")
_LINE = regex.compile(rf"[^\n]*+\n\s*+(?!{_EXTENDS.pattern})|[^\n]++")
_CHARACTER = regex.compile(r"\X")
_KEYED = re.compile(r"\s*[\w.-]+\s?[:=]")


def sentence_spans(text: str, language: str = "en") -> list[tuple[int, int]]:
    """The sentences of a text, as character ranges.

    The white space after a sentence belongs to it. A blank line ends a sentence; a single line break does not (except
    in lists), so that sentences of hard-wrapped text stay whole. Sentences within quotation marks are sentences of
    their own. In tables, logs, code and verse, each row is a sentence.

    Args:
        text: the text.
        language: the ISO 639 code of the language, for its abbreviations and full stops.

    Returns:
        ``(start, end)`` pairs of characters that cover the text without gaps; none for an empty text.

    Example:
        >>> sentence_spans('Dr. Roe left. "Why?" asked I.')
        [(0, 14), (14, 29)]
    """
    if not text:
        return []
    cuts = [len(text) - len(text.lstrip())]  # white space before the first sentence belongs to it
    for cut in _cuts(text, language):
        if cuts[-1] < cut < len(text) and not _EXTENDS.match(text, cut):
            cuts.append(cut)
    return list(pairwise([0, *cuts[1:], len(text)]))


def pack(
    text: str, max_tokens: int, count_tokens: CountTokens, language: str = "en"
) -> Iterator[tuple[int, int]]:
    """Cut a text into runs of at most ``max_tokens`` tokens, each of as many whole sentences as fit.

    A longer sentence is cut at white space, and a longer word between characters. Only a single grapheme may exceed the
    budget.

    Yields:
        ``(start, end)`` pairs of characters that cover the text without gaps.
    """

    def estimate(unit: tuple[int, int]) -> int:
        part = text[slice(*unit)]
        # A single space is usually part of the next word's token, and costs nothing in joined sentences.
        return count_tokens(part.removesuffix(" ") or part)

    def measure(first: int, last: int) -> int:
        return count_tokens(text[units[first][0] : units[last - 1][1]])

    units = sentence_spans(text, language)
    estimates = [estimate(unit) for unit in units]
    first = 0
    while first < len(units):
        last = fit(estimates, first, max_tokens, measure)
        start, end = units[first]
        if last == first:
            size = (end - start) * max_tokens // (max(estimates[first], max_tokens) * _PARTS)
            parts = _smaller_parts(text, start, end, max(size, 1))
            if len(parts) > 1:
                units[first : first + 1] = parts
                estimates[first : first + 1] = map(estimate, parts)
                continue
            last = first + 1
        yield start, units[last - 1][1]
        first = last


def fit(estimates: Sequence[int], first: int, max_tokens: int, measure: Callable[[int, int], int]) -> int:
    """How many units from ``first`` on fit a budget together.

    Args:
        estimates: the tokens of each unit alone.
        first: the first unit.
        max_tokens: the budget.
        measure: a callback that counts the tokens of units ``first`` to ``last`` together; usually called once or
            twice.

    Returns:
        One past the last unit that fits; ``first`` if none fits.
    """
    last = _reach(estimates, first, max_tokens)
    tokens = measure(first, last) if last > first else 0
    while tokens > max_tokens:
        last = min(last - 1, first + (last - first) * max_tokens // tokens)
        tokens = measure(first, last) if last > first else 0
    if last == first:
        return first
    # Joined units may have fewer tokens than the sum of their estimates, so that more units may fit.
    while (wider := _reach(estimates, last, max_tokens - tokens)) > last:
        if (more := measure(first, wider)) > max_tokens:
            break
        last, tokens = wider, more
    return last


def _reach(estimates: Sequence[int], first: int, room: int) -> int:
    last = first
    while last < len(estimates) and estimates[last] <= room:
        room -= estimates[last]
        last += 1
    return last


def _smaller_parts(text: str, start: int, end: int, size: int) -> list[tuple[int, int]]:
    """Cut ``text[start:end]`` into parts of at most ``size`` characters, or of one line or word where that is longer.

    A text of several lines is cut between lines, since a long run without a sentence end is a listing or verse. A
    single word is cut between graphemes (an accented letter or an emoji of several code points is one grapheme). A
    single grapheme is returned as the only part.
    """
    for pattern in (_LINE, _WORD, _CHARACTER):
        cuts = [start]
        for match in pattern.finditer(text, start, end):
            if match.end() - cuts[-1] > size and match.start() > cuts[-1]:
                cuts.append(match.start())
        if len(cuts) > 1:
            break
    return list(pairwise([*cuts, end]))


def _plain(text: str) -> str:
    """The text for the segmenter, character for character.

    Quotation marks become spaces: the segmenter never cuts a quotation, and if one is not closed (speech over several
    paragraphs), it takes the narration for a quotation. It panics at white space outside ASCII after an initial, and
    rejects lone surrogates.
    """
    plain = text.replace("\r\n", " \n").replace("\r", "\n").replace("\x85", "\n").replace("\u2028", "\n")
    return _SURROGATES.sub("\ufffd", _QUOTES.sub(" ", _WIDE_SPACES.sub(" ", plain)))


def _cuts(text: str, language: str) -> Iterator[int]:
    """The first characters of all sentences and paragraphs, in order.

    Paragraphs are segmented one by one, because the segmenter loses blank lines in a long text.
    """
    plain, begin = _plain(text), 0
    for gap in _PARAGRAPH_BREAK.finditer(plain):
        yield from _cuts_in_paragraph(text, plain, begin, gap.start(), language)
        begin = gap.start() + len(gap[0]) - len(text[gap.start() : gap.end()].lstrip())  # a mark is no space
        yield begin
    yield from _cuts_in_paragraph(text, plain, begin, len(plain), language)


def _cuts_in_paragraph(text: str, plain: str, begin: int, end: int, language: str) -> Iterator[int]:
    """The first characters of a paragraph's sentences or, in a table, a log or a listing, of its rows."""
    rows = _rows(plain[begin:end])
    if not rows:
        yield from _cuts_within(text, plain, begin, end, language)
        return
    for start, stop in rows:
        if stop - start > _LONG_ROW:  # a whole paragraph on one line, which has sentences
            yield from _cuts_within(text, plain, begin + start, begin + stop, language)
        cut = begin + stop
        while cut < end and text[cut].isspace():  # leading white space belongs to the row before
            cut += 1
        if cut < end:
            yield cut


def _rows(paragraph: str) -> list[tuple[int, int]]:
    """The lines of a paragraph as character ranges if they are rows; none for running text, wrapped or not.

    Lines are rows if most of them begin with no letter, begin with the same word, begin with a key (``name: value``),
    have the same separators, or end as no sentence does; or if every other line has another indent than the line
    before it. Wide lines are rows, too, if most of them end although the next word would have fitted, which wrapped
    text does not.
    """
    lines = list(re.finditer(r"[^\n]+(?:\n|$)", paragraph))
    if len(lines) < _FEWEST_ROWS:
        return []
    texts = [line[0].rstrip() for line in lines]
    width = max(map(len, texts))
    words = [text.split(maxsplit=1)[0] if text.strip() else "" for text in texts]
    early = sum(len(text) + 1 + len(word) <= width for text, word in zip(texts, words[1:], strict=False))
    unlettered = sum(not text.lstrip()[:1].isalpha() for text in texts)
    separated = max(sum(text.count(mark) >= 2 for text in texts) for mark in _SEPARATORS)
    alike = max(Counter(words).values())
    keyed = sum(bool(_KEYED.match(text)) for text in texts)
    ended = sum(text.endswith(_ROW_ENDS) for text in texts)
    indents = [len(text) - len(text.lstrip()) for text in texts]
    stepped = sum(before != after for before, after in pairwise(indents))
    early = early if width >= _WIDE else 0
    many = max(unlettered, separated, alike, keyed, ended) * 4 >= len(texts) * 3 or stepped * 2 >= len(texts)
    if not many and early * 5 < (len(texts) - 1) * 4:
        return []
    return [line.span() for line in lines]


def _cuts_within(text: str, plain: str, begin: int, end: int, language: str) -> Iterator[int]:
    """The first characters of the sentences inside the paragraph ``plain[begin:end]``, except the first sentence."""
    paragraph = plain[begin:end].rstrip()
    end = begin + len(paragraph)
    cursor = begin
    for piece in _segment(paragraph, language):
        at = plain.find(piece, cursor, end)
        if at < 0 or not piece.strip():
            continue  # its characters belong to the sentence before
        cursor = at + len(piece)
        closing = _CLOSING.match(text, at + len(piece.rstrip()))
        if closing is None or closing.end() >= end:
            continue
        # "Why?" asked I: a lower-case letter after the quotation continues the sentence.
        if closing[0].strip() and text[closing.end()].islower():
            continue
        yield closing.end()


def _segment(paragraph: str, language: str) -> list[str]:
    try:
        return list(segment(language, paragraph))
    except BaseException as error:
        # A panic of the extension is no Exception, and its class cannot be imported.
        if type(error).__name__ != "PanicException":
            raise
        return [paragraph]
