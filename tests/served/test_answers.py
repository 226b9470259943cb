"""What a real model says on a real server, `transformers serve`: the same as in this process, also by `ChatOpenAI`."""

from __future__ import annotations

from contextlib import closing
from itertools import islice

import pytest
from helpers import config
from ship import OPTIONS, QUESTION, TEXTS, always, same

from wim_integrations.langchain import create_wim_documents_chain
from wim_kernel import Frame, Prompts, WimKernel

pytestmark = pytest.mark.slow

PAGES = [
    "The gull sat on the mast. It rained all night.",
    "Elsa Brandt owned the ship Aurora. She bought it in Brill.",
    "The fog was thick, and nobody saw the harbour.",
]


@pytest.mark.invariant(3)
def test_margins_and_answer_equal_those_of_the_kernel_in_this_process(serves_smollm2, real_kernel):
    """With prompts whose runs meet where the tokenizer cuts in any case, since the server is sent text."""
    plain = {
        name: value.replace("\n\n", "\n") for name, value in vars(Prompts()).items() if isinstance(value, str)
    }
    frame, prompts = Frame(separator="\n"), Prompts(**plain)
    kernel = WimKernel.from_server(
        serves_smollm2.url, serves_smollm2.folder, tokenizer=serves_smollm2.folder, window=8192, frame=frame
    )
    here = WimKernel(real_kernel.model, real_kernel.tokenizer, frame=frame)
    options = {**OPTIONS, "relevance": always, "prompts": prompts, "answer_config": config(80)}
    there, mine = kernel.read(TEXTS).ask(QUESTION, **options), here.read(TEXTS).ask(QUESTION, **options)
    assert same(there, mine)
    assert len(mine.token_ids) < 80  # it ends by itself, there too
    assert there.usage.prefill_tokens == mine.usage.prefill_tokens
    assert there.usage.cached_tokens is None  # this server does not say
    assert there.relevance_by == "the caller's own"


def test_chat_openai_answers_from_margins(serves_smollm2):
    """The server takes no schemas, and keeps prefixes by itself."""
    openai = pytest.importorskip("langchain_openai")
    llm = openai.ChatOpenAI(
        model=serves_smollm2.folder,
        base_url=serves_smollm2.url,
        api_key="none",
        max_tokens=96,
        temperature=0,
    )
    kernel = WimKernel.from_chat_model(llm)
    assert kernel.engine.provider.name == "openai-compatible"
    result = kernel.ask("Who owned the ship Aurora?", PAGES)
    assert [margin.index for margin in result.margins if "rating" in margin.evidence] == [1]
    assert "Brandt" in result.answer
    assert result.usage.calls in (2, 3)  # a reply that is cut off is asked for once more
    assert result.usage.output_tokens > 4
    asked = {"context": PAGES, "input": "Who owned the ship Aurora?"}
    with closing(create_wim_documents_chain(llm).stream(asked)) as stream:  # type: ignore[type-var]
        assert len(list(islice(stream, 4))) == 4
