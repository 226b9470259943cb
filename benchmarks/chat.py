"""What margins cost with a hosted chat model, beside LangChain's map-reduce chain on the same provider.

The provider is the one of `benchmarks/provider.py`: a server on this machine that speaks the providers' protocols and
bills by their documented rules; no hosted API is called. Workload: 32,768 tokens in 8 chunks, and two questions;
for each question the first look chooses three chunks to ask about. Cost is in tokens of plain input: a token written
to the cache counts 1.25 (1.0 where writes are free), one read from it 0.1. Output is left out: it is much the same for
both.

    python -m benchmarks.chat

Prints a table and writes docs/benchmarks/chat.json.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from langchain_anthropic import ChatAnthropic
from langchain_classic.chains.question_answering import load_qa_chain
from langchain_core.documents import Document
from langchain_openai import ChatOpenAI

from benchmarks.provider import Bill, Provider, Rules
from benchmarks.report import ROOT, Goal, table, write_json
from wim_integrations.langchain import create_wim_map_reduce_chain
from wim_kernel import WimKernel

CHUNKS, CHUNK_TOKENS = 8, 4096
FILLER = (
    "The harbour master wrote down the weather of the day, the price of salt and the names of his guests. "
)
EVIDENCE = "Elsa Brandt bought the Aurora at Emden and sold the vessel again in May of that year."
QUESTIONS = (
    "Who bought the vessel Aurora at Emden?",
    "In which year was the vessel Aurora sold by Elsa Brandt?",
)
ASKED = {
    "chunks 1, 2, 3": (0, 1, 2),
    "chunks 2, 5, 8": (1, 4, 7),
    "chunks 6, 7, 8": (5, 6, 7),
    "all chunks": tuple(range(8)),
}
PLAIN_CHAIN = (
    8 * (CHUNK_TOKENS + 200) + 700
)  # a map-reduce chain with instructions of 200 tokens and an answer's of 700
MODELS: dict[Rules, tuple[str, Callable[[str], Any], float]] = {
    "anthropic": (
        "ChatAnthropic",
        lambda url: ChatAnthropic(model_name="claude-sonnet-5", base_url=url, api_key="none"),  # type: ignore[call-arg]
        1.25,
    ),
    "openai": (
        "ChatOpenAI, GPT-5.6 and later",
        lambda url: ChatOpenAI(model="gpt-5.6", base_url=f"{url}/v1", api_key="none"),
        1.25,
    ),
    "openai-automatic": (
        "ChatOpenAI, up to GPT-5.5",
        lambda url: ChatOpenAI(model="gpt-5", base_url=f"{url}/v1", api_key="none"),
        1.0,
    ),
}


def document(asked: tuple[int, ...]) -> list[Document]:
    """The document, whose ``asked`` chunks have the evidence in their middle."""
    size, found = 4 * CHUNK_TOKENS, []
    for number in range(CHUNKS):
        text = f"Day {number + 1} of the log. " + FILLER * (size // len(FILLER) + 1)
        middle = text.index(". ", size // 2) + 2
        evidence = f"{EVIDENCE} " if number in asked else ""
        found.append(Document((text[:middle] + evidence + text[middle:])[: size - 2]))
    return found


def cost(bill: Bill, write: float) -> float:
    """A bill in tokens of plain input."""
    return bill.plain + write * bill.written + 0.1 * bill.read


def measure(rules: Rules, asked: tuple[int, ...]) -> dict[str, Any]:
    """Both ways on one provider: what each question cost, what was foreseen, and what the kernel's usage says."""
    _, make, write = MODELS[rules]
    documents, found = document(asked), dict[str, Any]()
    provider = Provider(rules)
    with provider.running() as url:
        kernel = WimKernel.from_chat_model(make(url), provider=rules)
        chain = create_wim_map_reduce_chain(kernel, chunk_tokens=CHUNK_TOKENS + 1)
        reading = kernel.read([document.page_content for document in documents])
        for name, question in zip(("first", "later"), QUESTIONS, strict=True):
            since, foreseen = len(provider.requests), reading.estimate(question)
            chain.invoke({"input_documents": documents, "question": question})
            found[name] = round(cost(provider.total(since), write))
            found[f"{name}_requests"] = len(provider.requests) - since
            found[f"{name}_foreseen"] = round(foreseen.base_tokens)
    rival = Provider(rules)
    with rival.running() as url, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # langchain-classic is deprecated
        llm = make(url)
        # the chain counts its notes' tokens, for which the model's class would fetch a tokenizer or ask the provider
        llm.custom_get_token_ids = lambda text: [0] * (len(text) // 4)
        plain = load_qa_chain(llm, chain_type="map_reduce")
        for name, question in zip(("chain_first", "chain_later"), QUESTIONS, strict=True):
            since = len(rival.requests)
            plain.invoke({"input_documents": documents, "question": question})
            found[name] = round(cost(rival.total(since), write))
            found[f"{name}_requests"] = len(rival.requests) - since
    return found


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, default=ROOT / "docs" / "benchmarks" / "chat.json")
    given = parser.parse_args()
    rows, results = [], dict[str, Any]()
    for rules, (name, _, _) in MODELS.items():
        for what, asked in ASKED.items():
            found = measure(rules, asked)
            results[f"{rules}, {what}"] = found
            ratios = [found["first"] / PLAIN_CHAIN, found["later"] / PLAIN_CHAIN]
            rows.append(
                [
                    f"{name}, {what}",
                    *(
                        f"{found[key]:,}"
                        for key in ("chain_first", "first", "first_foreseen", "later", "later_foreseen")
                    ),
                    *(f"{ratio:.2f}" for ratio in ratios),
                ]
            )
    print(
        table(
            [
                "",
                "chain",
                "first",
                "foreseen",
                "later",
                "foreseen",
                f"first / {PLAIN_CHAIN:,}",
                f"later / {PLAIN_CHAIN:,}",
            ],
            rows,
        )
    )
    spread = results["anthropic, chunks 2, 5, 8"]
    print(
        Goal(spread["first"] / PLAIN_CHAIN, 1.4).line("first question, chunks 2, 5, 8, over the plain chain")
    )
    print(
        Goal(spread["later"] / PLAIN_CHAIN, 0.35).line("later question, chunks 2, 5, 8, over the plain chain")
    )
    write_json(given.json, {"plain_chain": PLAIN_CHAIN, "results": results})


if __name__ == "__main__":
    main()
