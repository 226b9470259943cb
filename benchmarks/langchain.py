"""A map-reduce chain of LangChain's against its replacement: same model object, documents and token limits, one run.

    python benchmarks/langchain.py                       # on the CPU, the embedded model
    python benchmarks/langchain.py --shape 8b --tokenizer FOLDER --document-tokens 4096 --documents 8   # on a GPU

The old chain is ``load_qa_chain(chain_type="map_reduce")`` of langchain-classic. Its language model calls
``model.generate``, once with prompts one by one, as wrappers without batches do, and once with all of a step's
prompts in one padded batch. Every text has a fixed number of tokens. Margins are all written and kept
(``threshold=0``), so that both write as many notes. ``--shape`` makes a model of that shape with random weights, whose
speed is that of a trained one.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# This file has the name of a package that others may import: nothing is to be found beside it under that name.
HERE = Path(__file__).resolve().parent
sys.path[:] = [str(HERE.parent), *(path for path in sys.path if Path(path or ".").resolve() != HERE)]

import torch  # noqa: E402
from langchain_classic.chains.question_answering import load_qa_chain  # noqa: E402
from langchain_core.callbacks import BaseCallbackHandler  # noqa: E402
from langchain_core.documents import Document  # noqa: E402
from langchain_core.language_models.llms import BaseLLM  # noqa: E402
from langchain_core.outputs import Generation, LLMResult  # noqa: E402
from transformers import (  # noqa: E402
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from benchmarks.report import ROOT, machine, table, write_json  # noqa: E402
from wim_integrations.langchain import create_wim_map_reduce_chain  # noqa: E402
from wim_kernel import WimKernel  # noqa: E402

SHAPES = {
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
}


class GenerateLLM(BaseLLM):
    """A loaded model as a LangChain language model: so many prompts at a time go to ``model.generate``."""

    model: Any
    tokenizer: Any
    new_tokens: int
    prompts_together: int = 1

    @property
    def _llm_type(self) -> str:
        return "generate"

    def get_num_tokens(self, text: str) -> int:
        """Tokens of a text, as the old chain counts them to decide whether to collapse."""
        return len(self.tokenizer.encode(text))

    def _generate(
        self, prompts: list[str], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> LLMResult:
        texts = []
        for start in range(0, len(prompts), self.prompts_together):
            texts += self._run(prompts[start : start + self.prompts_together])
        return LLMResult(generations=[[Generation(text=text)] for text in texts])

    def _run(self, prompts: list[str]) -> list[str]:
        if self.tokenizer.chat_template:
            prompts = [
                self.tokenizer.apply_chat_template(
                    [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
                )
                for prompt in prompts
            ]
        given = self.tokenizer(
            prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
        ).to(self.model.device)
        out = self.model.generate(
            **given,
            generation_config=GenerationConfig(
                max_new_tokens=self.new_tokens,
                min_new_tokens=self.new_tokens,
                do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id or 0,
            ),
        )
        texts: list[str] = self.tokenizer.batch_decode(out[:, given["input_ids"].shape[1] :])
        return texts


@dataclass
class Run:
    """One question: seconds in all and until the first sign of work a user could be shown, and what the model ran."""

    total: float = 0.0
    first_sign: float | None = None
    forward_passes: int = 0
    tokens_run: int = 0


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


@contextmanager
def counted(model: PreTrainedModel, run: Run) -> Iterator[None]:
    """Count what goes through the model, padding included."""

    def count(_module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        run.forward_passes += 1
        run.tokens_run += ids.numel()

    hook = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def ask(model: PreTrainedModel, question: str, call: Callable[[str, Any], Any]) -> Run:
    """Time one question."""
    run, sign = Run(), FirstSign()
    with counted(model, run):
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        begun = sign.begun = time.perf_counter()
        call(question, {"callbacks": [sign]})
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        run.total = time.perf_counter() - begun
    run.first_sign = sign.seen
    return run


def paths(
    kernel: WimKernel, documents: list[Document], new_tokens: int
) -> dict[str, Callable[[str, Any], Any]]:
    """Every way to ask, as a function of the question."""
    forced = GenerationConfig(max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False)
    chain = create_wim_map_reduce_chain(
        kernel, threshold=0, margin_config=forced, answer_config=forced, return_intermediate_steps=True
    )

    def given(question: str) -> dict[str, Any]:
        return {"input_documents": documents, "question": question}

    def old(together: int) -> Callable[[str, Any], Any]:
        llm = GenerateLLM(
            model=kernel.model, tokenizer=kernel.tokenizer, new_tokens=new_tokens, prompts_together=together
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


def split_documents(
    tokenizer: PreTrainedTokenizerBase, path: Path, count: int, tokens: int
) -> list[Document]:
    """``count`` documents of ``tokens`` tokens each, from a text that is begun again where it is too short."""
    ids = tokenizer.encode(path.read_text(encoding="utf-8"), add_special_tokens=False)
    ids = ids * (count * tokens // len(ids) + 1)
    texts = [tokenizer.decode(ids[start : start + tokens]) for start in range(0, count * tokens, tokens)]
    return [
        Document(page_content=str(text), metadata={"source": str(number)})
        for number, text in enumerate(texts)
    ]


def load(args: argparse.Namespace) -> WimKernel:
    """The kernel: a model by name, or a shape with random weights."""
    longest = 2 * args.document_tokens  # a document is one chunk for both
    if args.shape is None:
        return WimKernel.from_pretrained(args.model, chunk_tokens=longest)
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    config = LlamaConfig(
        **SHAPES[args.shape],
        num_key_value_heads=8,
        vocab_size=len(tokenizer),
        max_position_embeddings=131_072,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(args.device):
        model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    return WimKernel(model, tokenizer, chunk_tokens=longest)


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape instead of a model")
    parser.add_argument("--tokenizer", help="folder with the tokenizer, with --shape")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="with --shape"
    )
    parser.add_argument(
        "--document", type=Path, default=ROOT / "examples" / "data" / "alice-chapters-3-4.txt"
    )
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--document-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--question", default="What prize was Alice given after the race, and by whom?")
    parser.add_argument("--second-question", default="What did the White Rabbit tell Alice to fetch for him?")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks" / "langchain-cpu.json")
    return parser.parse_args()


def main() -> None:
    """Measure, print and write."""
    args = options()
    torch.set_num_threads(args.threads)
    about = machine()
    kernel = load(args)
    if torch.cuda.is_available():
        about["gpu"] = torch.cuda.get_device_name()
    documents = split_documents(kernel.tokenizer, args.document, args.documents, args.document_tokens)
    for call in paths(kernel, [Document(page_content="A few words.")] * 2, 4).values():
        call("What is said?", {})  # nobody pays for first calls
    runs: dict[str, dict[str, Run]] = {}
    for name, call in paths(kernel, documents, args.new_tokens).items():
        kernel.readings.clear()
        runs[name] = {
            "first": ask(kernel.model, args.question, call),
            "second": ask(kernel.model, args.second_question, call),
        }
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
    write_json(
        args.out,
        {
            "machine": about,
            "workload": {
                "model": args.shape or args.model,
                "dtype": str(kernel.model.dtype),
                "documents": args.documents,
                "document_tokens": args.document_tokens,
                "new_tokens": args.new_tokens,
                "questions": [args.question, args.second_question],
            },
            "runs": {
                name: {which: asdict(run) for which, run in pair.items()} for name, pair in runs.items()
            },
        },
    )


if __name__ == "__main__":
    main()
