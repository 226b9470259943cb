"""What the kernel is measured against: three ways to do its work with plain transformers and nothing else.

- `published_recipe`: the procedure of Writing in the Margins (arXiv 2408.14906), one margin after another on
  one growing cache that is rolled back, and each margin judged by a second call;
- `plain`: the document read and the question answered, without margins;
- `map_reduce`: one call for every chunk alone, then one call with all the notes.

All decode greedily in a bare loop, which is quicker than `model.generate`, with fixed token counts: the ids
that would end a text are masked, as ``min_new_tokens`` does. They work on token ids, so that every path is
given the same ones.

``python -m benchmarks.rivals --check`` compares each of them with `model.generate` on a tiny random model.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import DynamicCache, PreTrainedModel

Ids = Sequence[int]
WITHOUT_CUDNN = functools.partial(
    sdpa_kernel, [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
)


@dataclass(frozen=True)
class Task:
    """What every rival is given: the document, the prompts and how much to write.

    Attributes:
        head: ids before the document, such as a chat template's opening.
        chunks: the document's ids, chunk by chunk.
        instructions: what asks for a margin, one for each chunk.
        judge: the classification prompt for a margin's ids: the margin and the question, no document.
        yes_no: the ids of the two verdicts.
        answer_prompt: what follows the document, given the margins' ids.
        question_prompt: what follows the document when there are no margins.
        reduce_prompt: the whole prompt of the last call of `map_reduce`, given the notes' ids.
        margin_tokens: tokens of each margin.
        answer_tokens: tokens of the answer.
        eos_ids: ids that would end a text; never chosen.
        judge_tokens: tokens of each verdict; the first one decides.
        tuned: decode without cuDNN's attention, which torch prefers on some GPUs and which makes a plan for each new
            length of the cache; that costs some 45 ms on an H100. Otherwise torch chooses, as it does for its users.
    """

    head: Ids
    chunks: Sequence[Ids]
    instructions: Sequence[Ids]
    judge: Callable[[Ids], Ids]
    yes_no: tuple[int, int]
    answer_prompt: Callable[[Sequence[Ids]], Ids]
    question_prompt: Ids
    reduce_prompt: Callable[[Sequence[Ids]], Ids]
    margin_tokens: int
    answer_tokens: int
    eos_ids: Ids
    judge_tokens: int = 1
    tuned: bool = False


@dataclass(frozen=True)
class Run:
    """What one path wrote, how long it took and how many tokens it ran.

    Attributes:
        prefill: seconds spent reading the document.
        margins: seconds spent on margins: their prompts, their tokens, rolling back, judging.
        answer: seconds spent on the answer: its prompt and its tokens.
        answer_begins: seconds until the answer's first token was there.
        total: seconds in all.
        document_tokens: document tokens run through the model.
        prompt_tokens: tokens of all prompts run through the model.
        output_tokens: tokens written.
        notes: the margins' ids.
        answer_ids: the answer's ids.
        verdicts: what the second call said of each margin (`published_recipe` only).
    """

    prefill: float
    margins: float
    answer: float
    answer_begins: float
    total: float
    document_tokens: int
    prompt_tokens: int
    output_tokens: int
    notes: tuple[tuple[int, ...], ...] = field(default=(), repr=False)
    answer_ids: tuple[int, ...] = field(default=(), repr=False)
    verdicts: tuple[bool, ...] = field(default=(), repr=False)


@contextmanager
def attention(model: PreTrainedModel, name: str = "sdpa") -> Iterator[None]:
    """Run a model with another of transformers' attention functions, and set back its own afterwards."""
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


class Stopwatch:
    """Seconds by what they were spent on: `lap` books the time since the last one."""

    def __init__(self) -> None:
        """Begin now."""
        self.spent: dict[str, float] = {"prefill": 0.0, "margins": 0.0, "answer": 0.0}
        self._start = self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """Book the time since the last lap under ``part``."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.spent[part] += now - self._last
        self._last = now

    def since_start(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self._start


def forward(model: PreTrainedModel, ids: Ids, cache: DynamicCache) -> torch.Tensor:
    """Append ids to the cache; returns the logits after the last of them, shape (vocabulary,)."""
    batch = torch.tensor([list(ids)], device=model.device)
    out = model(input_ids=batch, past_key_values=cache, use_cache=True, logits_to_keep=1)
    logits: torch.Tensor = out.logits[0, -1]
    return logits


def pick(logits: torch.Tensor, eos_ids: Ids) -> int:
    """The likeliest id that does not end the text."""
    logits[list(eos_ids)] = -torch.inf
    return int(logits.argmax())


def decode(
    model: PreTrainedModel, first: int, cache: DynamicCache, task: Task, tokens: int
) -> tuple[int, ...]:
    """Write ``tokens`` ids greedily, the first of which is known; the last one is not put in the cache."""
    ids = [first]
    with WITHOUT_CUDNN() if task.tuned else nullcontext():
        while len(ids) < tokens:
            ids.append(pick(forward(model, ids[-1:], cache), task.eos_ids))
    return tuple(ids)


def published_recipe(model: PreTrainedModel, task: Task) -> Run:
    """Writing in the Margins as published: one cache, one margin at a time, rolled back, then judged.

    A chunk is prefilled; the instruction is appended and the margin written on the same cache; both are
    cropped away again; a second, fresh call says whether the margin helps. After the last chunk all margins
    and the question are appended and the answer is written. (Every margin goes into the answer's prompt,
    whatever the verdicts, so that all paths that write margins answer from the same ones.)
    """
    with torch.inference_mode(), attention(model):
        watch, cache = Stopwatch(), DynamicCache(config=model.config)
        notes: list[tuple[int, ...]] = []
        verdicts: list[bool] = []
        prompts = len(task.head)
        for index, (chunk, instruction) in enumerate(zip(task.chunks, task.instructions, strict=True)):
            forward(model, [*task.head, *chunk] if index == 0 else chunk, cache)
            watch.lap("prefill")
            notes.append(_margin_rolled_back(model, instruction, cache, task))
            judge = task.judge(notes[-1])
            fresh = DynamicCache(config=model.config)
            logits = forward(model, judge, fresh)
            verdicts.append(bool(logits[task.yes_no[0]] > logits[task.yes_no[1]]))
            decode(model, pick(logits, task.eos_ids), fresh, task, task.judge_tokens)
            watch.lap("margins")
            prompts += len(instruction) + len(judge)
        prompt = task.answer_prompt(notes)
        return _answered(model, cache, prompt, task, watch, notes, prompts + len(prompt), verdicts)


def _margin_rolled_back(
    model: PreTrainedModel, instruction: Ids, cache: DynamicCache, task: Task
) -> tuple[int, ...]:
    """Append the instruction, write a margin, and crop both off the cache again."""
    before = cache.get_seq_length()
    first = pick(forward(model, instruction, cache), task.eos_ids)
    note = decode(model, first, cache, task, task.margin_tokens)
    cache.crop(-(cache.get_seq_length() - before))
    return note


def _answered(
    model: PreTrainedModel,
    cache: DynamicCache,
    prompt: Ids,
    task: Task,
    watch: Stopwatch,
    notes: Sequence[tuple[int, ...]],
    prompt_tokens: int,
    verdicts: Sequence[bool] = (),
) -> Run:
    """Append the last prompt, write the answer, and sum up."""
    first = pick(forward(model, prompt, cache), task.eos_ids)
    begins = watch.since_start()
    answer = decode(model, first, cache, task, task.answer_tokens)
    watch.lap("answer")
    return Run(
        **watch.spent,
        answer_begins=begins,
        total=watch.since_start(),
        document_tokens=sum(map(len, task.chunks)),
        prompt_tokens=prompt_tokens,
        output_tokens=sum(map(len, notes)) + len(answer),
        notes=tuple(notes),
        answer_ids=answer,
        verdicts=tuple(verdicts),
    )


def plain(model: PreTrainedModel, task: Task) -> Run:
    """The document in one forward pass, then the question: what anyone would do without margins."""
    return _plain(model, task, [[token for chunk in task.chunks for token in chunk]])


def plain_by_chunks(model: PreTrainedModel, task: Task) -> Run:
    """`plain`, with the document prefilled a chunk at a time: less memory, and on some machines less time."""
    return _plain(model, task, task.chunks)


def _plain(model: PreTrainedModel, task: Task, pieces: Sequence[Ids]) -> Run:
    with torch.inference_mode(), attention(model):
        watch, cache = Stopwatch(), DynamicCache(config=model.config)
        for index, piece in enumerate(pieces):
            forward(model, [*task.head, *piece] if index == 0 else piece, cache)
        watch.lap("prefill")
        prompt = task.question_prompt
        return _answered(model, cache, prompt, task, watch, [], len(task.head) + len(prompt))


def map_reduce(model: PreTrainedModel, task: Task) -> Run:
    """One call for every chunk, each blind to the others, then one call with the notes and the question."""
    with torch.inference_mode(), attention(model):
        watch = Stopwatch()
        notes: list[tuple[int, ...]] = []
        prompts = 0
        for chunk, instruction in zip(task.chunks, task.instructions, strict=True):
            cache = DynamicCache(config=model.config)
            logits = forward(model, [*task.head, *chunk, *instruction], cache)
            watch.lap("prefill")
            first = pick(logits, task.eos_ids)
            notes.append(decode(model, first, cache, task, task.margin_tokens))
            watch.lap("margins")
            prompts += len(task.head) + len(instruction)
        prompt = task.reduce_prompt(notes)
        cache = DynamicCache(config=model.config)
        return _answered(model, cache, prompt, task, watch, notes, prompts + len(prompt))


RIVALS: dict[str, Callable[[PreTrainedModel, Task], Run]] = {
    "published_recipe": published_recipe,
    "plain": plain,
    "plain_by_chunks": plain_by_chunks,
    "map_reduce": map_reduce,
}


def generated(model: PreTrainedModel, ids: Ids, tokens: int, eos_ids: Ids) -> tuple[int, ...]:
    """The same number of ids from `model.generate`, for comparison."""
    batch = torch.tensor([list(ids)], device=model.device)
    out = model.generate(
        batch,
        attention_mask=torch.ones_like(batch),
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=list(eos_ids),
        pad_token_id=eos_ids[0],
    )
    return tuple(out[0, len(ids) :].tolist())


def check(seed: int = 0) -> None:
    """Compare every rival with `model.generate` on a tiny random Llama.

    Raises:
        AssertionError: where a margin, a note or an answer differs.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=199, hidden_size=48, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=512,
        initializer_range=0.4, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()

    def some(count: int) -> list[int]:
        return torch.randint(2, config.vocab_size, (count,)).tolist()

    closing, chunks, eos_ids = some(6), [some(n) for n in (23, 31, 17, 40)], [1, *some(60)]

    def after_notes(notes: Sequence[Ids]) -> list[int]:
        return [token for note in notes for token in note] + closing

    task = Task(
        head=some(4), chunks=chunks, instructions=[some(7 + n) for n in range(len(chunks))],
        judge=lambda note: [*note, *closing], yes_no=(5, 6),
        answer_prompt=after_notes, question_prompt=closing, reduce_prompt=after_notes,
        margin_tokens=12, answer_tokens=9, eos_ids=eos_ids,
    )  # fmt: skip
    runs = {name: rival(model, task) for name, rival in RIVALS.items()}

    prefix = list(task.head)
    for index, (chunk, instruction) in enumerate(zip(chunks, task.instructions, strict=True)):
        prefix += chunk
        expected = generated(model, [*prefix, *instruction], task.margin_tokens, eos_ids)
        assert runs["published_recipe"].notes[index] == expected, f"published_recipe, margin {index}"
        alone = generated(model, [*task.head, *chunk, *instruction], task.margin_tokens, eos_ids)
        assert runs["map_reduce"].notes[index] == alone, f"map_reduce, note {index}"
    prompts = {
        "published_recipe": [*prefix, *after_notes(runs["published_recipe"].notes)],
        "plain": [*prefix, *closing],
        "plain_by_chunks": [*prefix, *closing],
        "map_reduce": after_notes(runs["map_reduce"].notes),
    }
    for name, run in runs.items():
        expected = generated(model, prompts[name], task.answer_tokens, eos_ids)
        assert run.answer_ids == expected, f"{name}, answer"
        assert not set(eos_ids) & {*run.answer_ids, *(token for note in run.notes for token in note)}, name


def main() -> None:
    """Check the rivals against `model.generate`."""
    parser = argparse.ArgumentParser(description="The rivals of the benchmarks.")
    parser.add_argument("--check", action="store_true", required=True, help="compare with model.generate")
    parser.parse_args()
    for seed in range(5):
        check(seed)
    print("Every rival equals model.generate, token for token, on 5 random models.")


if __name__ == "__main__":
    main()
