"""Text to tokens and back: documents as data, prompts through the chat template, streams without broken characters."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

from wim_kernel.common.errors import UnsupportedModelError
from wim_kernel.engines.base import Branch
from wim_kernel.text.run_text import Text

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
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise UnsupportedModelError(
                f"{type(tokenizer).__name__} is no fast tokenizer: load it with use_fast=True."
            )
        self.control_ids = _control_ids(tokenizer)
        self.backend = _seamless(tokenizer.backend_tokenizer)
        self._plain = _seamless(tokenizer.backend_tokenizer, without=self.control_ids)
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

    def _spelled(self, text: str) -> list[int]:
        """Character by character: for a vocabulary that holds control tokens as ordinary words."""
        ids = [token for char in text for token in self._plain.encode(char, add_special_tokens=False).ids]
        return [token for token in ids if token not in self.control_ids]

    def placed(self, text: str) -> tuple[list[int], list[int]]:
        """Tokens of document text, as `encode` gives them, and the character at which each begins."""
        if not text:
            return [], []
        data = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        found = self._plain.encode(data, add_special_tokens=False)
        if self.control_ids.isdisjoint(found.ids):
            return list(found.ids), [start for start, _ in found.offsets]
        pairs = [(token, place) for place, char in enumerate(data) for token in self._spelled(char)]
        return [token for token, _ in pairs], [place for _, place in pairs]

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

    def scored(self, runs: Sequence[Sequence[int]], run: int | None) -> range:
        """Where the tokens of a scored run stand among those of a `suffix`; an empty range if there is none.

        Raises:
            ValueError: if no token of the suffix stands before it.
        """
        if run is None:
            return range(0)
        start = sum(map(len, runs[:run]))
        if start == 0:
            raise ValueError("A scored run needs a token before it in the branch's prompt.")
        return range(start, start + len(runs[run]))

    def flat_suffix(self, branch: Branch) -> list[int]:
        """All of a branch's `suffix`, to the point where the reply begins."""
        return [token for run in self.suffix(branch.prompt, branch.cue) for token in run]

    def choices(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of replies that compete, as they stand where a reply begins.

        Raises:
            UnsupportedModelError: if two begin with the same token, so that a first token decides nothing.
        """
        for lead in ("", " ") if self.seam.chat else (" ", ""):
            found = [self.encode(Text(lead + text)) for text in texts]
            if len({ids[0] for ids in found}) == len(found):
                return found
        raise UnsupportedModelError(
            f"{', '.join(texts)} begin with the same token in this model's vocabulary."
        )

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
        warnings.warn(
            "The tokenizer's chat template cannot be split where the document goes, so the model is given plain text, "
            "as a base model is.",
            stacklevel=4,
        )
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


def _seamless(backend: Tokenizer, without: frozenset[int] = frozenset()) -> Tokenizer:
    """A copy that adds nothing around a text, so that texts can be tokenized run by run, and is blind to some tokens.

    SentencePiece's tokenizers put a space before every text; here a run stands in the middle of a conversation. The
    text of tokens ``without`` which the copy is made is tokenized like any other.
    """
    spec = json.loads(backend.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["id"] not in without]
    spec["post_processor"] = spec["truncation"] = spec["padding"] = None
    for part in _parts(spec["pre_tokenizer"], "pretokenizers"):
        if part["type"] == "Metaspace":
            part["prepend_scheme"] = "never"
    if spec["normalizer"] is not None:
        kept = [part for part in _parts(spec["normalizer"], "normalizers") if part["type"] != "Prepend"]
        spec["normalizer"] = {"type": "Sequence", "normalizers": kept}
    return Tokenizer.from_str(json.dumps(spec))


def _parts(component: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The members of a tokenizer's sequence of normalizers or pre-tokenizers, or the only one, or none."""
    if component is None:
        return []
    found: list[dict[str, Any]] = component[key] if component["type"] == "Sequence" else [component]
    return found
