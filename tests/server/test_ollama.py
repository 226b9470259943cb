"""Ollama: what is sent to it, and prompts that it cuts, against a server that does as Ollama documents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from helpers import config
from ollama_server import Ollama, ollama
from ship import QUESTION, TEXTS

from wim_kernel import ServerError, WimKernel

OPTIONS: dict[str, Any] = {"margin_config": config(8), "answer_config": config(8)}


@pytest.fixture
def server() -> Iterator[Ollama]:
    with ollama() as running:
        yield running


def kernel_on(server: Ollama, **options: Any) -> WimKernel:
    return WimKernel.from_server(f"http://127.0.0.1:{server.port}/v1", **options)


def sent(server: Ollama) -> list[dict[str, Any]]:
    """The bodies of the requests for text."""
    return [body for path, body in server.requests if path in ("/api/generate", "/api/chat")]


def test_ollama_requests_carry_the_window(server):
    kernel = kernel_on(server)
    assert (kernel.engine.family.name, kernel.engine.route, kernel.engine.window) == ("ollama", "chat", 8192)
    result = kernel.read(TEXTS).ask(QUESTION, **OPTIONS)
    assert result.answer.startswith("YES")  # its only answer
    assert result.relevance_by == "lexical+decision, by the first token"
    bodies = sent(server)
    assert {body["options"]["num_ctx"] for body in bodies} == {8192}
    assert all(body["options"]["temperature"] == 0.0 and body["truncate"] is False for body in bodies)
    assert not any(path.startswith("/v1") for path, _ in server.requests)


def test_ollama_gets_whole_prompts_with_a_tokenizer(server, smollm2):
    tokenizer = smollm2[1]
    server.counts = lambda text: len(tokenizer.encode(text, add_special_tokens=False))
    kernel = kernel_on(server, tokenizer=tokenizer)
    reading = kernel.read(TEXTS)
    first = reading.ask(QUESTION, relevance="decision", **OPTIONS)
    assert all(body["raw"] and body["prompt"].startswith("<|im_start|>") for body in sent(server))
    assert {path for path, _ in server.requests} == {"/api/show", "/api/generate"}
    assert first.usage.cached_tokens is not None
    assert any(margin.kept for margin in first.margins)
    again = reading.ask("Who sailed the ship?", relevance="decision", **OPTIONS)
    assert again.usage.cached_tokens > 0  # it keeps one prompt, and the last chunk's margin comes first


@pytest.mark.parametrize("with_tokenizer", [True, False], ids=["exact", "estimated"])
def test_ollama_prompt_cut_in_silence_raises(server, smollm2, with_tokenizer):
    server.refuses_long, server.most = False, 64
    server.counts = lambda text: len(smollm2[1].encode(text, add_special_tokens=False))
    kernel = kernel_on(server, **({"tokenizer": smollm2[1]} if with_tokenizer else {}))
    with pytest.raises(ServerError, match=r"it read 32 tokens of a prompt of [\d,]+ and cut the rest"):
        kernel.read([TEXTS[0] * 4]).ask(QUESTION, relevance="decision", **OPTIONS)


def test_ollama_refusal_of_long_prompts_raises(server):
    kernel = kernel_on(server, window=2000)
    server.counts = lambda text: 5000
    with pytest.raises(ServerError, match="exceeds the context length") as caught:
        kernel.read(TEXTS).ask(QUESTION, relevance="decision", **OPTIONS)
    assert caught.value.status == 400


def test_ollama_without_logprobs_decides_by_text(server):
    server.tells_cached = server.tells_logprobs = False
    kernel = kernel_on(server)
    result = kernel.read(TEXTS).ask(QUESTION, relevance="decision", **OPTIONS)
    assert result.relevance_by == "decision, by the text"
    assert result.usage.cached_tokens is None


def test_ollama_without_prompt_counts_warns_once(server):
    server.refuses_long, server.tells_count = False, False
    kernel = kernel_on(server)
    with pytest.warns(UserWarning, match="does not say how many tokens of a prompt it read") as caught:
        kernel.read(TEXTS).ask(QUESTION, relevance="decision", **OPTIONS)
    assert len(caught) == 1


def test_ollama_gets_a_schema_as_format(server):
    schema = {"type": "object", "properties": {"owner": {"type": "string"}}}
    kernel_on(server).read(TEXTS).ask(QUESTION, answer_schema=schema, **OPTIONS)
    assert sent(server)[-1]["format"]["properties"]["owner"]["type"] == "string"
    assert all("format" not in body for body in sent(server)[:-1])
