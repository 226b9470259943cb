"""Draw `make demo` as a picture: run it on the embedded model, and write what a terminal shows to an SVG.

Lines of the picture appear in the order and at the pace of the run, which is shortened to `SECONDS`; the line about the
cost is left out. A viewer without animations shows the last state.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import time
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from wim_kernel import Answered, WimKernel
from wim_kernel.cli.display import TerminalDisplay
from wim_kernel.text.files import read_document

ROOT = Path(__file__).parents[2]
SECONDS = 12.0
NAME = "wim-demo"


def demo() -> tuple[str, str]:
    """The question and the file of `make demo`."""
    lines = (ROOT / "examples" / "data" / "demo.mk").read_text().splitlines()
    values = dict(line.split(" := ", 1) for line in lines if " := " in line)
    return values["DEMO_QUESTION"], values["DEMO_FILE"]


def record() -> tuple[Console, list[float]]:
    """The recorded console, and for every line the second in which it was finished."""
    question, file = demo()
    console = Console(record=True, width=92, file=io.StringIO(), highlight=False, markup=False, emoji=False)
    times: list[float] = []

    def lines() -> int:
        return len(console.export_text(clear=False).splitlines())

    kernel = WimKernel.from_pretrained("embedded")
    display = TerminalDisplay(console)
    start = time.perf_counter()
    console.print(Text(f'$ wim ask "{question}" \\\n      {Path(file).name}', style="bold green"))
    os.chdir((ROOT / file).parent)  # so that margins name the file alone
    document = read_document([Path(file).name])
    for event in kernel.read(document, chunk_tokens=kernel.chunk_tokens).stream(question):
        if isinstance(event, Answered):
            break  # it shows the cost, whose seconds are this machine's
        display.show(event)
        times += [time.perf_counter() - start] * (lines() - len(times))
    return console, times


def animated(svg: str, times: list[float]) -> str:
    """The picture with each line shown from its second on."""
    scale = SECONDS / times[-1]
    rules = [
        "@keyframes appear { from { opacity: 0 } to { opacity: 1 } }",
        "@media (prefers-reduced-motion: no-preference) {",
        *(
            f"  .{NAME}-at-{line} {{ animation: appear 0.2s {second * scale:.2f}s both }}"
            for line, second in enumerate(times)
        ),
        "}",
    ]
    svg = svg.replace("</style>", "\n".join(["", *rules, "</style>"]), 1)
    return re.sub(
        rf'<text class="({NAME}-r\d+)"([^>]*clip-path="url\(#{NAME}-line-(\d+)\)")',
        rf'<text class="\1 {NAME}-at-\3"\2',
        svg,
    )


def main() -> None:
    """Record the demo and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=ROOT / "docs" / "images" / "demo.svg")
    path = parser.parse_args().to.resolve()
    console, times = record()
    svg = console.export_svg(title="make demo", theme=MONOKAI, unique_id=NAME)
    path.write_text(animated(svg, times) + "\n")
    print(f"{path}: {len(times)} lines, {times[-1]:.0f} s")


if __name__ == "__main__":
    main()
