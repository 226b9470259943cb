"""Does a chunk's relevance find the evidence? Scores every chunk of every question, without writing margins.

Workload: JSONL files with one question a line: ``question``, ``chunks`` (paragraphs, in order) and ``gold``
(indices of the paragraphs that hold the evidence). Paragraphs are joined, in order, to chunks of at most 512
tokens; a chunk is gold if it holds a gold paragraph.

    python -m benchmarks.relevance questions.jsonl...
    python -m benchmarks.relevance questions.jsonl --n 3 --relevance decision --dump scores.jsonl

Reports for each file: how often a gold chunk is the most relevant (hits@1) or among the two most relevant
(hits@2), the area under the curve within a question, and how ``relevance >= 0.5`` does as a classifier.
Writes ``relevance.json``; ``--require-hits`` makes it exit with 1 below so many hits@2.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import torch

from benchmarks.report import ROOT, machine, table, write_json
from wim_kernel import Chunk, WimKernel
from wim_kernel.engines.loading_options import Weights
from wim_kernel.run.relevance import BY_NAME, Evidence, Relevance

DEFAULT_DATA = ROOT.parent / "shared" / "data" / "squad_4k.jsonl"


@dataclass(frozen=True)
class Question:
    """A question, its document in chunks, and which of them hold the evidence."""

    id: str
    question: str
    chunks: tuple[str, ...]
    tokens: tuple[int, ...]
    gold: tuple[bool, ...]


@dataclass(frozen=True)
class Scored:
    """A question's chunks with their relevance."""

    question: Question
    relevance: tuple[float, ...]
    raw: tuple[dict[str, float], ...]

    @property
    def ranked_gold(self) -> list[bool]:
        """Whether each chunk is gold, the most relevant first."""
        order = sorted(range(len(self.relevance)), key=lambda i: -self.relevance[i])
        return [self.question.gold[i] for i in order]

    @property
    def one_sided(self) -> bool:
        """Whether all chunks are gold, or none is, so that there is nothing to tell apart."""
        return len(set(self.question.gold)) == 1

    def split(self) -> tuple[list[float], list[float]]:
        """Relevance of the gold chunks, and of the others."""
        pairs = list(zip(self.relevance, self.question.gold, strict=True))
        return [r for r, gold in pairs if gold], [r for r, gold in pairs if not gold]


@dataclass(frozen=True)
class Report:
    """What a relevance score is worth on one file.

    Attributes:
        n: questions.
        hits_at_1: questions whose most relevant chunk is gold.
        hits_at_2: questions with a gold chunk among the two most relevant.
        auc: mean over questions of the chance that a gold chunk is more relevant than another one.
        one_sided: questions whose chunks are all gold, or none; they count as hits or misses, but not in
            ``auc``.
        mean_gold: mean relevance of gold chunks.
        mean_other: mean relevance of the others.
        precision: share of chunks with a relevance of at least 0.5 that are gold.
        recall: share of gold chunks with a relevance of at least 0.5.
        f1: harmonic mean of the two.
        seconds: for reading and scoring the whole file.
    """

    n: int
    hits_at_1: int
    hits_at_2: int
    auc: float
    one_sided: int
    mean_gold: float
    mean_other: float
    precision: float
    recall: float
    f1: float
    seconds: float


def questions(path: Path, kernel: WimKernel, chunk_tokens: int, limit: int | None) -> Iterator[Question]:
    """The first ``limit`` questions of a file."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            if limit is not None and number >= limit:
                return
            row = json.loads(line)
            gold = set(row.get("gold") or ())
            yield Question(row["id"], row["question"], *joined(row["chunks"], gold, kernel, chunk_tokens))


def joined(
    paragraphs: Sequence[str], gold: set[int], kernel: WimKernel, chunk_tokens: int
) -> tuple[tuple[str, ...], tuple[int, ...], tuple[bool, ...]]:
    """Paragraphs joined in order, with empty lines between, while they fit; a longer one is a chunk alone.

    Returns:
        The chunks' texts, their token counts, and whether each holds a gold paragraph.
    """
    texts: list[str] = []
    sizes: list[int] = []
    golds: list[bool] = []
    for index, paragraph in enumerate(paragraphs):
        size = len(kernel.tokenizer.encode(paragraph + "\n\n", add_special_tokens=False))
        if texts and sizes[-1] + size <= chunk_tokens:
            texts[-1] += "\n\n" + paragraph
            sizes[-1] += size
            golds[-1] |= index in gold
        else:
            texts.append(paragraph)
            sizes.append(size)
            golds.append(index in gold)
    return tuple(texts), tuple(sizes), tuple(golds)


class Recorder(Relevance):
    """A score that also keeps what it was computed from, by the chunk's source."""

    def __init__(self, name: str) -> None:
        """Record for the score called ``name``."""
        self.score = BY_NAME[name]
        self.asks, self.searches = self.score.asks, self.score.searches
        self.seen: dict[str, Evidence] = {}

    def __call__(self, evidence: Evidence) -> float:
        """The score's own value."""
        self.seen[evidence.chunk.source_ids[0]] = evidence
        return self.score(evidence)

    def raw(self, source: str) -> dict[str, float]:
        """What was measured of a chunk; nothing of a blank one."""
        if source not in self.seen:
            return {}
        return self.seen[source].signals


def score(kernel: WimKernel, question: Question, relevance: str) -> Scored:
    """The relevance of every chunk of a document that is read afresh."""
    kernel.cache.clear()
    sources = [str(index) for index in range(len(question.chunks))]
    reading = kernel.read([Chunk.of(text, name) for text, name in zip(question.chunks, sources, strict=True)])
    recorder = Recorder(relevance)
    if recorder.asks == "judgement":  # judges notes, so they have to be written
        written = reading.margins(question.question, relevance=recorder, threshold=0, margin_style="free")
        values = [margin.relevance for margin in written]
    else:
        values = reading.relevance(question.question, relevance=recorder)
    reading.close()
    return Scored(question, tuple(values), tuple(recorder.raw(name) for name in sources))


def auc(gold: Sequence[float], other: Sequence[float]) -> float:
    """The chance that one of ``gold`` is larger than one of ``other``; equal ones count half."""
    wins = sum((a > b) + 0.5 * (a == b) for a in gold for b in other)
    return wins / (len(gold) * len(other))


def mean(values: Sequence[float]) -> float:
    """The mean, or 0 of nothing."""
    return sum(values) / len(values) if values else 0.0


def report(scored: Sequence[Scored], seconds: float) -> Report:
    """Sum up one file."""
    sides = [one.split() for one in scored]
    gold = [value for side, _ in sides for value in side]
    other = [value for _, side in sides for value in side]
    right = sum(value >= 0.5 for value in gold)
    chosen = right + sum(value >= 0.5 for value in other)
    precision = right / chosen if chosen else 0.0
    recall = right / len(gold) if gold else 0.0
    return Report(
        n=len(scored),
        hits_at_1=sum(any(one.ranked_gold[:1]) for one in scored),
        hits_at_2=sum(any(one.ranked_gold[:2]) for one in scored),
        auc=mean([auc(*side) for one, side in zip(scored, sides, strict=True) if not one.one_sided]),
        one_sided=sum(one.one_sided for one in scored),
        mean_gold=mean(gold),
        mean_other=mean(other),
        precision=precision,
        recall=recall,
        f1=2 * precision * recall / (precision + recall) if right else 0.0,
        seconds=seconds,
    )


def dumped(source: str, scored: Scored) -> str:
    """A question's chunks as one line of JSON: all that a calibration needs."""
    chunks = [
        {"relevance": value, **raw, "gold": gold, "tokens": tokens}
        for value, raw, gold, tokens in zip(
            scored.relevance, scored.raw, scored.question.gold, scored.question.tokens, strict=True
        )
    ]
    return json.dumps({"source": source, "id": scored.question.id, "chunks": chunks})


def run_file(kernel: WimKernel, path: Path, args: argparse.Namespace) -> tuple[Report, list[str]]:
    """Score one file's questions; returns the report and the lines for ``--dump``."""
    begun = time.perf_counter()
    scored: list[Scored] = []
    hits = 0
    for question in questions(path, kernel, args.chunk_tokens, args.n):
        scored.append(score(kernel, question, args.relevance))
        hits += any(scored[-1].ranked_gold[:2])
        shown = " ".join(
            f"{value:.2f}{'*' if gold else ''}"
            for value, gold in zip(scored[-1].relevance, question.gold, strict=True)
        )
        print(f"{path.stem} {len(scored):3}  hits@2 {hits:3}  {shown}", flush=True)
    return report(scored, time.perf_counter() - begun), [dumped(path.stem, one) for one in scored]


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, help=f"JSONL files; default: {DEFAULT_DATA.name}")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--weights", choices=get_args(Weights), help="quantise the weights")
    parser.add_argument("--relevance", default="combined", choices=sorted(BY_NAME))
    parser.add_argument("--n", type=int, help="questions of each file; default: all")
    parser.add_argument("--chunk-tokens", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--require-hits", type=int, default=0, help="hits@2 that every file must reach")
    parser.add_argument("--dump", type=Path, help="write every chunk's scores to this JSONL file")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks")
    args = parser.parse_args()
    if not args.files:
        if not DEFAULT_DATA.exists():
            parser.error("give at least one JSONL file of questions")
        args.files = [DEFAULT_DATA]
    return args


def main() -> int:
    """Score every file and write the figures."""
    args = options()
    torch.set_num_threads(args.threads)
    about = machine()
    kernel = WimKernel.from_pretrained(args.model, weights=args.weights)
    reports: dict[str, Report] = {}
    lines: list[str] = []
    for path in args.files:
        reports[path.stem], dump = run_file(kernel, path, args)
        lines += dump
    if args.dump:
        args.dump.write_text("\n".join(lines) + "\n", encoding="utf-8")

    header = ["file", "n", "hits@1", "hits@2", "AUC", "mean gold", "mean other", "P", "R", "F1", "s"]
    rows = []
    for name, one in reports.items():
        shares = (one.auc, one.mean_gold, one.mean_other, one.precision, one.recall, one.f1)
        counts = [str(one.n), str(one.hits_at_1), str(one.hits_at_2)]
        rows.append([name, *counts, *(f"{value:.2f}" for value in shares), f"{one.seconds:.0f}"])
    print("\n" + table(header, rows))
    for name, one in reports.items():
        if one.one_sided:
            print(f"{name}: {one.one_sided} questions have only gold chunks or none; AUC leaves them out")
    workload = {"model": args.model, "relevance": args.relevance, "chunk_tokens": args.chunk_tokens}
    files = {name: asdict(one) for name, one in reports.items()}
    write_json(args.out / "relevance.json", {"machine": about, "workload": workload, "files": files})
    return 0 if all(one.hits_at_2 >= args.require_hits for one in reports.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
