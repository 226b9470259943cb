"""Prompt codecs: convert text to the ids of the engine protocol, and ids to the prompt of a request.

With the model's tokenizer, ids are its tokens. Without one, each id is three characters of text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from wim_kernel.engines.base import Branch
from wim_kernel.engines.codec import ChatCodec
from wim_kernel.text.run_text import Text

CHARACTERS_PER_ID = 3
"""Characters of an id, so that sizes resemble tokens: a token has about four characters of English, three of code."""
_BITS = 21  # of a code point
_END_OF_SYSTEM = -1  # the id between the system's text and the user's


class PromptCodec(Protocol):
    """Converts text to ids, and ids to the prompt of a request."""

    exact: bool
    """Whether the ids are the tokens that the model sees."""

    @property
    def chat_codec(self) -> ChatCodec | None:
        """The tokenizer's codec, if there is a tokenizer."""

    def head(self, system: str, lead: str) -> list[int]:
        """Ids that precede every document."""

    def encode(self, text: Text) -> list[int]:
        """Ids of a text."""

    def suffix(self, branch: Branch) -> list[int]:
        """Ids of a branch's prompt, up to where the reply begins."""

    def text(self, ids: Sequence[int], known: int = 0) -> str:
        """The text of ids, as the prompt of a completion.

        Args:
            ids: ids of the prompt.
            known: number of leading ids that an earlier call has checked.
        """

    def messages(self, ids: Sequence[int]) -> list[dict[str, str]]:
        """The messages of ids, as the prompt of a chat completion."""


class TokenizerCodec:
    """The codec with a tokenizer: prompts are the model's tokens, and no text of a document becomes a control token.

    Args:
        tokenizer: the tokenizer of the model on the server.
    """

    exact = True

    def __init__(self, tokenizer: Any) -> None:
        self.chat_codec = ChatCodec(tokenizer)
        opens = tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
        self._added = (tokenizer.bos_token or "") if opens else ""  # that servers add to a text
        names = (self._decoded([token]) for token in self.chat_codec.control_ids)
        self._longest_control = max((len(name.encode()) for name in names), default=0)  # in tokens, at most

    def head(self, system: str, lead: str) -> list[int]:
        """Token ids that precede every document."""
        return self.chat_codec.head(system, lead)

    def encode(self, text: Text) -> list[int]:
        """Token ids of a text."""
        return self.chat_codec.encode(text)

    def suffix(self, branch: Branch) -> list[int]:
        """Token ids of a branch's prompt, up to where the reply begins."""
        return self.chat_codec.flat_suffix(branch)

    def scored(self, branch: Branch) -> range:
        """The range of a branch's scored run among the tokens of its prompt."""
        return self.chat_codec.scored(self.chat_codec.suffix(branch.prompt, branch.cue), branch.scored)

    def text(self, ids: Sequence[int], known: int = 0) -> str:
        """The text of token ids. The server's tokens may differ where runs of the prompt meet.

        Args:
            ids: ids of the prompt.
            known: number of leading ids that an earlier call has checked.

        Raises:
            ValueError: if a document or a prompt contains the text of a control token, which would become that token.
        """
        ids = list(ids)
        # the text of a control token may begin in the known ids and end in the new ones
        new = ids[max(0, known - self._longest_control) :]
        again = self.chat_codec.backend.encode(self._decoded(new), add_special_tokens=False).ids
        control = [[token for token in some if token in self.chat_codec.control_ids] for some in (new, again)]
        if control[0] != control[1]:
            raise ValueError(
                "The document or a question holds the text of a control token, and this server takes prompts as text, "
                "in which it would become one: use a server that takes token ids, or take it out."
            )
        return self._decoded(ids).removeprefix(self._added)

    def _decoded(self, ids: list[int]) -> str:
        return self.chat_codec.backend.decode(ids, skip_special_tokens=False)

    def messages(self, ids: Sequence[int]) -> list[dict[str, str]]:
        """Never called: with a tokenizer, prompts are sent as tokens or text."""
        raise NotImplementedError


class CharacterCodec:
    """The codec without a tokenizer: the server applies its template and tokenizes, control tokens in documents too."""

    exact = False
    chat_codec = None

    def head(self, system: str, lead: str) -> list[int]:
        """Ids of the system's text, a separator, and the text before the document."""
        return [*_pack(system), _END_OF_SYSTEM, *_pack(lead)]

    def encode(self, text: Text) -> list[int]:
        """Ids of a text."""
        return _pack(text.text)

    def suffix(self, branch: Branch) -> list[int]:
        """Ids of a branch's prompt; the server's template ends the turn."""
        return [item for run in branch.prompt for item in _pack(run.text)]

    def text(self, ids: Sequence[int], known: int = 0) -> str:
        """The text of ids, without the separator."""
        return "".join(_unpack(item) for item in ids if item != _END_OF_SYSTEM)

    def messages(self, ids: Sequence[int]) -> list[dict[str, str]]:
        """The system's message, if it has text, and the user's."""
        ids = list(ids)
        mark = ids.index(_END_OF_SYSTEM)
        system, user = self.text(ids[:mark]), self.text(ids[mark + 1 :])
        turns = [{"role": "system", "content": system}] if system else []
        return [*turns, {"role": "user", "content": user}]


def _pack(text: str) -> list[int]:
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # no lone surrogates
    return [
        sum(
            (ord(char) + 1) << _BITS * offset
            for offset, char in enumerate(text[start : start + CHARACTERS_PER_ID])
        )
        for start in range(0, len(text), CHARACTERS_PER_ID)
    ]


def _unpack(item: int) -> str:
    found = []
    while item:
        found.append(chr((item & (1 << _BITS) - 1) - 1))
        item >>= _BITS
    return "".join(found)
