"""Long messages of people: which part is a text that was pasted in, and which are the person's own words about it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from itertools import pairwise

from langchain_core.documents import Document
from langchain_core.messages import HumanMessage

from wim_integrations.langchain.results import Block, documents_in
from wim_kernel.text.sentences import sentence_spans

MOST_CHARS = 600  # of a person's own words at either end of a message, or in a block
SHORT_CHARS = 2000  # of a message that is all the person's own words
TYPED_CHARS = 20000  # a message of more characters has a text that nobody typed
PLAIN_CHARS = 200  # of an end that asks nothing
MOST_PIECES = 3  # paragraphs, lines or sentences at either end
OWN_QUESTIONS = 0.25  # the least share of a text's paragraphs that ask, in a text of questions and answers
REMEMBERED = 64  # messages that are not split, and their files not parsed, again

_PARAGRAPH_END, _LINE_END = re.compile(r"\n[^\S\n]*\n"), re.compile(r"\n")
_QUESTION = re.compile(r"[?？؟]\s*\Z")
_LEAD = re.compile(r"[?？؟:：]\s*\Z")
_SOURCE = "the message"

Place = tuple[int, int]
"""The first character of a part of a text, and one past the last."""


@dataclass(frozen=True)
class LongMessage:
    """A person's message with a long text in it.

    Attributes:
        message: the message.
        before: the person's words before the text; empty if there are none.
        after: the person's words behind the text; empty if there are none.
        documents: the text, and files.
        rest: blocks without text, such as images.
        asks: whether the words are known to be the person's; otherwise they may be the text's own ends.
    """

    message: HumanMessage
    before: str
    after: str
    documents: list[Document]
    rest: list[Block]
    asks: bool

    @property
    def question(self) -> str:
        """The person's own words."""
        return "\n".join(words for words in (self.before, self.after) if words)


def split_message(message: HumanMessage) -> LongMessage | None:
    """A message in its parts; None if it has no text but the person's own words.

    Files, and texts of more than 600 characters beside shorter ones, are documents. Where all is one text, the person's
    words are looked for at its ends: the paragraphs there that end in a question mark, or in a colon before the text;
    else lines or sentences that end in a question mark; else a short first and a short last paragraph. They are sure to
    be the person's only if a paragraph asks, and the text between is not one of questions and answers itself.
    """
    return _split(_Same(str(message.id), digest_of(message), message))


def digest_of(message: HumanMessage) -> str:
    """A digest of a message's content."""
    return sha256(repr(message.content).encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class _Same:
    """A message as a key: the same for the same id and content."""

    id: str
    digest: str
    message: HumanMessage = field(compare=False)


@lru_cache(maxsize=REMEMBERED)  # an agent shows its model all messages at every call
def _split(same: _Same) -> LongMessage | None:
    message = same.message
    documents, rest = documents_in(message, _SOURCE)
    own = [_is_text(block) for block in _blocks(message) if block not in rest]
    short = [
        is_text and len(each.page_content) <= MOST_CHARS for each, is_text in zip(documents, own, strict=True)
    ]
    words = [each.page_content.strip() for each, is_short in zip(documents, short, strict=True) if is_short]
    texts = [each for each, is_short in zip(documents, short, strict=True) if not is_short]
    if any(words) or len(texts) != 1 or not own[short.index(False)]:
        return (
            LongMessage(message, "\n".join(filter(None, words)), "", texts, rest, any(words))
            if texts
            else None
        )
    (text,) = texts
    start, end, asks = ends_of(text.page_content)
    inner = Document(text.page_content[start:end], metadata=text.metadata)
    if not inner.page_content.strip():
        return None
    before, after = text.page_content[:start].strip(), text.page_content[end:].strip()
    return LongMessage(message, before, after, [inner], rest, asks)


def ends_of(text: str) -> tuple[int, int, bool]:
    """Where the person's words before a text end, where those behind it begin, and whether they are sure to be that."""
    paragraphs = _cut_at(_PARAGRAPH_END, text)
    found = _asked(text, paragraphs, lead=_LEAD)
    if found is not None:
        return *found, _is_sure(text, paragraphs, found)
    for pieces in (_cut_at(_LINE_END, text), _sentences(text)):
        found = _asked(text, pieces, lead=_QUESTION)
        if found is not None:
            return *found, False
    first, last = paragraphs[0], paragraphs[-1]
    start = first[1] if len(paragraphs) > 1 and first[1] - first[0] <= PLAIN_CHARS else 0
    end = last[0] if len(paragraphs) > 1 and last[1] - last[0] <= PLAIN_CHARS else len(text)
    return (start, end, False) if start < end else (0, len(text), False)


def _asked(text: str, spans: list[Place], lead: re.Pattern[str]) -> Place | None:
    """The place of the text between pieces that ask for something; None if no piece at an end does."""
    first = [span for span in spans[:MOST_PIECES] if span[1] - spans[0][0] <= MOST_CHARS]
    last = [span for span in spans[-MOST_PIECES:] if spans[-1][1] - span[0] <= MOST_CHARS]
    before = [end for start, end in first if lead.search(text[start:end])]
    after = [start for start, end in last if _QUESTION.search(text[start:end])]
    start, end = max(before, default=0), min(after, default=len(text))
    return (start, end) if (before or after) and start < end else None


def _is_sure(text: str, paragraphs: list[Place], inner: Place) -> bool:
    """Whether a paragraph at an end asks, and the text between does not itself, as questions with answers do."""
    asks: dict[bool, list[bool]] = {True: [], False: []}
    for start, end in paragraphs:
        is_question = end - start <= MOST_CHARS and bool(_QUESTION.search(text[start:end]))
        asks[inner[0] <= start < inner[1]].append(is_question)
    return any(asks[False]) and sum(asks[True]) < OWN_QUESTIONS * len(asks[True])


def own_words(message: HumanMessage) -> tuple[str, bool]:
    """The person's own words in a message, and whether they are known to be that."""
    if len(message.text) <= SHORT_CHARS:
        return str(message.text).strip(), True
    found = split_message(message)
    return (str(message.text), True) if found is None else (found.question, found.asks)


def _blocks(message: HumanMessage) -> Iterator[Block]:
    yield from [message.content] if isinstance(message.content, str) else message.content


def _is_text(block: Block) -> bool:
    return isinstance(block, str) or block.get("type") == "text"


def _cut_at(ends: re.Pattern[str], text: str) -> list[Place]:
    """The parts of a text between certain places, but for blank ones."""
    places = [0, *(match.end() for match in ends.finditer(text)), len(text)]
    return [(start, end) for start, end in pairwise(places) if text[start:end].strip()]


def _sentences(text: str) -> list[Place]:
    """The first and the last sentences of a text."""
    head, tail = text[: 2 * MOST_CHARS], text[-2 * MOST_CHARS :]
    shift = len(text) - len(tail)
    if shift <= 0:
        return sentence_spans(text)
    last = [(start + shift, end + shift) for start, end in sentence_spans(tail)]
    return [*sentence_spans(head)[:MOST_PIECES], *last[-MOST_PIECES:]]
