"""What a reading that lasts is worth: seconds to the answer from wherever the prefill is, and with many users.

Workload: a document of 4,096 tokens in 8 chunks (a text that is begun again where it is too short), every margin of 32
forced tokens written and kept, an answer of 32. Questions differ from run to run; the reading is the same.

    python -m benchmarks.readings                      # about three minutes on two cores
    python -m benchmarks.readings --shape 8b --tokenizer FOLDER --tokens 32768 --new-tokens 64

Writes ``readings-cpu.json`` or ``readings-gpu.json``, and a plot beside it.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from benchmarks.report import ROOT, machine, table, write_json
from benchmarks.shapes import add_model_options, load, split_texts
from wim_kernel import WimKernel, WimResult

QUESTIONS = [
    "What prize was Alice given after the race, and by whom?",
    "What did the White Rabbit tell Alice to fetch for him?",
    "Who went down the chimney?",
    "What did the pebbles turn into?",
    "Which animals ran the race?",
    "Why did the Mouse hate cats and dogs?",
    "What was written on the bottle in the Rabbit's house?",
    "How big did Alice grow in the house?",
]


@dataclass
class Asked:
    """One question: seconds until the answer's first token and in all, and document tokens run for it."""

    first_token: float
    total: float
    prefill_tokens: int


class Bench:
    """The document, the options and one kernel after another on the same model."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.kernel = load(args, args.tokens // 8)
        self.texts = split_texts(self.kernel.tokenizer, args.document, 8, args.tokens // 8)
        forced = GenerationConfig(
            max_new_tokens=args.new_tokens, min_new_tokens=args.new_tokens, do_sample=False
        )
        self.options: dict[str, Any] = {
            "threshold": 0,
            "relevance": "likelihood",
            "margin_style": "free",
            "margin_config": forced,
            "answer_config": forced,
        }

    def restart(self, **options: Any) -> None:
        """A kernel that has read nothing, on the model there is."""
        self.kernel = WimKernel(self.kernel.model, self.kernel.tokenizer, **options)

    def ask(self, question: str, texts: list[str] | None = None) -> Asked:
        """A question about the document, which is found by its tokens."""
        result: WimResult = self.kernel.read(texts or self.texts).ask(question, **self.options)
        assert result.timings.first_token is not None
        return Asked(result.timings.first_token, result.timings.total, result.usage.prefill_tokens)


def seconds(work: Callable[[], object]) -> float:
    """How long work takes."""
    begun = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def from_everywhere(bench: Bench, folder: Path) -> tuple[dict[str, Asked], dict[str, float]]:
    """A question with the prefill nowhere, live, in the host's memory, on disk, and on disk after a restart."""
    size = bench.kernel.engine.prefix_bytes(int(1.2 * bench.args.tokens))
    bench.restart(budget_bytes=size, host_budget_bytes=2 * size)
    found = {"nowhere": bench.ask(QUESTIONS[0]), "live": bench.ask(QUESTIONS[1])}
    bench.kernel.read(bench.texts[::-1][:7]).prefill()  # another document: the first has to make way
    found["in the host's memory"] = bench.ask(QUESTIONS[2])
    bench.restart(budget_bytes=size, cache_dir=folder / "cache")
    prefill = seconds(lambda: bench.kernel.read(bench.texts).prefill())
    flush = seconds(bench.kernel.cache.flush)
    bench.kernel.cache.clear()
    found["on disk"] = bench.ask(QUESTIONS[3])
    bench.restart(budget_bytes=size, cache_dir=folder / "cache")
    found["on disk, after a restart"] = bench.ask(QUESTIONS[4])
    bench.restart(budget_bytes=size)
    reading = bench.kernel.read(bench.texts)
    reading.prefill()
    save = seconds(lambda: reading.save(folder / "saved"))
    bench.kernel.cache.clear()
    opened = seconds(lambda: bench.kernel.load(folder / "saved"))
    nbytes = (folder / "saved").stat().st_size
    return found, {"prefill": prefill, "flush": flush, "save": save, "load": opened, "file_bytes": nbytes}


def users(bench: Bench) -> dict[str, Any]:
    """Eight questions about one reading, one after another and from eight threads at once."""
    bench.kernel.read(bench.texts).prefill()
    alone = [bench.ask(question) for question in QUESTIONS]
    begun = time.perf_counter()
    with ThreadPoolExecutor(len(QUESTIONS)) as pool:
        together = list(pool.map(bench.ask, QUESTIONS))
    at_once = time.perf_counter() - begun
    return {
        "one_after_another": sum(asked.total for asked in alone),
        "at_once": at_once,
        "first_tokens_alone": [asked.first_token for asked in alone],
        "first_tokens_at_once": [asked.first_token for asked in together],
    }


@contextmanager
def somebody_reads(bench: Bench) -> Iterator[None]:
    """While another thread reads one fresh document after another."""
    stop = threading.Event()

    def read() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            for _ in bench.kernel.read([f"Copy {number}.", *bench.texts])._prefill():
                if stop.is_set():
                    return

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def while_reading(bench: Bench) -> dict[str, float]:
    """A short question about a short document that is read already, alone and while a long one is being read."""
    short = bench.texts[0][:800]
    bench.ask(QUESTIONS[0], [short])
    alone = bench.ask(QUESTIONS[1], [short])
    with somebody_reads(bench):
        time.sleep(0.5)
        beside = bench.ask(QUESTIONS[2], [short])
    return {
        "alone": alone.first_token,
        "alone_whole": alone.total,
        "while_another_document_is_read": beside.first_token,
        "while_another_document_is_read_whole": beside.total,
    }


def plot(found: dict[str, Asked], path: Path) -> None:
    """Seconds until the answer's first token, by where the prefill was."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 2.4), layout="constrained")
    values = [asked.first_token for asked in found.values()]
    axes.barh(list(found), values, color="#4c6a92", height=0.6)
    for row, value in enumerate(values):
        axes.text(value, row, f" {value:.1f} s", va="center")
    axes.invert_yaxis()
    axes.set_xlim(0, max(values) * 1.12)
    axes.set_xlabel("seconds until the answer's first token, by where the prefill was")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.savefig(path, dpi=150)
    print(f"wrote {path}")


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_options(parser)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        torch.set_num_threads(args.threads)
    about = machine()
    bench = Bench(args)
    bench.ask(QUESTIONS[0], [bench.texts[0][:400]])  # nothing pays for first calls
    with tempfile.TemporaryDirectory() as folder:
        found, files = from_everywhere(bench, Path(folder))
    rows = [
        [name, f"{a.first_token:.2f}", f"{a.total:.2f}", f"{a.prefill_tokens:,}"] for name, a in found.items()
    ]
    print(table(["prefill", "answer begins s", "whole s", "document tokens run"], rows))
    print({name: round(value, 2) for name, value in files.items()}, flush=True)
    many, short = users(bench), while_reading(bench)
    print(many, short)
    suffix = "gpu" if bench.kernel.model.device.type == "cuda" else "cpu"
    workload = {"model": args.shape or args.model, "tokens": args.tokens, "new_tokens": args.new_tokens}
    write_json(
        args.out / f"readings-{suffix}.json",
        {
            "machine": about,
            "workload": workload,
            "by_where_the_prefill_was": {name: asdict(asked) for name, asked in found.items()},
            "files": files,
            "eight_users": many,
            "short_question": short,
        },
    )
    plot(found, args.out / f"readings-{suffix}.png")


if __name__ == "__main__":
    main()
