"""Decodes a set of branches at once, over either path: prompts in one pass, scores, a gate, then token by token."""

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
from wim_kernel.engines.local.model.runner import moved, upload
from wim_kernel.engines.local.rows.base import Batch, Next


@dataclass(frozen=True)
class Limits:
    """What one pass over prompts may take.

    Attributes:
        tokens: most prompt tokens, padding included.
        vocabulary: how many logits a slot has.
        nbytes: most memory for logits.
        to_the_end: whether logits are kept at all slots from the first that is wanted on.
    """

    tokens: int
    vocabulary: int
    nbytes: int
    to_the_end: bool = False

    def rows(self, width: int, slots: Sequence[int]) -> int:
        """How many rows of ``width`` slots, of which the logits at ``slots`` are wanted, may run together."""
        kept = width - slots[0] if self.to_the_end else len(slots)
        return max(1, min(self.tokens // width, self.nbytes // (4 * kept * self.vocabulary)))


class Row:
    """One branch on its way through the decoder.

    Attributes:
        index: the branch's number in the caller's list.
        ids: tokens of its prompt.
        scored: which of them are scored.
        forced: tokens of the choice that was taken, run before anything is sampled.
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
        """Slots, of a row padded to ``width``, whose logits predict the scored tokens."""
        pad = width - len(self.ids)
        return [slot - 1 + pad for slot in self.scored]

    def measured(self, logits: Tensor, slots: Tensor, width: int) -> Tensor:
        """What `take_scores` takes, on the device: the likelihood, 0 if none is asked for, and a number a choice.

        Args:
            logits: (slots, vocabulary) of this row's prompt.
            slots: where they were kept.
            width: slots of the padded prompt.
        """
        likelihood = torch.zeros(1, device=logits.device)
        wanted = self.scoring_slots(width)
        if wanted:
            kept = torch.isin(slots, torch.tensor(wanted, dtype=slots.dtype)).nonzero()[:, 0]
            rows = logits[moved(kept, logits.device)].float().log_softmax(-1)
            targets = upload([self.ids[slot] for slot in self.scored], torch.int64, logits.device)
            likelihood = rows.gather(-1, targets[:, None]).mean(0)
        choices = upload(self.choices, torch.int64, logits.device)
        return torch.cat([likelihood, logits[-1, choices].float().softmax(-1)])

    def probed(self, row: int, width: int) -> ProbedRow | None:
        """What the branch's probe wants to see of a pass in which it is row ``row``; None without a probe."""
        probe, pad = self.branch.probe, width - len(self.ids)
        if probe is None:
            return None
        queries = range(self.scored.start + pad, self.scored.stop + pad)
        return ProbedRow(row, self.branch.at, pad, queries, probe)

    def take_scores(self, numbers: np.ndarray[Any, np.dtype[np.float32]]) -> None:
        """Keep what was `measured`, and the probe's findings behind it."""
        likelihood = None if self.branch.scored is None else float(numbers[0])
        choices, attention = numbers[1 : 1 + len(self.choices)], numbers[1 + len(self.choices) :]
        found = None
        if self.branch.probe is not None and len(attention):
            found = attention.reshape(len(self.branch.probe.heads), -1)
        self.scores = Scores(likelihood, tuple(map(float, choices)), found)

    def begin(self, prefix: Sequence[int]) -> None:
        """The gate let the branch go on: get ready to sample behind everything it saw."""
        if self._sampler is not None:
            self.sampler = self._sampler([*prefix[: self.branch.at], *self.ids, *self.decided])

    def next_token(self, state: Next, place: int) -> int:
        """The row's next token, given what may come next in all rows and which of them is this one."""
        if self.forced:
            return self.forced[0]
        assert self.sampler is not None
        likeliest = state.likeliest[place]
        return likeliest if self.sampler.takes(likeliest) else self.sampler.choose(state.logits[place])

    def take(self, token: int) -> Progress | None:
        """Take the row's next token in, forced or sampled; what is new, if anything."""
        if self.forced:
            self.forced.popleft()
            return None
        assert self.sampler is not None
        before = len(self.sampler.token_ids)
        ended = self.sampler.push(token)
        text = self.stream.step(token) if len(self.sampler.token_ids) > before else ""
        return Progress(self.index, text, self.end() if ended else None) if text or ended else None

    def end(self) -> Decoded:
        """Everything about the branch."""
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
    limits: Limits,
) -> Iterator[list[Progress]]:
    """Run ``rows`` (in the batch's order) to their ends.

    Args:
        rows: one for each row of the seat's batch.
        prefix: tokens of the reading.
        gate: which branches go on after scoring, asked with scores in the callers' order; None for all.
        session: the batch's, which runs its steps; no turn at the model is held over a yield.
        limits: what one pass over prompts may take.

    Yields:
        After every pass or step, what it brought; often nothing.
    """
    batch, logits = session.batch, list[Tensor]()
    for group in _prompt_groups(rows, limits):
        with session.model_lock():
            logits += _run_prompts(batch, rows, group)
        yield []
    going = _passing(rows, gate)
    for row in going:
        row.begin(prefix)
    going = [row for row in going if row.sampler is not None]
    yield _in_order(Progress(row.index, done=row.end()) for row in rows if row not in going)
    passed = [index for index, row in enumerate(rows) if row in going]
    batch.select(passed)
    state = Next.of(torch.stack([logits[row] for row in passed])) if going else None
    while going and state is not None:
        tokens = _next_tokens(going, state)
        progress = [row.take(token) for row, token in zip(going, tokens, strict=True)]
        ended = {item.branch for item in progress if item is not None and item.done is not None}
        staying = [index for index, row in enumerate(going) if row.index not in ended]
        yield _in_order(item for item in progress if item is not None)
        batch.select(staying)
        going, tokens = [going[index] for index in staying], [tokens[index] for index in staying]
        if going:
            state = session.step(tokens, ahead=_may_run_ahead(going))


def _may_run_ahead(rows: list[Row]) -> bool:
    """Whether all rows will most probably take the likeliest token, and one of them wants another after that."""
    samplers = [row.sampler for row in rows if row.sampler is not None and not row.forced]
    plain = len(samplers) == len(rows) and all(sampler.takes_likeliest for sampler in samplers)
    return plain and any(sampler.goes_on for sampler in samplers)


def _in_order(progress: Iterable[Progress]) -> list[Progress]:
    """What one step brought, in the callers' order."""
    return sorted(progress, key=lambda item: item.branch)


def _prompt_groups(rows: list[Row], limits: Limits) -> Iterator[slice]:
    width = max(len(row.ids) for row in rows)
    size = limits.rows(width, _wanted_slots(rows, width))
    return (slice(start, min(start + size, len(rows))) for start in range(0, len(rows), size))


def _wanted_slots(rows: Sequence[Row], width: int) -> list[int]:
    """Slots whose logits somebody needs: those that predict scored tokens, and the last."""
    return sorted({width - 1}.union(*(row.scoring_slots(width) for row in rows)))


def _run_prompts(batch: Batch, rows: list[Row], group: slice) -> list[Tensor]:
    """Run a group's prompts, let its rows measure themselves, and give each row's last logits (vocabulary,)."""
    width = max(len(row.ids) for row in rows)
    mine = rows[group]
    slots = torch.tensor(_wanted_slots(mine, width))
    probed = [item for place, row in enumerate(mine) if (item := row.probed(place, width)) is not None]
    probe = PromptProbe(probed) if probed and batch.sees_attention else None
    logits = batch.prompt([row.ids for row in mine], width, slots, group.start, probe)
    found = [row.measured(kept, slots, width) for row, kept in zip(mine, logits, strict=True)]
    if probe is not None:
        for item in probed:
            found[item.row] = torch.cat([found[item.row], probe.mass(item.row, logits.device).flatten()])
    numbers = torch.cat(found).cpu().numpy()  # one wait for the device
    for row, some in zip(mine, np.split(numbers, np.cumsum([len(item) for item in found])), strict=False):
        row.take_scores(some)
    return [kept[-1].clone() for kept in logits]


def _passing(rows: list[Row], gate: Gate | None) -> list[Row]:
    if gate is None:
        return list(rows)
    ordered = sorted(rows, key=lambda row: row.index)
    answers = gate([row.scores for row in ordered])
    passing = {row.index for row, go in zip(ordered, answers, strict=True) if go}
    return [row for row in rows if row.index in passing]


def _next_tokens(rows: list[Row], state: Next) -> list[int]:
    """The next token of every row: forced, or the likeliest, or what the row chooses where it asks for more."""
    return [row.next_token(state, place) for place, row in enumerate(rows)]
