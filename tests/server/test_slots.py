"""What is known of llama.cpp's slot, whatever its server answers. With a real one: `tests/real_servers`."""

from __future__ import annotations

import asyncio

import pytest
from proxy import Proxy, http, proxied

from wim_kernel import ServerError
from wim_kernel.engines.server.slots import Slot
from wim_kernel.engines.server.transport import Server

ONE, OTHER, THIRD = list(range(100)), list(range(1000, 1100)), list(range(2000, 2100))


@pytest.fixture
def answering():
    """A server that saves and restores, and lets itself be told what to answer."""
    with proxied(9) as made:
        made.answers = {b"save": http(b'{"n_saved": 100}'), b"restore": http(b'{"n_restored": 100}')}
        yield made


@pytest.fixture
def slot(answering):
    return Slot(Server(f"http://127.0.0.1:{answering.port}/v1", None, 5.0, 1))


def asked(proxy: Proxy, action: bytes) -> int:
    return sum(b"action=" + action in head.split(b"\r\n")[0] for head in proxy.requests)


async def hold(slot: Slot, *documents: list[int]) -> None:
    for document in documents:
        async with slot.hold(document, len(document)) as is_read:
            is_read()


async def fail(slot: Slot, document: list[int], error: BaseException, *, begun: bool) -> None:
    async with slot.hold(document, len(document)) as is_read:
        if begun:
            is_read()
        raise error


async def test_slot_saves_and_restores_a_replaced_document(slot, answering):
    await hold(slot, ONE, OTHER)
    assert (asked(answering, b"save"), asked(answering, b"restore")) == (1, 0)
    await hold(slot, ONE)
    assert (asked(answering, b"save"), asked(answering, b"restore")) == (2, 1)


@pytest.mark.parametrize("begun", [False, True])
async def test_slot_content_is_unknown_after_a_failure(slot, answering, begun):
    await hold(slot, ONE)
    with pytest.raises(ServerError):
        await fail(slot, OTHER, ServerError("http://127.0.0.1:9/v1", "it failed"), begun=begun)
    await hold(slot, THIRD, OTHER)
    assert asked(answering, b"save") == 2  # the first, before the one that failed, and the third
    assert asked(answering, b"restore") == 0


async def test_slot_keeps_a_cancelled_requests_prefill(slot, answering):
    with pytest.raises(asyncio.CancelledError):
        await fail(slot, ONE, asyncio.CancelledError(), begun=True)
    await hold(slot, OTHER, ONE)
    assert asked(answering, b"restore") == 1


async def test_slot_save_that_fails_to_connect_is_tried_again(slot, answering):
    saves = answering.answers[b"save"]
    answering.answers[b"save"] = b""
    await hold(slot, ONE, OTHER)
    answering.answers[b"save"] = saves
    await hold(slot, THIRD, OTHER)
    assert asked(answering, b"restore") == 1


async def test_slot_save_is_tried_once_if_refused(slot, answering):
    answering.answers[b"save"] = http(b"{}", 501)
    await hold(slot, ONE, OTHER, THIRD, ONE)
    assert asked(answering, b"save") == 1
    assert slot.saves is False


@pytest.mark.parametrize(
    "reply", [b"[]", b"null", b'{"n_saved": null}', b'{"n_saved": 99}', b"<html>", b"{}"]
)
async def test_slot_does_not_restore_incomplete_files(slot, answering, reply):
    answering.answers[b"save"] = http(reply)
    await hold(slot, ONE, OTHER, ONE)
    assert asked(answering, b"save") == 2
    assert asked(answering, b"restore") == 0


@pytest.mark.parametrize("reply", [b'{"n_restored": 3}', b"[]", b'{"n_restored": null}'])
async def test_slot_forgets_files_that_restore_too_little(slot, answering, reply):
    await hold(slot, ONE, OTHER)
    answering.answers[b"restore"] = http(reply)
    await hold(slot, ONE, OTHER)
    assert asked(answering, b"save") == 3  # the first document once more
