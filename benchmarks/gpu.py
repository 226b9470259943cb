"""The kernel against plain transformers on one GPU, in one process, on the same model and tokens.

Workload: a model of the shape of Llama 3.1 8B with random weights in bfloat16 (speed does not depend on the weights),
chunks of 4,096 tokens, an instruction of 128 tokens and a margin of 64 forced tokens at every chunk, an answer of 64.
Rivals (see `rivals`), all decoding eagerly: the document read without any margin, the paper's published recipe as torch
runs it by itself (best of two, since the first run on new lengths is slower) and with decoding that does not use cuDNN,
one call a chunk likewise. The recipe's verdicts are replies of 10 tokens.

First it checks what it is going to time: in float32 every margin and answer against ``model.generate``, token for
token, with every way of computing attention that the GPU has; in bfloat16 the logits, against a float32 run, beside
those of the model's own code.

    python -m benchmarks.gpu                          # about nine minutes on an H100
    python -m benchmarks.gpu --contexts 16384 --no-rivals

Writes ``gpu.json`` and ``gpu.png``; exits with 1 where a figure misses its target or a check fails.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from benchmarks.report import ROOT, Goal, machine, table, write_json
from benchmarks.rivals import RIVALS, Task, generated
from benchmarks.shapes import SHAPES, synthetic_tokenizer
from wim_kernel import AnswerToken, Frame, MarginWritten, Prompts, Reading, WimKernel

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # on a CPU only to try the script itself
VOCABULARY = 128_256
QUESTION_TOKENS, INSTRUCTION_TOKENS, ANSWER_PROMPT_TOKENS = 24, 128, 64
LIMITS = {16_384: (1.15, 9.0, 1.55), 32_768: (2.0, 8.5, 1.0), 65_536: (4.4, 11.0, 0.70)}
"""By context: most seconds until the answer can begin, times faster than the recipe, most times plain prefill."""


@dataclass
class Measured:
    """One way of doing the work at one context.

    Attributes:
        ready: seconds until the answer can begin: the document read, the margins written.
        first_token: seconds until the answer's first token.
        token_ms: milliseconds for each further token of the answer.
        peak_gib: most memory taken on the device, the model included; None if it was not measured.
        runs: every run's ``ready``.
    """

    ready: float
    first_token: float
    token_ms: float
    peak_gib: float | None
    runs: list[float] = field(default_factory=list)


def build(
    layers: int, dtype: torch.dtype, shape: str = "8b", heads: tuple[int, int] | None = None
) -> PreTrainedModel:
    """A Llama with random weights on the GPU: always the same ones."""
    sizes: dict[str, Any] = {**SHAPES[shape], "num_hidden_layers": layers}
    if heads is not None:
        sizes["num_attention_heads"], sizes["num_key_value_heads"] = heads
    config = LlamaConfig(
        **{"num_key_value_heads": 8, **sizes},
        vocab_size=VOCABULARY,
        max_position_embeddings=131_072,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        eos_token_id=VOCABULARY - 1,
        pad_token_id=VOCABULARY - 1,
        bos_token_id=None,
    )
    torch.set_default_dtype(dtype)
    with torch.device(DEVICE):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02) if parameter.dim() > 1 else parameter.fill_(1.0)
    return model.eval()


def forced(tokens: int) -> GenerationConfig:
    """Greedy decoding of exactly so many tokens."""
    return GenerationConfig(max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)


def words(count: int) -> str:
    """Random words, each of which is a token."""
    return " ".join(f"w{number}" for number in torch.randint(0, VOCABULARY - 1000, (count,)).tolist())


def prompts() -> Prompts:
    """Prompts of known lengths; what is not a word of the vocabulary is one token too."""
    lead = 2
    rest = INSTRUCTION_TOKENS - lead - QUESTION_TOKENS - 1
    return Prompts(
        question="about : {question}",
        margin=" " + words(rest),
        notes="notes : {margins}",
        answer=" " + words(ANSWER_PROMPT_TOKENS - QUESTION_TOKENS - 1) + " {question}",
        margin_cue="note",
        answer_cue="answer",
    )


def make_kernel(model: PreTrainedModel, **options: Any) -> WimKernel:
    """The kernel on a model whose words are its tokens."""
    return WimKernel(
        model, synthetic_tokenizer(VOCABULARY), frame=Frame(system="s", document="d", separator=""), **options
    )


def options(margin: int, answer: int, chunks: int | None = None) -> dict[str, Any]:
    """Every margin written in full and kept."""
    return {
        "threshold": 0,
        "relevance": "likelihood",
        "margin_style": "free",
        "prompts": prompts(),
        "margin_config": forced(margin),
        "answer_config": forced(answer),
        "margin_batch": chunks,
    }


# -- checks -----------------------------------------------------------------------------------------------------------


def check_tokens() -> dict[str, bool]:
    """In float32: margins and answers, each against `model.generate` on the tokens that its branch saw."""
    torch.manual_seed(1)
    document, question = [words(count) for count in (700, 1, 1301, 420)], words(QUESTION_TOKENS)
    found = {}
    for heads in ((32, 8), (16, 2), (8, 8)):
        model = build(2, torch.float32, "1b", heads)
        for attention in ("parts", "kernels"):
            reading = make_kernel(model, attention=attention).read(document)
            result = reading.ask(question, **options(12, 12))
            equal = [_equals_generate(reading, margin, 12) for margin in result.margins]
            found[f"{attention}, {heads[0]} heads on {heads[1]}"] = all(
                [*equal, _equals_generate(reading, result, 12)]
            )
    return found


def _equals_generate(reading: Reading, written: Any, tokens: int) -> bool:
    ids = list(reading.prompt_ids(written))
    model = reading.kernel.model
    ends = [model.config.eos_token_id]
    return tuple(written.token_ids) == generated(model, ids, tokens, ends)


def check_logits(context: int = 13_000) -> dict[str, float]:
    """In bfloat16: relative error of a branch's logits at the end of a long document, against float32."""
    torch.manual_seed(2)
    document = [words(count) for count in (4000, 4096, context - 8096)]
    exact, halves = build(8, torch.float32), build(8, torch.bfloat16)
    with torch.no_grad():
        for mine, theirs in zip(exact.parameters(), halves.parameters(), strict=True):
            mine.copy_(theirs)
    errors = {}
    for attention in ("parts", "kernels", "cudnn"):
        kernel = make_kernel(halves, attention=attention)
        reading = kernel.read(document)
        result = reading.ask(words(QUESTION_TOKENS), **options(2, 2))
        seen = list(reading.prompt_ids(result))
        want = _logits(exact, seen)
        with torch.inference_mode():
            prefix = kernel.engine.open()
            head = len(kernel._head)
            cuts = [head + 4000, head + 8096, head + context]
            for start, end in zip([0, *cuts], cuts, strict=False):
                prefix.reserve(cuts[-1])
                prefix.extend(seen[start:end])
            batch = prefix.branch([cuts[-1]], len(seen) - cuts[-1] + 1)
            suffix = seen[cuts[-1] : -1]
            batch.prompt([suffix], len(suffix), torch.tensor([len(suffix) - 1]))
            mine = batch.step(seen[-1:]).logits[0]
        errors[attention] = _apart(mine, want)
        errors["the model's own code"] = _apart(_logits(halves, seen), want)
    return errors


@torch.inference_mode()
def _logits(model: PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    cache = DynamicCache(config=model.config)
    for start in range(0, len(ids), 4096):
        batch = torch.tensor([ids[start : start + 4096]], device=model.device)
        logits: torch.Tensor = model(input_ids=batch, past_key_values=cache, logits_to_keep=1).logits[0, -1]
    return logits


def _apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


# -- measuring --------------------------------------------------------------------------------------------------------


def clock() -> float:
    """The time, once the device is done."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def chunks_of(context: int, chunk: int) -> list[str]:
    """A document of ``context`` tokens."""
    return [words(min(chunk, context - start)) for start in range(0, context, chunk)]


def streamed(
    reading: Reading, question: str, args: argparse.Namespace, batch: int | None
) -> dict[str, float]:
    """When things happened while a question was answered, in seconds from the call."""
    begun, when = clock(), {}
    count = 0
    for event in reading.stream(question, **options(args.margin, args.answer, batch)):
        now = time.perf_counter() - begun
        if isinstance(event, MarginWritten):
            when.setdefault("first_margin", now)
            when["margins"] = now
        elif isinstance(event, AnswerToken):
            when.setdefault("first_token", now)
            count += 1
    when["done"] = clock() - begun
    when["token_ms"] = 1e3 * (when["done"] - when["first_token"]) / (args.answer - 1)
    return when


def best(work: Callable[[], dict[str, float]], repeats: int, by: str) -> tuple[dict[str, float], list[float]]:
    """The quickest of several runs, and all of their figures."""
    runs = [work() for _ in range(repeats)]
    return min(runs, key=lambda run: run[by]), [run[by] for run in runs]


def measure_kernel(kernel: WimKernel, document: list[str], args: argparse.Namespace) -> Measured:
    """A fresh document: margins together, then the answer."""

    def run() -> dict[str, float]:
        kernel.cache.clear()
        return streamed(kernel.read(document), words(QUESTION_TOKENS), args, len(document))

    peak = peak_of(run)
    found, all_runs = best(run, args.repeats, "margins")
    return Measured(found["margins"], found["first_token"], found["token_ms"], peak, all_runs)


def peak_of(work: Callable[[], object]) -> float:
    """Most memory, in GiB, that the device gave out during a run."""
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    work()
    return float(torch.cuda.max_memory_allocated()) / 2**30 if DEVICE == "cuda" else 1.0


def measure_rival(name: str, kernel: WimKernel, document: list[str], args: argparse.Namespace) -> Measured:
    """A rival on the same tokens; one whose name ends in ``_tuned`` decodes without cuDNN."""
    kernel.cache.clear()
    tuned = name.endswith("_tuned")
    task = replace(rival_task(kernel, document, args), tuned=tuned)
    last: list[Any] = []

    def run() -> dict[str, float]:
        last[:] = [RIVALS[name.removesuffix("_tuned")](kernel.model, task)]
        return {"ready": last[0].prefill + last[0].margins}

    repeats = 1 if tuned else args.repeats  # what torch chooses by itself is quicker the second time
    peak = peak_of(run) if name.startswith("plain") else None
    found, all_runs = best(run, repeats, "ready")
    done = last[0]
    token_ms = 1e3 * (done.total - done.answer_begins) / (args.answer - 1)
    return Measured(found["ready"], done.answer_begins, token_ms, peak, all_runs)


def rival_task(kernel: WimKernel, document: list[str], args: argparse.Namespace) -> Task:
    """The work as token ids."""

    def some(count: int) -> list[int]:
        return list(kernel.tokenizer.encode(words(count), add_special_tokens=False))

    question = some(ANSWER_PROMPT_TOKENS)
    instruction = some(INSTRUCTION_TOKENS)

    def after_notes(notes: Sequence[Sequence[int]]) -> list[int]:
        return [token for note in notes for token in note] + question

    return Task(
        head=kernel._head,
        chunks=[kernel.tokenizer.encode(text, add_special_tokens=False) for text in document],
        instructions=[instruction] * len(document),
        judge=lambda note: [*instruction, *note],
        yes_no=(5, 6),
        answer_prompt=after_notes,
        question_prompt=question,
        reduce_prompt=after_notes,
        margin_tokens=args.margin,
        answer_tokens=args.answer,
        eos_ids=[VOCABULARY - 1],
        judge_tokens=10,
    )


def measure_more(kernel: WimKernel, document: list[str], args: argparse.Namespace) -> dict[str, float]:
    """What is asked of 32,768 tokens beside the first question."""
    kernel.cache.clear()
    reading = kernel.read(document)
    reading.prefill()

    def second() -> dict[str, float]:
        return streamed(reading, words(QUESTION_TOKENS), args, len(document))

    def together(count: int) -> Callable[[], dict[str, float]]:
        def run() -> dict[str, float]:
            kernel.cache.clear()
            begun = clock()
            kernel.read(document).ask_many(
                [words(QUESTION_TOKENS) for _ in range(count)], **options(args.margin, args.answer)
            )
            return {"done": clock() - begun}

        return run

    def first_margin() -> dict[str, float]:
        kernel.cache.clear()
        return streamed(kernel.read(document), words(QUESTION_TOKENS), args, None)

    def first_chunk() -> dict[str, float]:
        kernel.cache.clear()
        begun = clock()
        kernel.read(document[:1]).prefill()
        return {"done": clock() - begun}

    step = streamed(reading, words(QUESTION_TOKENS), args, len(document))["token_ms"] / 1e3
    chunk_reading = best(first_chunk, 3, "done")[0]["done"]
    kernel.cache.clear()
    short = kernel.read(document[:1])
    short.prefill()
    step = min(step, streamed(short, words(QUESTION_TOKENS), args, None)["token_ms"] / 1e3)
    one, four = (best(together(count), args.repeats, "done")[0]["done"] for count in (1, 4))
    margin = best(first_margin, args.repeats, "first_margin")[0]["first_margin"]
    return {
        "second_question_answer_begins": best(second, args.repeats, "first_token")[0]["first_token"],
        "one_question": one,
        "four_questions": four,
        "first_margin": margin,
        "first_chunk": chunk_reading,
        "step_ms": 1e3 * step,
    }


def goals(found: dict[int, dict[str, Measured]], more: dict[str, float]) -> dict[str, Goal]:
    """The figures that are wanted, where they were measured."""
    wanted = {}
    for context, ways in found.items():
        ours, plain, recipe = ways["kernel"], ways.get("plain_by_chunks"), ways.get("published_recipe")
        if context not in LIMITS:
            continue
        seconds, times, share = LIMITS[context]
        wanted[f"{context:,}: seconds until the answer can begin"] = Goal(ours.ready, seconds)
        if recipe is not None:
            wanted[f"{context:,}: times faster than the published recipe"] = Goal(
                recipe.ready / ours.ready, times, False
            )
        if plain is not None:
            wanted[f"{context:,}: times plain prefill"] = Goal(ours.ready / plain.ready, share)
            assert ours.peak_gib is not None
            assert plain.peak_gib is not None
            wanted[f"{context:,}: peak memory, times plain prefill's"] = Goal(
                ours.peak_gib / plain.peak_gib, 1.05
            )
    if more:
        wanted["milliseconds a token of the answer, at 32,768"] = Goal(found[32_768]["kernel"].token_ms, 9.0)
        wanted["seconds until a second question's answer begins"] = Goal(
            more["second_question_answer_begins"], 0.8
        )
        wanted["four questions, times one"] = Goal(more["four_questions"] / more["one_question"], 1.6)
        alone = more["first_chunk"] + 64 * more["step_ms"] / 1e3
        wanted["first margin, times a chunk's prefill and 64 steps"] = Goal(more["first_margin"] / alone, 1.3)
    return wanted


# -- what comes out ---------------------------------------------------------------------------------------------------

LABELS = {
    "kernel": "this kernel, with margins",
    "plain_by_chunks": "plain prefill, no margins",
    "published_recipe": "the published recipe",
    "published_recipe_tuned": "the same, decoding without cuDNN",
    "map_reduce_tuned": "one call a chunk, likewise",
}


def summary(found: dict[int, dict[str, Measured]]) -> str:
    """The table."""
    header = ["context", *LABELS.values(), "ms a token of the answer", "peak GiB", "plain's"]
    rows = []
    for context, ways in found.items():
        ready = [f"{ways[name].ready:.2f}" if name in ways else "" for name in LABELS]
        plain = ways.get("plain_by_chunks")
        ours = ways["kernel"]
        peaks = [f"{ours.peak_gib:.1f}", f"{plain.peak_gib:.1f}" if plain else ""]
        rows.append([f"{context:,}", *ready, f"{ours.token_ms:.2f}", *peaks])
    return table(header, rows)


def plot(found: dict[int, dict[str, Measured]], path: Path) -> None:
    """Seconds until the answer can begin, by context; nothing where there is no matplotlib."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        print("matplotlib is not installed: no plot")
        return
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    for name, label in LABELS.items():
        points = [(context, ways[name].ready) for context, ways in found.items() if name in ways]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=label)
    axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="seconds until the answer can begin")
    axes.set_xticks(list(found), [f"{context:,}" for context in found])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=150)
    print(f"wrote {path}")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--contexts", type=int, nargs="+", default=list(LIMITS))
    parser.add_argument("--chunk", type=int, default=4096)
    parser.add_argument("--margin", type=int, default=64)
    parser.add_argument("--answer", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--weights", choices=["fp8"], help="quantise the model, which the rivals run, too")
    parser.add_argument("--rivals", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--checks", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks")
    parser.add_argument("--plot-from", type=Path, help="plot the figures of a JSON file, and nothing else")
    return parser.parse_args()


def run_checks() -> dict[str, Any]:
    """Both checks, and whether they passed."""
    tokens, errors = check_tokens(), check_logits()
    allowed = 1.1 * errors["the model's own code"]
    print("float32, equal to model.generate:", tokens)
    print("bfloat16, error of logits:", {name: f"{error:.1e}" for name, error in errors.items()}, flush=True)
    return {
        "equal_to_generate": tokens,
        "error_of_logits": errors,
        "passed": all(tokens.values()) and all(error <= allowed for error in errors.values()),
    }


def write(
    args: argparse.Namespace,
    checks: dict[str, Any],
    found: dict[int, dict[str, Measured]],
    more: dict[str, float],
) -> dict[str, Goal]:
    """Put what is known by now into the JSON file, so that a run cut short loses nothing; returns the goals."""
    wanted = goals(found, more)
    names = ("chunk", "margin", "answer", "repeats", "attention")
    write_json(
        args.out / "gpu.json",
        {
            "machine": machine(),
            "workload": {name: getattr(args, name) for name in names},
            "checks": checks,
            "contexts": {
                str(context): {name: asdict(way) for name, way in ways.items()}
                for context, ways in found.items()
            },
            "more": more,
            "goals": {what: {**asdict(goal), "reached": goal.reached} for what, goal in wanted.items()},
        },
    )
    return wanted


def main() -> int:
    """Check, measure, and say which figures were reached."""
    args = arguments()
    if args.plot_from:
        kept = json.loads(args.plot_from.read_text(encoding="utf-8"))["contexts"].items()
        plot(
            {int(context): {name: Measured(**way) for name, way in ways.items()} for context, ways in kept},
            args.out / "gpu.png",
        )
        return 0
    checks = run_checks() if args.checks else {}
    gc.collect()
    kernel = make_kernel(build(32, torch.bfloat16), attention=args.attention, weights=args.weights)
    found: dict[int, dict[str, Measured]] = {}
    more: dict[str, float] = {}
    args.out.mkdir(parents=True, exist_ok=True)
    warm_up = kernel.read(chunks_of(2 * args.chunk, args.chunk))
    streamed(warm_up, words(QUESTION_TOKENS), args, None)  # kernels are loaded
    documents = {context: chunks_of(context, args.chunk) for context in args.contexts}
    rivals = ["published_recipe", "map_reduce_tuned", "published_recipe_tuned"] if args.rivals else []
    for names in (["kernel", "plain_by_chunks"], *([name] for name in rivals)):
        for context, document in documents.items():
            for name in names:
                found.setdefault(context, {})[name] = (
                    measure_kernel(kernel, document, args)
                    if name == "kernel"
                    else measure_rival(name, kernel, document, args)
                )
            print(context, {name: round(way.ready, 3) for name, way in found[context].items()}, flush=True)
            write(args, checks, found, more)
        if 32_768 in documents and not more:
            more = measure_more(kernel, documents[32_768], args)
            print({name: round(value, 3) for name, value in more.items()}, flush=True)
    print("\n" + summary(found) + "\n")
    wanted = write(args, checks, found, more)
    for what, goal in wanted.items():
        print(goal.line(what))
    plot(found, args.out / "gpu.png")
    passed = checks.get("passed", True)
    print("checks passed" if passed else "CHECKS FAILED")
    return 0 if passed and all(goal.reached for goal in wanted.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
