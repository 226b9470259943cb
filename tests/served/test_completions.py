"""Plain conversations with a server's model, as with one in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from wim_kernel import WimKernel
from wim_kernel.run.completion import Completed, Turn, complete

TURNS = [
    Turn("system", "Answer in a word."),
    Turn("user", "Hello"),
    Turn("assistant", "Hi."),
    Turn("user", "Name the capital of France."),
]


def said(kernel: WimKernel, turns: list[Turn]) -> str:
    *_, last = complete(kernel.cache, turns, {"answer_tokens": 8})
    assert isinstance(last, Completed)
    return last.text


@pytest.mark.parametrize("turns", [TURNS, TURNS[-1:], TURNS[:2]], ids=["chat", "alone", "system"])
def test_a_server_says_what_the_model_says(
    behind_proxy: Callable[..., WimKernel], kernel: WimKernel, turns: list[Turn]
) -> None:
    assert said(behind_proxy(), turns) == said(kernel, turns)


def test_server_completes_without_a_tokenizer(behind_proxy: Callable[..., Any]) -> None:
    assert said(behind_proxy(tokenizer=None), TURNS).strip()
