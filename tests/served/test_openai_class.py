"""`ChatOpenAI` on a real server: `transformers serve`, which takes no schemas and keeps prefixes by itself."""

from __future__ import annotations

from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING

import pytest

from wim_integrations.langchain import create_wim_documents_chain
from wim_kernel import WimKernel

if TYPE_CHECKING:
    from served.conftest import Served

openai = pytest.importorskip("langchain_openai")
PAGES = [
    "The gull sat on the mast. It rained all night.",
    "Elsa Brandt owned the ship Aurora. She bought it in Brill.",
    "The fog was thick, and nobody saw the harbour.",
]


def test_a_small_model_answers_from_margins(served: Served) -> None:
    llm = openai.ChatOpenAI(
        model=served.folder, base_url=served.url, api_key="none", max_tokens=96, temperature=0
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
