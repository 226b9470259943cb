"""The command `wim ui`."""

from __future__ import annotations

import sys
from typing import Any

import click

from wim_kernel.cli.checks import Fraction
from wim_kernel.cli.console import quietened
from wim_kernel.cli.models import ModelChoice, cached_in, model_options
from wim_kernel.common.errors import WimError
from wim_kernel.text.files import FileError, read_document

PORT = 8460
EXIT_USAGE = 2


@click.command(name="ui", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("files", metavar="[FILE]...", nargs=-1)
@model_options
@click.option("--threshold", type=Fraction(0, 1), help="Relevance from which a margin is kept.")
@click.option(
    "--max-answer-tokens",
    "answer_tokens",
    type=click.IntRange(min=1),
    metavar="N",
    help="At most N tokens of answer.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=PORT, show_default=True, help="The port; 0: a free one."
)
@click.option("--open", "open_browser", is_flag=True, help="Open the page in your browser.")
def show(
    files: tuple[str, ...],
    chosen: ModelChoice,
    chunk_tokens: int | None,
    host: str,
    port: int,
    open_browser: bool,
    **options: Any,
) -> None:
    """Open a page in the browser: ask questions of documents, and watch and judge margins.

    Text, Markdown, HTML and PDF FILEs are open from the start; others can be opened or pasted there. Only this machine
    can reach the page, unless --host names another address. Ctrl-C ends it.
    """
    try:
        from wim_integrations.page.guard import LOOPBACK
        from wim_integrations.page.server import serve
    except ImportError as error:
        raise click.UsageError(str(error)) from error
    given = {name: value for name, value in options.items() if value is not None}
    with quietened(show_downloads=True):
        try:
            chosen.check()
            documents = read_document(files)
            click.echo(chosen.action, err=True)
            kernel = chosen.kernel()
            kernel.chunk_tokens = chunk_tokens or kernel.chunk_tokens
            if host not in LOOPBACK:
                click.echo(
                    "wim: anybody who can reach this address can ask questions and read these documents",
                    err=True,
                )
            with cached_in(kernel, chosen):
                serve(
                    kernel,
                    documents,
                    host=host,
                    port=port,
                    open_browser=open_browser,
                    started=lambda address: click.echo(f"The page is at {address} (Ctrl-C ends it)"),
                    **given,
                )
        except FileError as error:
            click.echo(f"wim: {error}", err=True)
            sys.exit(EXIT_USAGE)
        except (WimError, OSError) as error:
            raise click.ClickException(str(error)) from error
