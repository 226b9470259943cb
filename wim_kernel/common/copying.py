"""Copies of what holds a loaded model: a copy shares it, and none of them travels between processes."""

from __future__ import annotations

import copy
from typing import Any, NoReturn

from typing_extensions import Self

from wim_kernel.common.errors import NotPicklableError


class Shared:
    """A mixin for what there is once, however often what holds it is copied: a copy is the object itself."""

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        refuse_to_pickle(self)


class HoldsShared:
    """A mixin for what holds something `Shared`: it is copied as usual, and not pickled."""

    def __copy__(self) -> Self:
        return self._copied(dict(self.__dict__))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied = self._copied({})
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        refuse_to_pickle(self)

    def _copied(self, state: dict[str, Any]) -> Self:
        copied = object.__new__(type(self))
        copied.__dict__.update(state)
        return copied


def refuse_to_pickle(holder: object) -> NoReturn:
    """Say that an object cannot be pickled, and what to do.

    Raises:
        NotPicklableError: always.
    """
    raise NotPicklableError(
        f"A {type(holder).__name__} cannot be pickled, for it holds a loaded model: make it anew in the other process, "
        "with WimKernel.from_pretrained, or save a reading with Reading.save and load it with WimKernel.load."
    )
