"""The kernel against llama.cpp on a CPU: tokens read a second, and milliseconds a decoded token behind them.

Both read the same tokens of the same GGUF file, the embedded model's. llama.cpp runs from its wheel `xllamacpp` in an
environment of its own, since it brings libraries of its own:

    python -m venv /tmp/llama && /tmp/llama/bin/pip install xllamacpp
    python -m benchmarks.llama_cpp --llama /tmp/llama/bin/python     # about four minutes on two cores

The kernel runs in float32, in bfloat16, and with weights in 8 bits. A decoded token is one step of one branch, as an
answer is written, and one of eight branches decoded together, as margins are. Reports the best of ``--rounds``. Writes
``llama_cpp.json``.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import ROOT, machine, table, write_json
from benchmarks.shapes import timed
from benchmarks.workload import document_texts, forced
from wim_kernel import WimKernel
from wim_kernel.engines.hub import embedded_file

QUESTION = "Whom did the Rabbit take Alice for?"
KERNELS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "float32", "weights": "int8"},
    "int8 and bfloat16": {"dtype": "bfloat16", "weights": "int8"},
}
Figures = dict[str, float]


def ours(name: str, texts: Sequence[str], args: argparse.Namespace) -> tuple[Figures, list[int]]:
    """The kernel's figures, the best of all rounds, and the ids that it read."""
    kernel = WimKernel.from_pretrained("embedded", device="cpu", **KERNELS[name])
    rounds = [one_round(kernel, texts, args.new_tokens) for _ in range(args.rounds)]
    reading = kernel.read(texts)
    ids = reading.prompt_ids(reading.answer(QUESTION, [], answer_config=forced(1)))
    figures = {
        "read tokens/s": max(tokens / seconds for tokens, seconds, _, _ in rounds),
        "decode ms, alone": min(1000 * alone for *_, alone, _ in rounds),
        "decode ms, of eight": min(1000 * together for *_, together in rounds),
    }
    return figures, list(ids)


def one_round(kernel: WimKernel, texts: Sequence[str], new_tokens: int) -> tuple[int, float, float, float]:
    """Tokens read, the seconds that took, and the seconds of a token on one branch and on one of all branches."""
    kernel.cache.clear()
    reading = kernel.read(texts)
    prefill = timed(kernel.model, reading.prefill)

    def answer(tokens: int) -> None:
        reading.answer(QUESTION, [], answer_config=forced(tokens))

    def margins(tokens: int) -> None:
        reading.margins(
            QUESTION,
            threshold=0,
            relevance="likelihood",
            margin_style="free",
            margin_config=forced(tokens),
        )

    steps = new_tokens - 1
    alone, together = (
        (timed(kernel.model, lambda run=run: run(new_tokens)) - timed(kernel.model, lambda run=run: run(1)))
        / steps
        for run in (answer, margins)
    )
    return sum(map(kernel.count_tokens, texts)), prefill, alone, together / len(texts)


def llama_cpp(ids: Sequence[int], args: argparse.Namespace) -> tuple[Figures, str]:
    """llama.cpp's own figures, the best of all rounds, and its wheel's version."""
    asked = {
        "model": str(args.gguf),
        "ids": list(ids),
        "new_tokens": args.new_tokens,
        "threads": args.threads,
        "rounds": args.rounds,
    }
    child = Path(__file__).with_name("llama_cpp_child.py")
    done = subprocess.run(
        [args.llama, child], input=json.dumps(asked), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{args.llama} cannot run llama.cpp:\n{done.stderr[-2000:]}")
    reply = json.loads(done.stdout.splitlines()[-1])
    figures = {
        "read tokens/s": max(run["prompt_per_second"] for run in reply["timings"]),
        "decode ms, alone": min(run["predicted_per_token_ms"] for run in reply["timings"]),
    }
    return figures, str(reply["version"])


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llama", default=sys.executable, help="the Python that has xllamacpp")
    parser.add_argument(
        "--gguf", type=Path, default=embedded_file(), help="default: the embedded model's file"
    )
    parser.add_argument("--only", nargs="*", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--tokens", type=int, default=3900)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=33)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks" / "llama_cpp.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    about = machine()
    tokenizer = WimKernel.from_pretrained("embedded", device="cpu", dtype="float32").tokenizer
    document = ROOT / "examples" / "data" / "alice-chapters-3-4.txt"
    texts = document_texts(tokenizer, document, args.tokens, args.chunks)
    figures: dict[str, Figures] = {}
    ids: list[int] = []
    for name in args.only:
        figures[name], ids = ours(name, texts, args)
        gc.collect()
        print(name, figures[name], flush=True)
    theirs, version = llama_cpp(ids, args)
    rows = {f"llama.cpp (xllamacpp {version})": theirs, **figures}
    header = ["read tokens/s", "decode ms, alone", "decode ms, of eight"]
    cells = [
        [name, *(f"{row[key]:,.1f}" if key in row else "" for key in header)] for name, row in rows.items()
    ]
    print(table(["", *header], cells))
    workload = {key: getattr(args, key) for key in ("tokens", "chunks", "new_tokens", "rounds", "threads")}
    write_json(args.out, {"machine": about, "workload": workload, "figures": rows})


if __name__ == "__main__":
    main()
