"""The error of evaluations, and imports of optional packages."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from wim_kernel.common.errors import WimError


class EvaluationError(WimError, ValueError):
    """An evaluation cannot be run. The message says why and what to do."""


def require(module: str, what: str, extra: str = "eval") -> Any:
    """Import a module of an optional package.

    Args:
        module: the module's full name.
        what: the part that needs the module, as the subject of the error's sentence.
        extra: the extra that installs the module.

    Raises:
        EvaluationError: if the module is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise EvaluationError(
            f"{what} needs {error.name}: pip install 'wim-integrations[{extra}]'."
        ) from error
