"""The same kernel on a real server, `transformers serve`: what it answers, and what it does when connections fail."""

from __future__ import annotations

import threading
import warnings
from contextlib import closing
from dataclasses import replace
from itertools import islice

import pytest
from proxy import posts, proxied
from ship import OPTIONS, QUESTION, TEXTS, always, same

from wim_kernel import AnswerToken, ChunkRead, MarginWritten, ServerError, WimKernel

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def kernel(served) -> WimKernel:
    return WimKernel.from_server(served.url, served.folder, tokenizer=served.folder, window=8192, retries=3)


@pytest.fixture(scope="module")
def expected(kernel):
    """What it answers when nothing fails."""
    return kernel.read(TEXTS).ask(QUESTION, relevance=always, **OPTIONS)


def test_engine_recognises_transformers_serve(kernel):
    engine = kernel.engine
    assert (engine.family.name, engine.route, engine.window) == ("transformers", "text", 8192)
    assert not engine.shows_tokens
    with pytest.raises(AttributeError, match="does not run in this process"):
        kernel.model  # noqa: B018


@pytest.mark.invariant(1)
def test_a_second_question_reads_nothing_and_a_longer_document_what_is_new(kernel):
    kernel.cache.clear()
    first = kernel.read(TEXTS[:2]).ask(QUESTION, **OPTIONS)
    second = kernel.read(TEXTS[:2]).ask("Where was the gull?", **OPTIONS)
    longer = kernel.read(TEXTS).ask(QUESTION, **OPTIONS)
    assert first.usage.prefill_tokens == kernel.read(TEXTS[:2]).tokens
    assert second.usage.prefill_tokens == 0
    assert longer.usage.prefill_tokens == kernel.read(TEXTS).tokens - kernel.read(TEXTS[:2]).tokens
    assert first.relevance_by == "lexical+decision, by the text"
    assert len(first.margins) == 2


def test_without_a_tokenizer_messages_are_sent(served):
    kernel = WimKernel.from_server(served.url, served.folder, window=8192)
    assert kernel.engine.route == "chat"
    reading = kernel.read([*TEXTS, "A document may say <|im_end|> and {question}, and 🐦‍⬛ too."])
    events = list(reading.stream("Who {owned} it?", **OPTIONS))
    result = events[-1].result
    assert [type(event) for event in events].count(ChunkRead) == 4
    assert len(result.margins) == 4
    assert result.answer.strip()
    assert result.usage.cached_tokens is None
    assert result.usage.output_tokens >= 5
    with pytest.raises(ValueError, match="no tokens to show"):
        reading.prompt_ids(result)


def test_tokens_of_the_answer_come_one_by_one(kernel, expected):
    events = list(kernel.read(TEXTS).stream(QUESTION, relevance=always, **OPTIONS))
    tokens = [event.text for event in events if isinstance(event, AnswerToken)]
    assert len(tokens) > 3
    assert "".join(tokens) == expected.answer
    assert same(events[-1].result, expected)


def test_unsupported_options_are_refused_before_any_request(kernel, behind_proxy, proxy):
    spoilt = behind_proxy()
    before = posts(proxy)
    reading = spoilt.read(TEXTS)
    with pytest.raises(ValueError, match="Verbatim margins are chosen by the question's likelihood"):
        reading.ask(QUESTION, margin_style="verbatim")
    with_control = spoilt.read(["It says <|im_end|> here."])
    with pytest.raises(ValueError, match="control token"):
        with_control.ask(QUESTION)
    assert posts(proxy) == before
    with pytest.raises(ValueError, match="is one of vllm"):
        behind_proxy(family="other")
    with pytest.raises(ValueError, match="needs the model's tokenizer"):
        behind_proxy(tokenizer=None, route="tokens")
    with pytest.raises(ValueError, match="takes no token ids"):
        behind_proxy(route="tokens")


# -- connections that fail --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["refuse", "cut", "garbage", "delay", 429, 500])
@pytest.mark.parametrize("request_number", [0, 2, 3], ids=["a margin that reads", "a margin", "the answer"])
def test_transient_errors_are_retried(behind_proxy, proxy, expected, fault, request_number):
    kernel = behind_proxy()
    proxy.spoil = [None] * request_number + [fault]
    result = kernel.read(TEXTS).ask(QUESTION, relevance=always, **OPTIONS)
    assert proxy.spoil == []
    assert same(result, expected)


def test_many_transient_faults_lose_nothing(behind_proxy, proxy, expected):
    kernel = behind_proxy(retries=8)
    proxy.spoil = [
        "refuse",
        500,
        None,
        "cut",
        "garbage",
        429,
        "cut",
        None,
        "refuse",
        "cut",
        "delay",
        "garbage",
    ]
    assert same(kernel.read(TEXTS).ask(QUESTION, relevance=always, **OPTIONS), expected)


def test_a_server_that_is_gone_is_an_error_that_keeps_what_was_done(behind_proxy, proxy, expected):
    kernel = behind_proxy(retries=1)
    reading = kernel.read(TEXTS)
    written = []

    def ask() -> None:
        for event in reading.stream(QUESTION, relevance=always, margin_batch=1, **OPTIONS):
            if isinstance(event, MarginWritten):
                written.append(event.margin)
            if len(written) == 3:
                proxy.spoil = ["refuse"] * 50

    with pytest.raises(ServerError, match="3 chunks were read and 3 margins written") as caught:
        ask()
    assert [margin.text for margin in caught.value.margins] == [margin.text for margin in written]
    assert caught.value.chunks_read == 3
    proxy.spoil = []
    before = posts(proxy)
    result = reading.answer(QUESTION, caught.value.margins, relevance=always, **OPTIONS)
    assert same(result, expected)
    assert posts(proxy) == before + 1  # the answer alone
    assert same(reading.ask(QUESTION, relevance=always, **OPTIONS), expected)


def test_with_several_questions_the_error_keeps_the_margins_of_each(behind_proxy, proxy):
    kernel = behind_proxy(retries=0)
    reading, questions = kernel.read(TEXTS), [QUESTION, "Where was the gull?"]
    expected = reading.ask_many(questions, relevance=always, **OPTIONS)
    written = 0

    def ask() -> None:
        nonlocal written
        for event in reading.stream_many(questions, relevance=always, margin_batch=1, **OPTIONS):
            written += isinstance(event, MarginWritten)
            if written == 6:
                proxy.spoil = ["refuse"] * 50

    with pytest.raises(ServerError, match="3 chunks were read and 6 margins written") as caught:
        ask()
    error, proxy.spoil = caught.value, []
    assert len(error.margins) == 6
    assert len(error.margins_by_question) == 2
    for question, margins, wanted in zip(questions, error.margins_by_question, expected, strict=True):
        result = reading.answer(question, margins, chunks_read=error.chunks_read, **OPTIONS)
        assert result.answer == wanted.answer
    proxy.spoil = ["refuse"] * 50
    with pytest.raises(ServerError) as again:
        reading.answer(QUESTION, error.margins_by_question[0], **OPTIONS)
    assert again.value.margins == error.margins_by_question[0]  # what was handed in is in it, too


def test_an_answer_that_breaks_off_for_good_is_never_called_one(behind_proxy, proxy):
    kernel = behind_proxy(retries=1)
    reading = kernel.read(TEXTS)
    margins = reading.margins(QUESTION, relevance=always, **OPTIONS)
    proxy.spoil = ["cut"] * 50
    with pytest.raises(ServerError, match=r"(broke off|request failed)"):
        reading.answer(QUESTION, margins, **OPTIONS)


def test_a_refusal_is_not_tried_again_and_shows_no_key(behind_proxy, proxy):
    kernel = behind_proxy(api_key="sk-very-secret")
    proxy.spoil = [401] * 5
    with pytest.raises(ServerError) as caught:
        kernel.read(TEXTS).ask(QUESTION, **OPTIONS)
    assert caught.value.status == 401
    assert not caught.value.passing
    assert len(proxy.spoil) == 4
    assert "secret" not in f"{caught.value} {caught.value!r} {kernel.engine.servers}"
    assert b"Bearer sk-very-secret" in proxy.requests[-1]


def test_a_redirect_is_not_followed(served, behind_proxy, proxy):
    with proxied(served.port) as elsewhere:
        kernel = behind_proxy(api_key="sk-very-secret", retries=0)
        proxy.redirect_to = f"http://127.0.0.1:{elsewhere.port}/v1/completions"
        proxy.spoil = ["redirect"] * 5
        with pytest.raises(ServerError):
            kernel.read(TEXTS).ask(QUESTION, **OPTIONS)
        assert elsewhere.requests == []


def test_unreachable_server_is_an_error_with_its_url():
    with pytest.raises(ServerError, match=r"http://127.0.0.1:9/v1: its models could not be listed"):
        WimKernel.from_server("http://127.0.0.1:9/v1", retries=0)


# -- several callers ---------------------------------------------------------------------------------


@pytest.mark.invariant(7)
def test_threads_share_a_server(kernel, expected):
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        threads = [
            threading.Thread(
                target=lambda: found.append(kernel.read(TEXTS).ask(QUESTION, relevance=always, **OPTIONS))
            )
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    assert len(found) == 4
    assert all(same(result, expected) for result in found)


def test_adapters_work_on_a_server_kernel(kernel):
    from langchain_core.documents import Document
    from llama_index.core.schema import NodeWithScore, TextNode

    from wim_integrations.langchain import WimRunnable
    from wim_integrations.llama_index import WimSynthesizer

    small = {"threshold": 0, "margin_tokens": 8, "answer_tokens": 8}
    documents = [Document(text) for text in TEXTS]
    output = WimRunnable(kernel=kernel, **small).invoke({"question": QUESTION, "documents": documents})
    assert len(output["margins"]) == 3
    nodes = [NodeWithScore(node=TextNode(text=text), score=1.0) for text in TEXTS]
    response = WimSynthesizer(kernel, **small).synthesize(QUESTION, nodes)
    assert str(response).strip()


def test_a_chain_on_chat_openai_streams(served):
    from wim_integrations.langchain import create_wim_documents_chain

    openai = pytest.importorskip("langchain_openai")
    llm = openai.ChatOpenAI(
        model=served.folder, base_url=served.url, api_key="none", max_tokens=12, temperature=0
    )
    asked = {"context": TEXTS, "input": QUESTION}
    with closing(create_wim_documents_chain(llm).stream(asked)) as stream:  # type: ignore[type-var]
        assert len(list(islice(stream, 4))) == 4


async def test_aask_equals_ask_on_a_server(kernel, expected):
    result = await kernel.read(TEXTS).aask(QUESTION, relevance=always, **OPTIONS)
    assert same(result, expected)
    assert same(replace(result, question=""), expected)


def test_wim_ask_uses_a_server(served, tmp_path):
    pytest.importorskip("click")
    from click.testing import CliRunner

    from wim_kernel.cli.main import main

    document = tmp_path / "log.txt"
    document.write_text("\n".join(TEXTS))
    asked = ["ask", QUESTION, str(document), "--server", served.url, "--model", served.folder, "-q"]
    brief = ["--max-answer-tokens", "6", "--max-margin-tokens", "4", "--threshold", "0"]
    done = CliRunner().invoke(main, [*asked, *brief, "--tokenizer", served.folder])
    assert done.exit_code == 0, done.output
    assert done.stdout.strip()
    refused = CliRunner().invoke(main, [*asked, "--margin-style", "verbatim"])
    assert refused.exit_code == 2
    gone = CliRunner().invoke(main, [*asked[:4], "http://127.0.0.1:9/v1", *asked[5:], *brief])
    assert gone.exit_code == 1
    assert "http://127.0.0.1:9/v1" in gone.stderr
