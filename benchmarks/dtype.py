"""One question in float32 and in bfloat16 on the CPU, beside the trial by which `dtype="auto"` decides.

    python -m benchmarks.dtype --rounds 2

Reports the best round of each part, in seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from benchmarks.report import ROOT, machine
from benchmarks.shapes import timed
from benchmarks.workload import document_texts
from wim_kernel import Margin, Options, WimKernel
from wim_kernel.engines.local.cpu_dtype import measure

QUESTION = "Whom did the Rabbit take Alice for?"


def ask(kernel: WimKernel, texts: Sequence[str], new_tokens: int) -> tuple[float, float, float]:
    """Seconds of the prefill, of a free margin a chunk, and of the answer."""
    kernel.cache.clear()
    reading = kernel.read(texts)
    options: Options = {"margin_style": "free", "threshold": 0, "margin_tokens": new_tokens}
    written: list[Margin] = []
    prefill = timed(kernel.model, reading.prefill)
    margins = timed(kernel.model, lambda: written.extend(reading.margins(QUESTION, **options)))
    answer = timed(kernel.model, lambda: reading.answer(QUESTION, written, answer_tokens=new_tokens))
    return prefill, margins, answer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--tokens", type=int, default=3840)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=24, help="at most so many a margin and an answer")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    print(machine())
    shares = [measure() for _ in range(5)]
    print("bfloat16 / float32 by the trial:", *(f"{share:.2f}" for share in shares))
    kernels = {
        name: WimKernel.from_pretrained(args.model, dtype=name, device="cpu")
        for name in ("float32", "bfloat16")
    }
    document = ROOT / "examples" / "data" / "alice-chapters-3-4.txt"
    texts = document_texts(kernels["float32"].tokenizer, document, args.tokens, args.chunks)
    best: dict[str, tuple[float, ...]] = {}
    for _ in range(args.rounds):
        for name, kernel in kernels.items():
            found = ask(kernel, texts, args.new_tokens)
            best[name] = tuple(map(min, found, best.get(name, found)))
    for name, seconds in best.items():
        parts = zip(("prefill", "margins", "answer"), seconds, strict=True)
        print(name, ", ".join(f"{part} {value:.1f}" for part, value in parts), f"whole {sum(seconds):.1f}")
    print(f"bfloat16 / float32: {sum(best['bfloat16']) / sum(best['float32']):.2f}")


if __name__ == "__main__":
    main()
