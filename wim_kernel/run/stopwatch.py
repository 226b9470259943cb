"""Timings: the seconds that a run spends in each phase."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from typing import Literal, TypeVar

from wim_kernel.common.margins import Timings

Item = TypeVar("Item")
Result = TypeVar("Result")
Phase = Literal["prefill", "margins", "answer"]


class Stopwatch:
    """Adds up the seconds that generators run. The time between their steps, when the consumer runs, is not counted."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.spent: dict[Phase, float] = {"prefill": 0.0, "margins": 0.0, "answer": 0.0}
        self.first_margin: float | None = None
        self.first_token: float | None = None

    def run(
        self, phase: Phase, work: Generator[Item, None, Result] | Iterator[Item]
    ) -> Generator[Item, None, Result]:
        """Run ``work``, add its seconds to ``phase``, and return its result."""
        while True:
            begun = time.perf_counter()
            try:
                item = next(work)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            finally:
                self.spent[phase] += time.perf_counter() - begun
            yield item

    def since_start(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self.started

    def timings(self) -> Timings:
        """The seconds so far."""
        total = self.since_start()
        other = max(0.0, total - sum(self.spent.values()))
        return Timings(
            **self.spent,
            other=other,
            total=total,
            first_margin=self.first_margin,
            first_token=self.first_token,
        )
