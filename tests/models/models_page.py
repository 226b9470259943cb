"""Writes docs/models.md from a run of every kind of model: ``make models-page``.

``make models-page ARGS="llama mamba"`` renews the lines of some kinds, and ``ARGS=weights`` the table of weights.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import transformers
from tiny_configs import KINDS, UNTRIED
from transformers import PreTrainedTokenizerBase

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' helpers

from checking import BOUNDARIES, QUESTIONS, TIE, Outcome, outcome_of, outcome_of_model
from weights import WEIGHTS, Weights, save_base

PAGE = Path(__file__).parents[2] / "docs" / "models.md"

_TEXT = """# Models

Which causal language models of transformers the kernel runs, and how. `make models-page` writes this page: it builds a
tiny random model of each kind, by its config, asks {questions} questions about a document of {tokens} tokens in
{chunks} chunks, and compares every margin and answer with the model's own `generate` in float32.

With transformers {version}, {built} of {kinds} kinds could be built: {shared} share the prefix, {states} of them with
states, {own} use their own cache, and {refused} are refused.

- **shared**: the document's keys and values are stored once, and branches decode together.
- **shared with states**: the same; layers that keep a state instead (recurrent, convolution, delta net) have a copy
  of it at every chunk boundary.
- **own cache**: the model's own cache is copied for each branch, one branch at a time. As exact, and slower.
- **refused**: branches would give other results than the model's plain forward pass, so loading raises
  `UnsupportedModelError` with the reason.

The path is found on loading, by what the model does and not by its name: the reason is the one that is given then. Of
models that are not refused, every margin and every answer equalled `generate`. Tokens are those that the model ran for
both questions, beside those that `generate` ran for the same texts one by one; a longer document saves more.

A multimodal checkpoint loads as its text part: `WimKernel.from_pretrained` takes what transformers loads as
`AutoModelForImageTextToText`, and the towers for images and sound are freed. Prompts follow the tokenizer's chat
template. Where a model would reason before it replies, the template's own switch turns that off (`enable_thinking` and
others, found in the template); without one, the block of reasoning is closed at once, so that margins, relevance and
answers begin where the reply does.

Weights are loaded in the checkpoint's half-precision dtype on a GPU, or in bfloat16 if it has none. On a CPU they are
loaded in float32, but checkpoints in bfloat16 and GGUF files whose weights have at most 16 bits are loaded in bfloat16
where a short trial finds the processor much faster in it ([figures](performance.md#float32-or-bfloat16-on-a-cpu)).
`dtype="float32"` gives exact results, and the environment variable `WIM_CPU_DTYPE` (`float32`, `bfloat16`) decides in
place of the trial.

`weights="int8"` quantises the linear layers to 8 bits, on a CPU (`wim ask --weights int8`): steps are faster and take
less memory, results differ a little ([figures](performance.md#weights-in-8-bits-on-a-cpu-and-llamacpp)), and margins
and answers still equal `generate` on the same weights, which `kernel.model` has. `weights="fp8"` is for GPUs of compute
capability 8.9 or higher (Hopper, Ada): reading and steps are a quarter faster, weights take half the memory, and inputs
are rounded, too, so that margins are close to those of `generate` and not always equal
([figures](performance.md#weights-in-float8)).

A model in a folder or a GGUF file is compared with plain forward passes when it is first loaded. On a CPU the result is
kept in the cache folder, and the comparison is left out while nothing changes that it depends on: the files' sizes,
times and inodes, the config, the options, the processor, the versions of PyTorch, transformers and this package, and
the model's code, which must be that of the packages. A model object that you hand over is always compared.

## Weights

What people do with weights, tried on a tiny model as above, on a CPU (`make weights models-page ARGS=weights`).
Whatever is loaded, margins and answers are compared with `generate` of the same loaded model. Where a package rounds
activations to 8 bits, computing the same in another order moves some numbers by a whole step: there, results equal
those of `generate` up to that rounding, as they do in half precision.

| weights | path | equals `generate` | how to load them | |
|---|---|---|---|---|
{weights}

Names and folders are given to `WimKernel.from_pretrained`, and so are `quantization_config`, `device_map` and
`offload_folder`. The packages come with the extra `weights`. Adapters inside the layers work (LoRA and its relatives);
those that put virtual tokens in front of the text are refused. Readings on disk belong to the weights and to the
adapters that were active. GPTQ and AWQ checkpoints need the package that transformers names in the error (`optimum` and
`gptqmodel`); they have not been tried.

On a GPU (H200, a Llama of 1.2 billion random parameters): torchao FP8 (weights only), bitsandbytes nf4 and LoRA around
a model share the prefix, with steps captured as graphs. bitsandbytes int8 shares it in plain PyTorch, since its
products depend on what runs together. torchao's dynamic FP8 rounds inputs so coarsely that the check on loading falls
back to the model's own cache: `weights="fp8"` is the fast path. Checkpoints in transformers' fine-grained FP8 need the
package `kernels`, which the error names; none was available to try.

## Kinds

| kind | path | tokens | by `generate` | why |
|---|---|--:|--:|---|
{rows}
"""


ROUNDED_TIE = 0.2
"""Logits of two tokens may differ so much where activations are rounded: the model's logits spread by 1.7."""


def rounds_activations(weights: Weights) -> bool:
    """Whether products round their inputs to 8 bits."""
    return "rounds activations" in weights.note


def weights_row(weights: Weights, outcome: Outcome) -> str:
    """A line of the table of weights."""
    equals = "yes" if outcome.gap <= TIE else "up to rounding" if outcome.gap <= ROUNDED_TIE else "no"
    return f"| {weights.name} | {outcome.path} | {equals} | {weights.how} | {weights.note} |".replace(
        "|  |", "| |"
    )


def weights_rows(folder: Path, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The table of weights, from a run of each kind. All packages have to be installed."""
    base, lines = save_base(folder, tokenizer), {}
    for weights in WEIGHTS:
        found = outcome_of_model(weights.make(base), tokenizer, ROUNDED_TIE)
        lines[weights.name] = weights_row(weights, found)
        print(lines[weights.name], flush=True)
    return lines


def row(kind: str, outcome: Outcome | None) -> str:
    """A kind's line of the table; None if it was not tried."""
    if outcome is None:
        return f"| `{kind}` | not tried | | | {UNTRIED[kind]} |"
    counts = (f"{outcome.tokens}", f"{outcome.plain_tokens}") if outcome.path != "refused" else ("", "")
    return f"| `{kind}` | {outcome.path} | {counts[0]} | {counts[1]} | {_short(outcome.reason)} |".replace(
        "  ", " "
    )


def _short(reason: str) -> str:
    """A reason without the model's name, measured errors and what the page says of all."""
    text = re.split(r" between branches: | plain forward pass: ", reason, maxsplit=1)[-1]
    text = " ".join(text.split(". Its own cache is used")[0].split()).rstrip(".")
    text = re.sub(r" by [\d.]+e[+-]\d+| by nan", "", text)
    text = re.sub(r" \(\w+: .*?\)(?=;|$)", "", text).replace("|", "\\|")  # what Python said
    return text[:1].upper() + text[1:] + "." if text else ""


def lines_of(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """The lines of a page's tables by their first column: of weights, and of kinds."""
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    kinds = {name[1:-1]: line for name, line in lines.items() if name.startswith("`")}
    return {item.name: lines[item.name] for item in WEIGHTS if item.name in lines}, kinds


def page(weights: Mapping[str, str], kinds: Mapping[str, str]) -> str:
    """The whole page, of the lines of its tables."""
    paths = Counter(line.split("|")[2].strip() for line in kinds.values())
    built = paths.total() - paths["not tried"]
    return _TEXT.format(
        questions={2: "two"}[len(QUESTIONS)],
        tokens=BOUNDARIES[-1],
        chunks={4: "four"}[len(BOUNDARIES)],
        version=transformers.__version__,
        built=built,
        kinds=len(kinds),
        shared=paths["shared"] + paths["shared with states"],
        states=paths["shared with states"],
        own=paths["own cache"],
        refused=paths["refused"],
        weights="\n".join(weights.values()),
        rows="\n".join(kinds[kind] for kind in sorted(kinds)),
    )


def main() -> None:
    """Run every kind, or those that are named, and write the page."""
    from wim_kernel.engines.loading import load_model

    named = sys.argv[1:]
    _, tokenizer = load_model("embedded", device="cpu")
    tokenizer.chat_template = None
    transformers.utils.logging.set_verbosity_error()
    weights, kinds = lines_of(PAGE.read_text())
    if not named or "weights" in named:
        with TemporaryDirectory() as folder:
            weights = weights_rows(Path(folder), tokenizer)
    for kind in [kind for kind in KINDS if not named or kind in named]:
        found = None if kind in UNTRIED else outcome_of(kind, tokenizer)
        kinds[kind] = row(kind, found)
        print(kinds[kind], flush=True)
        if found is not None and found.faults:
            raise SystemExit(f"{kind} is taken, and wrong: {', '.join(found.faults)}.")
        PAGE.write_text(page(weights, kinds))  # at once: a run that is cut short loses nothing
    PAGE.write_text(page(weights, {kind: kinds[kind] for kind in KINDS}))


if __name__ == "__main__":
    main()
