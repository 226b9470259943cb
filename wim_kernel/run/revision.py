"""Revision: once no more chunks are read, margins are scored again by everything that was read."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from wim_kernel.cache.volumes import VolumeLease
from wim_kernel.common.events import MarginRevised
from wim_kernel.common.margins import Margin
from wim_kernel.run.evidence_finder import EvidenceFinder
from wim_kernel.run.margin_writer import MarginWriter
from wim_kernel.run.request import Work
from wim_kernel.run.state import PendingMargin, QuestionState
from wim_kernel.run.stopwatch import Stopwatch


class MarginReviser:
    """Replaces margins whose relevance changed after they were written.

    A passage's signals are compared with the best passage read so far, so a later chunk may change the relevance of an
    earlier one.

    Args:
        finder: scores chunks; its lease and settings are used here, too.
        writer: writes the notes of chunks that became relevant.
        stopwatch: the run's stopwatch.
    """

    def __init__(self, finder: EvidenceFinder, writer: MarginWriter, stopwatch: Stopwatch) -> None:
        self.finder = finder
        self.writer = writer
        self.lease: VolumeLease = finder.lease
        self.settings = finder.settings
        self.stopwatch = stopwatch

    def search_again(self, states: Sequence[QuestionState], chunks_read: int) -> Work[None]:
        """Run the further rounds (``rounds=``): search the last volume again, with the notes found in the prompt."""
        if not self.finder.searches:
            return
        chunks = range(self.lease.volume_of(chunks_read - 1).start, chunks_read)
        for _ in range(1, self.settings.rounds):
            yield from self.stopwatch.run("prefill", self.lease.return_to(chunks_read))
            for state in states:
                yield from self.stopwatch.run("margins", self.finder.search_again(state, chunks))
            yield from self.revise(states)

    def revise(self, states: Sequence[QuestionState]) -> Work[None]:
        """Score all chunks by all passages read, and emit `MarginRevised` for each margin that changes.

        A margin that is no longer relevant loses its note, and one that became relevant gets a note. The last event
        about a margin holds its final state.
        """
        if not self.finder.revises:
            return
        batch = [
            PendingMargin(state, index)
            for state in states
            if not state.is_settled
            for index, margin in sorted(state.margins.items())
        ]
        self.finder.score_from_findings(batch)
        to_note, verbatim = [], self.settings.margin_style == "verbatim"
        for pending in batch:
            before = pending.state.margins[pending.index]
            had_note = bool(before.text) or before.kept
            if self.writer.is_relevant(pending) and (verbatim or not had_note):
                to_note.append(pending)  # quoting again needs no decoding, and may choose other sentences
            elif had_note and self.writer.is_relevant(pending):
                now = self.writer.margin(pending)
                evidence = {**before.evidence, **now.evidence}
                yield from _emit(replace(before, relevance=now.relevance, evidence=evidence), pending.state)
            else:
                yield from _emit(self.writer.margin(pending), pending.state)
        for _, group in itertools.groupby(to_note, key=lambda pending: self.lease.volume_of(pending.index)):
            yield from self._note(list(group))

    def _note(self, batch: Sequence[PendingMargin]) -> Work[None]:
        """Write the notes of margins of one volume."""
        if self.settings.margin_style == "free":
            yield from self.stopwatch.run("prefill", self.lease.return_to(batch[-1].index + 1))
        for pending in self.stopwatch.run("margins", self.writer.note_scored(batch)):
            if pending is None:
                yield None
                continue
            before = pending.state.margins[pending.index]
            if pending.text == before.text:  # then ``keep`` has already judged this note
                evidence = {} if pending.evidence is None else pending.evidence.signals
                relevance = pending.relevance or 0.0
                yield from _emit(replace(before, relevance=relevance, evidence=evidence), pending.state)
            else:
                yield from _emit(self.writer.margin(pending), pending.state)


def _emit(margin: Margin, state: QuestionState) -> Work[None]:
    """Replace a margin, and emit the new one if it differs."""
    before = state.margins[margin.index]
    state.margins[margin.index] = margin
    if (margin, dict(margin.evidence)) != (before, dict(before.evidence)):
        yield MarginRevised(margin, state.position)
