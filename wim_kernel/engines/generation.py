"""Greedy decoding, the default of every generation, without transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeAlias

if TYPE_CHECKING:
    from transformers import GenerationConfig


@dataclass
class Greedy:
    """Greedy decoding, which a caller's `GenerationConfig` replaces.

    It reads like a `GenerationConfig` that leaves all else open. Importing transformers for one takes most of a second,
    and an engine whose model runs elsewhere does without it.

    Attributes:
        max_new_tokens: most tokens to generate.
    """

    max_new_tokens: int
    do_sample: ClassVar[bool] = False
    temperature: ClassVar[float | None] = None
    top_p: ClassVar[float | None] = None
    min_new_tokens: ClassVar[int | None] = None
    eos_token_id: ClassVar[int | list[int] | None] = None
    stop_strings: ClassVar[str | list[str] | None] = None


Generation: TypeAlias = "GenerationConfig | Greedy"
"""Settings of a generation."""
