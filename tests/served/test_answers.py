"""What a real model says on a real server, `transformers serve`: the same as in this process, also by `ChatOpenAI`."""

from __future__ import annotations

import pytest
from helpers import config
from ship import OPTIONS, QUESTION, TEXTS, always, same

from wim_kernel import Frame, Prompts, WimKernel

pytestmark = pytest.mark.slow

PAGES = [
    "The gull sat on the mast. It rained all night.",
    "Elsa Brandt owned the ship Aurora. She bought it in Brill.",
    "The fog was thick, and nobody saw the harbour.",
]


FRAME = Frame(separator="\n")
"""With the prompts below, runs of the server's text meet where the tokenizer cuts in any case."""
ANSWERED = {
    **OPTIONS,
    "relevance": always,
    "answer_config": config(80),
    "prompts": Prompts(
        **{
            name: value.replace("\n\n", "\n")
            for name, value in vars(Prompts()).items()
            if isinstance(value, str)
        }
    ),
}


@pytest.fixture(scope="module")
def in_this_process(real_kernel):
    """What the model answers in this process, before the server starts: it is never quite idle."""
    return WimKernel(engine=real_kernel.engine, frame=FRAME).read(TEXTS).ask(QUESTION, **ANSWERED)


@pytest.mark.invariant(3)
def test_margins_and_answer_equal_those_of_the_kernel_in_this_process(in_this_process, serves_smollm2):
    kernel = WimKernel.from_server(
        serves_smollm2.url, serves_smollm2.folder, tokenizer=serves_smollm2.folder, window=8192, frame=FRAME
    )
    there = kernel.read(TEXTS).ask(QUESTION, **ANSWERED)
    assert same(there, in_this_process)
    assert len(in_this_process.token_ids) < 80  # it ends by itself, there too
    assert there.usage.prefill_tokens == in_this_process.usage.prefill_tokens
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
