"""Type checks of options."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from wim_kernel.common.errors import OptionError
from wim_kernel.common.plain_data import is_finite, shown
from wim_kernel.text.prompts import Prompts


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isnan(value)
    return is_finite(value)  # an integer that no float holds is none


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_config(value: Any) -> bool:
    from transformers import GenerationConfig  # only here: whoever gives one has imported it

    return isinstance(value, GenerationConfig)


def _is_relevance(value: Any) -> bool:
    return isinstance(value, str) or (callable(value) and not isinstance(value, type))


def _is_stop_rule(value: Any) -> bool:
    return isinstance(value, str) or callable(value)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_prompts(value: Any) -> bool:
    return isinstance(value, Prompts)


_COUNT = _is_count, "a whole number, such as 3"
_TRUTH = _is_truth, "True or False"
_CONFIG = _is_config, "a transformers GenerationConfig, such as GenerationConfig(max_new_tokens=64)"
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "threshold": (_is_number, "a number from 0 to 1, such as 0.5"),
    "top_k": _COUNT,
    "stop_after": _COUNT,
    "margin_batch": _COUNT,
    "margin_tokens": _COUNT,
    "rounds": _COUNT,
    "answer_tokens": _COUNT,
    "keep": (callable, "a function of a margin that returns True or False"),
    "stop_when": (_is_stop_rule, "'enough', or a function of the margins so far that returns True or False"),
    "relevance": (_is_relevance, "a name, such as 'likelihood', or a function of the evidence"),
    "margin_style": (_is_text, "a name, such as 'free'"),
    "task": (_is_text, "a name, such as 'answer'"),
    "answer_volume": (_is_text, "a name, such as 'last'"),
    "prompts": (_is_prompts, "a Prompts, such as PROMPTS['answer']"),
    "variables": (_is_mapping, "a dict of strings by name"),
    "margin_config": _CONFIG,
    "answer_config": _CONFIG,
    "citations": _TRUTH,
    "answer_schema": (_is_mapping, "a JSON schema as a dict, such as Model.model_json_schema() gives"),
}
_MAY_BE_NONE = frozenset(_KINDS) - {"relevance", "task", "answer_volume"}


def check_types(options: Mapping[str, Any]) -> None:
    """Check that each option is of its type.

    Raises:
        OptionError: for the first option that is not; the message says what type it has to be.
    """
    for name, value in options.items():
        if name not in _KINDS or (value is None and name in _MAY_BE_NONE):
            continue
        is_valid, wanted = _KINDS[name]
        if not is_valid(value):
            raise OptionError(f"{name} has to be {wanted}, and is {shown(value)} ({type(value).__name__}).")
