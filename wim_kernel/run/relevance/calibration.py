"""Calibrations: what makes the relevance signals of different models comparable.

A calibration lists the model's retrieval heads, has the spread of each signal, and maps signals to a probability. It
is fitted once for each model, on examples that come with the package (see `fitting`), and cached in the user's cache
folder; calibrations of a few models come with the package.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from platformdirs import user_cache_path

from wim_kernel.common.kept_json import write_json
from wim_kernel.engines.base import Head

logger = logging.getLogger(__name__)

SIGNALS = ("attention", "lexical", "passage")
UNATTENDED_CURVE = (1.3, -0.2)
"""The curve for engines that see no attention, between those of the models whose calibrations come with the package."""
VERSION = 1  # of the fitting procedure; cached calibrations of another version are not used


@dataclass(frozen=True)
class Calibration:
    """A model's calibration.

    Attributes:
        heads: the retrieval heads; empty means all of the model's heads.
        spread: the standard deviation of each signal over passages, relative to the document's best passage. The key
            ``"alone"`` is that of attention if each passage was read alone.
        curves: slope and intercept of the log-odds that a passage holds evidence, as a function of its score: by each
            signal alone, by all signals (``"combined"``), by all signals of passages read alone (``"alone"``), and by
            all signals but attention (``"unattended"``).
        source: the origin: ``"package"``, ``"cache"``, ``"examples"`` or ``"default"``.
    """

    heads: tuple[Head, ...] = ()
    spread: Mapping[str, float] = field(
        default_factory=lambda: {"attention": 2.0, "lexical": 0.15, "passage": 1.0, "alone": 0.25}
    )
    curves: Mapping[str, tuple[float, float]] = field(
        default_factory=lambda: {
            "combined": (1.3, 1.5),
            "alone": (1.3, 1.5),
            "attention": (2.0, 0.5),
            "lexical": (2.0, 0.0),
            "passage": (2.0, 0.5),
            "unattended": UNATTENDED_CURVE,
        }
    )
    source: str = "default"

    @property
    def is_found(self) -> bool:
        """Whether the calibration was fitted; the default one cannot tell evidence from noise."""
        return self.source != "default"

    def probability(self, curve: str, scores: np.ndarray) -> np.ndarray:
        """The probability that passages hold evidence, given their scores: (passages,)."""
        slope, intercept = self.curves[curve]
        return 1 / (1 + np.exp(-np.clip(slope * scores + intercept, -40, 40)))

    def to_dict(self) -> dict[str, Any]:
        """The calibration as plain JSON data."""
        return {
            "version": VERSION,
            "heads": [list(head) for head in self.heads],
            "spread": {name: round(value, 4) for name, value in self.spread.items()},
            "curves": {
                name: [round(item, 3) for item in curve]
                for name, curve in self.curves.items()
                if name != "unattended"
            },
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str) -> Calibration:
        """Read back what `to_dict` wrote.

        Raises:
            ValueError: if the data is no calibration of this version.
        """
        try:
            if data["version"] != VERSION:
                raise ValueError(f"it has version {data['version']}, not {VERSION}")
            heads = tuple((int(layer), int(head)) for layer, head in data["heads"])
            spread = {name: float(data["spread"][name]) for name in (*SIGNALS, "alone")}
            names = (*SIGNALS, "combined", "alone")
            curves = {
                name: (float(data["curves"][name][0]), float(data["curves"][name][1])) for name in names
            }
            curves["unattended"] = UNATTENDED_CURVE
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"it lacks {error}") from error
        numbers = [*spread.values(), *(number for curve in curves.values() for number in curve)]
        if not all(map(math.isfinite, numbers)) or min(spread.values()) <= 0:
            raise ValueError("its numbers make no sense")
        return cls(heads, spread, curves, source)


WITHOUT_ATTENTION = Calibration(
    spread={"attention": 2.0, "lexical": 0.158, "passage": 0.925, "alone": 0.25}, source="package"
)
"""For models of which nothing but likelihoods is seen. The spreads are means over the models whose calibrations come
with the package."""


def known(model: str) -> Calibration | None:
    """The calibration of a model fingerprint, from the package or the user's cache folder; None if there is none."""
    if model in _shipped():
        return Calibration.from_dict(_shipped()[model], "package")
    path = _path(model)
    try:
        return Calibration.from_dict(json.loads(path.read_text(encoding="utf-8")), "cache")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("The calibration in %s is not used: %s.", path, error)
        return None


def keep(model: str, calibration: Calibration) -> None:
    """Write a calibration to the user's cache folder; logs a warning if the folder cannot be written to."""
    try:
        write_json(_path(model), calibration.to_dict())
    except OSError as error:
        logger.warning("The calibration cannot be cached, so the next process will run it again: %s", error)


def _path(model: str) -> Path:
    return user_cache_path("wim-integrations", appauthor=False) / "calibrations" / f"{model}.json"


@cache
def _shipped() -> dict[str, Any]:
    text = files("wim_kernel.run.relevance").joinpath("calibrations.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found
