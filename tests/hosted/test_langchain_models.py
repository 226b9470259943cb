"""Real `ChatOpenAI` and `ChatAnthropic`, against a server that speaks their protocols and bills by their rules."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hosted.conftest import EVIDENCE, LATER, QUESTION, langchain_model, pages
from langchain_core.documents import Document
from langchain_core.rate_limiters import InMemoryRateLimiter

from benchmarks.provider import Provider, Rules
from wim_integrations.langchain import (
    WimAnswer,
    WimDocumentCompressor,
    WimMargins,
    WimRunnable,
    create_wim_documents_chain,
    create_wim_map_reduce_chain,
    create_wim_tool,
)
from wim_kernel import ChatModelError, MarginWritten, WimKernel

pytest.importorskip("langchain_openai")
pytest.importorskip("langchain_anthropic")

Start = Callable[[Rules], tuple[Provider, str]]
CACHING: tuple[Rules, ...] = ("anthropic", "openai", "openai-automatic")


def _documents(**options: Any) -> list[Document]:
    return [
        Document(text, metadata={"source": f"log-{number}"}) for number, text in enumerate(pages(**options))
    ]


@pytest.mark.parametrize("rules", CACHING)
def test_usage_equals_the_bill_and_the_document_is_written_once(provider: Start, rules: Rules) -> None:
    owner, url = provider(rules)
    reading = WimKernel.from_chat_model(langchain_model(rules, url), provider=rules).read(pages())
    first = reading.ask(QUESTION)
    assert [margin.index for margin in first.kept] == [1, 4]
    assert first.answer == "Elsa Brandt owned the Aurora. That is what it says."
    bill, usage = owner.total(), first.usage
    assert usage.calls == len(owner.requests) == 3
    assert usage.input_tokens == bill.plain + bill.read + bill.written
    assert (usage.cached_tokens, usage.cache_write_tokens or 0) == (bill.read, bill.written)
    assert usage.output_tokens == bill.output
    document = 6 * 1500
    ran = bill.written or bill.plain  # where writes are free they are not told from plain input
    assert document <= ran < document * 1.1
    later = reading.ask(LATER)
    assert later.usage.cached_tokens is not None
    assert later.usage.prefill_tokens < 3 * 128  # the rest of a step of OpenAI's automatic cache
    assert later.usage.base_tokens() < 0.3 * first.usage.base_tokens()


@pytest.mark.parametrize("rules", CACHING)
def test_estimate_matches_the_bill(provider: Start, rules: Rules) -> None:
    owner, url = provider(rules)
    reading = WimKernel.from_chat_model(langchain_model(rules, url), provider=rules).read(pages())
    for question in (QUESTION, LATER):
        foreseen = reading.estimate(question)
        since = len(owner.requests)
        usage = reading.ask(question).usage
        assert foreseen.asked == (1, 4)
        assert foreseen.usage.calls == usage.calls == len(owner.requests) - since
        assert foreseen.usage.cached_tokens == pytest.approx(usage.cached_tokens, abs=3 * 128)
        assert foreseen.usage.cache_write_tokens == pytest.approx(usage.cache_write_tokens or 0, abs=60)
        most = usage.base_tokens(write=1.25 if owner.cache.rules != "openai-automatic" else 1.0)
        assert most <= foreseen.base_tokens <= most + 600  # replies and notes as long as they may get


def test_requests_carry_the_providers_marks_and_keys(provider: Start) -> None:
    for rules in CACHING:
        owner, url = provider(rules)
        WimKernel.from_chat_model(langchain_model(rules, url), provider=rules).ask(QUESTION, pages())
        bodies = [request.body for request in owner.requests]
        marked = [
            [number for number, block in enumerate(body["messages"][-1]["content"]) if _mark(rules, block)]
            for body in bodies
        ]
        assert marked == ([[], [], []] if rules == "openai-automatic" else [[1], [1, 4], [1, 4, 5]])
        assert all("tools" not in body and "response_format" not in body for body in bodies)
        keys = {body.get("prompt_cache_key") for body in bodies}
        assert len(keys) == 1
        assert (keys == {None}) == (rules == "anthropic")
        options = {json.dumps(body.get("prompt_cache_options")) for body in bodies}
        assert options == {json.dumps({"mode": "explicit"} if rules == "openai" else None)}


def _mark(rules: Rules, block: dict[str, Any]) -> bool:
    return block.get("cache_control" if rules == "anthropic" else "prompt_cache_breakpoint") is not None


def test_requests_wait_for_the_one_that_writes_their_prefix(provider: Start) -> None:
    owner, url = provider("anthropic")
    owner.delay = 0.2
    reading = WimKernel.from_chat_model(langchain_model("anthropic", url), provider="anthropic").read(pages())
    reading.ask(QUESTION)
    first, second, _ = owner.requests
    assert second.came >= first.begun
    since = time.monotonic()
    reading.margins(LATER)
    third, fourth = owner.requests[3:]
    assert abs(third.came - fourth.came) < 0.15, "all is warm: nothing waits"
    assert time.monotonic() - since < 2


@pytest.mark.parametrize(
    ("rules", "fields"),
    [
        ("openai", {"use_responses_api": True}),
        ("openai-automatic", {"use_responses_api": True}),
        ("openai-automatic", {"output_version": "responses/v1"}),
        ("openai-automatic", {"reasoning": {"effort": "low"}}),
        ("openai-automatic", {"model": "gpt-5-pro"}),
        ("openai-automatic", {"disable_streaming": True}),
        ("openai-automatic", {"stream_usage": False}),
        ("anthropic", {"disable_streaming": True}),
        ("anthropic", {"stream_usage": False}),
    ],
    ids=str,
)
def test_chat_model_settings_hold_and_usage_equals_the_bill(
    provider: Start, rules: Rules, fields: dict[str, Any]
) -> None:
    owner, url = provider(rules)
    llm = langchain_model(rules, url, **fields)
    result = WimKernel.from_chat_model(llm, provider=rules).ask(QUESTION, pages())
    assert result.answer.startswith("Elsa Brandt owned the Aurora.")
    bill, usage = owner.total(), result.usage
    assert usage.input_tokens == bill.plain + bill.read + bill.written
    assert usage.cached_tokens == bill.read > 0
    assert usage.output_tokens == bill.output
    if "disable_streaming" in fields:
        assert not any(request.body.get("stream") for request in owner.requests)
    elif "stream_usage" not in fields:
        assert all(request.path.endswith("/responses") for request in owner.requests)


def test_responses_api_takes_schemas(provider: Start) -> None:
    owner, url = provider("openai-compatible")
    kernel = WimKernel.from_chat_model(langchain_model("openai-compatible", url, use_responses_api=True))
    assert [margin.index for margin in kernel.ask(QUESTION, pages()).kept] == [1, 4]
    formats = [request.body.get("text", {}).get("format", {}).get("type") for request in owner.requests]
    assert formats == ["json_schema", "json_schema", None]


def test_openai_compatible_server_is_asked_under_a_schema(provider: Start) -> None:
    owner, url = provider("openai-compatible")
    kernel = WimKernel.from_chat_model(langchain_model("openai-compatible", url))
    result = kernel.ask(QUESTION, pages())
    assert kernel.engine.provider.name == "openai-compatible"
    assert [margin.index for margin in result.kept] == [1, 4]
    formats = [request.body.get("response_format", {}).get("type") for request in owner.requests]
    assert formats == ["json_schema", "json_schema", None]
    assert all("prompt_cache_key" not in request.body for request in owner.requests)


def test_refused_schema_is_asked_for_in_the_text(provider: Start) -> None:
    owner, url = provider("openai-compatible")
    owner.failures = [400]
    kernel = WimKernel.from_chat_model(langchain_model("openai-compatible", url), max_concurrency=1)
    assert [margin.index for margin in kernel.ask(QUESTION, pages()).kept] == [1, 4]
    assert [request.body.get("response_format") for request in owner.requests] == [None] * 3


@pytest.mark.parametrize("rules", ["anthropic", "openai-compatible"])
def test_chains_take_a_chat_model(provider: Start, rules: Rules) -> None:
    _, url = provider(rules)
    llm, documents = langchain_model(rules, url), _documents()
    chain = create_wim_map_reduce_chain(llm, return_intermediate_steps=True)
    output = chain.invoke({"input_documents": documents, "question": QUESTION})
    assert output["output_text"].startswith("Elsa Brandt")
    assert [bool(step) for step in output["intermediate_steps"]] == [False, True, False, False, True, False]
    streamed = list(create_wim_documents_chain(llm).stream({"context": documents, "input": QUESTION}))
    assert "".join(streamed) == output["output_text"]
    assert len(streamed) > 3


def test_runnables_tool_and_compressor_take_a_chat_model(provider: Start) -> None:
    _, url = provider("openai-compatible")
    llm, documents = langchain_model("openai-compatible", url), _documents()
    margins = WimMargins(kernel=llm).invoke({"question": QUESTION, "documents": documents})
    kept = [margin for margin in margins["margins"] if margin["kept"]]
    (quote,) = kept[0]["quotes"]
    assert EVIDENCE in documents[1].page_content[quote["start"] : quote["end"]]
    kept[0]["kept"] = False
    answer = WimAnswer(kernel=llm).invoke(
        {"question": QUESTION, "documents": documents, "margins": margins["margins"]}
    )
    assert [margin["document"] for margin in answer["margins"] if margin["kept"]] == [4]
    found = WimDocumentCompressor.from_llm(llm).compress_documents(documents, QUESTION)
    assert [document.metadata["source"] for document in found] == ["log-1", "log-4"]
    assert "Elsa Brandt" in create_wim_tool(llm, documents).invoke({"question": QUESTION})


def test_call_is_one_run_with_the_whole_usage(provider: Start) -> None:
    from langchain_core.callbacks import get_usage_metadata_callback

    owner, url = provider("anthropic")
    kernel = WimKernel.from_chat_model(langchain_model("anthropic", url), provider="anthropic")
    with get_usage_metadata_callback() as counted:
        WimRunnable(kernel=kernel).invoke({"question": QUESTION, "documents": _documents()})
    (usage,) = counted.usage_metadata.values()
    bill = owner.total()
    assert usage["input_tokens"] == bill.plain + bill.read + bill.written
    assert usage["input_token_details"] == {"cache_read": bill.read, "cache_creation": bill.written}


async def test_events_stream_and_async_calls_work(provider: Start) -> None:
    _, url = provider("openai-compatible")
    runnable = WimRunnable(kernel=langchain_model("openai-compatible", url))
    inputs = {"question": QUESTION, "documents": _documents()}
    events = [event async for event in runnable.astream_events(inputs, version="v2")]
    margins = [event["data"] for event in events if event["name"] == "wim_margin"]
    assert sorted(margin["index"] for margin in margins) == list(range(6))
    assert sum(event["event"] == "on_chat_model_stream" for event in events) > 3
    assert (await runnable.ainvoke(inputs))["answer"].startswith("Elsa Brandt")
    questions = [{**inputs, "question": question} for question in (QUESTION, LATER)]
    assert len(await runnable.abatch(questions)) == 2


def test_stop_rule_leaves_the_rest_unasked(provider: Start) -> None:
    owner, url = provider("anthropic")
    kernel = WimKernel.from_chat_model(langchain_model("anthropic", url), provider="anthropic")
    result = kernel.ask(QUESTION, pages(12, (1, 9)), stop_after=1)
    assert result.stopped_early
    assert len(owner.requests) == 2
    assert len(owner.requests[-1].body["messages"][0]["content"]) < 8


def test_closed_stream_closes_its_request(provider: Start) -> None:
    owner, url = provider("openai")
    reading = WimKernel.from_chat_model(langchain_model("openai", url), provider="openai").read(pages())
    reading.margins(QUESTION)
    owner.replies, owner.piece_delay = ["word " * 400], 0.02
    stream = reading.stream_answer(QUESTION, ["Elsa Brandt bought it."])
    while type(next(stream)).__name__ != "AnswerToken":
        pass
    stream.close()
    for _ in range(100):
        if owner.closed:
            break
        time.sleep(0.05)
    assert owner.closed == 1
    owner.piece_delay = 0.0
    assert reading.ask(QUESTION).answer.startswith("Elsa Brandt")


async def test_cancelled_task_is_freed_at_once(provider: Start) -> None:
    owner, url = provider("openai")
    reading = WimKernel.from_chat_model(langchain_model("openai", url), provider="openai").read(pages())
    owner.delay = 1.5
    task = asyncio.create_task(reading.aask(QUESTION))
    await asyncio.sleep(0.3)
    task.cancel()
    begun = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - begun < 0.5
    owner.delay = 0.0
    assert (await reading.aask(QUESTION)).answer.startswith("Elsa Brandt")


def test_error_carries_margins_and_a_repeat_goes_on(provider: Start) -> None:
    owner, url = provider("anthropic")
    reading = WimKernel.from_chat_model(langchain_model("anthropic", url), provider="anthropic").read(pages())

    def read() -> None:
        for event in reading.stream(QUESTION):
            if isinstance(event, MarginWritten) and event.margin.kept:
                owner.failures = [529]

    with pytest.raises(
        ChatModelError, match=r"claude-sonnet-5: a request failed .*margins written"
    ) as caught:
        read()
    assert caught.value.passing
    assert caught.value.status == 529
    kept = [margin for margin in caught.value.margins if margin.kept]
    assert [margin.index for margin in kept][:1] == [1]
    answer = reading.answer(QUESTION, caught.value.margins, chunks_read=caught.value.chunks_read)
    assert answer.answer.startswith("Elsa Brandt")


def test_unparsable_data_is_asked_for_in_the_text(provider: Start) -> None:
    owner, url = provider("openai-compatible")
    owner.replies = ["I would say that it helps."]
    kernel = WimKernel.from_chat_model(langchain_model("openai-compatible", url), max_concurrency=1)
    result = kernel.ask(QUESTION, pages())
    assert [margin.index for margin in result.kept] == [1, 4]
    formats = ["response_format" in request.body for request in owner.requests]
    assert formats == [True, False, False, False]
    bill, usage = owner.total(), result.usage
    assert (usage.calls, usage.output_tokens) == (4, bill.output)
    assert usage.input_tokens == bill.plain + bill.read


def test_answer_follows_a_schema(provider: Start) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    for rules in ("anthropic", "openai-compatible"):
        owner, url = provider(rules)
        kernel = WimKernel.from_chat_model(langchain_model(rules, url), provider=rules)
        reading = kernel.read(pages())
        margins = reading.margins(QUESTION)
        owner.replies = ['Here it is: {"name": "Elsa"}'] if rules == "anthropic" else ['{"name": "Elsa"}']
        assert json.loads(reading.answer(QUESTION, margins, answer_schema=schema).answer) == {"name": "Elsa"}
        # a reply that does not fit is put into shape, without sending the document again
        owner.replies, since = (
            ["It was Elsa." if rules == "anthropic" else '{"nom": "Elsa"}', '{"name": "Elsa"}'],
            len(owner.requests),
        )
        result = reading.answer(QUESTION, margins, answer_schema=schema)
        assert json.loads(result.answer) == {"name": "Elsa"}
        assert result.usage.output_tokens == owner.total(since).output
        assert len(json.dumps(owner.requests[-1].body)) < 2000


def test_rate_limiter_and_max_concurrency_hold(provider: Start) -> None:
    owner, url = provider("openai-compatible")
    limiter = InMemoryRateLimiter(requests_per_second=10, check_every_n_seconds=0.01, max_bucket_size=1)
    kernel = WimKernel.from_chat_model(
        langchain_model("openai-compatible", url, rate_limiter=limiter), max_calls=3
    )
    result = kernel.ask("Which weather did the harbour master write down?", pages(), threshold=0)
    assert result.usage.calls == len(owner.requests) == 3
    assert len(result.margins) == 6
    came = [request.came for request in owner.requests]
    assert min(later - one for one, later in itertools.pairwise(came)) > 0.05


def test_max_concurrency_of_one_sends_one_request_at_a_time(provider: Start) -> None:
    owner, url = provider("openai-compatible")
    owner.delay = 0.1
    kernel = WimKernel.from_chat_model(langchain_model("openai-compatible", url), max_concurrency=1)
    kernel.ask(QUESTION, pages())
    for one, later in itertools.pairwise(owner.requests):
        assert later.came >= one.begun


def test_little_reuse_warns(provider: Start) -> None:
    _, url = provider("none")  # caches nothing, although the kernel takes it for OpenAI
    kernel = WimKernel.from_chat_model(langchain_model("openai", url), provider="openai")
    with pytest.warns(UserWarning, match=r"gpt-5.6 read 0 tokens from its cache, of .* paid for again"):
        kernel.ask(QUESTION, pages(8, (1, 4, 6)))


def test_refused_stream_usage_is_not_asked_for_again(provider: Start) -> None:
    owner, url = provider("openai-compatible")
    kernel = WimKernel.from_chat_model(
        langchain_model("openai-compatible", url), structured=False, max_concurrency=1
    )
    owner.failures = [400]
    result = kernel.ask(QUESTION, pages())
    assert [margin.index for margin in result.kept] == [1, 4]
    assert all("stream_options" not in request.body for request in owner.requests)
    assert result.usage.cached_tokens is None
    assert result.usage.input_tokens > 9000, "it is estimated"
