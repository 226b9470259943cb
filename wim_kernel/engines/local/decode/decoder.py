"""Decodes a set of branches as rows of a batch: prompts and their scores, then the gate, then token by token."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wim_kernel.engines.base import Branch, Decoded, Gate, Progress, Scores
from wim_kernel.engines.codec import TextStream
from wim_kernel.engines.local.attention.prompt_probe import ProbedRow, PromptProbe
from wim_kernel.engines.local.decode.sampling import Sampler
from wim_kernel.engines.local.decode.step_batcher import DecodeSession
from wim_kernel.engines.local.model.runner import to_device, upload
from wim_kernel.engines.local.rows.base import BranchRows, StepOutput


@dataclass(frozen=True)
class PromptLimits:
    """Limits of one pass over prompts.

    Attributes:
        tokens: most prompt tokens, padding included.
        vocabulary: number of logits per slot.
        nbytes: most bytes of logits.
        to_the_end: whether the model returns logits from the first slot that is needed to the last.
    """

    tokens: int
    vocabulary: int
    nbytes: int
    to_the_end: bool = False

    def rows(self, width: int, slots: Sequence[int]) -> int:
        """Number of rows that may run in one pass.

        Args:
            width: slots of each row.
            slots: slots whose logits are needed.
        """
        kept = width - slots[0] if self.to_the_end else len(slots)
        return max(1, min(self.tokens // width, self.nbytes // (4 * kept * self.vocabulary)))


class Row:
    """The state of one branch in the decoder.

    Args:
        index: index of the branch in the caller's list.
        branch: the branch.
        runs: token ids of the prompt, run by run.
        scored: range of the prompt's tokens whose likelihood is measured.
        choices: token ids of each choice.
        sampler: makes the sampler for a given prompt; None for a branch that only measures.
        stream: turns the generated tokens into text.

    Attributes:
        ids: token ids of the prompt.
        forced: tokens of the first choice that are still to be run before anything is sampled.
        decided: tokens of the first choice.
        sampler: chooses the branch's tokens; None until `begin`.
    """

    def __init__(
        self,
        index: int,
        branch: Branch,
        runs: Sequence[Sequence[int]],
        scored: range,
        choices: Sequence[Sequence[int]],
        sampler: Callable[[Sequence[int]], Sampler] | None,
        stream: TextStream,
    ) -> None:
        self.index = index
        self.branch = branch
        self.ids = [token for run in runs for token in run]
        self.scored = scored
        self.choices = [run[0] for run in choices]
        self.forced = deque(choices[0] if choices else ())
        self.decided = tuple(self.forced)
        self._sampler = sampler
        self.sampler: Sampler | None = None
        self.stream = stream
        self.scores = Scores()

    def scoring_slots(self, width: int) -> list[int]:
        """The slots, in a row padded to ``width``, whose logits predict the scored tokens."""
        pad = width - len(self.ids)
        return [slot - 1 + pad for slot in self.scored]

    def measured(self, logits: Tensor, slots: Tensor, width: int) -> Tensor:
        """Measure this row's prompt, on the device: the likelihood, 0 if it is not needed, then each choice's share.

        Args:
            logits: logits of this row's prompt, (slots, vocabulary).
            slots: the slots of these logits.
            width: number of slots of the padded prompt.
        """
        likelihood = torch.zeros(1, device=logits.device)
        wanted = self.scoring_slots(width)
        if wanted:
            kept = torch.isin(slots, torch.tensor(wanted, dtype=slots.dtype)).nonzero()[:, 0]
            rows = logits[to_device(kept, logits.device)].float().log_softmax(-1)
            targets = upload([self.ids[slot] for slot in self.scored], torch.int64, logits.device)
            likelihood = rows.gather(-1, targets[:, None]).mean(0)
        choices = upload(self.choices, torch.int64, logits.device)
        return torch.cat([likelihood, logits[-1, choices].float().softmax(-1)])

    def probed(self, row: int, width: int) -> ProbedRow | None:
        """What the branch's probe measures in a pass in which the branch is row ``row``; None without a probe."""
        probe, pad = self.branch.probe, width - len(self.ids)
        if probe is None:
            return None
        queries = range(self.scored.start + pad, self.scored.stop + pad)
        return ProbedRow(row, self.branch.at, pad, queries, probe)

    def take_scores(self, numbers: np.ndarray[Any, np.dtype[np.float32]]) -> None:
        """Set `scores` from the numbers of `measured`, followed by those of the probe."""
        likelihood = None if self.branch.scored is None else float(numbers[0])
        choices, attention = numbers[1 : 1 + len(self.choices)], numbers[1 + len(self.choices) :]
        found = None
        if self.branch.probe is not None and len(attention):
            found = attention.reshape(len(self.branch.probe.heads), -1)
        self.scores = Scores(likelihood, tuple(map(float, choices)), found)

    def begin(self, prefix: Sequence[int]) -> None:
        """Make the sampler, after the gate let the branch go on.

        Args:
            prefix: token ids of the prefix.
        """
        if self._sampler is not None:
            self.sampler = self._sampler([*prefix[: self.branch.at], *self.ids, *self.decided])

    def next_token(self, state: StepOutput, index: int) -> int:
        """Choose the row's next token, forced or sampled.

        Args:
            state: output of the last step.
            index: index of this row in the batch.
        """
        if self.forced:
            return self.forced[0]
        assert self.sampler is not None
        argmax = state.argmax[index]
        return argmax if self.sampler.accepts_argmax(argmax) else self.sampler.choose(state.logits[index])

    def take(self, token: int) -> Progress | None:
        """Append the row's next token; returns what the caller should know, if anything."""
        if self.forced:
            self.forced.popleft()
            return None
        assert self.sampler is not None
        before = len(self.sampler.token_ids)
        ended = self.sampler.push(token)
        text = self.stream.step(token) if len(self.sampler.token_ids) > before else ""
        return Progress(self.index, text, self.end() if ended else None) if text or ended else None

    def end(self) -> Decoded:
        """The branch's result."""
        if self.sampler is None:
            return Decoded(self.scores, tuple(self.ids))
        return Decoded(
            self.scores,
            (*self.ids, *self.decided),
            tuple(self.sampler.token_ids),
            self.stream.text,
            generated=True,
        )


def decode(
    rows: list[Row],
    prefix: Sequence[int],
    gate: Gate | None,
    session: DecodeSession,
    limits: PromptLimits,
) -> Iterator[list[Progress]]:
    """Run ``rows`` to their ends. The model's lock is never held over a yield.

    Args:
        rows: one for each row of the session's batch, in its order.
        prefix: token ids of the prefix.
        gate: says which branches go on after scoring; None for all. Called with scores in the caller's order.
        session: runs the passes and steps.
        limits: limits of one pass over prompts.

    Yields:
        After each pass or step, its progress; often empty.
    """
    batch, logits = session.batch, list[Tensor]()
    for group in _prompt_groups(rows, limits):
        with session.model_lock():
            logits += _run_prompts(batch, rows, group)
        yield []
    active = _passing(rows, gate)
    for row in active:
        row.begin(prefix)
    active = [row for row in active if row.sampler is not None]
    yield _in_order(Progress(row.index, done=row.end()) for row in rows if row not in active)
    chosen = [index for index, row in enumerate(rows) if row in active]
    batch.select(chosen)
    state = StepOutput.of(torch.stack([logits[row] for row in chosen])) if active else None
    while active and state is not None:
        tokens = _next_tokens(active, state)
        progress = [row.take(token) for row, token in zip(active, tokens, strict=True)]
        ended = {item.branch for item in progress if item is not None and item.done is not None}
        remaining = [index for index, row in enumerate(active) if row.index not in ended]
        yield _in_order(item for item in progress if item is not None)
        batch.select(remaining)
        active, tokens = [active[index] for index in remaining], [tokens[index] for index in remaining]
        if active:
            state = session.step(tokens, ahead=_may_run_ahead(active))


def _may_run_ahead(rows: list[Row]) -> bool:
    """Whether every row will almost certainly append the argmax token, and some row will need a token after it."""
    samplers = [row.sampler for row in rows if row.sampler is not None and not row.forced]
    plain = len(samplers) == len(rows) and all(sampler.follows_argmax for sampler in samplers)
    return plain and any(sampler.has_room_after_next for sampler in samplers)


def _in_order(progress: Iterable[Progress]) -> list[Progress]:
    """The progress of one step in the caller's order of branches."""
    return sorted(progress, key=lambda item: item.branch)


def _prompt_groups(rows: list[Row], limits: PromptLimits) -> Iterator[slice]:
    width = max(len(row.ids) for row in rows)
    size = limits.rows(width, _wanted_slots(rows, width))
    return (slice(start, min(start + size, len(rows))) for start in range(0, len(rows), size))


def _wanted_slots(rows: Sequence[Row], width: int) -> list[int]:
    """The slots whose logits are needed: those that predict scored tokens, and the last."""
    return sorted({width - 1}.union(*(row.scoring_slots(width) for row in rows)))


def _run_prompts(batch: BranchRows, rows: list[Row], group: slice) -> list[Tensor]:
    """Run the prompts of a group of rows and set their scores; returns each row's last logits, (vocabulary,)."""
    width = max(len(row.ids) for row in rows)
    own_rows = rows[group]
    slots = torch.tensor(_wanted_slots(own_rows, width))
    probed = [item for index, row in enumerate(own_rows) if (item := row.probed(index, width)) is not None]
    probe = PromptProbe(probed) if probed and batch.sees_attention else None
    logits = batch.prompt([row.ids for row in own_rows], width, slots, group.start, probe)
    found = [row.measured(kept, slots, width) for row, kept in zip(own_rows, logits, strict=True)]
    if probe is not None:
        for item in probed:
            found[item.row] = torch.cat([found[item.row], probe.mass(item.row, logits.device).flatten()])
    numbers = torch.cat(found).cpu().numpy()  # the only synchronisation with the device
    for row, some in zip(own_rows, np.split(numbers, np.cumsum([len(item) for item in found])), strict=False):
        row.take_scores(some)
    return [kept[-1].clone() for kept in logits]


def _passing(rows: list[Row], gate: Gate | None) -> list[Row]:
    if gate is None:
        return list(rows)
    ordered = sorted(rows, key=lambda row: row.index)
    answers = gate([row.index for row in ordered], [row.scores for row in ordered])
    passing = {row.index for row, go in zip(ordered, answers, strict=True) if go}
    return [row for row in rows if row.index in passing]


def _next_tokens(rows: list[Row], state: StepOutput) -> list[int]:
    """The next token of each row."""
    return [row.next_token(state, index) for index, row in enumerate(rows)]
