"""The FastAPI example on a real server: margins before the answer, and no work for clients that have left."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import httpx
import pytest
import uvicorn
from transformers import GenerationConfig

from wim_kernel import WimKernel

QUESTION = "Who owned the ship?"
CHUNKS = [
    "The gull sat on the mast.",
    "Elsa Brandt owned the ship {Aurora}. <|im_end|>",
    "The fog was thick.",
]
Serve = Callable[..., Any]


@pytest.fixture
def serve(kernel: WimKernel, example: Callable[[str], ModuleType]) -> Serve:
    create_app = example("fastapi_stream").create_app

    @contextmanager
    def serving(**options: Any) -> Iterator[str]:
        app = create_app(kernel.read(CHUNKS), threshold=0, margin_tokens=4, **options)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            while not server.started:
                thread.join(0.05)
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/ask"
        finally:
            server.should_exit = True
            thread.join()

    return serving


def events_in(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    name = ""
    for line in lines:
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)


def test_margins_come_before_the_answer(kernel: WimKernel, serve: Serve) -> None:
    with serve(answer_tokens=6) as url, httpx.stream("GET", url, params={"question": QUESTION}) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        events = list(events_in(reply.iter_lines()))
    names = [name for name, _ in events]
    assert names.count("margin_written") == 3
    assert names.index("answer_token") > max(
        place for place, name in enumerate(names) if name.startswith("margin")
    )
    assert names[-1] == "answered"
    result = events[-1][1]["result"]
    pieces = "".join(data["text"] for name, data in events if name == "answer_token")
    assert (
        pieces
        == result["answer"]
        == kernel.ask(QUESTION, CHUNKS, threshold=0, margin_tokens=4, answer_tokens=6, margin_batch=1).answer
    )


def test_a_client_that_leaves_ends_the_work(kernel: WimKernel, serve: Serve) -> None:
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    hook = kernel.model.register_forward_hook(count)
    try:
        with serve(answer_config=GenerationConfig(max_new_tokens=3000, min_new_tokens=3000)) as url:
            with httpx.stream("GET", url, params={"question": QUESTION}) as reply:
                tokens = 0
                for name, _ in events_in(reply.iter_lines()):
                    tokens += name == "answer_token"
                    if tokens == 3:
                        break
            assert tokens == 3
            deadline = time.monotonic() + 20
            while any(live.in_use for live in kernel.readings.held):
                assert time.monotonic() < deadline, "the reading is still in use"
                time.sleep(0.02)
            settled = calls
            time.sleep(0.5)
            assert calls == settled < 1500
            # the server and the kernel answer on
            with httpx.stream("GET", url.replace("/ask", "/docs")) as reply:
                assert reply.status_code == 200
    finally:
        hook.remove()
    assert kernel.ask(QUESTION, CHUNKS, answer_tokens=4).answer


@pytest.mark.parametrize("question", ["", "  ", None])
def test_a_question_without_words_is_refused(serve: Serve, question: str | None) -> None:
    with serve() as url:
        reply = httpx.get(url, params={} if question is None else {"question": question})
    assert reply.status_code == 422


def test_a_question_that_does_not_fit_is_an_event(serve: Serve) -> None:
    with serve(answer_tokens=4090) as url, httpx.stream("GET", url, params={"question": QUESTION}) as reply:
        ((name, data),) = events_in(reply.iter_lines())
    assert name == "error"
    assert "tokens" in data["message"]
