"""Options that name a model, shared by the commands, and the kernel that they name."""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Callable, Generator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from wim_kernel.cli.checks import check_folder, check_reachable
from wim_kernel.common.errors import ReadingFileError
from wim_kernel.engines.loading_options import Weights

if TYPE_CHECKING:
    from wim_kernel.kernel import WimKernel

_CHUNK_HELP = "At most N tokens a chunk. By default a sixteenth of the window: 512 for the embedded model."
_CACHE_HELP = "Where readings are kept for the next run. By default in the user's cache folder."

EMBEDDED = "embedded"
CACHE_BYTES = 8 * 2**30
"""The budget of the default cache folder, besides the limit of half of the disk's free space."""

_OPTIONS = (
    click.option(
        "--model", default=EMBEDDED, show_default=True, help="A hub id, a path, or the embedded model."
    ),
    click.option(
        "--gguf-file", metavar="NAME", help="The GGUF file within the model's repository or folder."
    ),
    click.option(
        "--weights",
        type=click.Choice(get_args(Weights)),
        help="Quantise the weights: int8 for a CPU, fp8 for a GPU (Hopper, Ada). Faster, and less memory.",
    ),
    click.option(
        "--server",
        "servers",
        metavar="URL",
        multiple=True,
        help="An OpenAI-compatible API that runs --model; again for more.",
    ),
    click.option(
        "--chat-model",
        metavar="PROVIDER:NAME",
        help="A hosted chat model in place of --model, such as openai:gpt-5.6, by LangChain's init_chat_model.",
    ),
    click.option("--tokenizer", metavar="NAME", help="The server's model's tokenizer: a hub id or a folder."),
    click.option("--cache-dir", metavar="FOLDER", help=_CACHE_HELP),
    click.option(
        "--no-cache", is_flag=True, help="Keep nothing for the next run, and use nothing that was kept."
    ),
    click.option("--chunk-tokens", type=click.IntRange(min=1), metavar="N", help=_CHUNK_HELP),
)


@dataclass(frozen=True)
class ModelChoice:
    """The model that a command line names, and where its readings are kept. The fields are the options' values."""

    model: str
    gguf_file: str | None
    weights: Weights | None
    servers: tuple[str, ...]
    chat_model: str | None
    tokenizer: str | None
    cache_dir: str | None
    no_cache: bool

    def check(self) -> None:
        """Check that these options do not exclude each other, and that the folder can be used.

        Raises:
            click.UsageError: for options that exclude each other.
            ReadingFileError: for a folder that does not exist and cannot be created.
        """
        if self.chat_model is not None:
            others = (
                ("--server", self.servers),
                ("--model", self._local_model),
                ("--gguf-file", self.gguf_file),
            )
            for name, value in others:
                if value:
                    raise click.UsageError(f"Use --chat-model or {name}, not both.")
        if self.cache_dir and not self.is_local:
            raise click.UsageError(
                "--cache-dir is of no use with --server and --chat-model: they keep what they read themselves."
            )
        if self.weights and not self.is_local:
            raise click.UsageError(
                "--weights is for a model in this process, not for --server or --chat-model."
            )
        if self.tokenizer and not self.servers:
            raise click.UsageError("--tokenizer belongs to --server: a model has its own.")
        if self.no_cache and self.cache_dir:
            raise click.UsageError("Use --cache-dir or --no-cache, not both.")
        if self.cache_dir:
            check_folder(self.cache_dir)

    @property
    def is_local(self) -> bool:
        """Whether the model runs in this process."""
        return not self.servers and self.chat_model is None

    @property
    def action(self) -> str:
        """What making the kernel does, for people who wait."""
        if self.is_local:
            return f"Loading the model {self.model}"
        return f"Asking {self.chat_model or ', '.join(self.servers)}"

    @property
    def readings_folder(self) -> Path | None:
        """The folder in which readings are kept; None if they are not kept: servers and providers keep their own."""
        return Path(self.cache_dir or _cache_folder()) if self.is_local and not self.no_cache else None

    def kernel(self) -> WimKernel:
        """Make a kernel on the model.

        Raises:
            ModelNotFoundError: if there is no such model.
            ServerError: if no server listens.
            click.UsageError: for wrong options.
        """
        if self.chat_model is not None:
            from wim_kernel.kernel import WimKernel

            return WimKernel.from_chat_model(self.chat_model)
        if self.servers:
            return connect(self.servers, self._local_model, self.tokenizer)
        return load(self.model, self.gguf_file, self.weights)

    @property
    def _local_model(self) -> str | None:
        return None if self.model == EMBEDDED else self.model


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command options for the model, which it gets as ``chosen``, a `ModelChoice`, and the size of chunks."""

    @functools.wraps(command)
    def run(**options: Any) -> Any:
        chosen = ModelChoice(**{each.name: options.pop(each.name) for each in fields(ModelChoice)})
        return command(chosen=chosen, **options)

    for option in reversed(_OPTIONS):
        run = option(run)
    return run


def load(model: str, gguf_file: str | None, weights: Weights | None = None) -> WimKernel:
    """Load a model into this process.

    Raises:
        ModelNotFoundError: if there is no such model.
        click.UsageError: if its weights cannot be quantised so.
    """
    from transformers.utils import logging as transformers_logging

    from wim_kernel.kernel import WimKernel

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if weights is None:
        return WimKernel.from_pretrained(model, gguf_file=gguf_file)
    try:
        return WimKernel.from_pretrained(model, gguf_file=gguf_file, weights=weights)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


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


def _cache_folder() -> str:
    """The default folder of readings: in WIM_CACHE_DIR if it is set, otherwise in the user's cache folder."""
    from platformdirs import user_cache_dir

    folder = os.environ.get("WIM_CACHE_DIR") or user_cache_dir("wim-integrations", appauthor=False)
    return str(Path(folder).expanduser() / "readings")


@contextlib.contextmanager
def cached_in(kernel: WimKernel, chosen: ModelChoice) -> Generator[None, None, None]:
    """Use the readings of the chosen folder, and write this run's readings to it at the end."""
    folder, default = chosen.readings_folder, not chosen.cache_dir
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
