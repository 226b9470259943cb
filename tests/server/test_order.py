"""The order in which branches run one by one, and the order in which their progress is reported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig

from wim_kernel.engines.base import Branch, Decoded, Progress, Scores
from wim_kernel.engines.server.codecs import CharacterCodec
from wim_kernel.engines.server.engine import ServerEngine
from wim_kernel.engines.server.families import FAMILIES
from wim_kernel.engines.server.ordering import decode_one_by_one, sequential_order
from wim_kernel.engines.server.prefixes import ServerPrefix
from wim_kernel.run.decoding import decode_all


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


class FakeBranches:
    """Records requests in place of sending them; answers each branch with its boundary."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, int]] = []

    def check(self, generation):
        pass

    async def score(self, prefix, state, emit):
        emit(state)

    async def decide(self, prefix, state, emit):
        self.requests.append(("decide", state.branch.at))
        state.scores = replace(state.scores, choices=(state.branch.at / 10, 1 - state.branch.at / 10))
        emit(state)

    async def write(self, prefix, state, emit, gate=None):
        assert gate is None
        self.requests.append(("write", state.branch.at))
        emit(Progress(state.index, str(state.branch.at)))
        emit(state.done(str(state.branch.at), generated=True))


def engine_of(family: str, *, measures_likelihood: bool = False) -> ServerEngine:
    kind = type("Engine", (ServerEngine,), {"measures_likelihood": measures_likelihood})
    engine = object.__new__(kind)
    engine.family, engine.codec, engine._branches = FAMILIES[family], CharacterCodec(), FakeBranches()
    engine.route = "tokens"
    return engine


def read(tokens: int) -> ServerPrefix:
    """A prefix that a server has read."""
    return ServerPrefix(None, range(tokens), tokens)


def test_decode_on_a_sequential_server_reads_on_between_branches():
    assert sequential_order([3, 9, 1, 7], 0) == [2, 0, 3, 1]
    assert sequential_order([3, 9, 1, 7], 4) == [0, 2, 3, 1]
    assert sequential_order([3, 9, 1, 7], 9) == [1, 3, 0, 2]


@pytest.mark.parametrize(
    ("measures_likelihood", "order"),
    [(False, [9, 7, 3, 1]), (True, [3, 9, 1, 7])],
    ids=["sorted", "as given"],
)
def test_decode_on_a_sequential_server_ends_a_branch_before_the_next(measures_likelihood, order):
    engine, asked = engine_of("llama.cpp", measures_likelihood=measures_likelihood), []
    branches = [
        Branch(at, (), scored=0, choices=("YES", "NO"), generation=GenerationConfig(max_new_tokens=4))
        for at in (3, 9, 1, 7)
    ]

    def gate(indices, scores):
        asked.append(list(indices))
        return [score.choices[0] > 0.5 for score in scores]

    progress = [item for step in engine.decode(read(10), branches, gate) for item in step]
    expected = [[("decide", at), *([("write", at)] if at > 5 else [])] for at in order]
    assert engine._branches.requests == [request for requests in expected for request in requests]
    assert asked == [[[3, 9, 1, 7].index(at)] for at in order]
    done = [(item.branch, item.done.text, item.done.generated) for item in progress if item.done is not None]
    assert done == [(0, "", False), (1, "9", True), (2, "", False), (3, "7", True)]


def test_decode_on_a_sequential_server_takes_the_longest_first():
    engine = engine_of("llama.cpp")
    engine.max_branches = engine.family.max_branches
    branches = [Branch(at, (), choices=("YES", "NO")) for at in range(300)]
    for _ in decode_all(engine, read(300), branches):
        pass
    assert engine._branches.requests == [("decide", at) for at in reversed(range(300))]


def test_decode_on_other_servers_sends_requests_together():
    engine, asked = engine_of("vllm"), []
    branches = [Branch(at, (), choices=("YES", "NO")) for at in (3, 9)]
    gate = lambda indices, scores: asked.append(list(indices)) or [True, True]  # noqa: E731
    progress = [item for step in engine.decode(ServerPrefix(), branches, gate) for item in step]
    assert engine._branches.requests == [("decide", 9), ("decide", 3)]
    assert asked == [[0, 1]]
    assert [item.branch for item in progress] == [0, 1]
