"""The work that every path is given: the document's text, the questions, and the ids that the kernel saw."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from transformers import GenerationConfig, PreTrainedTokenizerBase

from benchmarks.rivals import Ids, Task
from wim_kernel import Chunk, Reading, WimKernel, WimResult


@dataclass(frozen=True)
class Workload:
    """What is asked of every path, and, once the kernel has run, the ids it saw."""

    texts: tuple[str, ...]
    question: str
    second_question: str
    margin_tokens: int
    answer_tokens: int
    head: tuple[int, ...] = ()
    chunks: tuple[tuple[int, ...], ...] = ()
    instructions: tuple[tuple[int, ...], ...] = ()
    answer_prompt: tuple[int, ...] = ()

    @property
    def document(self) -> list[Chunk]:
        """The texts as pieces of one source, so that nothing is put between them."""
        starts = itertools.accumulate(map(len, self.texts), initial=0)
        return [Chunk.of(text, "document", start) for text, start in zip(self.texts, starts, strict=False)]

    def save(self, file: Path) -> None:
        """Write the workload as JSON."""
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, file: Path) -> Workload:
        """Read back what `save` wrote."""
        data = json.loads(file.read_text(encoding="utf-8"))
        for key in ("texts", "head", "answer_prompt"):
            data[key] = tuple(data[key])
        for key in ("chunks", "instructions"):
            data[key] = tuple(map(tuple, data[key]))
        return cls(**data)


def document_texts(
    tokenizer: PreTrainedTokenizerBase, path: Path, tokens: int, chunks: int
) -> tuple[str, ...]:
    """The first ``tokens`` tokens of a file, as ``chunks`` strings of equal token counts.

    A string may come out a token longer or shorter when it is encoded alone; the ids that count are the
    kernel's.
    """
    ids = tokenizer.encode(path.read_text(encoding="utf-8"), add_special_tokens=False)
    if len(ids) < tokens:
        raise SystemExit(
            f"{path} holds {len(ids)} tokens and {tokens} are asked for: give --document or --tokens."
        )
    texts, start = [], 0
    for number in range(1, chunks + 1):
        end = tokens * number // chunks
        while "\ufffd" in tokenizer.decode(ids[start:end]):  # never cut inside a character
            end -= 1
        texts.append(str(tokenizer.decode(ids[start:end])))
        start = end
    return tuple(texts)


def forced(tokens: int) -> GenerationConfig:
    """Greedy decoding of exactly so many tokens."""
    return GenerationConfig(max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)


def ask(reading: Reading, question: str, workload: Workload) -> WimResult:
    """One question with every margin written in full and kept."""
    result: WimResult = reading.ask(
        question,
        threshold=0,
        relevance="likelihood",
        margin_style="free",
        margin_config=forced(workload.margin_tokens),
        answer_config=forced(workload.answer_tokens),
    )
    return result


def run_kernel(kernel: WimKernel, workload: Workload) -> tuple[Workload, WimResult, WimResult]:
    """Read the document afresh and ask twice; returns the workload with the ids that were read."""
    kernel.cache.clear()
    reading = kernel.read(workload.document)
    first = ask(reading, workload.question, workload)
    second = ask(reading, workload.second_question, workload)
    seen = reading.prompt_ids(first)
    reading.close()
    return with_ids(workload, first, list(seen)), first, second


def with_ids(workload: Workload, result: WimResult, seen: list[int]) -> Workload:
    """The workload with the document's ids, chunk by chunk, and the prompts of the kernel's branches."""
    branches = [margin.branch for margin in result.margins if margin.branch is not None]
    assert result.branch is not None
    assert len(branches) == len(workload.texts)
    ends = [branch.prefix_tokens for branch in branches]
    starts = [ends[-1] - result.usage.prefill_tokens, *ends[:-1]]
    return replace(
        workload,
        head=tuple(seen[: starts[0]]),
        chunks=tuple(tuple(seen[a:b]) for a, b in zip(starts, ends, strict=True)),
        instructions=tuple(branch.suffix_ids for branch in branches),
        answer_prompt=tuple(result.branch.suffix_ids),
    )


def rival_task(kernel: WimKernel, workload: Workload) -> Task:
    """The same work for the rivals: the kernel's ids, and short prompts for what only the rivals ask."""
    tokenizer, question = kernel.tokenizer, workload.question
    opening, closing = chat_ends(tokenizer)

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    def judge(note: Ids) -> list[int]:
        asked = f"Does the note help to answer the question? Answer YES or NO.\nQuestion: {question}\nNote: "
        return [*encode(opening + asked), *note, *encode(closing)]

    def reduce_prompt(notes: Sequence[Ids]) -> list[int]:
        listed = [token for note in notes for token in [*encode("\n- "), *note]]
        return encode(opening + "Notes:") + listed + encode(f"\n\nAnswer the question: {question}{closing}")

    return Task(
        head=workload.head,
        chunks=workload.chunks,
        instructions=workload.instructions,
        judge=judge,
        yes_no=(encode("YES")[0], encode("NO")[0]),
        answer_prompt=lambda notes: (
            workload.answer_prompt
        ),  # of the same margins: `margins_equal` counts them
        question_prompt=encode(f"\n\nAnswer the question: {question}{closing}"),
        reduce_prompt=reduce_prompt,
        margin_tokens=workload.margin_tokens,
        answer_tokens=workload.answer_tokens,
        eos_ids=eos_ids(kernel),
    )


def chat_ends(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What the chat template puts before and after a user's message; nothing where there is no template."""
    if not tokenizer.chat_template:
        return "", ""
    message = [{"role": "user", "content": "MESSAGE"}]
    rendered = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    opening, closing = str(rendered).split("MESSAGE")
    return opening, closing


def eos_ids(kernel: WimKernel) -> list[int]:
    """The ids that end a text, as the model and its tokenizer say."""
    configured = kernel.model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({token for token in [*ids, kernel.tokenizer.eos_token_id] if token is not None})
