"""What holds on llama.cpp alone: one prompt at a time, which is saved on the server or read again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from helpers import config
from launching import launched

from wim_kernel import MarginWritten
from wim_kernel.engines.server.transport import Server

pytestmark = pytest.mark.slow

QUESTION = "Who owned the ship?"
OPTIONS = {"threshold": 0, "margin_config": config(4), "answer_config": config(4)}


@pytest.fixture
def program(server):
    if server.program.family != "llama.cpp":
        pytest.skip("about llama.cpp")
    return server.program


def slot_actions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The actions on slots from now on: "save" and "restore"."""
    actions: list[str] = []
    post = Server.post

    async def noting(self: Server, path: str, body: dict) -> tuple:
        actions.append(path.rpartition("=")[2])
        return await post(self, path, body)

    monkeypatch.setattr(Server, "post", noting)
    return actions


def test_document_is_saved_before_another_replaces_it(program, server, fresh):
    kernel = server.kernel()
    one, other = kernel.read(fresh()), kernel.read(fresh())
    for reading in (one, other):
        reading.ask(QUESTION, **OPTIONS)
    before = server.counted()
    result = one.ask("Where did the gull sit?", **OPTIONS)
    counted = server.counted() - before
    assert result.usage.prefill_tokens <= 9
    assert counted.computed < one.tokens
    assert counted.computed <= result.usage.prompt_tokens + 9  # nothing but the questions


def test_later_question_saves_and_restores_once(program, server, fresh, monkeypatch):
    reading = server.kernel().read(fresh())
    reading.ask(QUESTION, **OPTIONS)
    actions = slot_actions(monkeypatch)
    events = list(reading.stream("Where did the gull sit?", **OPTIONS))
    assert actions == ["save", "restore"]
    assert [event.margin.index for event in events if isinstance(event, MarginWritten)] == [0, 1, 2, 3]


def test_passages_read_alone_in_the_only_slot_keep_the_document(program, server, fresh, monkeypatch):
    reading = server.kernel().read(fresh())
    reading.ask(QUESTION, **OPTIONS)
    actions = slot_actions(monkeypatch)
    before = server.counted()
    result = reading.ask("Whose property was that vessel?", **OPTIONS)  # in other words than the text
    counted = server.counted() - before
    assert any("passage" in margin.evidence for margin in result.margins)
    assert actions == ["save", "restore", "restore"]  # behind the passages, and behind the notes
    assert result.usage.prefill_tokens <= 9
    assert counted.computed == result.usage.prompt_tokens + result.usage.prefill_tokens


def test_document_is_read_again_without_a_slot_folder(program, server, fresh, tmp_path):
    def flags(folder: str, port: int, kept: Path) -> list[str]:
        given = program.flags(folder, port, kept)
        where = given.index("--slot-save-path")
        return [*given[:where], *given[where + 2 :]]

    with launched(replace(program, flags=flags), server.folder, tmp_path) as forgetful:
        kernel = forgetful.kernel()
        reading = kernel.read(fresh())
        first = reading.ask(QUESTION, **OPTIONS)
        before = forgetful.counted()
        second = reading.ask("Where did the gull sit?", **OPTIONS)
        counted = forgetful.counted() - before
    behind_the_first = reading.tokens - reading.document.tokens.size(0)
    assert first.usage.prefill_tokens >= reading.tokens - 8
    assert second.usage.prefill_tokens == pytest.approx(behind_the_first, abs=16)
    assert counted.computed <= behind_the_first + second.usage.prompt_tokens + 16
