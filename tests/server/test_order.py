"""The order in which branches run one by one, and the order in which their progress is reported."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from wim_kernel.engines.base import Decoded, Progress, Scores
from wim_kernel.engines.server.ordering import decode_one_by_one


@given(st.permutations(range(6)))
def test_decode_one_by_one_reports_in_the_callers_order(order):
    decoded = []

    def decode(index: int) -> Iterator[list[Progress]]:
        decoded.append(index)
        yield []
        yield [Progress(0, str(index))]
        yield [Progress(0, done=Decoded(Scores(), ()))]

    progress = [item for step in decode_one_by_one(decode, order) for item in step]
    assert decoded == order
    assert [item.branch for item in progress] == [index for index in range(6) for _ in range(2)]
    assert [item.text for item in progress[::2]] == list(map(str, range(6)))
    assert all(item.done is not None for item in progress[1::2])


def test_decode_one_by_one_reports_at_once_what_is_first():
    steps = decode_one_by_one(lambda index: iter([[Progress(0, "a")], [Progress(0, "b")]]), [0])
    assert next(steps) == [Progress(0, "a")]
