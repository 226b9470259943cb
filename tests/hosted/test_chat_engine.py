"""What the engine for chat models does whatever the framework: parsing, limits, order, failures, imports."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hosted.conftest import EVIDENCE, QUESTION, pages
from langchain_core.language_models import FakeListChatModel

from wim_integrations.langchain import create_wim_map_reduce_chain
from wim_kernel import PROMPTS, ChatModelError, MarginWritten, WimKernel
from wim_kernel.engines.chat import codec
from wim_kernel.engines.chat.backend import Billed, ChatRequest, Piece
from wim_kernel.engines.chat.providers import PROVIDERS, provider_of
from wim_kernel.engines.chat.replies import Rated, decided, json_in, rated


@dataclass
class Told:
    """A chat model that says what it is told, and remembers what it was asked."""

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


def test_margins_are_the_text_s_own_sentences_with_their_places() -> None:
    result = WimKernel.from_chat_model(Told()).ask(QUESTION, pages())
    margin = result.kept[0]
    assert (margin.index, margin.relevance, margin.text) == (1, 0.8, "Elsa Brandt bought the Aurora at Emden")
    assert margin.chunk.text[margin.spans[0].offset :].startswith(EVIDENCE[:20])
    assert margin.evidence["located"] == 1.0
    left_out = result.margins[0]
    assert (left_out.text, left_out.relevance, left_out.kept) == ("", 0.0, False)
    assert left_out.evidence["lexical"] < 0.5
    assert result.relevance_by.startswith("rating")


def test_free_notes_and_summaries() -> None:
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
    "relevance", ["decision", "second-call", "lexical", lambda evidence: evidence.rating]
)
def test_other_relevances(relevance: Any) -> None:
    told = Told(lambda request: "YES: Elsa did." if "YES" in request.blocks[-1].text else Told.says)
    margins = WimKernel.from_chat_model(told).read(pages()).margins(QUESTION, relevance=relevance)
    assert len(margins) == 6
    assert margins[1].kept
    with pytest.raises(ValueError, match="cannot see the model's attention"):
        WimKernel.from_chat_model(told).read(pages()).margins(QUESTION, relevance="attention")


def test_top_k_writes_each_note_once() -> None:
    told = Told()
    margins = WimKernel.from_chat_model(told).read(pages(8, (1, 4, 6))).margins(QUESTION, top_k=2)
    assert [margin.index for margin in margins if margin.kept] == [1, 4]
    assert len(told.asked) == 3


def test_the_same_rating_is_rejected_by_local_engines(real_kernel: WimKernel) -> None:
    with pytest.raises(ValueError, match="a chat model's own rating"):
        real_kernel.read(["The gull."]).margins(QUESTION, relevance="rating")
    with pytest.raises(ValueError, match="estimated for chat models"):
        real_kernel.read(["The gull."]).estimate(QUESTION)


def test_a_failure_lets_those_that_run_end_and_starts_no_more() -> None:
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


def test_documents_longer_than_the_window_are_read_in_volumes() -> None:
    told = Told(window=4000)
    result = WimKernel.from_chat_model(told).ask(QUESTION, pages())
    assert result.volumes > 1
    assert [margin.index for margin in result.kept] == [1, 4]
    sent = [sum(len(codec.encode(block.text)) for block in request.blocks) for request in told.asked]
    assert max(sent) < 4000


def test_text_of_every_script_comes_back_from_its_pieces() -> None:
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
    ],
)
def test_ratings_are_read_from_whatever_a_model_says(reply: str, found: Rated) -> None:
    assert rated(None, reply, "quotes") == found


def test_decisions_and_json_in_replies() -> None:
    assert decided(("YES:", "NO"), "**Yes**: it does") == (
        (1.0, 0.0),
        " it does".lstrip("*: ") and "**: it does",
    )
    assert decided(("YES:", "NO"), "No.")[0] == (0.0, 1.0)
    assert json_in("no [brackets] here {") is None
    assert json_in('x {"a": [1]} y') == {"a": [1]}


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
def test_the_row_of_a_model(kind: str, name: str, host: str, row: str) -> None:
    assert provider_of(kind, name, host).name == row


def test_every_row_has_its_sources() -> None:
    assert all(provider.sources for provider in PROVIDERS)


def test_limits_are_checked() -> None:
    for wrong in ({"max_calls": 0}, {"max_concurrency": 0}, {"provider": "nobody"}):
        with pytest.raises(ValueError, match=r"at least 1|provider is one of"):
            WimKernel.from_chat_model(Told(), **wrong)
    with pytest.raises(TypeError, match="no chat model of a package that is known here"):
        WimKernel.from_chat_model("gpt-5")


def test_a_plain_fake_chat_model_works() -> None:
    owns = "Elsa Brandt owned the ship Aurora."
    llm = FakeListChatModel(responses=[json.dumps({"relevance": 9, "quotes": [owns]}), "Elsa Brandt."])
    chain = create_wim_map_reduce_chain(llm, return_map_steps=True)
    documents = ["The gull sat on the mast.", owns]
    output = chain.invoke({"input_documents": documents, "question": "Who owned the ship Aurora?"})
    assert output["output_text"] == "Elsa Brandt."
    assert output["intermediate_steps"] == ["", owns]


def test_the_engine_imports_neither_torch_nor_transformers_of_its_own() -> None:
    """`engines.base` needs transformers for one class; nothing in the engine for chat models does."""
    code = (
        "import sys, importlib, pkgutil\n"
        "import wim_kernel.engines.base, wim_kernel.text.locating\n"
        "before = set(sys.modules)\n"
        "import wim_kernel.engines.chat as chat\n"
        "for found in pkgutil.iter_modules(chat.__path__):\n"
        "    importlib.import_module(f'wim_kernel.engines.chat.{found.name}')\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new & {'torch', 'transformers', 'openai'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.replace("'", '"')) == []


def test_a_variable_of_the_caller_s_prompt_may_have_any_name() -> None:
    told = Told('{"relevance": 9, "note": "Elsa."}')
    prompts = replace(PROMPTS["answer"], margin="\n\nCopy what helps, in the {words} of {begins}.")
    options: Any = {"prompts": prompts, "variables": {"words": "language", "begins": "sailors"}}
    WimKernel.from_chat_model(told).read(pages()).margins(QUESTION, **options)
    assert "in the language of sailors" in told.asked[0].blocks[-1].text
    assert "at most 48 words" in told.asked[0].blocks[-1].text
    assert 'begins "Day 2 of the log.' in told.asked[0].blocks[-1].text


def test_the_model_serves_other_engines_too() -> None:
    from wim_integrations.llama_index import WimLLM

    told = Told("Hello.")
    llm = WimLLM(WimKernel.from_chat_model(told))
    assert llm.complete("Say hello.").text == "Hello."
    assert [block.text for block in told.asked[0].blocks] == ["Say hello."]
    assert llm.metadata.is_chat_model
