"""Converts a generation config to the fields of a request; refuses settings that a family does not support."""

from __future__ import annotations

from typing import Any

from wim_kernel.engines.generation import Generation
from wim_kernel.engines.server.families import Family

STANDARD = ("max_tokens", "temperature", "top_p", "stop")
"""Sampling fields of the common API; others are a family's own."""

_NEVER_SENT = (
    "no_repeat_ngram_size",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "sequence_bias",
    "min_length",
    "max_time",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "exponential_decay_length_penalty",
    "encoder_repetition_penalty",
    "encoder_no_repeat_ngram_size",
    "guidance_scale",
    "watermarking_config",
    "token_healing",
    "penalty_alpha",
    "dola_layers",
)
_WHOLE_TEXT = 2**18  # llama.cpp's repeat_last_n, whose default of 64 tokens is not transformers' penalty
_ONLY_SAMPLED = ("top_k", "min_p", "typical_p")
_SAMPLED_NEVER_SENT = ("top_h", "epsilon_cutoff", "eta_cutoff", "renormalize_logits")
_CHANGES_NOTHING: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "guidance_scale": (1.0,),
    "typical_p": (1.0,),
}


def sampling_fields(family: Family, generation: Generation, end: int | None = None) -> dict[str, Any]:
    """The fields of a request for a generation config. Settings that the config leaves open are left to the server.

    Args:
        family: the server's family.
        generation: the generation config.
        end: EOS token of the tokenizer; None if it is unknown.

    Raises:
        ValueError: for settings that the family does not support.
    """
    sampled = bool(generation.do_sample)
    for name in (*_NEVER_SENT, *(_SAMPLED_NEVER_SENT if sampled else ())):
        if _changes(generation, name):
            raise ValueError(f"{name} cannot be asked of a server.")
    fields: dict[str, Any] = {"max_tokens": generation.max_new_tokens}
    if family.name == "transformers":  # applies most settings of the first request to all requests
        for name in ("do_sample", "min_new_tokens", "stop_strings", "repetition_penalty"):
            if _changes(generation, name):
                raise ValueError(f"{name} cannot be asked of `transformers serve`.")
        if end is None and generation.eos_token_id is not None:
            raise ValueError("eos_token_id cannot be asked of `transformers serve` without a tokenizer.")
        return fields
    fields["temperature"] = (
        0.0 if not sampled else 1.0 if generation.temperature is None else generation.temperature
    )
    if sampled and generation.top_p is not None:
        fields["top_p"] = generation.top_p
    if generation.stop_strings:
        stops = generation.stop_strings
        fields["stop"] = [stops] if isinstance(stops, str) else list(stops)
    for name in (*(_ONLY_SAMPLED if sampled else ()), "repetition_penalty"):
        value = getattr(generation, name, None)
        if value is None or (name not in family.settings and not _changes(generation, name)):
            continue
        # a neutral value is sent too: it overrides a default of the server or the model
        fields[_sent_as(family, name)] = family.top_k_off if name == "top_k" and value <= 0 else value
    if "repeat_penalty" in fields:
        fields["repeat_last_n"] = _WHOLE_TEXT
    return {**fields, **_shortest(family, generation), **_ends(family, generation, end)}


def _shortest(family: Family, generation: Generation) -> dict[str, Any]:
    """The fields for a minimum length. A family without one may be able to generate exactly the maximum."""
    if not generation.min_new_tokens:
        return {}
    exactly = generation.min_new_tokens == generation.max_new_tokens
    if "min_new_tokens" not in family.settings and "ignore_eos" in family.settings and exactly:
        return {"ignore_eos": True}
    return {_sent_as(family, "min_new_tokens"): generation.min_new_tokens}


def _ends(family: Family, generation: Generation, end: int | None) -> dict[str, Any]:
    """The fields for the caller's EOS tokens, which replace the model's."""
    ends = ends_of(generation)
    if not ends or ("eos_token_id" not in family.settings and ends == [end]):
        return {}
    name = _sent_as(family, "eos_token_id")
    if family.ignore_eos_drops_stop_ids:
        if end not in ends:
            raise ValueError(
                f"eos_token_id cannot be asked of a server of the family {family.name!r} without the model's own end, "
                "at which it ends anyway."
            )
        return {name: ends}
    return {name: ends, "ignore_eos": True}


def ends_of(generation: Generation) -> list[int]:
    """The EOS tokens of a config; empty if it has none."""
    ends = generation.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def _changes(generation: Generation, name: str) -> bool:
    """Whether a setting is set to a value that has an effect."""
    value = getattr(generation, name, None)
    return value is not None and bool(value) and value not in _CHANGES_NOTHING.get(name, ())


def _sent_as(family: Family, name: str) -> str:
    if name not in family.settings:
        raise ValueError(f"{name} cannot be asked of a server of the family {family.name!r}.")
    return family.settings[name]
