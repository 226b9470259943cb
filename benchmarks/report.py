"""What every benchmark says beside its figures: the machine it ran on, and where the figures go."""

from __future__ import annotations

import json
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Goal:
    """A figure and the most, or the least, that it may be."""

    value: float
    bound: float
    at_most: bool = True

    @property
    def reached(self) -> bool:
        """Whether it is on the right side of its bound."""
        return self.value <= self.bound if self.at_most else self.value >= self.bound

    def line(self, what: str) -> str:
        """What a benchmark prints of it."""
        sign = "<=" if self.at_most else ">="
        return f"{'PASS' if self.reached else 'FAIL'}  {what}: {self.value:.2f} ({sign} {self.bound})"


def machine() -> dict[str, Any]:
    """The processor, its cores, and the versions that decide speed."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "load_before": load(),
        "threads": torch.get_num_threads(),
        "simd": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
    }


def load() -> float | None:
    """How many other processes wanted a core in the last minute, on average; None where that is not told."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text())
        if found:
            return found.group(1).strip()
    return platform.processor() or platform.machine()


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write figures as JSON, making the folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {path}")


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table with its columns lined up."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        pads = [
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(pads) + " |"

    rule = (
        "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    )
    return "\n".join([line(header), rule, *map(line, rows)])
