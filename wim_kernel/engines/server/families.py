"""Server families: what each offers beside the common API, how it keeps prefixes, and how to start it for that."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import GenerationConfig

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
        in_order: whether margins are written while the document is read and branches go one after another, longest
            first, because the server keeps one prompt a slot and a shorter branch cuts it off.
        logprobs: whether the first token's log-probabilities can be had.
        extra: fields of every request.
        advice: what to change where prefixes are not found again.
    """

    name: FamilyName
    takes_ids: bool
    concurrency: int
    in_order: bool
    logprobs: bool
    advice: str
    extra: dict[str, Any] = field(default_factory=dict)


FAMILIES = {
    family.name: family
    for family in (
        Family(
            "vllm",
            takes_ids=True,
            concurrency=32,
            in_order=False,
            logprobs=True,
            advice="start it with --enable-prefix-caching (and --enable-prompt-tokens-details, to see reuse), and give "
            "its cache room for the document",
        ),
        Family(
            "sglang",
            takes_ids=True,
            concurrency=32,
            in_order=False,
            logprobs=True,
            advice="start it without --disable-radix-cache, with --enable-cache-report, and with a "
            "--mem-fraction-static that leaves room for the document",
        ),
        Family(
            "llama.cpp",
            takes_ids=True,
            concurrency=1,
            in_order=True,
            logprobs=True,
            advice="start it with one slot (--parallel 1) and a context (-c) that holds the document and its prompts",
            extra={"cache_prompt": True, "id_slot": 0},
        ),
        Family(
            "transformers",
            takes_ids=False,
            concurrency=16,
            in_order=False,
            logprobs=False,
            advice="start it with --continuous-batching; models with other than full attention share no prefixes there",
        ),
        Family(
            "openai",
            takes_ids=False,
            concurrency=8,
            in_order=False,
            logprobs=True,
            advice="see that its prefix cache is on and large enough for the document",
        ),
    )
}


def sampling_fields(family: Family, generation: GenerationConfig) -> dict[str, Any]:
    """A generation config as the fields of a request.

    Raises:
        ValueError: for settings that cannot be sent to this family.
    """
    greedy = not generation.do_sample
    fields: dict[str, Any] = {"max_tokens": generation.max_new_tokens}
    for name in _NEVER_SENT:
        if getattr(generation, name, None):
            raise ValueError(f"{name} cannot be asked of a server.")
    if family.name == "transformers":  # it keeps the first request's settings for all, but for these
        for name in ("do_sample", "min_new_tokens", "stop_strings", "repetition_penalty"):
            if getattr(generation, name, None) not in (None, False, 0, 1.0):
                raise ValueError(f"{name} cannot be asked of `transformers serve`.")
        return fields
    fields["temperature"] = (
        0.0 if greedy else (1.0 if generation.temperature is None else generation.temperature)
    )
    if not greedy and generation.top_p is not None:
        fields["top_p"] = generation.top_p
    if generation.stop_strings:
        stops = generation.stop_strings
        fields["stop"] = [stops] if isinstance(stops, str) else list(stops)
    more: dict[str, Any] = {}
    if not greedy and generation.top_k:
        more["top_k"] = generation.top_k
    if (generation.repetition_penalty or 1.0) != 1.0:
        more["repeat_penalty" if family.name == "llama.cpp" else "repetition_penalty"] = (
            generation.repetition_penalty
        )
    if generation.min_new_tokens:
        more["min_tokens"] = generation.min_new_tokens
    wanted = {"vllm": more, "sglang": more, "llama.cpp": {k: v for k, v in more.items() if k != "min_tokens"}}
    allowed = wanted.get(family.name, {})
    unsent = sorted(set(more) - set(allowed))
    if unsent:
        raise ValueError(f"{', '.join(unsent)} cannot be asked of a server of the family {family.name!r}.")
    return {**fields, **allowed}


_NEVER_SENT = (
    "no_repeat_ngram_size",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "sequence_bias",
)
