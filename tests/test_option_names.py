"""Options are named once, in the kernel: an option that is added there is one of every part, by itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from wim_integrations import langchain as lc
from wim_integrations import llama_index as li
from wim_integrations.options import OPTION_NAMES
from wim_kernel import Options, UnknownOptionError, WimKernel

Make = Callable[..., Any]

PARTS: dict[str, Make] = {
    "WimRunnable": lambda kernel, **options: lc.WimRunnable(kernel=kernel, **options),
    "WimMargins": lambda kernel, **options: lc.WimMargins(kernel=kernel, **options),
    "WimAnswer": lambda kernel, **options: lc.WimAnswer(kernel=kernel, **options),
    "WimDocumentCompressor": lambda kernel, **options: lc.WimDocumentCompressor(kernel=kernel, **options),
    "create_wim_documents_chain": lc.create_wim_documents_chain,
    "create_wim_map_reduce_chain": lc.create_wim_map_reduce_chain,
    "create_wim_tool": lambda kernel, **options: lc.create_wim_tool(kernel, "A text.", **options),
    "WimSynthesizer": li.WimSynthesizer,
    "WimNodePostprocessor": li.WimNodePostprocessor,
    "LlamaIndex's create_wim_tool": lambda kernel, **options: li.create_wim_tool(kernel, "A.", **options),
}

ADDED = """
from wim_kernel.run import options as settings
settings.Options.__annotations__["rounds"] = int | None
from wim_integrations.langchain import WimAnswer, WimDocumentCompressor, WimMargins, WimRunnable
from wim_integrations.options import OPTION_NAMES
kinds = [WimRunnable, WimMargins, WimAnswer, WimDocumentCompressor]
assert all(kind.model_fields["rounds"].default is None for kind in kinds)
assert "rounds" in OPTION_NAMES
"""


@pytest.mark.parametrize("name", sorted(Options.__annotations__))
def test_every_part_knows_every_option(kernel: WimKernel, name: str) -> None:
    for make in PARTS.values():
        try:
            make(kernel, **{name: object()})
        except Exception as error:  # it is no value of that option; which is known all the same
            assert not isinstance(error, UnknownOptionError)  # noqa: PT017


@pytest.mark.parametrize("kind", [lc.WimRunnable, lc.WimMargins, lc.WimAnswer, lc.WimDocumentCompressor])
def test_fields_are_the_kernels_options_and_what_is_said_of_documents(kind: Any) -> None:
    assert set(OPTION_NAMES) == set(Options.__annotations__)
    own = set(kind.model_fields) - set(OPTION_NAMES)
    assert set(OPTION_NAMES) <= set(kind.model_fields)
    assert {"kernel", "document_prompt", "document_separator", "chunk_tokens"} <= own


def test_an_option_that_is_added_appears_by_itself() -> None:
    done = subprocess.run([sys.executable, "-c", ADDED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("part", PARTS)
def test_unknown_options_are_named_with_suggestions(kernel: WimKernel, part: str) -> None:
    for name in ("treshold", "margin_token", "stopafter"):
        with pytest.raises(UnknownOptionError) as caught:
            PARTS[part](kernel, **{name: 1})
        assert f"{name!r} (did you mean " in str(caught.value)
        assert all(option in str(caught.value) for option in OPTION_NAMES)
