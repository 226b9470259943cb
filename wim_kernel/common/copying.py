"""Copying of objects that hold a loaded model: copies share the model, and pickling is refused."""

from __future__ import annotations

import copy
from typing import Any, NoReturn

from typing_extensions import Self

from wim_kernel.common.errors import NotPicklableError


class Shared:
    """A mixin for objects that are never copied: a copy is the object itself."""

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        refuse_to_pickle(self)


class HoldsShared:
    """A mixin for objects that hold a `Shared` one: they can be copied, and not pickled."""

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
    """Raise the error for pickling an object that holds a model.

    Raises:
        NotPicklableError: always.
    """
    raise NotPicklableError(
        f"A {type(holder).__name__} cannot be pickled, because it holds a loaded model: make another one in the other "
        "process, with WimKernel.from_pretrained, or save a reading with Reading.save and load it with WimKernel.load."
    )
