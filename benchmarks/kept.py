"""Readings kept in 8 bits: their size, and how far logits and answers differ once they are back.

    python -m benchmarks.kept --data questions.jsonl --questions 20

Each line of the file holds a ``question`` and the ``chunks`` of its document.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import torch
from torch import Tensor

from benchmarks.report import machine
from wim_kernel import WimKernel
from wim_kernel.engines.local.engine import LocalEngine
from wim_kernel.engines.local.prefix.shared import SharedPrefix


def last_logits(kernel: WimKernel, question: str) -> Tensor:
    """The logits of each token of a question behind the only reading in the cache, (tokens, vocabulary)."""
    prefix = cast(SharedPrefix, kernel.cache._entries[0].prefix)
    ids = cast(LocalEngine, kernel.engine).tokenizer(question, add_special_tokens=False)["input_ids"]
    rows = prefix.branch([prefix.tokens], len(ids))
    return rows.prompt([ids], len(ids), torch.arange(len(ids)))[0].float()


@dataclass(frozen=True)
class Difference:
    """A reading that came back, beside what it was.

    Attributes:
        exact_bytes: bytes of keys and values in the model's memory.
        kept_bytes: bytes of the file.
        error: relative error of the question's logits.
        equal_next: the share of the question's tokens behind which the likeliest token is the same.
        equal_answer: whether the answer is the same.
    """

    exact_bytes: int
    kept_bytes: int
    error: float
    equal_next: float
    equal_answer: bool


def difference(kernel: WimKernel, question: str, chunks: Sequence[str], path: Path) -> Difference:
    """Read a document, answer, keep the reading, and answer again with what came back."""
    kernel.cache.clear()
    reading = kernel.read(chunks)
    exact, before = reading.answer(question, [], answer_tokens=24), last_logits(kernel, question)
    exact_bytes = kernel.engine.prefix_bytes(kernel.cache._entries[0].tokens)
    reading.save(path)
    kernel.cache.clear()
    back = kernel.load(path)
    again, after = back.answer(question, [], answer_tokens=24), last_logits(kernel, question)
    return Difference(
        exact_bytes,
        path.stat().st_size,
        float((after - before).norm() / before.norm()),
        float((after.argmax(-1) == before.argmax(-1)).float().mean()),
        again.token_ids == exact.token_ids,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--skip", type=int, default=0)
    args = parser.parse_args()
    print(machine())
    kernel = WimKernel.from_pretrained(args.model, dtype=args.dtype, kept_dtype="int8")
    lines = args.data.read_text().splitlines()[args.skip : args.skip + args.questions]
    found: list[Difference] = []
    with TemporaryDirectory() as folder:
        for line in map(json.loads, lines):
            found.append(difference(kernel, line["question"], line["chunks"], Path(folder) / "reading"))
            print(found[-1], flush=True)
    count = len(found)
    exact, kept, error, next_token = (
        sum(getattr(item, name) for item in found) / count
        for name in ("exact_bytes", "kept_bytes", "error", "equal_next")
    )
    print(f"{count} documents, {exact / 1e6:.1f} MB in memory, {kept / 1e6:.1f} MB kept")
    print(f"relative error of logits: mean {error:.1e}, largest {max(item.error for item in found):.1e}")
    print(f"the likeliest next token is the same for {next_token:.1%} of the questions' tokens")
    print(f"equal answers: {sum(item.equal_answer for item in found)} of {count}")


if __name__ == "__main__":
    main()
