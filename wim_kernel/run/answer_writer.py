"""Answers: behind which volume each is written, and the branches that write them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from wim_kernel.cache.volumes import VolumeLease
from wim_kernel.common.events import AnswerToken
from wim_kernel.engines.base import AnyEngine, Progress
from wim_kernel.run.answer_prompt import all_fit, answer_branch
from wim_kernel.run.decoding import decode_all
from wim_kernel.run.request import Step, Work
from wim_kernel.run.settings import Settings
from wim_kernel.run.state import QuestionState
from wim_kernel.run.stopwatch import Stopwatch
from wim_kernel.text.markers import MarkerFilter


class AnswerWriter:
    """Writes answers on branches of a reading.

    Args:
        engine: the engine that decodes the branches.
        lease: the lease of the reading.
        settings: the run's settings.
        stopwatch: the run's stopwatch.
    """

    def __init__(
        self, engine: AnyEngine, lease: VolumeLease, settings: Settings, stopwatch: Stopwatch
    ) -> None:
        self.engine = engine
        self.lease = lease
        self.settings = settings
        self.stopwatch = stopwatch

    def write(self, states: Sequence[QuestionState], chunks_read: int) -> Work[None]:
        """Decode one branch for each question, all branches at one boundary together; sets ``state.answer``.

        Args:
            states: the questions, each with its ``answer_margins``.
            chunks_read: how many chunks were read.
        """
        for state in states:
            state.answer_boundary = self._answer_boundary(state, chunks_read)
        last_first = sorted(states, key=lambda state: -state.answer_boundary)
        for boundary, group in itertools.groupby(last_first, key=lambda state: state.answer_boundary):
            yield from self.stopwatch.run("prefill", self.lease.return_to(boundary))
            yield from self.stopwatch.run("answer", self._decode(list(group)))

    def _answer_boundary(self, state: QuestionState, chunks_read: int) -> int:
        """How many chunks stand before a question's answer: through the most relevant margin's volume, or all read.

        All chunks read, if the kept margins do not fit behind that volume: the last volume has the most room.
        """
        margins = [margin for margin in state.answer_margins if margin.kept]
        if self.settings.answer_volume == "last" or not margins:
            return chunks_read
        best = max(margins, key=lambda margin: (margin.relevance, margin.index))
        stop = min(self.lease.volume_of(best.index).stop, chunks_read)
        at = self.lease.end(stop)
        return stop if all_fit(self.engine, at, state.question, margins, self.settings) else chunks_read

    def _decode(self, states: Sequence[QuestionState]) -> Iterator[Step]:
        branches, free_memory = [], self.lease.cache.evict_idle
        for state in states:
            branch, state.answer_margins = answer_branch(
                self.engine,
                self.lease.end(state.answer_boundary),
                state.question,
                state.answer_margins,
                self.settings,
            )
            branches.append(branch)
            state.markers = None if branch.citable is None else MarkerFilter(branch.citable)
        for step in decode_all(self.engine, self.lease.prefix, branches, free_memory=free_memory):
            yield None
            for progress in step:
                state = states[progress.branch]
                text = _shown(state, progress)
                if text:
                    if self.stopwatch.first_token is None:
                        self.stopwatch.first_token = self.stopwatch.since_start()
                    yield AnswerToken(text, state.position)
                if progress.done is not None:
                    state.add_usage(progress.done)
                    state.answer = progress.done
                    if state.markers is not None:
                        state.answer = replace(progress.done, text=state.markers.text)


def _shown(state: QuestionState, progress: Progress) -> str:
    """What a step adds to the answer that is shown: markers that are broken or do not exist are left out."""
    if state.markers is None:
        return progress.text
    text = state.markers.push(progress.text)
    return text if progress.done is None else text + state.markers.flush()
