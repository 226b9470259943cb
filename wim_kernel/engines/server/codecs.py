"""What stands for tokens: a local tokenizer's, or, where there is none, three characters each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from wim_kernel.engines.base import Branch
from wim_kernel.engines.codec import Codec
from wim_kernel.text.run_text import Text

CHARACTERS = 3  # a token of English has about four, one of code three
_BITS = 21  # of a code point
_SYSTEM_ENDS = -1


class Words(Protocol):
    """Text to ids that stand for it, and back."""

    exact: bool
    """Whether the ids are what the model sees."""

    def head(self, system: str, lead: str) -> list[int]:
        """Ids that stand before every document."""

    def encode(self, text: Text) -> list[int]:
        """Ids of a run of text."""

    def suffix(self, branch: Branch) -> list[int]:
        """Ids of a branch's prompt, to the point where the reply begins."""

    def text(self, ids: Sequence[int], known: int = 0) -> str:
        """The text that ids stand for, as a completion's prompt; the first ``known`` of them were sent before."""

    def messages(self, ids: Sequence[int]) -> list[dict[str, str]]:
        """The conversation that ids stand for, as a chat completion's prompt."""


class Tokens:
    """A tokenizer's ids: what is sent is what the model sees, and a document's text never becomes a control token.

    Args:
        tokenizer: that of the model which the server runs.
    """

    exact = True

    def __init__(self, tokenizer: Any) -> None:
        self.codec = Codec(tokenizer)
        opens = tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
        self._added = (tokenizer.bos_token or "") if opens else ""  # by a server to a text
        names = (self._decoded([token]) for token in self.codec.control_ids)
        self._longest_control = max((len(name.encode()) for name in names), default=0)  # in tokens, at most

    def head(self, system: str, lead: str) -> list[int]:
        """Tokens that stand before every document."""
        return self.codec.head(system, lead)

    def encode(self, text: Text) -> list[int]:
        """Tokens of a run of text."""
        return self.codec.encode(text)

    def suffix(self, branch: Branch) -> list[int]:
        """Tokens of a branch's prompt, to the point where the reply begins."""
        return self.codec.flat_suffix(branch)

    def scored(self, branch: Branch) -> range:
        """Where the tokens of a branch's scored run stand among those of its prompt."""
        return self.codec.scored(self.codec.suffix(branch.prompt, branch.cue), branch.scored)

    def text(self, ids: Sequence[int], known: int = 0) -> str:
        """The text of ids. Where runs of a prompt meet, a server may cut it into tokens in another way.

        Args:
            ids: of the prompt.
            known: how many of them, from the first on, have been looked through in an earlier call.

        Raises:
            ValueError: if it holds more control tokens than the ids do, as where a document holds the text of one.
        """
        ids = list(ids)
        new = ids[
            max(0, known - self._longest_control) :
        ]  # one may begin in what is known and end in what is new
        again = self.codec.backend.encode(self._decoded(new), add_special_tokens=False).ids
        control = [[token for token in some if token in self.codec.control_ids] for some in (new, again)]
        if control[0] != control[1]:
            raise ValueError(
                "The document or a question holds the text of a control token, and this server takes prompts as text, "
                "in which it would become one: use a server that takes token ids, or take it out."
            )
        return self._decoded(ids).removeprefix(self._added)

    def _decoded(self, ids: list[int]) -> str:
        return self.codec.backend.decode(ids, skip_special_tokens=False)

    def messages(self, ids: Sequence[int]) -> list[dict[str, str]]:
        """Not what a tokenizer is for."""
        raise NotImplementedError


class Characters:
    """Runs of three characters. The server applies its chat template and tokenizes, control tokens in documents too."""

    exact = False

    def head(self, system: str, lead: str) -> list[int]:
        """The system's text, a mark, and what leads in the document."""
        return [*_packed(system), _SYSTEM_ENDS, *_packed(lead)]

    def encode(self, text: Text) -> list[int]:
        """Ids of a run of text."""
        return _packed(text.text)

    def suffix(self, branch: Branch) -> list[int]:
        """Ids of a branch's prompt; the server ends the turn."""
        return [item for run in branch.prompt for item in _packed(run.text)]

    def text(self, ids: Sequence[int], known: int = 0) -> str:
        """The text without the mark."""
        return "".join(_unpacked(item) for item in ids if item != _SYSTEM_ENDS)

    def messages(self, ids: Sequence[int]) -> list[dict[str, str]]:
        """The system's turn, if there is one, and the user's."""
        ids = list(ids)
        mark = ids.index(_SYSTEM_ENDS)
        system, user = self.text(ids[:mark]), self.text(ids[mark + 1 :])
        turns = [{"role": "system", "content": system}] if system else []
        return [*turns, {"role": "user", "content": user}]


def _packed(text: str) -> list[int]:
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # no lone surrogates
    return [
        sum((ord(char) + 1) << _BITS * place for place, char in enumerate(text[start : start + CHARACTERS]))
        for start in range(0, len(text), CHARACTERS)
    ]


def _unpacked(item: int) -> str:
    found = []
    while item:
        found.append(chr((item & (1 << _BITS) - 1) - 1))
        item >>= _BITS
    return "".join(found)
