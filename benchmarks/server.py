"""One server, three ways to work with it: seconds, and the tokens of prompts that it really computed.

- WiM as its family's policy has it: the document is read first, then margins branch from what the server has cached;
- WiM at once: all margins' requests sent together while the server has nothing cached (on llama.cpp to all its slots);
- map-reduce: one request for every chunk alone, then one with all the notes.

Each way gets a copy of the document that the server has not read, and two questions. Margins, notes and answers have
fixed token counts, where the server can be asked for that.

    vllm serve MODEL --max-model-len 8192 --enable-prompt-tokens-details
    python benchmarks/server.py --server http://localhost:8000/v1 --tokenizer MODEL

    llama-server -m MODEL.gguf --parallel 4 -c 32768 --slot-save-path FOLDER --metrics
    python benchmarks/server.py --server http://localhost:8080/v1 --tokenizer FOLDER

Writes ``server-FAMILY.json`` and a plot beside it. Counts come from the server's ``/metrics``, which SGLang and
llama.cpp have with ``--enable-metrics`` and ``--metrics``; without them only the seconds are told.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

# Beside this file are names of packages that others may import: nothing is to be found there under those names.
HERE = Path(__file__).resolve().parent
sys.path[:] = [str(HERE.parent), *(path for path in sys.path if Path(path or ".").resolve() != HERE)]

from transformers import AutoTokenizer, GenerationConfig  # noqa: E402

from benchmarks.report import ROOT, machine, table, write_json  # noqa: E402
from benchmarks.shapes import split_texts  # noqa: E402
from wim_kernel import WimKernel  # noqa: E402
from wim_kernel.engines.server.engine import ServerEngine  # noqa: E402
from wim_kernel.engines.server.prefixes import ServerPrefix  # noqa: E402
from wim_kernel.engines.server.transport import Server  # noqa: E402

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


class AtOnce(ServerEngine):
    """Sends nothing before the branches: the server gets them all at once, with nothing cached."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._requests.catch_up = _nothing

    def extend(self, prefix: ServerPrefix, pieces: Sequence[Sequence[int]], start: int) -> range:
        """Take the tokens in; the server learns of them with the branches."""
        wanted = [token for piece in pieces for token in piece]
        before, end = prefix.tokens, start + len(wanted)
        prefix.ids += wanted[max(0, before - start) :]
        return range(before, max(before, end))


async def _nothing(prefix: ServerPrefix, server: Server) -> None:
    """Has no server read what it has not read."""


@dataclass
class Measured:
    """One question one way.

    Attributes:
        seconds: until its answer was whole.
        computed: tokens of prompts that the server computed for it, if it counts them.
        generated: tokens that it wrote, if it counts them.
    """

    seconds: float
    computed: int | None
    generated: int | None


class Bench:
    """A server, its counters, and the work."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.url = args.server.rstrip("/")
        options = {"tokenizer": args.tokenizer, "family": args.family}
        policy = ServerEngine(self.url, args.model, **options)
        self.family = policy.family
        everything = replace(
            self.family,
            sequential=False,
            extra={k: v for k, v in self.family.extra.items() if k != "id_slot"},
        )
        at_once = AtOnce(
            self.url, args.model, **{**options, "family": everything}, concurrency=args.concurrency
        )
        self.policy, self.at_once = WimKernel(engine=policy), WimKernel(engine=at_once)
        tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
        self.texts = split_texts(tokenizer, args.document, args.chunks, args.tokens // args.chunks)
        self.forces = not {"min_new_tokens", "ignore_eos"}.isdisjoint(self.family.settings)
        least = args.new_tokens if self.forces else None
        forced = GenerationConfig(max_new_tokens=args.new_tokens, min_new_tokens=least, do_sample=False)
        self.options: dict[str, Any] = {
            "threshold": 0,
            "margin_style": "free",
            "margin_config": forced,
            "answer_config": forced,
        }
        self.copies = 0

    def copy(self) -> list[str]:
        """The document with other words in front, so that no server has any of it cached."""
        self.copies += 1
        mark = f"Copy {self.copies}, made at {time.time():.3f}. "
        return [mark + self.texts[0], *self.texts[1:]]

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

    def measure(self, work: Callable[[str], object]) -> list[Measured]:
        """Both questions, one after the other."""
        found = []
        for question in QUESTIONS:
            before, begun = self.counters(), time.perf_counter()
            work(question)
            seconds, after = time.perf_counter() - begun, self.counters()
            told = before is not None and after is not None
            found.append(
                Measured(
                    seconds,
                    after[0] - before[0] if told and before and after else None,
                    after[1] - before[1] if told and before and after else None,
                )
            )
        return found

    def margins(self, kernel: WimKernel) -> list[Measured]:
        """WiM over one copy of the document."""
        reading = kernel.read(self.copy())
        return self.measure(lambda question: reading.ask(question, **self.options))

    def map_reduce(self) -> list[Measured]:
        """Every chunk alone, all at once, then their notes; each one request."""
        document, forced = self.copy(), {"answer_config": self.options["answer_config"]}

        async def notes(question: str) -> list[str]:
            alone = (self.at_once.read([text]).aanswer(question, [], **forced) for text in document)
            return [result.answer for result in await asyncio.gather(*alone)]

        def work(question: str) -> None:
            found = [note for note in asyncio.run(notes(question)) if note.strip()]
            self.at_once.read(found).answer(question, [], **forced)

        return self.measure(work)


def plot(found: dict[str, list[Measured]], path: Path) -> None:
    """Seconds and tokens computed, for the first question and the second."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.6), sharey=True, layout="constrained")
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
    parser.add_argument("--concurrency", type=int, default=32, help="requests at a time where all go at once")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks")
    args = parser.parse_args()
    about, bench = machine(), Bench(args)
    bench.policy.read(["Nothing pays for first calls."]).ask(QUESTIONS[0], **bench.options)
    found = {
        "WiM, the family's policy": bench.margins(bench.policy),
        "WiM, all margins at once": bench.margins(bench.at_once),
        "map-reduce": bench.map_reduce(),
    }
    rows = [
        [
            f"{name}, {which} question",
            f"{measured.seconds:.1f}",
            *("" if count is None else f"{count:,}" for count in (measured.computed, measured.generated)),
        ]
        for name, results in found.items()
        for which, measured in zip(("first", "second"), results, strict=True)
    ]
    print(table(["way", "seconds", "prompt tokens computed", "tokens generated"], rows), flush=True)
    family = bench.family.name
    workload = {name: getattr(args, name) for name in ("tokens", "chunks", "new_tokens", "concurrency")}
    workload["forced"] = bench.forces
    write_json(
        args.out / f"server-{family}.json",
        {
            "machine": about,
            "server": {"family": family, "model": Path(bench.policy.engine.model_name).name},
            "workload": workload,
            "measured": {name: [asdict(each) for each in results] for name, results in found.items()},
        },
    )
    plot(found, args.out / f"server-{family}.png")


if __name__ == "__main__":
    main()
