"""A map-reduce chain of LangChain's against its replacement: same model object, documents and token limits, one run.

    python -m benchmarks.langchain                       # on the CPU, the embedded model
    python -m benchmarks.langchain --shape 8b --tokenizer FOLDER --document-tokens 4096 --documents 8   # on a GPU

The old chain is ``load_qa_chain(chain_type="map_reduce")`` of langchain-classic. Its language model calls
``model.generate``, once with prompts one by one, as wrappers without batches do, and once with all of a step's
prompts in one padded batch. Every text has a fixed number of tokens. Margins are all written and kept
(``threshold=0``), so that both write as many notes. ``--shape`` makes a model of that shape with random weights, whose
speed is that of a trained one.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from langchain_classic.chains.question_answering import load_qa_chain
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from transformers import GenerationConfig, PreTrainedModel

from benchmarks.report import ROOT, machine, table
from benchmarks.shapes import (
    Run,
    add_model_options,
    count_then_time,
    load,
    report,
    split_texts,
    timed,
)
from wim_integrations.evaluation.generation import Generator
from wim_integrations.evaluation.langchain_chain import GenerateLLM
from wim_integrations.langchain import create_wim_map_reduce_chain
from wim_kernel import WimKernel


class FirstSign(BaseCallbackHandler):
    """When a note was first to be seen: a map step's end, or a margin."""

    def __init__(self) -> None:
        self.begun = time.perf_counter()
        self.seen: float | None = None

    def _see(self) -> None:
        self.seen = self.seen or time.perf_counter() - self.begun

    def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
        """A call of the old chain's came back."""
        self._see()

    def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
        """A margin was written."""
        if name == "wim_margin":
            self._see()


def ask(model: PreTrainedModel, question: str, call: Callable[[str, Any], Any]) -> Run:
    """Time one question."""
    sign = FirstSign()
    total = timed(model, lambda: call(question, {"callbacks": [sign]}))
    return Run(total, sign.seen)


def paths(
    kernel: WimKernel, documents: list[Document], new_tokens: int
) -> dict[str, Callable[[str, Any], Any]]:
    """Every way to ask, as a function of the question."""
    forced = GenerationConfig(max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False)
    chain = create_wim_map_reduce_chain(
        kernel,
        threshold=0,
        relevance="likelihood",
        margin_style="free",
        margin_config=forced,
        answer_config=forced,
        return_intermediate_steps=True,
    )

    def given(question: str) -> dict[str, Any]:
        return {"input_documents": documents, "question": question}

    def old(together: int) -> Callable[[str, Any], Any]:
        llm = GenerateLLM(
            generator=Generator(kernel.model, kernel.tokenizer, together),
            new_tokens=new_tokens,
            min_new_tokens=new_tokens,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            before = load_qa_chain(llm, chain_type="map_reduce", return_map_steps=True)
        return lambda question, config: before.invoke(given(question), config)

    def live(question: str, config: Any) -> None:
        for _ in chain.stream(given(question), config):
            pass

    return {
        "wim": lambda question, config: chain.invoke(given(question), config),
        "wim_stream": live,
        "map_reduce": old(1),
        "map_reduce_batched": old(len(documents)),
    }


LABELS = {
    "wim": "create_wim_map_reduce_chain",
    "wim_stream": "the same, streamed",
    "map_reduce": "load_qa_chain, a prompt at a time",
    "map_reduce_batched": "load_qa_chain, prompts in one batch",
}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_options(parser)
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--document-tokens", type=int, default=512)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks" / "langchain-cpu.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    about = machine()
    kernel = load(args, chunk_tokens=2 * args.document_tokens)  # a document is one chunk for both
    if torch.cuda.is_available():
        about["gpu"] = torch.cuda.get_device_name()
    texts = split_texts(kernel.tokenizer, args.document, args.documents, args.document_tokens)
    documents = [
        Document(page_content=text, metadata={"source": str(place)}) for place, text in enumerate(texts)
    ]
    for call in paths(kernel, [Document(page_content="A few words.")] * 2, 4).values():
        call("What is said?", {})  # nobody pays for first calls
    runs: dict[str, dict[str, Run]] = {}
    for name, call in paths(kernel, documents, args.new_tokens).items():
        runs[name] = count_then_time(
            kernel,
            {"first": args.question, "second": args.second_question},
            lambda question, call=call: ask(kernel.model, question, call),
        )
        print(f"  {name}: {runs[name]}", flush=True)
    rows = [
        [
            LABELS[name],
            f"{run['first'].total:.2f}",
            f"{run['first'].first_sign or 0:.2f}",
            f"{run['second'].total:.2f}",
            f"{run['first'].forward_passes} + {run['second'].forward_passes}",
            f"{run['first'].tokens_run:,} + {run['second'].tokens_run:,}",
        ]
        for name, run in runs.items()
    ]
    header = [
        "chain",
        "first question s",
        "first note s",
        "second question s",
        "forward passes",
        "tokens run",
    ]
    print("\n" + table(header, rows) + "\n")
    old = min((runs["map_reduce"], runs["map_reduce_batched"]), key=lambda run: run["first"].total)
    for which in ("first", "second"):
        ratio = old[which].total / runs["wim"][which].total
        print(f"{which} question: {ratio:.2f} times faster than the quicker old chain")
    report(args, about, kernel, {"documents": args.documents, "document_tokens": args.document_tokens}, runs)


if __name__ == "__main__":
    main()
