"""Saves and restores llama.cpp's slot, which holds one prompt and is truncated by a shorter one."""

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
"""Fewest tokens that are saved; fewer are faster to prefill again."""
FILES = 4
"""Most documents that are saved at a time; the oldest file is overwritten."""


class Slot:
    """The first slot of a server, saved if the server was started with ``--slot-save-path``.

    A server without that option refuses the first attempt; its slot is then left alone, and truncated documents are
    prefilled again.

    Args:
        server: the server.

    Attributes:
        saves: whether the server can save its slot; None before the first attempt.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.saves: bool | None = None
        self.renew_after_fork()
        forks.register(self)

    def renew_after_fork(self) -> None:
        """Forget the slot and its files, which the parent process goes on using."""
        self._resident: list[int] = []  # ids of a document in the slot, as far as known
        self._files: dict[str, list[int]] = {}  # ids in each file, the oldest first
        self._lock = asyncio.Lock()
        self._name = f"wim-{uuid.uuid4().hex[:12]}"

    @asynccontextmanager
    async def hold(self, ids: Sequence[int], document: int) -> AsyncIterator[Callable[[], None]]:
        """Hold the slot for one request. Restores the longest saved beginning of its prompt first.

        Gives a function to call once the prompt is prefilled, which is when the answer begins.

        Args:
            ids: ids of the request's prompt.
            document: number of leading ids that are a document's.
        """

        def mark_read() -> None:
            self._resident = list(ids[:document])

        async with self._lock:
            resident, self._resident = self._resident, []
            await self._prepare(resident, list(ids))
            try:
                yield mark_read
            except Exception:  # not GeneratorExit or cancellation: then the prompt is in the slot
                self._resident = []
                raise

    async def can_save(self) -> bool:
        """Whether the server can save its slot; tries it if that is not known."""
        if self.saves is None:
            async with self._lock:
                await self._save([])
        return bool(self.saves)

    async def _prepare(self, resident: list[int], ids: list[int]) -> None:
        if self.saves is False:
            return
        kept = _common(resident, ids)
        if len(resident) - kept >= WORTH_A_FILE and not self._is_saved(resident):
            await self._save(resident)
        best = max(self._files, key=lambda name: _common(self._files[name], ids), default=None)
        if best is not None and _common(self._files[best], ids) - kept >= WORTH_A_FILE:
            saved = self._files.pop(best)
            _, found = await self.server.post("/slots/0?action=restore", {"filename": best})
            if _tokens(found, "n_restored") >= len(saved):
                self._files[best] = saved  # now the newest

    def _is_saved(self, resident: list[int]) -> bool:
        return any(_common(saved, resident) == len(resident) for saved in self._files.values())

    async def _save(self, resident: list[int]) -> None:
        shorter = [name for name, saved in self._files.items() if _common(saved, resident) == len(saved)]
        free = [name for number in range(FILES) if (name := f"{self._name}-{number}.bin") not in self._files]
        name = (shorter or free or list(self._files))[0]
        self._files.pop(name, None)
        status, found = await self.server.post("/slots/0?action=save", {"filename": name})
        if status is not None and _refuses(status):
            self.saves = False
            logger.info(
                "%s keeps one prompt and does not save it: start it with --slot-save-path.", self.server
            )
        elif _tokens(found, "n_saved") >= len(resident):  # fewer if another client has used the slot
            self.saves = True
            self._files[name] = resident


class ScratchSlots:
    """The slots behind the first, for short prompts that should not truncate the document in the first slot.

    Args:
        slots: how many slots the server has, the first included.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.renew_after_fork()
        forks.register(self)

    def renew_after_fork(self) -> None:
        """Make all slots free: their borrowers live in the parent process."""
        self._free = list(range(1, self.slots))
        self._any_free = asyncio.Semaphore(self.slots - 1)

    @asynccontextmanager
    async def borrow(self) -> AsyncIterator[int]:
        """Wait for a free slot; gives its number."""
        async with self._any_free:
            slot = self._free.pop()
            try:
                yield slot
            finally:
                self._free.append(slot)


def _refuses(status: int) -> bool:
    """Whether a status means that the server does not support the request, now or later."""
    return status == 501 or (400 <= status < 500 and status not in (408, 409, 429))


def _tokens(reply: Any, name: str) -> int:
    """A number in a reply; 0 if it has none of this name."""
    number = reply.get(name) if isinstance(reply, dict) else None
    return number if isinstance(number, int) else 0


def _common(one: list[int], other: list[int]) -> int:
    """The number of equal leading ids."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
