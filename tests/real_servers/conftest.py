"""Real servers of the families whose programs the environment names; the others' tests are skipped."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import Loaded
from launching import PROGRAMS, Program, RealServer, launched

pytest.importorskip("openai")


@pytest.fixture(scope="session", params=PROGRAMS, ids=lambda program: program.family)
def server(
    request: pytest.FixtureRequest, smollm2: Loaded, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealServer]:
    """Each server in turn, on the embedded model."""
    program: Program = request.param
    if not program.named:
        pytest.skip(f"{program.variable} names no program: `make {program.target}` sets one up")
    if program.path is None:
        pytest.fail(f"{program.variable} is set to {program.named!r}, and there is no such program")
    folder = smollm2[0].name_or_path
    assert Path(folder).is_dir(), "the embedded model is loaded from a converted copy"
    with launched(program, folder, tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="session")
def fresh() -> Callable[[], list[str]]:
    """Makes documents of four chunks that no server has read."""
    numbers = itertools.count(1)

    def make() -> list[str]:
        ship = next(numbers)
        return [
            f"Log of ship {ship}, part {part}. "
            + " ".join(
                f"At {hour} o'clock gull {hour} of ship {ship} sat on mast {part}." for hour in range(7)
            )
            + (" Elsa Brandt owned the ship, all of it." if part == 2 else "")
            for part in range(4)
        ]

    return make
