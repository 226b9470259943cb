"""A lock that is handed over in order of arrival, so that nobody who takes it again and again starves the others."""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType


class Turn:
    """First come, first served. A context manager; not reentrant."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()
        self._taken = False

    def __enter__(self) -> Turn:
        with self._guard:
            if not self._taken:
                self._taken = True
                return self
            gate = threading.Lock()
            gate.acquire()
            self._waiting.append(gate)
        try:
            gate.acquire()
        except (
            BaseException
        ):  # an interrupt while waiting: leave the queue, or pass on a turn that came meanwhile
            with self._guard:
                if gate in self._waiting:
                    self._waiting.remove(gate)
                    raise
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False
