"""What the engine for chat models does whatever the framework: parsing, limits, order, failures."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
from hosted.conftest import EVIDENCE, QUESTION, pages
from langchain_core.language_models import FakeListChatModel

from wim_integrations.langchain import create_wim_map_reduce_chain
from wim_kernel import PROMPTS, ChatModelError, MarginWritten, WimKernel, WimResult
from wim_kernel.engines.chat import codec
from wim_kernel.engines.chat.backend import Billed, ChatRequest, Piece, UnreadableReplyError
from wim_kernel.engines.chat.providers import PROVIDERS, provider_of
from wim_kernel.engines.chat.replies import Rated, decided, json_values, rated


@dataclass
class Told:
    """A chat model with scripted replies, which records its requests."""

    says: Any = '{"relevance": 8, "quotes": ["Elsa Brandt bought the Aurora at Emden"]}'
    name: str = "told"
    kind: str = "Told"
    host: str = ""
    window: int | None = None
    asked: list[ChatRequest] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)

    def stream(self, request: ChatRequest) -> Generator[Piece, None, None]:
        with self.lock:
            self.asked.append(request)
        said = self.says(request) if callable(self.says) else self.says
        if isinstance(said, Exception):
            raise said
        yield Piece(said, Billed(10, 2))

    def structured(self, request: ChatRequest, schema: Mapping[str, Any]) -> Piece:
        raise NotImplementedError


def test_margins_quote_sentences_with_spans() -> None:
    result = WimKernel.from_chat_model(Told()).ask(QUESTION, pages())
    margin = result.kept[0]
    assert (margin.index, margin.relevance, margin.text) == (1, 0.8, "Elsa Brandt bought the Aurora at Emden")
    assert margin.chunk.text[margin.spans[0].offset :].startswith(EVIDENCE[:20])
    assert margin.evidence["located"] == 1.0
    left_out = result.margins[0]
    assert (left_out.text, left_out.relevance, left_out.kept) == ("", 0.0, False)
    assert left_out.evidence["lexical"] < 0.5
    assert result.relevance_by.startswith("rating")


INVENTED = "Lord Byron founded the bakery in Brighton, of all towns, with borrowed money."


def test_free_note_found_nowhere_is_marked_and_left_out() -> None:
    def ask(note: str, **options: Any) -> WimResult:
        told = Told(
            lambda request: (
                json.dumps({"relevance": 9, "note": note}) if "JSON" in request.blocks[-1].text else "Elsa."
            )
        )
        return WimKernel.from_chat_model(told).ask(QUESTION, pages(), margin_style="free", **options)

    lost = ask(INVENTED).margins[1]
    assert (lost.text, lost.kept, lost.found_nowhere, lost.evidence["located"]) == (
        INVENTED,
        False,
        True,
        0.0,
    )
    for options in ({"threshold": 0}, {"keep": lambda margin: True}):  # all are wanted, or the caller chooses
        kept = ask(INVENTED, **options).margins[1]
        assert (kept.kept, kept.found_nowhere) == (True, True)
    assert not ask(INVENTED, top_k=1).kept
    reworded = ask("In May of the same year the vessel was sold once more by Mrs Brandt.").margins[1]
    assert (reworded.kept, reworded.found_nowhere, reworded.evidence["located"]) == (True, False, 1.0)
    page = ask(INVENTED).to_html()
    assert "not found in the text" in page


def test_free_notes_and_summaries_are_written() -> None:
    told = Told('```json\n{"relevance": 7, "note": "Elsa Brandt bought it."}\n```')
    kernel = WimKernel.from_chat_model(told)
    kept = kernel.ask(QUESTION, pages(), margin_style="free").kept
    assert [margin.text for margin in kept] == ["Elsa Brandt bought it."] * 2
    assert "at most 48 words" in told.asked[0].blocks[-1].text
    told.asked.clear()
    summary = kernel.read(pages()).ask(task="summarise")
    assert len(told.asked) == 7  # every chunk is asked, and the answer
    assert all(margin.kept for margin in summary.margins)


@pytest.mark.parametrize(
    ("relevance", "requests"),
    [("decision", 6), ("second-call", 12), ("lexical", 2), (lambda evidence: evidence.rating, 2)],
)
def test_decision_second_call_lexical_and_callable_relevance(relevance: Any, requests: int) -> None:
    told = Told(lambda request: "YES: Elsa did." if "YES" in request.blocks[-1].text else Told.says)
    margins = WimKernel.from_chat_model(told).read(pages()).margins(QUESTION, relevance=relevance)
    assert len(margins) == 6
    assert margins[1].kept
    assert len(told.asked) == requests
    with pytest.raises(ValueError, match="cannot see the model's attention"):
        WimKernel.from_chat_model(told).read(pages()).margins(QUESTION, relevance="attention")


def test_top_k_writes_each_note_once() -> None:
    told = Told()
    margins = WimKernel.from_chat_model(told).read(pages(8, (1, 4, 6))).margins(QUESTION, top_k=2)
    assert [margin.index for margin in margins if margin.kept] == [1, 4]
    assert len(told.asked) == 3


def test_rating_relevance_is_rejected_by_local_engines(real_kernel: WimKernel) -> None:
    with pytest.raises(ValueError, match="a chat model's own rating"):
        real_kernel.read(["The gull."]).margins(QUESTION, relevance="rating")
    with pytest.raises(ValueError, match="estimated for chat models"):
        real_kernel.read(["The gull."]).estimate(QUESTION)


def test_failed_request_ends_running_ones_and_starts_no_more() -> None:
    def says(request: ChatRequest) -> Any:
        return RuntimeError("no more credit") if len(request.blocks) > 3 else Told.says

    reading = WimKernel.from_chat_model(Told(says)).read(pages())
    seen = []
    stream = reading.stream(QUESTION, margin_batch=6)
    with pytest.raises(
        ChatModelError, match=r"The chat model told: a request failed \(RuntimeError: no more credit\)"
    ):
        seen.extend(stream)
    written = [event.margin for event in seen if isinstance(event, MarginWritten) and event.margin.kept]
    assert [margin.index for margin in written] == [1]


def test_long_documents_are_read_in_volumes() -> None:
    told = Told(window=4000)
    result = WimKernel.from_chat_model(told).ask(QUESTION, pages())
    assert result.volumes > 1
    assert [margin.index for margin in result.kept] == [1, 4]
    sent = [sum(len(codec.encode(block.text)) for block in request.blocks) for request in told.asked]
    assert max(sent) < 4000


def test_codec_round_trips_every_script() -> None:
    text = "Wer besaß das Schiff? 誰が船を所有していましたか 😀 \x00 {braces}"
    assert codec.decode(codec.encode(text)) == text
    assert len(codec.encode("a" * 400)) == 100
    assert len(codec.encode("船" * 100)) == 100


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ('{"relevance": 7, "note": " x "}', Rated(0.7, "x")),
        ('Here: {"relevance": "7", "quotes": ["a", "", 3]} bye', Rated(0.7, "", ("a",))),
        ('{"relevance": null, "note": "x"}', Rated(0.5, "x")),
        ('{"relevance": 99}', Rated(1.0)),
        ("The owner was Elsa.", Rated(0.5, "The owner was Elsa.", ("The owner was Elsa.",))),
        ("No, it does not.", Rated(0.0)),
        ("", Rated(0.0)),
        ("I found no relevant sentences.", Rated(0.0)),
        ("The last passage does not mention the vessel.", Rated(0.0)),
        ("She did not answer him.", Rated(0.5, "She did not answer him.", ("She did not answer him.",))),
        ('Passage [1] does not help: {"relevance": 0, "quotes": []}', Rated(0.0)),
        ('See [1], {"page": 2}: {"relevance": 9, "quotes": ["a"]}', Rated(0.9, "", ("a",))),
        ("Relevance: 0", Rated(0.0)),
        ("**Relevance:** 7/10\nElsa bought it.", Rated(0.7, "Elsa bought it.", ("Elsa bought it.",))),
        ("8", Rated(0.8)),
        ("[]", Rated(0.0)),
        ("[2] Elsa bought it.", Rated(0.5, "[2] Elsa bought it.", ("[2] Elsa bought it.",))),
        ('{"relevance": 0, "quotes": ["Elsa Br', Rated(0.0, is_unreadable=True)),
        ('```json\n{"relevance": 9, "quotes": ["Elsa Br', Rated(0.0, is_unreadable=True)),
        ('Here it is: {"relevance": 9, "quotes": ["Elsa Br', Rated(0.0, is_unreadable=True)),
        ('{"page": 2}', Rated(0.0, is_unreadable=True)),
    ],
)
def test_rated_reads_any_reply(reply: str, found: Rated) -> None:
    assert rated(None, reply, "quotes") == found


def test_decided_and_json_values_read_replies() -> None:
    assert decided(("YES:", "NO"), "**Yes**: it does") == ((1.0, 0.0), "it does")
    assert decided(("YES:", "NO"), 'YES: "Elsa" did') == ((1.0, 0.0), '"Elsa" did')
    assert decided(("YES:", "NO"), "No.")[0] == (0.0, 1.0)
    assert list(json_values("no [brackets] here {")) == []
    assert list(json_values('see [1]: {"a": [1]} y')) == [[1], {"a": [1]}]


def test_unreadable_rating_warns_and_counts_as_zero() -> None:
    told = Told('{"relevance": 9, "quotes": ["Elsa Br')
    with pytest.warns(UserWarning, match=r"told rated a chunk in a way that cannot be read.*Elsa Br"):
        margins = WimKernel.from_chat_model(told).read(pages()).margins(QUESTION)
    assert not any(margin.kept or margin.text for margin in margins)


@dataclass
class Schemas(Told):
    """A chat model that takes schemas; its replies and errors are scripted."""

    under_schema: Any = None
    tried: int = 0

    def structured(self, request: ChatRequest, schema: Mapping[str, Any]) -> Piece:
        self.tried += 1
        said = self.under_schema(schema) if callable(self.under_schema) else self.under_schema
        if isinstance(said, Exception):
            raise said
        return Piece(said, Billed(10, 2))


class Failure(Exception):
    """An error of a client, with a status at one of the places where clients have it."""

    def __init__(self, **places: Any) -> None:
        super().__init__("failed")
        self.__dict__.update(places)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Failure(status_code=429), 429),
        (Failure(code=503), 503),
        (Failure(code="slow_down", response=SimpleNamespace(status_code=429)), 429),
        (Failure(response={"ResponseMetadata": {"HTTPStatusCode": 500}}), 500),
        (RuntimeError("the session is closed"), None),
        (ConnectionError("reset"), None),
    ],
    ids=repr,
)
def test_transient_error_is_raised_and_keeps_schemas(error: Exception, status: int | None) -> None:
    told = Schemas(under_schema=error)
    kernel = WimKernel.from_chat_model(told, max_concurrency=1)
    with pytest.raises(ChatModelError) as caught:
        kernel.ask(QUESTION, pages())
    assert (caught.value.status, caught.value.passing) == (status, True)
    assert (told.tried, told.asked) == (1, [])
    told.under_schema = told.says
    assert len(kernel.ask(QUESTION, pages()).kept) == 2
    assert told.tried == 3


@pytest.mark.parametrize(
    "error",
    [
        Failure(code=404),
        Failure(response=SimpleNamespace(status_code=422)),
        TypeError("tools"),
        ValueError("parsing"),
    ],
    ids=repr,
)
def test_refused_schema_is_not_sent_again(error: Exception) -> None:
    told = Schemas(under_schema=error)
    result = WimKernel.from_chat_model(told, max_concurrency=1).ask(QUESTION, pages())
    assert [margin.index for margin in result.kept] == [1, 4]
    assert (told.tried, len(told.asked)) == (1, 3)


def test_reply_without_data_is_asked_for_as_text_and_both_billed() -> None:
    told = Schemas(under_schema=UnreadableReplyError(Piece("Elsa did.", Billed(10, 2))))
    result = WimKernel.from_chat_model(told, max_concurrency=1).ask(QUESTION, pages())
    assert [margin.index for margin in result.kept] == [1, 4]
    assert result.usage.calls == told.tried + len(told.asked) == 4
    assert result.usage.input_tokens == 40


SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("schema", [None, SCHEMA])
def test_max_calls_bounds_the_replies_of_a_question(count: int, schema: Any) -> None:
    def says(schema: Mapping[str, Any]) -> Any:
        return UnreadableReplyError(Piece("Elsa did.", Billed(10, 2)))

    for told in (Told(), Schemas(under_schema=says)):
        told.says = lambda request: (
            '{"name": "Elsa"}' if "fits the schema" in request.blocks[-1].text else Told.says
        )
        reading = WimKernel.from_chat_model(told, max_calls=count).read(pages())
        options: Any = {} if schema is None else {"answer_schema": schema}
        if schema and count == 1:
            with pytest.raises(ValueError, match="max_calls is at least 2 with an answer schema"):
                reading.ask(QUESTION, **options)
            continue
        foreseen = reading.estimate(QUESTION, threshold=0, **options).usage.calls
        result = reading.ask(QUESTION, threshold=0, **options)
        sent = len(told.asked) + getattr(told, "tried", 0)
        assert result.usage.calls == sent <= count
        assert foreseen <= count
        assert foreseen == count - bool(schema)


@pytest.mark.parametrize("relevance", ["decision", "lexical+decision", "second-call", "lexical"])
def test_max_calls_refuses_relevances_it_cannot_bound(relevance: Any) -> None:
    told = Told()
    limited = WimKernel.from_chat_model(told, max_calls=2).read(pages())
    with pytest.raises(ValueError, match="max_calls can limit the requests of relevance='rating'"):
        limited.ask(QUESTION, relevance=relevance)
    with pytest.raises(ValueError, match="max_calls can limit"):
        limited.estimate(QUESTION, relevance=relevance)
    with pytest.raises(ValueError, match="is estimated for relevance='rating'"):
        WimKernel.from_chat_model(told).read(pages()).estimate(QUESTION, relevance=relevance)
    assert not told.asked


@pytest.mark.parametrize(
    ("kind", "name", "host", "row"),
    [
        ("ChatAnthropic", "claude-opus-5", "", "anthropic"),
        ("ChatAnthropic", "claude-opus-5", "proxy.example", "anthropic"),
        ("ChatOpenAI", "gpt-5.6-mini", "", "openai"),
        ("ChatOpenAI", "gpt-6", "api.openai.com", "openai"),
        ("OpenAI", "gpt-5.5", "", "openai-automatic"),
        ("ChatOpenAI", "gpt-4o", "", "openai-automatic"),
        ("ChatOpenAI", "Qwen/Qwen3-8B", "localhost", "openai-compatible"),
        ("ChatOpenAI", "gpt-5.6", "localhost", "openai-compatible"),
        ("AzureChatOpenAI", "gpt-5.6", "x.openai.azure.com", "openai"),
        ("ChatMistralAI", "large", "", "other"),
    ],
)
def test_provider_of_finds_the_row_of_a_model(kind: str, name: str, host: str, row: str) -> None:
    assert provider_of(kind, name, host).name == row


def test_providers_have_sources() -> None:
    assert all(provider.sources for provider in PROVIDERS)


def test_engine_checks_its_limits() -> None:
    for wrong in ({"max_calls": 0}, {"max_concurrency": 0}, {"provider": "nobody"}):
        with pytest.raises(ValueError, match=r"at least 1|provider is one of"):
            WimKernel.from_chat_model(Told(), **wrong)
    with pytest.raises(TypeError, match="no chat model of a package that is known here"):
        WimKernel.from_chat_model(object())


def test_fake_chat_model_answers() -> None:
    owns = "Elsa Brandt owned the ship Aurora."
    llm = FakeListChatModel(responses=[json.dumps({"relevance": 9, "quotes": [owns]}), "Elsa Brandt."])
    chain = create_wim_map_reduce_chain(llm, return_map_steps=True)
    documents = ["The gull sat on the mast.", owns]
    output = chain.invoke({"input_documents": documents, "question": "Who owned the ship Aurora?"})
    assert output["output_text"] == "Elsa Brandt."
    assert output["intermediate_steps"] == ["", owns]


def test_prompt_variables_may_have_any_name() -> None:
    told = Told('{"relevance": 9, "note": "Elsa."}')
    prompts = replace(PROMPTS["answer"], margin="\n\nCopy what helps, in the {words} of {begins}.")
    options: Any = {"prompts": prompts, "variables": {"words": "language", "begins": "sailors"}}
    WimKernel.from_chat_model(told).read(pages()).margins(QUESTION, **options)
    assert "in the language of sailors" in told.asked[0].blocks[-1].text
    assert "at most 48 words" in told.asked[0].blocks[-1].text
    assert 'begins "Day 2 of the log.' in told.asked[0].blocks[-1].text


def test_chat_model_serves_other_engines() -> None:
    from wim_integrations.llama_index import WimLLM

    told = Told("Hello.")
    llm = WimLLM(WimKernel.from_chat_model(told))
    assert llm.complete("Say hello.").text == "Hello."
    assert [block.text for block in told.asked[0].blocks] == ["Say hello."]
    assert llm.metadata.is_chat_model
