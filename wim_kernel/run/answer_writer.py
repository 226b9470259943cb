"""Answers: behind which volume each is written, and their branches, all decoded together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from wim_kernel.cache.volumes import VolumeLease
from wim_kernel.common.events import AnswerToken
from wim_kernel.engines.base import AnyEngine
from wim_kernel.run.answer_prompt import all_fit, answer_branch
from wim_kernel.run.decoding import decode_all
from wim_kernel.run.options import Settings
from wim_kernel.run.request import Step, Work
from wim_kernel.run.state import QuestionState
from wim_kernel.run.stopwatch import Stopwatch


class AnswerWriter:
    """Writes answers on branches of a reading.

    Args:
        engine: decodes the branches.
        lease: the reading.
        settings: how.
        watch: takes the time.
    """

    def __init__(self, engine: AnyEngine, lease: VolumeLease, settings: Settings, watch: Stopwatch) -> None:
        self.engine = engine
        self.lease = lease
        self.settings = settings
        self.watch = watch

    def write(self, states: Sequence[QuestionState], chunks_read: int) -> Work[None]:
        """One branch a question behind the last chunk read, or behind the volume that matters most to it.

        Args:
            states: the questions, each with the margins that its answer stands on in ``given``; its ``answer`` is set.
            chunks_read: how many chunks were read.
        """
        for state in states:
            state.stands_on = self._stands_on(state, chunks_read)
        last_first = sorted(states, key=lambda state: -state.stands_on)
        for chunks, some in itertools.groupby(last_first, key=lambda state: state.stands_on):
            yield from self.watch.run("prefill", self.lease.return_to(chunks))
            yield from self.watch.run("answer", self._decode(list(some)))

    def _stands_on(self, state: QuestionState, chunks_read: int) -> int:
        """Behind how many chunks a question is answered. The last volume has most room, if the notes need it."""
        margins = [margin for margin in state.given if margin.kept]
        if self.settings.answer_volume == "last" or not margins:
            return chunks_read
        best = max(margins, key=lambda margin: (margin.relevance, margin.index))
        stop = min(self.lease.volume_of(best.index).stop, chunks_read)
        at = self.lease.end(stop)
        return stop if all_fit(self.engine, at, state.question, margins, self.settings) else chunks_read

    def _decode(self, states: Sequence[QuestionState]) -> Iterator[Step]:
        branches, relieve = [], self.lease.cache.make_way
        for state in states:
            at, given = self.lease.end(state.stands_on), state.given
            branch, state.given = answer_branch(self.engine, at, state.question, given, self.settings)
            branches.append(branch)
        for step in decode_all(self.engine, self.lease.prefix, branches, relieve=relieve):
            yield None
            for progress in step:
                state = states[progress.branch]
                if progress.text:
                    if self.watch.first_token is None:
                        self.watch.first_token = self.watch.since_start()
                    yield AnswerToken(progress.text, state.position)
                if progress.done is not None:
                    state.count(progress.done)
                    state.answer = progress.done
