"""Which volume should an answer stand behind when a document is longer than the window: the last, or the most relevant?

Workload: JSONL files with one question a line: ``question``, ``answers`` (any one counts, when it is found in the
answer, whatever its case) and ``chunks`` (paragraphs, in order). Paragraphs are joined to chunks of at most 256
tokens, the model's window is cut to 2,048, and each document is read in volumes. Both ways share every margin.

    python -m benchmarks.volumes questions.jsonl... --n 20
    python -m benchmarks.volumes questions.jsonl --margin-style free

Prints a table: how many answers were right, by file and way.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import ROOT, machine, table, write_json
from wim_kernel import WimKernel

WAYS = ("last", "most-relevant")


def right(answer: str, wanted: list[str]) -> bool:
    """Whether any of the wanted strings is in the answer."""
    return any(text.lower() in answer.lower() for text in wanted)


def measure(kernel: WimKernel, path: Path, limit: int, options: dict[str, Any]) -> dict[str, Any]:
    """Both ways on the first questions of a file."""
    found = {way: 0 for way in WAYS}
    volumes, begun, rows = [], time.perf_counter(), path.read_text(encoding="utf-8").splitlines()[:limit]
    for line in rows:
        row = json.loads(line)
        reading = kernel.read(row["chunks"], chunk_tokens=256, join_small=True, separator="\n\n")
        margins = reading.margins(row["question"], **options)
        for way in WAYS:
            result = reading.answer(row["question"], margins, answer_volume=way, answer_tokens=48, **options)
            found[way] += right(result.answer, row["answers"])
        volumes.append(result.volumes)
        kernel.cache.clear()
    spent = time.perf_counter() - begun
    return {"n": len(rows), **found, "volumes": sum(volumes) / len(volumes), "seconds": spent}


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--n", type=int, default=20, help="questions of each file")
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--margin-style", default="verbatim", choices=("free", "verbatim"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")  # margins that find no room are counted by what they do to answers
    about, kernel = machine(), WimKernel.from_pretrained(args.model, window=args.window)
    options = {"margin_style": args.margin_style}
    found = {}
    for path in args.files:
        found[path.stem] = measure(kernel, path, args.n, options)
        print(path.stem, found[path.stem], flush=True)
    rows = [
        [name, str(way["n"]), f"{way['volumes']:.1f}", *(str(way[key]) for key in WAYS)]
        for name, way in found.items()
    ]
    print(table(["file", "questions", "volumes", *(f"right, {way}" for way in WAYS)], rows))
    workload = {"model": args.model, "window": args.window, "margin_style": args.margin_style}
    write_json(args.out / "volumes.json", {"machine": about, "workload": workload, "files": found})


if __name__ == "__main__":
    main()
