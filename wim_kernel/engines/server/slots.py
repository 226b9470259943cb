"""llama.cpp's slot holds one prompt. What a shorter one would cut off is saved on the server first, and restored."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from wim_kernel.common import forks
from wim_kernel.engines.server.transport import Server

logger = logging.getLogger(__name__)

WORTH_A_FILE = 64
"""Fewer tokens are sooner read again."""
FILES = 4
"""Most documents that are saved at a time; a file is written over when it is the oldest."""


class Slot:
    """What one server's first slot holds. Works where the server was started with ``--slot-save-path``.

    A server that was not is asked once, and from then on reads again what was cut off.

    Args:
        server: whose slot it is.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.saves: bool | None = None  # None: not asked yet
        self.renew_after_fork()
        forks.register(self)

    def renew_after_fork(self) -> None:
        """Nothing is known of the slot, which the parent goes on using, nor of the files, which it goes on writing."""
        self._holds: list[int] = []  # tokens of a document, as far as it is known
        self._files: dict[str, list[int]] = {}  # what is in them, the oldest first
        self._turn = asyncio.Lock()
        self._name = f"wim-{uuid.uuid4().hex[:12]}"

    @asynccontextmanager
    async def turn(self, ids: Sequence[int], document: int) -> AsyncIterator[Callable[[], None]]:
        """The slot, for one request with nobody between, and with as much of its prompt in it as there can be.

        Gives what is to be called once the prompt is read, as it is when the answer begins.

        Args:
            ids: the request's prompt.
            document: how many of them, from the first on, are a document's.
        """

        def is_read() -> None:
            self._holds = list(ids[:document])

        async with self._turn:
            holds, self._holds = self._holds, []
            await self._make_ready(holds, list(ids))
            try:
                yield is_read
            except Exception:  # a caller who wants no more of an answer is none: what was read is there
                self._holds = []
                raise

    async def _make_ready(self, holds: list[int], ids: list[int]) -> None:
        if self.saves is False:
            return
        kept = _common(holds, ids)
        if len(holds) - kept >= WORTH_A_FILE and not self._is_saved(holds):
            await self._save(holds)
        best = max(self._files, key=lambda name: _common(self._files[name], ids), default=None)
        if best is not None and _common(self._files[best], ids) - kept >= WORTH_A_FILE:
            saved = self._files.pop(best)
            _, found = await self.server.post("/slots/0?action=restore", {"filename": best})
            if _tokens(found, "n_restored") >= len(saved):
                self._files[best] = saved  # the newest

    def _is_saved(self, holds: list[int]) -> bool:
        return any(_common(saved, holds) == len(holds) for saved in self._files.values())

    async def _save(self, holds: list[int]) -> None:
        shorter = [name for name, saved in self._files.items() if _common(saved, holds) == len(saved)]
        free = [name for number in range(FILES) if (name := f"{self._name}-{number}.bin") not in self._files]
        name = (shorter or free or list(self._files))[0]
        self._files.pop(name, None)
        status, found = await self.server.post("/slots/0?action=save", {"filename": name})
        if status is not None and _refuses(status):
            self.saves = False
            logger.info(
                "%s keeps one prompt and does not save it: start it with --slot-save-path.", self.server
            )
        elif _tokens(found, "n_saved") >= len(holds):  # less if another client was there
            self.saves = True
            self._files[name] = holds


def _refuses(status: int) -> bool:
    """Whether an answer's status means that the server cannot do it at all, now or later."""
    return status == 501 or (400 <= status < 500 and status not in (408, 409, 429))


def _tokens(reply: Any, name: str) -> int:
    """A number in a reply, 0 where it has none."""
    number = reply.get(name) if isinstance(reply, dict) else None
    return number if isinstance(number, int) else 0


def _common(one: list[int], other: list[int]) -> int:
    """How many leading tokens are the same."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
