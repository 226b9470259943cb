"""Text to tokens and back: documents as data, prompts through the chat template, streams without broken characters."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

from wim_kernel.engines.base import Text

_MARK = "@@wim-document@@"
_MARKUP = re.compile(r"^<.*\w.*>$|^\[.*\w.*\]$", re.DOTALL)


@dataclass(frozen=True)
class Seam:
    """The chat template split where the document goes. Both parts are tokenized as they stand in the conversation."""

    before: str
    after: str
    chat: bool


class Codec:
    """Encodes and decodes for one tokenizer.

    Args:
        tokenizer: a transformers tokenizer with a `tokenizers` backend.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.backend: Tokenizer = tokenizer.backend_tokenizer
        self.control_ids = _control_ids(tokenizer)
        self._plain = _without_control(self.backend, self.control_ids)
        self.seam = self._split_template()

    def encode(self, text: Text) -> list[int]:
        """Tokens of one run of text; trusted text may hold control tokens, other text never becomes one."""
        if not text.text:
            return []
        if text.trusted:
            return list(self.backend.encode(text.text, add_special_tokens=False).ids)
        data = text.text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # no lone surrogates
        ids = self._plain.encode(data, add_special_tokens=False).ids
        return list(ids) if self.control_ids.isdisjoint(ids) else self._spelled(data)

    def count(self, text: str) -> int:
        """How many tokens a run of document text takes."""
        return len(self.encode(Text(text)))

    def _spelled(self, text: str) -> list[int]:
        """Character by character: for a vocabulary that holds control tokens as ordinary words."""
        ids = [token for char in text for token in self._plain.encode(char, add_special_tokens=False).ids]
        return [token for token in ids if token not in self.control_ids]

    def decode(self, ids: list[int]) -> str:
        """Text of tokens, control tokens left out."""
        return self.backend.decode(ids, skip_special_tokens=True)

    def stream(self) -> TextStream:
        """A decoder that takes tokens one by one."""
        return TextStream(self.backend)

    def head(self, system: str, lead: str) -> list[int]:
        """Tokens from position 0 to where the document begins."""
        if not self.seam.chat:
            opening = self.tokenizer("", add_special_tokens=True).input_ids
            begin = [i for i in opening[:1] if i == self.tokenizer.bos_token_id]
            return begin + self.encode(Text(f"{system}\n\n{lead}", trusted=True))
        before = self.seam.before.replace(_SYSTEM, system)
        return self.encode(Text(before + lead, trusted=True))

    def suffix(self, prompt: tuple[Text, ...], cue: str) -> list[list[int]]:
        """Tokens of a branch's prompt, run by run, then of the turn's end (chat) or of the reply's beginning (base)."""
        close = self.seam.after if self.seam.chat else "\n" + cue
        return [*(self.encode(text) for text in prompt), self.encode(Text(close, trusted=True))]

    def _split_template(self) -> Seam:
        if not getattr(self.tokenizer, "chat_template", None):
            return Seam("", "", chat=False)
        with_system = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _MARK}]
        alone = [{"role": "user", "content": f"{_SYSTEM}\n\n{_MARK}"}]
        for messages in (with_system, alone):  # some templates take no system turn, others drop it
            try:
                rendered = str(
                    self.tokenizer.apply_chat_template(
                        messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
                    )
                )
            except Exception:  # templates raise what they like: jinja errors, ValueError, ...
                continue
            if rendered.count(_MARK) == 1 and rendered.count(_SYSTEM) == 1:
                before, after = rendered.split(_MARK)
                if _SYSTEM in before:
                    return Seam(before, after, chat=True)
        return Seam("", "", chat=False)


_SYSTEM = "@@wim-system@@"


class TextStream:
    """Text of tokens as they come. A character whose bytes are not all there yet waits for the rest."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        self._stream = DecodeStream(skip_special_tokens=True)
        self.text = ""

    def step(self, token: int) -> str:
        """The new text that ``token`` completes, often empty."""
        new = self._stream.step(self._backend, token) or ""
        self.text += new
        return new


def _control_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that mean something other than their text: special ones, and added ones that look like markup."""
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(index for index, token in added if token.special or _MARKUP.match(token.content))


def _without_control(backend: Tokenizer, control_ids: frozenset[int]) -> Tokenizer:
    """The same tokenizer, blind to control tokens: their text is tokenized like any other."""
    spec = json.loads(backend.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["id"] not in control_ids]
    spec["post_processor"] = None
    spec["truncation"] = spec["padding"] = None
    return Tokenizer.from_str(json.dumps(spec))
