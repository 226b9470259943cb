"""A real server whose replies are replaced: no key is shown, and missing probabilities are made up for."""

from __future__ import annotations

import traceback
from dataclasses import replace

import pytest
from helpers import config
from proxy import http, posts

from wim_kernel import ServerError
from wim_kernel.engines.server.families import FAMILIES

pytestmark = pytest.mark.slow

QUESTION = "Who owned the ship?"
TEXTS = ["The gull sat on the mast.", "Elsa Brandt owned the ship."]
OPTIONS = {"threshold": 0, "margin_config": config(4), "answer_config": config(8)}


@pytest.mark.parametrize("status", [401, 500])
def test_a_key_that_is_sent_back_is_not_shown(behind_proxy, proxy, caplog, status):
    kernel = behind_proxy(api_key="sk-very-secret", retries=0)
    proxy.answers = {
        b"/completions": http(b'{"error": {"message": "Incorrect key: sk-very-secret"}}', status)
    }
    with pytest.raises(ServerError, match="Incorrect key") as caught:
        kernel.read(TEXTS).ask(QUESTION, **OPTIONS)
    assert caught.value.status == status
    shown = "".join(traceback.format_exception(caught.value))
    assert "secret" not in shown + repr(caught.value) + caplog.text


def test_without_probabilities_the_text_decides(behind_proxy, proxy):
    kernel = behind_proxy(family=replace(FAMILIES["transformers"], logprobs=20))
    assert kernel.engine.decides_by == "first token"
    reading = kernel.read(TEXTS[:1])
    reading.prefill()
    before = posts(proxy)
    decision = {**OPTIONS, "relevance": "decision"}
    assert reading.ask(QUESTION, **decision).relevance_by == "decision, by the text"
    assert reading.ask("Where was the gull?", **decision).relevance_by == "decision, by the text"
    assert (
        4 <= posts(proxy) - before <= 6
    )  # a note, perhaps written anew behind a decision, and an answer each
    assert kernel.engine.decides_by == "text"
