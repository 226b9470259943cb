"""What benchmarks against other frameworks share: models by shape, texts of a length, counts of what was run."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from benchmarks.report import ROOT, write_json
from wim_kernel import WimKernel

SHAPES: dict[str, dict[str, int]] = {
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
    },
    "1.5b": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
}


@dataclass
class Run:
    """One question: seconds in all and until the first sign of work a user could be shown, and what the model ran."""

    total: float = 0.0
    first_sign: float | None = None
    forward_passes: int = 0
    tokens_run: int = 0


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


def timed(model: PreTrainedModel, work: Callable[[], object]) -> float:
    """Seconds that work takes, the device's included."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    work()
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def count_then_time(
    kernel: WimKernel, questions: dict[str, str], ask: Callable[[str], Run]
) -> dict[str, Run]:
    """Questions one after another on a kernel that has read nothing: once to count, and once more to time.

    What is timed runs without the hook that counts, which would keep a GPU's steps from being captured.
    """
    runs: dict[str, Run] = {which: Run() for which in questions}
    kernel.cache.clear()
    for which, question in questions.items():
        with counted(kernel.model, runs[which]):
            ask(question)
    kernel.cache.clear()
    for which, question in questions.items():
        run = ask(question)
        runs[which].total, runs[which].first_sign = run.total, run.first_sign
    return runs


def split_texts(tokenizer: PreTrainedTokenizerBase, path: Path, count: int, tokens: int) -> list[str]:
    """``count`` texts of ``tokens`` tokens each, from a text that is begun again where it is too short."""
    ids = tokenizer.encode(path.read_text(encoding="utf-8"), add_special_tokens=False)
    ids = ids * (count * tokens // len(ids) + 1)
    return [str(tokenizer.decode(ids[start : start + tokens])) for start in range(0, count * tokens, tokens)]


def load(args: argparse.Namespace, chunk_tokens: int) -> WimKernel:
    """The kernel: a model by name, or a shape with random weights."""
    if args.shape is None:
        return WimKernel.from_pretrained(args.model, chunk_tokens=chunk_tokens)
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    config = LlamaConfig(
        **{"num_key_value_heads": 8, **SHAPES[args.shape]},  # type: ignore[arg-type]
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
    return WimKernel(model, tokenizer, chunk_tokens=chunk_tokens)


def synthetic_tokenizer(vocabulary: int) -> PreTrainedTokenizerBase:
    """A tokenizer whose words ``w0``, ``w1``, ... are its tokens; every other word is one token, too."""
    words = {f"w{index}": index for index in range(vocabulary - 2)}
    backend = Tokenizer(
        WordLevel({**words, "[UNK]": vocabulary - 2, "[END]": vocabulary - 1}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", eos_token="[END]")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Options that say what is asked of which model."""
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape instead of a model")
    parser.add_argument("--tokenizer", help="folder with the tokenizer, with --shape")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="with --shape"
    )
    parser.add_argument(
        "--document", type=Path, default=ROOT / "examples" / "data" / "alice-chapters-3-4.txt"
    )
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--question", default="What prize was Alice given after the race, and by whom?")
    parser.add_argument("--second-question", default="What did the White Rabbit tell Alice to fetch for him?")
    parser.add_argument("--threads", type=int, default=2)


def report(
    args: argparse.Namespace,
    about: dict[str, Any],
    kernel: WimKernel,
    sizes: dict[str, int],
    runs: dict[str, Any],
) -> None:
    """Write what was measured, and of what."""
    workload = {
        "model": args.shape or args.model,
        "dtype": str(kernel.model.dtype),
        **sizes,
        "new_tokens": args.new_tokens,
        "questions": [args.question, args.second_question],
    }
    plain = {name: {which: asdict(run) for which, run in pair.items()} for name, pair in runs.items()}
    write_json(args.out, {"machine": about, "workload": workload, "runs": plain})
