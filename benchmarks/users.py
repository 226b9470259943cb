"""Many users with a document each: tokens a second of their answers, at once and one after another.

Workload: for each user a document of so many tokens, read before the clock starts, and one question with the default
margins, quoted, and an answer of so many forced tokens. No two documents are alike. With ``--shape``, a Llama with
random weights: time does not depend on them.

    python -m benchmarks.users --shape 8b --tokenizer FOLDER --tokens 8192 --new-tokens 128
    python -m benchmarks.users --model embedded --tokens 1024 --users 1 2 4

Writes ``users.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from benchmarks.report import ROOT, machine, table, write_json
from benchmarks.search import shuffled, with_heads
from benchmarks.shapes import add_model_options, load, timed
from wim_kernel import Reading, WimKernel


def ask(reading: Reading, question: str, tokens: int) -> None:
    """One user's question, with an answer of so many tokens."""
    config = GenerationConfig(max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
    found = reading.ask(question, answer_config=config)
    assert len(found.token_ids) == tokens


def tokens_per_second(
    kernel: WimKernel, readings: Sequence[Reading], questions: Sequence[str], tokens: int, at_once: int
) -> float:
    """Tokens of all answers a second, with so many users at once."""

    def everybody() -> None:
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(lambda pair: ask(*pair, tokens), zip(readings, questions, strict=True)))

    return len(readings) * tokens / timed(kernel.model, everybody)


def measure(kernel: WimKernel, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The figures for each number of users."""
    text = args.document.read_text(encoding="utf-8")
    readings = [kernel.read(shuffled(text, args.tokens, kernel, seed)) for seed in range(max(args.users))]
    for reading in readings:
        reading.prefill()
    rows = []
    for count in args.users:
        figures: dict[str, Any] = {"users": count}
        for name, at_once in (("one after another", 1), ("at once", count)):
            found = []
            for turn in range(3):  # the first one waits for kernels and graphs
                asked = [f"{args.question} ({turn}, {name}, {user})" for user in range(count)]
                found.append(tokens_per_second(kernel, readings[:count], asked, args.new_tokens, at_once))
            figures[name] = max(found[1:])
        rows.append(figures)
        print(figures, flush=True)
    return rows


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_options(parser)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--chunk-tokens", type=int, default=1024)
    parser.add_argument("--users", type=int, nargs="+", default=[1, 4, 16, 32])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks" / "users.json")
    args = parser.parse_args()
    kernel = load(args, args.chunk_tokens)
    if args.shape:
        kernel = with_heads(kernel)
    kernel.find_calibration()
    rows = measure(kernel, args)
    columns = ("one after another", "at once")
    print(
        table(
            ["users", *(f"{name}, tokens/s" for name in columns), "times"],
            [
                [
                    str(row["users"]),
                    *(f"{row[name]:,.0f}" for name in columns),
                    f"{row['at once'] / row['one after another']:.1f}",
                ]
                for row in rows
            ],
        )
    )
    workload = {key: getattr(args, key) for key in ("shape", "model", "tokens", "chunk_tokens", "new_tokens")}
    about = {**workload, "dtype": str(kernel.model.dtype)}
    write_json(args.out, {"machine": machine(), "workload": about, "rows": rows})


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
