"""Server families: what each supports beyond the common API, how it caches prefixes, and how to start it for that."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Route = Literal["tokens", "text", "chat"]
"""The form of prompts: token ids to completions, text to completions, or messages to chat completions."""
FamilyName = Literal["vllm", "sglang", "llama.cpp", "transformers", "ollama", "openai"]


@dataclass(frozen=True)
class Family:
    """The properties of one server family.

    Attributes:
        name: name of the family.
        takes_ids: whether completions accept token ids.
        concurrency: default for the most requests at a time.
        sequential: whether branches run one after another, and margins are written before the next chunk is prefilled:
            the server keeps one prompt per slot, and a shorter prompt truncates it.
        logprobs: number of most likely first tokens whose log-probabilities it reports; 0 if it reports none.
        advice: what to change if the prefix cache misses, for a warning.
        tells_candidates: whether its ``/generate`` returns log-probabilities of given candidates for the next token.
        decides_apart: whether a request of one token decides about a branch before it is written (not for messages):
            probabilities of every token of a note would cost more than the second request, which runs a few tokens.
        extra: fields of every request.
        settings: supported settings: transformers' names, and the family's names.
        top_k_off: the ``top_k`` that means all tokens.
        ignore_eos_drops_stop_ids: whether ``ignore_eos`` also disables ``stop_token_ids``, so that the model's EOS can
            be added to but not replaced (SGLang).
    """

    name: FamilyName
    takes_ids: bool
    concurrency: int
    sequential: bool
    logprobs: int
    advice: str
    tells_candidates: bool = False
    decides_apart: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    top_k_off: int = 0
    ignore_eos_drops_stop_ids: bool = False

    @property
    def max_branches(self) -> int:
        """Most branches of one call; any number where the server keeps one prompt, so that all can be ordered."""
        return sys.maxsize if self.sequential else 256


_SETTINGS = {
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "min_new_tokens": "min_tokens",
    "eos_token_id": "stop_token_ids",
}

# Without a value in the request, these servers apply the penalty of the model's generation_config.json, even if greedy.
_NO_PENALTY = {"repetition_penalty": 1.0}

FAMILIES = {
    family.name: family
    for family in (
        Family(
            "vllm",
            takes_ids=True,
            concurrency=32,
            sequential=False,
            logprobs=20,
            advice="start it with --enable-prefix-caching (and --enable-prompt-tokens-details, to see reuse), and give "
            "its cache room for the document",
            extra=_NO_PENALTY,
            settings=_SETTINGS,
            top_k_off=-1,
        ),
        Family(
            "sglang",
            takes_ids=True,
            concurrency=32,
            sequential=False,
            logprobs=20,
            advice="start it without --disable-radix-cache, with --enable-cache-report, and with a "
            "--mem-fraction-static that leaves room for the document",
            tells_candidates=True,
            decides_apart=True,
            extra=_NO_PENALTY,
            settings=_SETTINGS,
            top_k_off=-1,
            ignore_eos_drops_stop_ids=True,
        ),
        Family(
            "llama.cpp",
            takes_ids=True,
            concurrency=1,
            sequential=True,
            logprobs=1000,
            decides_apart=True,
            advice="start it with one slot (--parallel 1) and a context (-c) that holds the document and its prompts",
            extra={"cache_prompt": True, "id_slot": 0},
            settings={
                "top_k": "top_k",
                "min_p": "min_p",
                "typical_p": "typical_p",
                "repetition_penalty": "repeat_penalty",
                "ignore_eos": "ignore_eos",
            },
        ),
        Family(
            "transformers",
            takes_ids=False,
            concurrency=16,
            sequential=False,
            logprobs=0,
            advice="start it with --continuous-batching; models with other than full attention share no prefixes there",
        ),
        Family(
            "ollama",
            takes_ids=False,
            concurrency=1,
            sequential=True,
            logprobs=20,
            decides_apart=True,
            advice="see that nobody else uses the model meanwhile, or set OLLAMA_NUM_PARALLEL",
            settings={
                "top_k": "top_k",
                "min_p": "min_p",
                "typical_p": "typical_p",
                "repetition_penalty": "repeat_penalty",
            },
        ),
        Family(
            "openai",
            takes_ids=False,
            concurrency=8,
            sequential=False,
            logprobs=20,
            advice="see that its prefix cache is on and large enough for the document",
        ),
    )
}
