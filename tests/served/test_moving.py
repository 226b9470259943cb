"""Several servers: a document stays with the one that read it, and moves when that fails."""

from __future__ import annotations

import pytest
from helpers import config
from proxy import posts, proxied
from ship import OPTIONS, QUESTION, TEXTS, always

from wim_kernel import WimKernel
from wim_kernel.engines.server import transport

pytestmark = pytest.mark.slow


def test_documents_stay_with_the_server_that_read_them_and_move_when_it_fails(served, proxy, monkeypatch):
    monkeypatch.setattr(transport, "COOLDOWN_SECONDS", 600.0)
    with proxied(served.port) as other:
        urls = [f"http://127.0.0.1:{each.port}/v1" for each in (proxy, other)]
        kernel = WimKernel.from_server(
            urls, served.folder, tokenizer=served.folder, window=8192, family="transformers", retries=0
        )
        first = posts(proxy), posts(other)
        documents = [[f"Document {number}.", TEXTS[number % 3]] for number in range(14)]
        for document in documents:
            kernel.read(document).prefill()
        counts = posts(proxy) - first[0], posts(other) - first[1]
        assert sum(counts) == 14
        assert all(counts)  # by chance, once in 8,000 runs, one of them gets all
        proxy.spoil = ["refuse"] * 1000
        brief = {"relevance": always, "margin_config": config(2), "answer_config": config(2)}
        assert all(kernel.read(document).ask(QUESTION, **brief).answer for document in documents)
        assert [server.is_down for server in kernel.engine.servers] == [True, False]
        tried = 1000 - len(proxy.spoil)
        assert 0 < tried < 5  # then it is left alone for a while


def test_a_server_that_fails_in_the_middle_has_the_next_one_read_the_document_once(served, proxy):
    with proxied(served.port) as other:
        urls = [f"http://127.0.0.1:{each.port}/v1" for each in (proxy, other)]
        kernel = WimKernel.from_server(
            urls, served.folder, tokenizer=served.folder, window=8192, family="transformers", retries=0
        )
        reading = kernel.read(TEXTS)
        reading.prefill()
        first, second = sorted((proxy, other), key=lambda each: -posts(each))
        assert posts(second) == 0
        before = posts(first)
        first.spoil = [None] + ["refuse"] * 50
        result = reading.ask(QUESTION, relevance=always, **OPTIONS)
        assert len(result.margins) == 3
        assert posts(first) == before + 3  # three margins, of which one came
        assert posts(second) == 2 + 1  # two margins (the first also makes it read) and the answer
        assert result.usage.prefill_tokens == len(kernel._head) + reading.tokens
        again = reading.ask("Where was the gull?", relevance=always, **OPTIONS)
        assert again.usage.prefill_tokens == 0
