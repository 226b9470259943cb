"""Is the passage with the answer kept, whatever the order of the passages?

Workload: ``order_sets.jsonl``, 36 sets of three passages on one subject, as a retriever returns them, with one question
each; one passage holds the answer. A third of the questions are easy, a third are in other words than the passage that
answers them, and in a third another passage repeats the question's words. Each set is read in all six orders.

    python -m benchmarks.order
    python -m benchmarks.order --model FOLDER --dtype bfloat16 --device cuda

Reports by kind of question: how often the passage with the answer is kept and how often it is the most relevant (over
all orders), for how many sets the same passages are kept in every order, and how many passages are kept on average.
Writes ``order.json``.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import ROOT, machine, table, write_json
from wim_integrations.evaluation.loading import load_kernel
from wim_kernel import WimKernel

SETS = Path(__file__).with_name("order_sets.jsonl")


@dataclass(frozen=True)
class Report:
    """The figures of one kind of question.

    Attributes:
        sets: number of sets.
        kept: share of the readings in which the passage with the answer is kept.
        first: share of the readings in which it is the most relevant.
        same: share of the sets for which the same passages are kept in all six orders.
        size: mean number of kept passages.
    """

    sets: int
    kept: float
    first: float
    same: float
    size: float


def read_in_all_orders(kernel: WimKernel, item: dict[str, Any]) -> list[tuple[frozenset[int], int]]:
    """For each order of a set's passages, the kept passages and the most relevant one, as indices in the file."""
    found = []
    for order in itertools.permutations(range(len(item["passages"]))):
        kernel.cache.clear()
        margins = kernel.read([item["passages"][index] for index in order]).margins(item["question"])
        kept = frozenset(order[margin.index] for margin in margins if margin.kept)
        found.append((kept, order[max(margins, key=lambda margin: margin.relevance).index]))
    return found


def report(sets: list[tuple[int, list[tuple[frozenset[int], int]]]]) -> Report:
    """Sum up sets, each the index of the passage with the answer and the result of each order."""
    readings = [(holder, kept, first) for holder, orders in sets for kept, first in orders]
    return Report(
        sets=len(sets),
        kept=sum(holder in kept for holder, kept, _ in readings) / len(readings),
        first=sum(holder == first for holder, _, first in readings) / len(readings),
        same=sum(len({kept for kept, _ in orders}) == 1 for _, orders in sets) / len(sets),
        size=sum(len(kept) for _, kept, _ in readings) / len(readings),
    )


def main() -> None:
    """Read every set in every order, and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--dtype", help="bfloat16, float16 or float32")
    parser.add_argument("--device")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks")
    args = parser.parse_args()
    about, kernel = machine(), load_kernel(args.model, dtype=args.dtype, device=args.device)
    by_kind: defaultdict[str, list[tuple[int, list[tuple[frozenset[int], int]]]]] = defaultdict(list)
    for line in SETS.read_text(encoding="utf-8").splitlines():
        item = json.loads(line)
        orders = read_in_all_orders(kernel, item)
        by_kind[item["kind"]].append((item["holder"], orders))
        by_kind["all"].append((item["holder"], orders))
        kept = " ".join("".join(map(str, sorted(kept))) or "-" for kept, _ in orders)
        print(f"{item['kind']:12} {item['id']:24} answer in {item['holder']}; kept {kept}", flush=True)
    reports = {kind: report(sets) for kind, sets in by_kind.items()}
    rows = [
        [kind, str(one.sets), *(f"{value:.2f}" for value in (one.kept, one.first, one.same, one.size))]
        for kind, one in reports.items()
    ]
    print(table(["questions", "sets", "kept", "first", "same set", "passages kept"], rows))
    kinds = {kind: asdict(one) for kind, one in reports.items()}
    write_json(args.out / "order.json", {"machine": about, "model": args.model, "kinds": kinds})


if __name__ == "__main__":
    main()
