"""Server families: what each offers beside the common API, how it keeps prefixes, and how to start it for that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Route = Literal["tokens", "text", "chat"]
"""How prompts are sent: token ids to completions, text to completions, or messages to chat completions."""
FamilyName = Literal["vllm", "sglang", "llama.cpp", "transformers", "openai"]


@dataclass(frozen=True)
class Family:
    """What is known of one server family.

    Attributes:
        name: which.
        takes_ids: whether completions take token ids.
        concurrency: most requests at a time, by default.
        in_order: whether margins are written while the document is read and branches go one after another, each with
            all of its requests, because the server keeps one prompt a slot and a shorter branch cuts it off.
        logprobs: how many of the likeliest first tokens it tells the log-probabilities of; 0 if it does not.
        advice: what to change where prefixes are not found again.
        likelihoods: whether ``/generate``, which takes token ids, tells how likely those of a prompt are, finding their
            prefix in its cache none the less, and how likely given ones are to come next.
        extra: fields of every request.
        settings: transformers' names of settings that it takes, and how it calls them.
        every_token: the ``top_k`` that leaves all tokens to choose from.
        ends_beside_its_own: whether told to ignore the model's own end it would ignore the caller's too.
    """

    name: FamilyName
    takes_ids: bool
    concurrency: int
    in_order: bool
    logprobs: int
    advice: str
    likelihoods: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    every_token: int = 0
    ends_beside_its_own: bool = False


_SETTINGS = {
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "min_new_tokens": "min_tokens",
    "eos_token_id": "stop_token_ids",
}

# Unless a request says something, these servers penalise as the model's generation_config.json says, greedy text too.
_NO_PENALTY = {"repetition_penalty": 1.0}

FAMILIES = {
    family.name: family
    for family in (
        Family(
            "vllm",
            takes_ids=True,
            concurrency=32,
            in_order=False,
            logprobs=20,
            advice="start it with --enable-prefix-caching (and --enable-prompt-tokens-details, to see reuse), and give "
            "its cache room for the document",
            extra=_NO_PENALTY,
            settings=_SETTINGS,
            every_token=-1,
        ),
        Family(
            "sglang",
            takes_ids=True,
            concurrency=32,
            in_order=False,
            logprobs=20,
            advice="start it without --disable-radix-cache, with --enable-cache-report, and with a "
            "--mem-fraction-static that leaves room for the document",
            likelihoods=True,
            extra=_NO_PENALTY,
            settings=_SETTINGS,
            every_token=-1,
            ends_beside_its_own=True,
        ),
        Family(
            "llama.cpp",
            takes_ids=True,
            concurrency=1,
            in_order=True,
            logprobs=1000,
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
            in_order=False,
            logprobs=0,
            advice="start it with --continuous-batching; models with other than full attention share no prefixes there",
        ),
        Family(
            "openai",
            takes_ids=False,
            concurrency=8,
            in_order=False,
            logprobs=20,
            advice="see that its prefix cache is on and large enough for the document",
        ),
    )
}
