"""Usage on servers: what was sent counts, in the run that sent it, and never more than the document."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from chat_server import ChatServer, chat_server
from helpers import config
from ollama_server import ollama

from wim_kernel import WimKernel

TEXTS = [f"Leaf {number} of the log. The gull sat on the mast. " * 20 for number in range(6)]
OPTIONS: dict[str, Any] = {"margin_config": config(4), "answer_config": config(4)}
QUESTION = "Who sat on the mast?"


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server() as running:
        yield running


def sent(server: ChatServer) -> int:
    return len(server.asked)


def test_usage_leaves_out_a_document_that_no_request_needs(server):
    kernel = WimKernel.from_server(server.url)
    reading = kernel.read(TEXTS)
    *_, last = reading.stream_margins(QUESTION, relevance=lambda _: 0.0, threshold=0.5, **OPTIONS)
    assert sent(server) == 0
    assert (last.usage.prefill_tokens, last.usage.prompt_tokens) == (0, 0)


def test_usage_counts_a_document_in_the_run_that_sends_it(server):
    kernel = WimKernel.from_server(server.url)
    reading = kernel.read(TEXTS)
    list(reading.stream_margins(QUESTION, relevance=lambda _: 0.0, threshold=0.5, **OPTIONS))
    assert sent(server) == 0
    before = sent(server)
    result = reading.ask(QUESTION, relevance="decision", **OPTIONS)
    assert sent(server) > before
    assert json.dumps(server.asked[-1]).count("gull") > 100
    assert 0 < result.usage.prefill_tokens <= reading.tokens
    again = reading.ask("Who else?", relevance="decision", **OPTIONS)
    assert again.usage.prefill_tokens == 0


def test_usage_counts_cached_tokens_once(smollm2):
    """Another kernel made the server read the document, and a run that sent nothing took it in."""
    tokenizer = smollm2[1]
    with ollama() as server:
        server.counts = lambda text: len(tokenizer.encode(text, add_special_tokens=False))
        url = f"http://127.0.0.1:{server.port}/v1"
        options = {**OPTIONS, "relevance": lambda _: 0.0, "threshold": 0.5}
        WimKernel.from_server(url, tokenizer=tokenizer).read(TEXTS).ask(QUESTION, **options)
        reading = WimKernel.from_server(url, tokenizer=tokenizer).read(TEXTS)
        list(reading.stream_margins(QUESTION, **options))
        usage = reading.ask(QUESTION, **options).usage
    assert usage.prefill_tokens < 100
    assert reading.tokens - 100 < usage.cached_tokens <= reading.tokens


def test_usage_leaves_unsent_tokens_out_of_the_cached(smollm2):
    with ollama() as server:
        server.counts = lambda text: len(smollm2[1].encode(text, add_special_tokens=False))
        kernel = WimKernel.from_server(f"http://127.0.0.1:{server.port}/v1", tokenizer=smollm2[1])
        # from now on it is known that the server reports cached tokens
        kernel.read("A short one.").ask(QUESTION, **OPTIONS)
        reading, nothing = kernel.read(TEXTS), {**OPTIONS, "relevance": lambda _: 0.0, "threshold": 0.5}
        for question in (QUESTION, "Who else?"):
            *_, done = reading.stream_margins(question, **nothing)
            assert (done.usage.prefill_tokens, done.usage.cached_tokens) == (0, 0)
        usage = reading.ask(QUESTION, **nothing).usage
        assert usage.prefill_tokens + usage.cached_tokens == reading.tokens
