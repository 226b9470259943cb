"""The command `wim eval`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, get_args

import click

from wim_integrations.evaluation.errors import EvaluationError
from wim_kernel.common.errors import WimError
from wim_kernel.engines.loading_options import Weights

EXIT_INTERRUPTED = 130
_METHODS = "plain,wim,rag"


@click.command(name="eval", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("more_data", metavar="[DATA]...", nargs=-1)
@click.option(
    "--model", default="embedded", show_default=True, help="A hub id, a path, or the embedded model."
)
@click.option("--gguf-file", metavar="NAME", help="The GGUF file within the model's repository or folder.")
@click.option("--dtype", metavar="TYPE", help="Load the weights as bfloat16, float16 or float32.")
@click.option("--weights", type=click.Choice(get_args(Weights)), help="Quantise the weights.")
@click.option("--device", metavar="NAME", help="Where the model runs, such as cuda or cpu.")
@click.option(
    "--data", metavar="DATA", multiple=True, help="A file of questions, or a generated task; more may follow."
)
@click.option(
    "--methods", default=_METHODS, show_default=True, metavar="LIST", help="What answers, with commas."
)
@click.option(
    "--n",
    "count",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Questions a task, at most.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("wim-eval"),
    show_default=True,
    help="The folder for records and reports.",
)
@click.option(
    "--chunk-tokens",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="Tokens a chunk, about.",
)
@click.option(
    "--answer-tokens",
    type=click.IntRange(min=1),
    default=48,
    show_default=True,
    help="Most tokens of an answer.",
)
@click.option(
    "--margin-tokens", type=click.IntRange(min=1), help="Most tokens of a margin, or a chain's note."
)
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    default=4000,
    show_default=True,
    help="Tokens of a generated document, about.",
)
@click.option("--shard", default="1/1", metavar="I/N", help="Answer the I-th of N shares of the questions.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of generated tasks.")
@click.option("--report-only", is_flag=True, help="Sum up the records in --out again, without a model.")
def evaluate(
    more_data: tuple[str, ...], data: tuple[str, ...], out: Path, report_only: bool, **options: Any
) -> None:
    """Compare ways to answer questions about long documents, on one model.

    DATA is a file of JSON lines, or a task that is made up: needles, variable-tracking, key-value, common-words.
    METHODS are plain, wim, wim-free, wim-verbatim, gold, rag, map-reduce, refine, tree-summarize; options of one stand
    behind a colon, as in wim:top_k=3,relevance=decision. The same command again goes on from the records in --out.
    """
    try:
        if not report_only:
            _answer_all((*data, *more_data), out, **options)
        _report(out)
    except KeyboardInterrupt:
        click.echo(f"\nwim: interrupted; the same command goes on from the records in {out}", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except EvaluationError as error:
        raise click.UsageError(str(error)) from error
    except (WimError, OSError) as error:
        raise click.ClickException(str(error)) from error


def _answer_all(
    data: tuple[str, ...],
    out: Path,
    *,
    model: str,
    gguf_file: str | None,
    dtype: str | None,
    weights: Weights | None,
    device: str | None,
    methods: str,
    answer_tokens: int,
    margin_tokens: int | None,
    shard: str,
    **sizes: Any,
) -> None:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # These import torch, which takes seconds: not at the top, for --help.
    from wim_integrations.evaluation.loading import load_kernel
    from wim_integrations.evaluation.methods import Limits
    from wim_integrations.evaluation.run import Plan, parse_shard, run
    from wim_integrations.evaluation.specs import parse_methods

    chosen = () if weights is None else (("weights", weights),)  # else as in records of former versions
    plan = Plan(
        data=data,
        methods=tuple(parse_methods(methods)),
        out=out,
        limits=Limits(answer_tokens, margin_tokens),
        shard=parse_shard(shard),
        model=(("model", model), ("gguf_file", gguf_file), ("dtype", dtype), ("device", device), *chosen),
        **sizes,
    )
    plan.check()
    click.echo(f"Loading the model {model}", err=True)
    failed = run(plan, load_kernel(model, gguf_file, dtype, device, weights))
    if failed:
        click.echo(f"Answers that failed: {failed}. The same command tries them again.", err=True)


def _report(out: Path) -> None:
    from wim_integrations.evaluation.report import overall_table, write_report

    summary, files, missing = write_report(out)
    click.echo(overall_table(summary))
    if missing:
        click.echo(missing, err=True)
    click.echo(f"Written: {', '.join(map(str, files))}", err=True)
