"""Writes docs/models.md from a run of every kind of model: ``make models-page``."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import transformers
from tiny_configs import KINDS, UNTRIED

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' helpers

from checking import BOUNDARIES, QUESTIONS, Outcome, outcome_of

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
and answers still equal `generate` on the same weights, which `kernel.model` has.

A model in a folder or a GGUF file is compared with plain forward passes when it is first loaded. On a CPU the result is
kept in the cache folder, and the comparison is left out while nothing changes that it depends on: the files' sizes,
times and inodes, the config, the options, the processor, the versions of PyTorch, transformers and this package, and
the model's code, which must be that of the packages. A model object that you hand over is always compared.

| kind | path | tokens | by `generate` | why |
|---|---|--:|--:|---|
{rows}
"""


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
    found = re.search(r"\((?:shared: )?(.*)\)(?:\.|; its own|: see)", reason, re.DOTALL)
    text = " ".join((found.group(1) if found else reason).split())
    text = re.sub(r" by [\d.]+e[+-]\d+| by nan", "", text).replace("|", "\\|")
    text = text.replace("snapshot:", "own cache:")
    return text if len(text) <= 200 else text[:197] + "..."


def page(outcomes: Mapping[str, Outcome | None]) -> str:
    """The whole page."""
    paths = Counter(outcome.path for outcome in outcomes.values() if outcome is not None)
    return _TEXT.format(
        questions={2: "two"}[len(QUESTIONS)],
        tokens=BOUNDARIES[-1],
        chunks={4: "four"}[len(BOUNDARIES)],
        version=transformers.__version__,
        built=paths.total(),
        kinds=len(outcomes),
        shared=paths["shared"] + paths["shared with states"],
        states=paths["shared with states"],
        own=paths["own cache"],
        refused=paths["refused"],
        rows="\n".join(row(kind, outcomes[kind]) for kind in sorted(outcomes)),
    )


def main() -> None:
    """Run every kind, and write the page."""
    from wim_kernel.engines.loading import load_model

    _, tokenizer = load_model("embedded", device="cpu")
    tokenizer.chat_template = None
    transformers.utils.logging.set_verbosity_error()
    outcomes: dict[str, Outcome | None] = {}
    for kind in KINDS:
        outcomes[kind] = None if kind in UNTRIED else outcome_of(kind, tokenizer)
        print(row(kind, outcomes[kind]), flush=True)
        found = outcomes[kind]
        if found is not None and found.faults:
            raise SystemExit(f"{kind} is taken, and wrong: {', '.join(found.faults)}.")
    PAGE.write_text(page(outcomes))


if __name__ == "__main__":
    main()
