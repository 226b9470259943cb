"""What do margins add to reading a document? Times the prefill alone, and with the default margins behind it.

Workload: documents of so many tokens, made of the sentences of one text in a random order, so that no two are alike;
quoted margins for one question, the kernel's default. With ``--shape``, a Llama with random weights: time does not
depend on them. Each document is read twice, once without a question, in turn.

    python -m benchmarks.search --shape 1.5b --tokenizer FOLDER --tokens 16384 --chunk-tokens 1024
    python -m benchmarks.search --shape 8b --tokenizer FOLDER --tokens 32768 --chunk-tokens 4096
    python -m benchmarks.search --model embedded --tokens 4096 --chunk-tokens 512

Reports medians over the documents: seconds of the prefill, of prefill and margins, and what margins add in percent.
Writes ``search.json``; ``--at-most 8`` makes it exit with 1 where they add more.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.report import ROOT, machine, write_json
from benchmarks.shapes import add_model_options, load, timed
from wim_kernel import WimKernel
from wim_kernel.run.relevance.calibration import Calibration
from wim_kernel.text.sentences import sentence_spans


def shuffled(text: str, tokens: int, kernel: WimKernel, seed: int) -> str:
    """About ``tokens`` tokens of the text's sentences in a random order."""
    sentences = [text[start:end].strip() for start, end in sentence_spans(text)]
    order, parts, size = random.Random(seed), [], 0
    while size < tokens:
        sentence = order.choice(sentences)
        size += len(kernel.tokenizer.encode(" " + sentence, add_special_tokens=False))
        parts.append(sentence)
    return " ".join(parts)


def with_heads(kernel: WimKernel) -> WimKernel:
    """A kernel that takes eight heads of a model with random weights, which has none, for its retrieval heads."""
    config = kernel.model.config
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    chosen = tuple((layers * (8 + index) // 17, 5 * index % heads) for index in range(8))
    found = replace(Calibration(), heads=chosen, source="examples")
    return WimKernel(engine=kernel.engine, chunk_tokens=kernel.chunk_tokens, calibration=found)


def main() -> int:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_options(parser)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--chunk-tokens", type=int, default=512)
    parser.add_argument("--documents", type=int, default=7)
    parser.add_argument("--at-most", type=float, help="most percent that margins may add")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks" / "search.json")
    args = parser.parse_args()
    kernel = load(args, args.chunk_tokens)
    if args.shape:
        kernel = with_heads(kernel)
    kernel.find_calibration()
    text = args.document.read_text(encoding="utf-8")
    model = kernel.model
    rows = []
    for seed in range(args.documents + 2):  # the first two wait for kernels to be compiled
        document = shuffled(text, args.tokens, kernel, seed)

        def plain(document: str = document) -> None:
            kernel.read(document).prefill()

        def noted(document: str = document) -> None:
            kernel.read(document).margins(args.question)

        kernel.cache.clear()
        seconds = timed(model, plain)
        reading = kernel.read(document)
        kept = timed(model, lambda reading=reading: reading.margins(args.question))
        kernel.cache.clear()
        rows.append((seconds, timed(model, noted), kept))
        print(" ".join(f"{value:.3f}" for value in rows[-1]), flush=True)
    prefill, both, behind = (statistics.median(column) for column in zip(*rows[2:], strict=True))
    added = 100 * (both / prefill - 1)
    print(f"prefill {prefill:.3f} s, with margins {both:.3f} s: {added:.0f}% more; when kept {behind:.3f} s")
    figures = {
        "prefill": prefill,
        "with_margins": both,
        "behind_kept_prefill": behind,
        "added_percent": added,
    }
    workload = {key: getattr(args, key) for key in ("shape", "model", "tokens", "chunk_tokens", "documents")}
    about = {**workload, "dtype": str(model.dtype)}
    write_json(args.out, {"machine": machine(), "workload": about, "figures": figures, "rows": rows})
    return int(args.at_most is not None and added > args.at_most)


if __name__ == "__main__":
    torch.manual_seed(0)
    sys.exit(main())
