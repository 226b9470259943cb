"""The kernel against plain transformers on a CPU, in one process, on the same model, tokens and threads.

Workload: the embedded model in float32, a document of 4,096 tokens in 8 chunks, a margin of 32 forced tokens
at every chunk, all of them kept, an answer of 32 forced tokens, and then a second question about the same
document.

Rivals (see `rivals`): (a) the published recipe, (b) the document read and answered without margins, in one
forward pass or by chunks, whichever is quicker, (c) one call a chunk. They are given the very ids that the
kernel read, and (a) the very prompts, so its margins must come out as the kernel's do.

    python -m benchmarks.cpu                     # about six minutes on two cores
    python -m benchmarks.cpu --tokens 512 --chunks 4 --margin-tokens 8 --out /tmp/smoke

Peak memory is the resident memory of a process of its own for each path, counted from when the model is
loaded. Writes ``cpu.json`` and ``cpu.png``; exits with 1 where a ratio misses its target.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory import peak_bytes, reset_peak
from benchmarks.report import ROOT, Goal, machine, table, write_json
from benchmarks.rivals import RIVALS, Run
from benchmarks.workload import Workload, ask, document_texts, rival_task, run_kernel
from wim_kernel import WimKernel, WimResult

KERNEL, SECOND = "kernel", "kernel_second_question"
LABELS = {
    KERNEL: "this kernel",
    SECOND: "this kernel, a second question",
    "plain": "(b) plain, no margins",
    "plain_by_chunks": "(b) plain by chunks, no margins",
    "map_reduce": "(c) one call a chunk",
    "published_recipe": "(a) the published recipe",
}


def kernel_run(result: WimResult) -> Run:
    """The kernel's own account of a question, in the rivals' terms."""
    timings, usage = result.timings, result.usage
    return Run(
        prefill=timings.prefill,
        margins=timings.margins,
        answer=timings.answer,
        answer_begins=timings.first_token or timings.total,
        total=timings.total,
        document_tokens=usage.prefill_tokens,
        prompt_tokens=usage.prompt_tokens,
        output_tokens=usage.output_tokens,
        notes=tuple(margin.token_ids for margin in result.margins),
        answer_ids=result.token_ids,
    )


def measure(kernel: WimKernel, workload: Workload, repeats: int) -> tuple[Workload, dict[str, Run]]:
    """Every path ``repeats`` times, in turn; the quickest run of each."""
    runs: dict[str, list[Run]] = {}

    def note(name: str, run: Run) -> None:
        runs.setdefault(name, []).append(run)
        print(f"  {LABELS[name]:<32} {run.total:7.2f} s", flush=True)

    for _ in range(repeats):
        workload, first, second = run_kernel(kernel, workload)
        kernel.cache.clear()
        note(KERNEL, kernel_run(first))
        note(SECOND, kernel_run(second))
        task = rival_task(kernel, workload)
        for name, rival in RIVALS.items():
            note(name, rival(kernel.model, task))
    return workload, {name: min(several, key=lambda run: run.total) for name, several in runs.items()}


def warm_up(kernel: WimKernel, workload: Workload) -> None:
    """Run every path on a few words, so that none pays for first calls."""
    words = workload.texts[0].split()
    little = replace(
        workload,
        texts=(" ".join(words[:60]), " ".join(words[60:120])),
        margin_tokens=min(4, workload.margin_tokens),
        answer_tokens=2,
    )
    little, _, _ = run_kernel(kernel, little)
    for rival in RIVALS.values():
        rival(kernel.model, rival_task(kernel, little))


def peak_memory(name: str, workload: Workload, model: str, threads: int) -> dict[str, int]:
    """Peak memory of one path in a fresh process that does nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "workload.json"
        workload.save(file)
        command = [sys.executable, "-m", "benchmarks.cpu", "--model", model, "--threads", str(threads)]
        done = subprocess.run(
            [*command, "--child", name, "--workload", str(file)],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
    peak: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return peak


def run_child(name: str, file: Path, model: str) -> None:
    """In a fresh process: load, run one path, and print its peak memory."""
    workload = Workload.load(file)
    kernel = WimKernel.from_pretrained(model, dtype="float32")
    path = path_of(name, kernel, workload)
    reset_peak()
    loaded = peak_bytes()
    path()
    print(json.dumps({"loaded_bytes": loaded, "peak_bytes": peak_bytes()}))


def path_of(name: str, kernel: WimKernel, workload: Workload) -> Callable[[], object]:
    """One path as a function without arguments."""
    if name == KERNEL:
        return lambda: ask(kernel.read(workload.document), workload.question, workload)
    task = rival_task(kernel, workload)
    return lambda: RIVALS[name](kernel.model, task)


def targets(runs: dict[str, Run], peaks: dict[str, dict[str, int]], plain: str) -> dict[str, Goal]:
    """The ratios and what they have to be."""
    kernel, second, recipe = runs[KERNEL], runs[SECOND], runs["published_recipe"]
    found = {
        "margins, times faster than (a)": Goal(recipe.margins / kernel.margins, 4.0, at_most=False),
        "whole, times faster than (a)": Goal(recipe.total / kernel.total, 2.0, at_most=False),
        "whole, share of (b)": Goal(kernel.total / runs[plain].total, 1.5),
        "second question's answer begins, times sooner than the first's": Goal(
            kernel.answer_begins / second.answer_begins, 2.8, at_most=False
        ),
        "second question's answer begins, times sooner than (a)'s": Goal(
            recipe.answer_begins / second.answer_begins, 5.0, at_most=False
        ),
    }
    if {KERNEL, plain} <= peaks.keys():
        share = peaks[KERNEL]["peak_bytes"] / peaks[plain]["peak_bytes"]
        found["peak memory, share of (b)"] = Goal(share, 1.1)
    return found


def summary(runs: dict[str, Run], peaks: dict[str, dict[str, int]]) -> str:
    """The figures as a Markdown table."""
    header = [
        "path",
        "prefill s",
        "margins s",
        "answer begins s",
        "whole s",
        "tokens run",
        "written",
        "peak MiB",
    ]
    rows = []
    for name in (name for name in LABELS if name in runs):
        run = runs[name]
        seconds = [f"{value:.2f}" for value in (run.prefill, run.margins, run.answer_begins, run.total)]
        tokens = [f"{run.document_tokens + run.prompt_tokens:,}", f"{run.output_tokens:,}"]
        peak = f"{peaks[name]['peak_bytes'] / 2**20:,.0f}" if name in peaks else ""
        rows.append([LABELS[name], *seconds, *tokens, peak])
    return table(header, rows)


def as_json(runs: dict[str, Run], peaks: dict[str, dict[str, int]]) -> dict[str, Any]:
    """The figures of every path, without the ids."""
    paths: dict[str, Any] = {}
    for name, run in runs.items():
        numbers = {k: v for k, v in asdict(run).items() if k not in ("notes", "answer_ids", "verdicts")}
        seconds = {k: round(v, 3) if isinstance(v, float) else v for k, v in numbers.items()}
        paths[name] = {"label": LABELS[name], **seconds, **peaks.get(name, {})}
    return paths


def plot(runs: dict[str, Run], plain: str, title: str, path: Path) -> None:
    """Stacked bars: prefill, margins, answer of every path."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = ["published_recipe", "map_reduce", plain, KERNEL, SECOND]
    figure, axes = plt.subplots(figsize=(8.5, 3.4), layout="constrained")
    left = [0.0] * len(shown)
    for part, colour in (("prefill", "#4c6a92"), ("margins", "#e0a458"), ("answer", "#7a9e7e")):
        widths = [getattr(runs[name], part) for name in shown]
        axes.barh([LABELS[name] for name in shown], widths, left=left, color=colour, height=0.62, label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for row, (name, end) in enumerate(zip(shown, left, strict=True)):
        axes.text(end, row, f" {runs[name].total:.1f} s", va="center")
    axes.invert_yaxis()
    axes.set_xlim(0, max(left) * 1.1)
    axes.set_xlabel("seconds")
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(frameon=False, loc="outside lower center", ncols=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    print(f"wrote {path}")


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--document", type=Path, help="a text file; default: the first one in examples/data")
    parser.add_argument("--question", default="What prize was Alice given after the race, and by whom?")
    parser.add_argument("--second-question", default="What did the White Rabbit tell Alice to fetch for him?")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--margin-tokens", type=int, default=32)
    parser.add_argument("--answer-tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1, help="times each path is run; the quickest counts")
    parser.add_argument("--measure-memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--workload", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def demo_document() -> Path:
    """The first text among the examples."""
    texts = sorted((ROOT / "examples" / "data").glob("*.txt"))
    if not texts:
        raise SystemExit("There is no .txt file in examples/data: give --document.")
    return texts[0]


def main() -> int:
    """Measure every path, write the figures, and say which targets were reached."""
    args = options()
    torch.set_num_threads(args.threads)
    if args.child:
        run_child(args.child, args.workload, args.model)
        return 0
    about = machine()
    if (about["load_before"] or 0) > 0.5:
        print(f"Other processes are busy on this machine (load {about['load_before']}): expect worse ratios.")
    kernel = WimKernel.from_pretrained(args.model, dtype="float32")
    document = args.document or demo_document()
    texts = document_texts(kernel.tokenizer, document, args.tokens, args.chunks)
    workload = Workload(texts, args.question, args.second_question, args.margin_tokens, args.answer_tokens)
    warm_up(kernel, workload)
    workload, runs = measure(kernel, workload, args.repeats)
    plain = min("plain", "plain_by_chunks", key=lambda name: runs[name].total)

    peaks: dict[str, dict[str, int]] = {}
    for name in (KERNEL, *RIVALS) if args.measure_memory else ():
        peaks[name] = peak_memory(name, workload, args.model, args.threads)
    reached = targets(runs, peaks, plain)
    print("\n" + summary(runs, peaks) + "\n")
    for what, target in reached.items():
        print(target.line(what))

    notes = zip(runs[KERNEL].notes, runs["published_recipe"].notes, strict=True)
    equal = sum(ours == theirs for ours, theirs in notes)
    print(f"{equal} of {args.chunks} margins of (a) equal the kernel's, token for token")
    said = {
        "document": document.name,
        "questions": [args.question, args.second_question],
        "tokens": sum(map(len, workload.chunks)),
        "chunks": [len(chunk) for chunk in workload.chunks],
        "margin_tokens": args.margin_tokens,
        "answer_tokens": args.answer_tokens,
        "repeats": args.repeats,
        "dtype": str(kernel.model.dtype),
        "model": args.model,
    }
    title = (
        f"{said['tokens']:,} tokens in {args.chunks} chunks, margins and answer of {args.margin_tokens} and "
        f"{args.answer_tokens} tokens, {args.threads} threads"
    )
    ratios = {what: {**asdict(target), "reached": target.reached} for what, target in reached.items()}
    write_json(
        args.out / "cpu.json",
        {
            "machine": about,
            "workload": said,
            "plain": plain,
            "paths": as_json(runs, peaks),
            "margins_equal": equal,
            "ratios": ratios,
        },
    )
    plot(runs, plain, title, args.out / "cpu.png")
    return 0 if all(target.reached for target in reached.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
