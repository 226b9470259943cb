"""Options that name a model, shared by the commands, and the kernel that they name."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wim_kernel.cli.checks import check_folder, check_reachable
from wim_kernel.common.errors import ReadingFileError

if TYPE_CHECKING:
    from wim_kernel.kernel import WimKernel

_CHUNK_HELP = "At most N tokens a chunk. By default a sixteenth of the window: 512 for the embedded model."
_CACHE_HELP = "Where readings are kept for the next run. By default in the user's cache folder."

CACHE_BYTES = 8 * 2**30
"""The budget of the default cache folder, besides the limit of half of the disk's free space."""

_OPTIONS = (
    click.option(
        "--model", default="embedded", show_default=True, help="A hub id, a path, or the embedded model."
    ),
    click.option(
        "--gguf-file", metavar="NAME", help="The GGUF file within the model's repository or folder."
    ),
    click.option(
        "--server",
        "servers",
        metavar="URL",
        multiple=True,
        help="An OpenAI-compatible API that runs --model; again for more.",
    ),
    click.option("--tokenizer", metavar="NAME", help="The server's model's tokenizer: a hub id or a folder."),
    click.option("--cache-dir", metavar="FOLDER", help=_CACHE_HELP),
    click.option(
        "--no-cache", is_flag=True, help="Keep nothing for the next run, and use nothing that was kept."
    ),
    click.option("--chunk-tokens", type=click.IntRange(min=1), metavar="N", help=_CHUNK_HELP),
)


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that name a model, the folder of its readings, and the size of chunks."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def check_model_options(
    servers: tuple[str, ...], tokenizer: str | None, cache_dir: str | None, no_cache: bool
) -> None:
    """Check that these options do not exclude each other, and that the folder can be used.

    Raises:
        click.UsageError: for options that exclude each other.
        ReadingFileError: for a folder that does not exist and cannot be created.
    """
    if servers and cache_dir:
        raise click.UsageError(
            "--cache-dir is of no use with --server: servers keep what they read themselves."
        )
    if tokenizer and not servers:
        raise click.UsageError("--tokenizer belongs to --server: a model has its own.")
    if no_cache and cache_dir:
        raise click.UsageError("Use --cache-dir or --no-cache, not both.")
    if cache_dir:
        check_folder(cache_dir)


def load(model: str, gguf_file: str | None) -> WimKernel:
    """Load a model into this process.

    Raises:
        ModelNotFoundError: if there is no such model.
    """
    from transformers.utils import logging as transformers_logging

    from wim_kernel.kernel import WimKernel

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return WimKernel.from_pretrained(model, gguf_file=gguf_file)


def connect(servers: tuple[str, ...], model: str | None, tokenizer: str | None) -> WimKernel:
    """Make a kernel on servers.

    Raises:
        ServerError: if none listens.
        click.UsageError: for wrong options.
    """
    check_reachable(servers)
    from wim_kernel.kernel import WimKernel

    try:
        return WimKernel.from_server(servers, model, tokenizer=tokenizer)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def readings_folder(servers: tuple[str, ...], cache_dir: str | None, no_cache: bool) -> Path | None:
    """The folder in which readings are kept; None if they are not kept. A server keeps its own."""
    return None if no_cache or servers else Path(cache_dir or _cache_folder())


def _cache_folder() -> str:
    """The default folder of readings: in WIM_CACHE_DIR if it is set, otherwise in the user's cache folder."""
    from platformdirs import user_cache_dir

    folder = os.environ.get("WIM_CACHE_DIR") or user_cache_dir("wim-integrations", appauthor=False)
    return str(Path(folder).expanduser() / "readings")


@contextlib.contextmanager
def cached_in(kernel: WimKernel, folder: Path | None, *, default: bool) -> Generator[None, None, None]:
    """Use a folder's readings, and write this run's readings to it at the end."""
    if folder is None:
        yield
        return
    try:
        kernel.cache.keep_in(folder.expanduser(), most_bytes=CACHE_BYTES if default else None)
    except ReadingFileError as error:
        if not default:
            raise
        warnings.warn(f"{error} --no-cache does without.", stacklevel=2)
    try:
        yield
    finally:
        kernel.cache.flush()
