"""LlamaIndex's own response synthesizers against `WimSynthesizer`: same model object, nodes and token limits, one run.

    python -m benchmarks.llama_index                     # on the CPU, the embedded model
    python -m benchmarks.llama_index --shape 8b --tokenizer FOLDER --node-tokens 2048    # on a GPU

The rivals are tree_summarize, refine, compact and accumulate through `HuggingFaceLLM` on the kernel's own model. Every
text has a fixed number of tokens. Margins are all written and kept (``threshold=0``). Rivals that pack several nodes
into one call write fewer texts, and are told the model's real window. ``--shape`` makes a model of that shape with
random weights, whose speed is that of a trained one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from llama_index.core import set_global_tokenizer
from llama_index.core.indices.prompt_helper import PromptHelper
from llama_index.core.response_synthesizers import ResponseMode, get_response_synthesizer
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.llms.huggingface import HuggingFaceLLM
from transformers import GenerationConfig

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
from wim_integrations.llama_index import WimSynthesizer
from wim_kernel import WimKernel

MODES = ("tree_summarize", "refine", "compact", "accumulate")


def paths(kernel: WimKernel, nodes: list[NodeWithScore], new_tokens: int) -> dict[str, Callable[[str], Any]]:
    """Every way to answer, as a function of the question."""
    forced = GenerationConfig(max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False)
    synthesizer = WimSynthesizer(
        kernel,
        threshold=0,
        relevance="likelihood",
        margin_style="free",
        margin_config=forced,
        answer_config=forced,
    )
    window = min(kernel.engine.window or 131_072, 131_072)
    llm = HuggingFaceLLM(
        model=kernel.model,
        tokenizer=kernel.tokenizer,
        context_window=window,
        max_new_tokens=new_tokens,
        generate_kwargs={"min_new_tokens": new_tokens, "do_sample": False},
        is_chat_model=bool(kernel.tokenizer.chat_template),
    )
    helper = PromptHelper(context_window=window, num_output=new_tokens, tokenizer=kernel.tokenizer.encode)

    def rival(mode: str) -> Callable[[str], Any]:
        own = get_response_synthesizer(llm=llm, response_mode=ResponseMode(mode), prompt_helper=helper)
        return lambda question: own.synthesize(question, nodes)

    found: dict[str, Callable[[str], Any]] = {"wim": lambda question: synthesizer.synthesize(question, nodes)}
    return {**found, **{mode: rival(mode) for mode in MODES}}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_options(parser)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--node-tokens", type=int, default=512)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks" / "llama-index-cpu.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    about = machine()
    kernel = load(args, chunk_tokens=2 * args.node_tokens)
    if torch.cuda.is_available():
        about["gpu"] = torch.cuda.get_device_name()
    set_global_tokenizer(kernel.tokenizer.encode)  # so that rivals count as the model does
    texts = split_texts(kernel.tokenizer, args.document, args.nodes, args.node_tokens)
    nodes = [NodeWithScore(node=TextNode(text=text, id_=str(place))) for place, text in enumerate(texts)]
    few = [NodeWithScore(node=TextNode(text="A few words."))] * 2
    for call in paths(kernel, few, 4).values():
        call("What is said?")  # nobody pays for first calls
    runs: dict[str, dict[str, Run]] = {}
    for name, call in paths(kernel, nodes, args.new_tokens).items():
        runs[name] = count_then_time(
            kernel,
            {"first": args.question, "second": args.second_question},
            lambda question, call=call: Run(timed(kernel.model, lambda: call(question))),
        )
        print(f"  {name}: {runs[name]}", flush=True)
    rows = [
        [
            "WimSynthesizer" if name == "wim" else name,
            f"{run['first'].total:.2f}",
            f"{run['second'].total:.2f}",
            f"{run['first'].forward_passes} + {run['second'].forward_passes}",
            f"{run['first'].tokens_run:,} + {run['second'].tokens_run:,}",
        ]
        for name, run in runs.items()
    ]
    header = ["synthesizer", "first question s", "second question s", "forward passes", "tokens run"]
    print("\n" + table(header, rows) + "\n")
    report(args, about, kernel, {"nodes": args.nodes, "node_tokens": args.node_tokens}, runs)


if __name__ == "__main__":
    main()
