"""How much memory this process holds at its peak, counted from a moment of our choosing."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
import resource
import sys
from pathlib import Path

CLEAR_REFS = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")


def reset_peak() -> bool:
    """Give freed memory back and count the peak from here on.

    Returns:
        Whether that was possible. Where it was not, `peak_bytes` also counts what came before, such as
        loading a model.
    """
    gc.collect()
    if sys.platform != "linux":
        return False
    with contextlib.suppress(AttributeError, OSError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def peak_bytes() -> int:
    """The most memory this process held resident since `reset_peak`, or since it began."""
    if sys.platform == "linux":
        found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
        if found:
            return int(found.group(1)) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
