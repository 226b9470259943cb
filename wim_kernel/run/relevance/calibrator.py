"""The calibrator: finds a kernel's calibration when it is first needed, once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from wim_kernel.common import forks
from wim_kernel.engines.base import AnyEngine
from wim_kernel.run.margin_prompts import question_lead
from wim_kernel.run.options import parse_options
from wim_kernel.run.relevance.calibration import WITHOUT_ATTENTION, Calibration, keep, known
from wim_kernel.run.relevance.examples import Example, packaged_examples
from wim_kernel.run.relevance.fitting import calibrate
from wim_kernel.text.prompts import Frame

logger = logging.getLogger(__name__)

SECONDS = 45.0  # for reading passages alone, if the calibration is measured at the first question


class Calibrator:
    """Finds the calibration of an engine's model.

    Args:
        engine: the engine.
        frame: the frame around documents.
        calibration: a calibration to use; ``"auto"`` to look for one or measure it; ``"off"`` to use none.
    """

    def __init__(
        self, engine: AnyEngine, frame: Frame, calibration: Calibration | Literal["auto", "off"]
    ) -> None:
        self.engine = engine
        self.frame = frame
        self._calibration = calibration if isinstance(calibration, Calibration) else None
        self._may_calibrate = calibration == "auto"
        self._lock = threading.Lock()
        forks.register(self)

    def renew_after_fork(self) -> None:
        """Replace the lock: another thread of the parent may have held it at the fork."""
        self._lock = threading.Lock()

    def find(self) -> Calibration:
        """The calibration: given, shipped with the package, cached on disk, or measured now on shipped examples."""
        with self._lock:
            if self._calibration is None:
                self._calibration = self._find_for_model()
        return self._calibration

    def calibrate(
        self, examples: Iterable[Example | Mapping[str, Any]] | None, seconds: float
    ) -> Calibration:
        """Measure a calibration and use it from now on; see `wim_kernel.WimKernel.calibrate`."""
        given = (
            packaged_examples()
            if examples is None
            else [item if isinstance(item, Example) else Example.from_dict(item) for item in examples]
        )
        if not self.engine.heads:
            raise ValueError(
                "This engine cannot see the model's attention, so there is nothing to calibrate."
            )
        calibration = self._measure(given, seconds)
        with self._lock:
            self._calibration = calibration
        return calibration

    def _find_for_model(self) -> Calibration:
        if not self._may_calibrate or not self.engine.reads_text:
            return Calibration()
        model = self.engine.calibration_key()
        if model is None:
            return WITHOUT_ATTENTION
        calibration = known(model)
        if calibration is None:
            logger.info("Calibrating relevance for %s: once, up to a minute.", self.engine.model_name)
            calibration = self._measure(packaged_examples(), SECONDS)
            keep(model, calibration)
        return calibration

    def _measure(self, examples: Sequence[Example], seconds: float) -> Calibration:
        settings = parse_options({})
        return calibrate(
            self.engine, self.frame, lambda question: question_lead(question, settings)[0], examples, seconds
        )
