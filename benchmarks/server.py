"""One server, two ways to answer questions about a document: seconds, and the tokens of prompts that it computed.

- WiM with its defaults, notes in the model's own words: the document is read once, and relevant chunks get notes;
- map-reduce: one request for every chunk alone, all at once, then one with all the notes.

Each way gets a copy of the document that the server has not read, and two questions. Notes and answers have fixed token
counts, where the server can be asked for that. Tokens are compared with the ideal: the document once, and each branch's
own prompt once.

    VLLM_CPU_NUM_OF_RESERVED_CPU=0 vllm serve MODEL --max-model-len 8192 --enable-prompt-tokens-details --block-size 32
    python -m benchmarks.server --server http://localhost:8000/v1 --tokenizer MODEL

    llama-server -m MODEL.gguf --parallel 4 -c 32768 --slot-save-path FOLDER --metrics
    python -m benchmarks.server --server http://localhost:8080/v1 --tokenizer FOLDER

``--pid`` names the server's process, whose processor time is then told, too: other work on the machine changes it less
than the seconds. ``--ask`` asks other questions: how much is read and written for a question depends on how many of its
words the text has.

``--quality questions.jsonl`` scores chunks on the server and in this process, where the kernel does without attention,
too, and compares the areas under the curve (the workload of ``benchmarks/relevance.py``).

Writes ``server-FAMILY.json`` and a plot beside it. Counts come from the server's ``/metrics``, which SGLang and
llama.cpp have with ``--enable-metrics`` and ``--metrics``; without them only the seconds are told.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from transformers import AutoTokenizer, GenerationConfig

from benchmarks.report import ROOT, machine, table, write_json
from benchmarks.shapes import split_texts
from wim_kernel import WimKernel, WimResult
from wim_kernel.engines.server.engine import ServerEngine

DOCUMENT = ROOT / "examples" / "data" / "alice-chapters-3-4.txt"
QUESTIONS = ["What prize was Alice given after the race, and by whom?", "Who went down the chimney?"]
COUNTERS = {  # tokens of prompts computed, and generated
    "vllm": (
        r'vllm:prompt_tokens_by_source_total\{.*source="local_compute"\}',
        r"vllm:generation_tokens_total\{.*\}",
    ),
    "llama.cpp": ("llamacpp:prompt_tokens_total", "llamacpp:tokens_predicted_total"),
    "sglang": (
        r'sglang:realtime_tokens_total\{.*mode="prefill_compute".*\}',
        r"sglang:generation_tokens_total\{.*\}",
    ),
}


@dataclass
class Measured:
    """One question one way.

    Attributes:
        seconds: until its answer was whole.
        computed: tokens of prompts that the server computed for it, if it counts them.
        generated: tokens that it wrote, if it counts them.
        ideal: tokens of the document, if this question was the first, and of each branch's own prompt; for WiM.
        notes: how many chunks got a note.
        processor: seconds of processor time of the server and its children, if ``--pid`` names it.
    """

    seconds: float
    computed: int | None
    generated: int | None
    ideal: int | None = None
    notes: int | None = None
    processor: float | None = None


class Bench:
    """A server, its counters, and the work."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.url = args.server.rstrip("/")
        options = {"tokenizer": args.tokenizer, "family": args.family}
        engine = ServerEngine(self.url, args.model, **options)
        self.family = engine.family
        every_slot = replace(
            self.family,
            sequential=False,
            extra={k: v for k, v in self.family.extra.items() if k != "id_slot"},
        )
        at_once = ServerEngine(
            self.url, args.model, **{**options, "family": every_slot}, concurrency=args.concurrency
        )
        self.kernel, self.at_once = WimKernel(engine=engine), WimKernel(engine=at_once)
        tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
        self.texts = split_texts(tokenizer, args.document, args.chunks, args.tokens // args.chunks)
        self.forces = not {"min_new_tokens", "ignore_eos"}.isdisjoint(self.family.settings)
        least = args.new_tokens if self.forces else None
        forced = GenerationConfig(max_new_tokens=args.new_tokens, min_new_tokens=least, do_sample=False)
        self.options: dict[str, Any] = {"margin_config": forced, "answer_config": forced}
        self.copies = 0

    def copy(self) -> list[str]:
        """The document with other words in front of every chunk, so that no server has any of it cached."""
        self.copies += 1
        mark = f"Copy {self.copies}, made at {time.time():.3f}. "
        return [mark + text for text in self.texts]

    def counters(self) -> tuple[int, int] | None:
        """Tokens of prompts computed so far, and generated."""
        names = COUNTERS.get(self.family.name)
        try:
            with urllib.request.urlopen(self.url.removesuffix("/v1") + "/metrics", timeout=30) as answer:
                text = answer.read().decode()
        except urllib.error.URLError:
            return None

        def total(name: str) -> int | None:
            found = re.findall(rf"^{name} (\S+)$", text, re.MULTILINE)
            return int(sum(map(float, found))) if found else None

        computed, generated = (total(name) for name in names) if names else (None, None)
        return None if computed is None or generated is None else (computed, generated)

    def processor(self) -> float:
        """Seconds of processor time that the server has used so far; 0 if its process is not named."""
        if self.args.pid is None:
            return 0.0
        server = psutil.Process(self.args.pid)
        times = [each.cpu_times() for each in (server, *server.children(recursive=True))]
        return sum(each.user + each.system for each in times)

    def measure(self, work: Callable[[str], WimResult | None]) -> tuple[list[Measured], list[WimResult]]:
        """Both questions, one after the other."""
        found, results = [], []
        for question in self.args.ask:
            before, used, begun = self.counters(), self.processor(), time.perf_counter()
            result = work(question)
            seconds, used, after = time.perf_counter() - begun, self.processor() - used, self.counters()
            told = (
                (None, None)
                if before is None or after is None
                else (after[0] - before[0], after[1] - before[1])
            )
            found.append(Measured(seconds, *told, processor=used or None))
            results += [result] if result is not None else []
        return found, results

    def margins(self) -> list[Measured]:
        """WiM over one copy of the document."""
        reading = self.kernel.read(self.copy())
        found, results = self.measure(lambda question: reading.ask(question, **self.options))
        for number, (measured, result) in enumerate(zip(found, results, strict=True)):
            measured.ideal = (reading.tokens if number == 0 else 0) + result.usage.prompt_tokens
            measured.notes = sum(bool(margin.text) for margin in result.margins)
        return found

    def map_reduce(self) -> list[Measured]:
        """Every chunk alone, all at once, then their notes; each one request."""
        document, forced = self.copy(), {"answer_config": self.options["answer_config"]}

        async def notes(question: str) -> list[str]:
            alone = (self.at_once.read([text]).aanswer(question, [], **forced) for text in document)
            return [result.answer for result in await asyncio.gather(*alone)]

        def work(question: str) -> None:
            found = [note for note in asyncio.run(notes(question)) if note.strip()]
            self.at_once.read(found).answer(question, [], **forced)

        return self.measure(work)[0]


def quality(kernel: WimKernel, path: Path, count: int) -> dict[str, float]:
    """The area under the curve of relevance in a question: on the server, and in this process without attention."""
    from benchmarks.relevance import Scored, questions

    here = WimKernel.from_pretrained("embedded", dtype="float32")
    areas: dict[str, list[float]] = {"server": [], "here, without attention": []}
    differences = []
    for question in questions(path, here, 512, count):
        scores = [
            kernel.read(question.chunks).relevance(question.question),
            here.read(question.chunks).relevance(question.question, relevance="lexical+passage"),
        ]
        differences += [abs(one - other) for one, other in zip(*scores, strict=True)]
        for name, relevance in zip(areas, scores, strict=True):
            gold, others = Scored(question, tuple(relevance), ()).split()
            pairs = [(one > other) + (one == other) / 2 for one in gold for other in others]
            areas[name] += [statistics.fmean(pairs)] if pairs else []
    means = {name: statistics.fmean(found) for name, found in areas.items()}
    return {**means, "questions": float(len(areas["server"])), "largest difference": max(differences)}


def plot(found: dict[str, list[Measured]], path: Path) -> None:
    """Seconds and tokens computed, for the first question and the second."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.2), sharey=True, layout="constrained")
    for axes, pick, label in (
        (left, lambda measured: measured.seconds, "seconds to the whole answer"),
        (right, lambda measured: measured.computed or 0, "tokens of prompts that the server computed"),
    ):
        for row, results in enumerate(found.values()):
            for which, (measured, colour) in enumerate(zip(results, ("#4c6a92", "#a9bcd6"), strict=True)):
                place, value = row + 0.38 * which - 0.19, pick(measured)
                axes.barh(place, value, height=0.36, color=colour)
                axes.text(
                    value, place, f" {value:,.1f}" if isinstance(value, float) else f" {value:,}", va="center"
                )
        axes.set_xlim(0, max(pick(m) for results in found.values() for m in results) * 1.2 or 1)
        axes.set_xlabel(label)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    left.set_yticks(range(len(found)), list(found))
    left.invert_yaxis()
    left.set_title("first question dark, second light", fontsize=9, loc="left")
    figure.savefig(path, dpi=150)
    print(f"wrote {path}")


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--server", required=True, metavar="URL", help="of its API, with /v1")
    parser.add_argument("--model", help="its name there; by default the only one")
    parser.add_argument("--tokenizer", required=True, help="the model's: a folder or a hub id")
    parser.add_argument("--family", help="what kind of server it is; by default it is asked")
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--ask", nargs=2, default=QUESTIONS, metavar="QUESTION", help="the two questions")
    parser.add_argument("--pid", type=int, help="the server's process, on this machine")
    parser.add_argument("--concurrency", type=int, default=32, help="requests at a time of map-reduce")
    parser.add_argument("--quality", type=Path, metavar="JSONL", help="compare relevance on these questions")
    parser.add_argument("--questions", type=int, default=6, help="how many of them")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks")
    args = parser.parse_args()
    about, bench = machine(), Bench(args)
    for kernel in (bench.kernel, bench.at_once):  # nothing pays for a kernel's first calls
        kernel.read(["Nothing of the document."]).ask(QUESTIONS[0], **bench.options)
    found = {"WiM": bench.margins(), "map-reduce": bench.map_reduce()}
    rows = [
        [
            f"{name}, {which} question",
            f"{measured.seconds:.1f}",
            f"{measured.seconds / rival.seconds:.2f}",
            *("" if count is None else f"{count:,}" for count in (measured.computed, measured.ideal)),
            f"{measured.computed / measured.ideal - 1:+.0%}" if measured.computed and measured.ideal else "",
            *("" if count is None else f"{count:,}" for count in (measured.generated, measured.notes)),
            *(
                (f"{measured.processor:.1f}", f"{measured.processor / rival.processor:.2f}")
                if measured.processor and rival.processor
                else ("", "")
            ),
        ]
        for name, results in found.items()
        for which, measured, rival in zip(("first", "second"), results, found["map-reduce"], strict=True)
    ]
    names = ["way", "seconds", "of map-reduce's", "computed", "ideal", "over it", "generated", "notes"]
    names += ["processor", "of map-reduce's"]
    print(table(names, rows), flush=True)
    family = bench.family.name
    workload = {name: getattr(args, name) for name in ("tokens", "chunks", "new_tokens", "concurrency")}
    workload |= {"forced": bench.forces, "asked": list(args.ask)}
    report = {
        "machine": about,
        "server": {"family": family, "model": Path(bench.kernel.engine.model_name).name},
        "workload": workload,
        "measured": {name: [asdict(each) for each in results] for name, results in found.items()},
    }
    if args.quality is not None:
        report["relevance"] = quality(bench.kernel, args.quality, args.questions)
        print("area under the curve of relevance:", report["relevance"])
    write_json(args.out / f"server-{family}.json", report)
    plot(found, args.out / f"server-{family}.png")


if __name__ == "__main__":
    main()
