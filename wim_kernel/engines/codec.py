"""Converts text to tokens and back: documents as plain data, prompts in the chat template, streams of characters."""

from __future__ import annotations

import itertools
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer, models
from tokenizers.decoders import DecodeStream

from wim_kernel.common.errors import UnsupportedModelError
from wim_kernel.engines.base import Branch
from wim_kernel.engines.reasoning import reply_lead, switches
from wim_kernel.text.run_text import Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK = "@@wim-document@@"
_MARKUP = re.compile(r"^<.*\w.*>$|^\[.*\w.*\]$", re.DOTALL)


@dataclass(frozen=True)
class Seam:
    """The chat template, split where the document goes.

    Attributes:
        before: text of the conversation up to the document, with a placeholder for the system's text.
        after: text of the conversation from the end of the user's turn to the beginning of the reply.
        chat: whether the tokenizer has a chat template that can be split; if not, both texts are empty.
    """

    before: str
    after: str
    chat: bool


class ChatCodec:
    """Encodes prompts and documents for one tokenizer, and decodes what the model generates.

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
        self.backend, self._plain = _seamless(tokenizer.backend_tokenizer, self.control_ids)
        self._template = _template(tokenizer)
        self._switches = switches(self._template)
        self.seam = self._split_template()

    def encode(self, text: Text) -> list[int]:
        """Token ids of a text. Only trusted text can become control tokens."""
        if not text.text:
            return []
        if text.trusted:
            return list(self.backend.encode(text.text, add_special_tokens=False).ids)
        data = text.text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # no lone surrogates
        ids = self._plain.encode(data, add_special_tokens=False).ids
        return list(ids) if self.control_ids.isdisjoint(ids) else self._spelled(data)

    def _spelled(self, text: str) -> list[int]:
        """Token ids character by character: for a vocabulary that has control tokens among its ordinary words."""
        ids = [token for char in text for token in self._plain.encode(char, add_special_tokens=False).ids]
        return [token for token in ids if token not in self.control_ids]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids of document text, as from `encode`, and the character offset at which each begins."""
        if not text:
            return [], []
        data = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        found = self._plain.encode(data, add_special_tokens=False)
        if self.control_ids.isdisjoint(found.ids):
            return list(found.ids), [start for start, _ in found.offsets]
        pairs = [(token, offset) for offset, char in enumerate(data) for token in self._spelled(char)]
        return [token for token, _ in pairs], [offset for _, offset in pairs]

    def decode(self, ids: list[int]) -> str:
        """The text of tokens, without control tokens."""
        return self.backend.decode(ids, skip_special_tokens=True)

    def stream(self) -> TextStream:
        """A decoder for tokens one by one."""
        return TextStream(self.backend)

    def head(self, system: str, lead: str) -> list[int]:
        """Token ids from position 0 to the beginning of the document."""
        if not self.seam.chat:
            opening = self.tokenizer("", add_special_tokens=True).input_ids
            begin = [i for i in opening[:1] if i == self.tokenizer.bos_token_id]
            return begin + self.encode(Text(f"{system}\n\n{lead}", trusted=True))
        before = self.seam.before.replace(_SYSTEM, system)
        return self.encode(Text(before + lead, trusted=True))

    def suffix(self, prompt: tuple[Text, ...], cue: str) -> list[list[int]]:
        """Token ids of a branch's prompt, run by run; last, the end of the turn (chat) or the cue (base model)."""
        close = self.seam.after if self.seam.chat else "\n" + cue
        return [*(self.encode(text) for text in prompt), self.encode(Text(close, trusted=True))]

    def scored(self, runs: Sequence[Sequence[int]], run: int | None) -> range:
        """The range of a scored run among the tokens of a suffix; empty if ``run`` is None.

        Args:
            runs: token ids of the suffix, run by run.
            run: index of the scored run.

        Raises:
            ValueError: if no token precedes the run.
        """
        if run is None:
            return range(0)
        start = sum(map(len, runs[:run]))
        if start == 0:
            raise ValueError("A scored run needs a token before it in the branch's prompt.")
        return range(start, start + len(runs[run]))

    def flat_suffix(self, branch: Branch) -> list[int]:
        """Token ids of a branch's `suffix` in one list."""
        return [token for run in self.suffix(branch.prompt, branch.cue) for token in run]

    def choices(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each choice at the beginning of a reply.

        Raises:
            UnsupportedModelError: if two choices begin with the same token, so that the first token cannot decide.
        """
        for lead in ("", " ") if self.seam.chat else (" ", ""):
            found = [self.encode(Text(lead + text)) for text in texts]
            if len({ids[0] for ids in found}) == len(found):
                return found
        raise UnsupportedModelError(
            f"{', '.join(texts)} begin with the same token in this model's vocabulary."
        )

    def conversation(self, messages: Sequence[Mapping[str, str]]) -> str:
        """A conversation in the chat template, up to where the reply begins; without reasoning before the reply.

        Args:
            messages: each with its ``role`` and ``content``, the user's last.

        Raises:
            Exception: of whatever kind the template raises.
        """
        prompt = self._rendered(messages)
        end = len(prompt)
        if prompt.count(messages[-1]["content"]) == 1:
            end = prompt.index(messages[-1]["content"]) + len(messages[-1]["content"])
        lead = reply_lead(
            self._template, prompt[end:], self._before_reply(messages), switched=bool(self._switches)
        )
        return prompt + lead

    def _before_reply(self, messages: Sequence[Mapping[str, str]]) -> str | None:
        """What the template puts between the user's last turn and a reply that has been written."""
        try:
            done = self._rendered([*messages, {"role": "assistant", "content": _REPLY}], reply=False)
        except Exception:  # templates may raise anything: jinja errors, ValueError, ...
            return None
        asked = messages[-1]["content"]
        if done.count(asked) != 1 or done.count(_REPLY) != 1:
            return None
        return done.partition(asked)[2].partition(_REPLY)[0]

    def _rendered(self, messages: Sequence[Mapping[str, str]], *, reply: bool = True) -> str:
        """The template's own text; with content as a list where the template takes it in no other way."""
        for content in (str, _as_list):
            given: Any = [{"role": turn["role"], "content": content(turn["content"])} for turn in messages]
            rendered = str(
                self.tokenizer.apply_chat_template(
                    given, tokenize=False, add_generation_prompt=reply, **self._switches
                )
            )
            if messages[-1]["content"] in rendered:
                break
        return rendered

    def _split_template(self) -> Seam:
        if not self._template:
            return Seam("", "", chat=False)
        with_system = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _MARK}]
        alone = [{"role": "user", "content": f"{_SYSTEM}\n\n{_MARK}"}]
        for messages in (with_system, alone):  # some templates refuse a system turn, others drop it
            try:
                rendered = self.conversation(messages)
            except Exception:  # templates may raise anything: jinja errors, ValueError, ...
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
_REPLY = "@@wim-reply@@"


def _as_list(text: str) -> list[dict[str, str]]:
    """Content as templates of multimodal models take it."""
    return [{"type": "text", "text": text}]


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's chat template, of several the default one; empty without one."""
    try:
        return tokenizer.get_chat_template() if tokenizer.chat_template else ""
    except ValueError:  # several, and none is the default
        return ""


class TextStream:
    """Decodes tokens one by one. A character appears once all its bytes have been generated."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        self._stream = DecodeStream(skip_special_tokens=True)
        self.text = ""

    def step(self, token: int) -> str:
        """The text that ``token`` completes; empty within a character."""
        new = self._stream.step(self._backend, token) or ""
        self.text += new
        return new


def _control_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that mean something other than their text: special tokens, and added tokens that look like markup."""
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(index for index, token in added if token.special or _MARKUP.match(token.content))


def _seamless(backend: Tokenizer, control_ids: frozenset[int]) -> tuple[Tokenizer, Tokenizer]:
    """Copies of a tokenizer that add nothing around a text, so that a prompt can be tokenized run by run.

    SentencePiece's tokenizers put a space before every text, but here a text is in the middle of a conversation. The
    copies share the tokenizer's model: to write out and read back a vocabulary takes seconds.

    Args:
        backend: the tokenizer.
        control_ids: ids of added tokens that only trusted text may become.

    Returns:
        A copy with all added tokens, and one without the control tokens, whose text it tokenizes like any other.
    """
    parts = Tokenizer(models.BPE())
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        setattr(parts, name, getattr(backend, name))
    spec = json.loads(parts.to_str())
    for part in _parts(spec["pre_tokenizer"], "pretokenizers"):
        if part["type"] == "Metaspace":
            part["prepend_scheme"] = "never"
    if spec["normalizer"] is not None:
        kept = [part for part in _parts(spec["normalizer"], "normalizers") if part["type"] != "Prepend"]
        spec["normalizer"] = {"type": "Sequence", "normalizers": kept}
    added = sorted(backend.get_added_tokens_decoder().items())
    ordinary = [token for index, token in added if index not in control_ids]
    everything = [token for _, token in added]
    return _with_model_of(backend, spec, everything), _with_model_of(backend, spec, ordinary)


def _with_model_of(backend: Tokenizer, spec: dict[str, Any], added: Sequence[AddedToken]) -> Tokenizer:
    """A tokenizer of a description without a vocabulary, with another's model."""
    made = Tokenizer.from_str(json.dumps(spec))
    made.model = backend.model
    for special, tokens in itertools.groupby(added, key=lambda token: token.special):
        (made.add_special_tokens if special else made.add_tokens)(list(tokens))
    return made


def _parts(component: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The list of a tokenizer's normalizers or pre-tokenizers, whether it has a sequence, a single one or none."""
    if component is None:
        return []
    found: list[dict[str, Any]] = component[key] if component["type"] == "Sequence" else [component]
    return found
