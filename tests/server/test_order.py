"""In which order branches are run where an engine takes one at a time, and in which they are told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wim_kernel.engines.base import Branch, Decoded, Progress, Scores
from wim_kernel.run.decoding import decode_all


class Noting:
    """An engine that notes what it is asked, and answers each branch with its boundary."""

    def __init__(self, max_branches: int, *, measures_likelihood: bool = False) -> None:
        self.max_branches = max_branches
        self.measures_likelihood = measures_likelihood
        self.asked: list[int] = []

    def decode(self, prefix: object, branches: Sequence[Branch], gate: object) -> Iterator[list[Progress]]:
        self.asked += [branch.at for branch in branches]
        yield [Progress(place, str(branch.at)) for place, branch in enumerate(branches)]
        yield [Progress(place, done=Decoded(Scores(), ())) for place in range(len(branches))]


@given(st.lists(st.integers(0, 9), max_size=8))
def test_the_longest_prefix_comes_first_and_is_told_in_its_turn(boundaries):
    engine = Noting(1)
    branches = [Branch(at, ()) for at in boundaries]
    told = [item for step in decode_all(engine, None, branches) for item in step]
    assert engine.asked == sorted(boundaries, reverse=True)
    assert [item.branch for item in told] == [place for place in range(len(boundaries)) for _ in range(2)]
    assert [item.text for item in told[::2]] == [str(at) for at in boundaries]
    assert all(item.done is not None for item in told[1::2])


@pytest.mark.parametrize("engine", [Noting(2), Noting(1, measures_likelihood=True)])
def test_others_are_run_as_they_come(engine):
    told = [step for step in decode_all(engine, None, [Branch(at, ()) for at in (1, 3, 2)])]
    assert engine.asked == [1, 3, 2]
    assert sum(map(len, told)) == 6
