"""What has to be known of a model before its signals mean the same as any other model's.

A calibration names the attention heads that look evidence up, says how widely each signal spreads, and turns evidence
into a probability. It is found on examples that come with the package (see `fitting`), once for a model,
and kept in the user's cache folder; calibrations of a few models come with the package.
"""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from platformdirs import user_cache_path

from wim_kernel.engines.base import Head

logger = logging.getLogger(__name__)

SIGNALS = ("attention", "lexical", "passage")
VERSION = 1  # of what is measured and how; kept calibrations of another version are not used


@dataclass(frozen=True)
class Calibration:
    """How a model's signals are read.

    Attributes:
        heads: the heads whose attention counts; none for all of the model's.
        spread: for each signal, one standard deviation over passages, relative to the best passage of a document; as
            ``"alone"`` that of attention where passages are each read alone.
        curves: slope and intercept of the log-odds that a passage holds evidence, over the evidence for it: by each
            signal alone, by all of them together (``"combined"``), and by those of passages that were each read alone
            (``"alone"``).
        source: where it comes from: ``"package"``, ``"cache"``, ``"examples"`` or ``"default"``.
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
        }
    )
    source: str = "default"

    @property
    def is_found(self) -> bool:
        """Whether it was found on examples, and so tells signals worth acting on from noise."""
        return self.source != "default"

    def probability(self, curve: str, scores: np.ndarray) -> np.ndarray:
        """The probability that passages hold evidence, given their evidence scores."""
        slope, intercept = self.curves[curve]
        return 1 / (1 + np.exp(-np.clip(slope * scores + intercept, -40, 40)))

    def to_dict(self) -> dict[str, Any]:
        """The calibration as plain JSON data."""
        return {
            "version": VERSION,
            "heads": [list(head) for head in self.heads],
            "spread": {name: round(value, 4) for name, value in self.spread.items()},
            "curves": {name: [round(item, 3) for item in curve] for name, curve in self.curves.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str) -> Calibration:
        """Read back what `to_dict` wrote.

        Raises:
            ValueError: if it is no calibration of this version.
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
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"it lacks {error}") from error
        numbers = [*spread.values(), *(number for curve in curves.values() for number in curve)]
        if not all(map(math.isfinite, numbers)) or min(spread.values()) <= 0:
            raise ValueError("its numbers make no sense")
        return cls(heads, spread, curves, source)


def known(model: str) -> Calibration | None:
    """The calibration of a model, by its fingerprint: that of the package, or one that was found here before."""
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
    """Keep a calibration in the user's cache folder; only says so in the log where that cannot be written."""
    path = _path(model)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            json.dump(calibration.to_dict(), file)
        os.replace(file.name, path)
    except OSError as error:
        logger.warning("The calibration cannot be kept for the next time: %s", error)


def _path(model: str) -> Path:
    return user_cache_path("wim-integrations", appauthor=False) / "calibrations" / f"{model}.json"


@cache
def _shipped() -> dict[str, Any]:
    text = files("wim_kernel.run.relevance").joinpath("calibrations.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found
