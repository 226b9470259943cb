"""A chat model by script, and waiting for what happens in other threads."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping
from typing import Any

from wim_kernel.engines.chat.backend import Billed, ChatRequest, Piece


def wait_until(holds: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait for a condition of the server's.

    Raises:
        AssertionError: if it does not come.
    """
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "the condition did not come"
        time.sleep(0.01)


class Script:
    """A chat model whose replies and pace the test decides.

    Attributes:
        quotes: what it quotes, by a word of the chunk; nothing of others.
        answers: its answers, by a word of the question.
        asked: the requests that came.
        closed: set when an answer was closed before its end.
    """

    name = "script"
    kind = "Script"
    host = ""
    window = None

    def __init__(self, quotes: Mapping[str, str], answers: Mapping[str, Any]) -> None:
        self.quotes = dict(quotes)
        self.answers = dict(answers)
        self.asked: list[ChatRequest] = []
        self.closed = threading.Event()
        self._gates: dict[str, threading.Event] = defaultdict(threading.Event)
        self._held: set[str] = set()

    def hold(self, word: str) -> threading.Event:
        """Hold back the replies about a chunk or a question until the event is set."""
        self._held.add(word)
        return self._gates[word]

    @property
    def prompts(self) -> list[str]:
        """The last part of every request for an answer."""
        return [text for text in (each.blocks[-1].text for each in self.asked) if "Answer the" in text]

    def stream(self, request: ChatRequest) -> Generator[Piece, None, None]:
        """Reply, when the test lets it."""
        self.asked.append(request)
        prompt, passage = request.blocks[-1].text, request.blocks[-2].text
        is_answer = "Answer the" in prompt
        about = prompt if is_answer else passage
        for word in self._held:
            if word in about:
                assert self._gates[word].wait(60)
        if not is_answer:
            quote = next((quote for word, quote in self.quotes.items() if word in passage), None)
            rated = {"relevance": 8 if quote else 1, "quotes": [quote] if quote else []}
            yield Piece(json.dumps(rated), Billed(100, 10))
            return
        answer = next(said for word, said in self.answers.items() if word in prompt.rsplit("Question:", 1)[1])
        try:
            for piece in answer() if callable(answer) else answer.split(" "):
                yield Piece(f"{piece} ", Billed(0, 1))
        except GeneratorExit:
            self.closed.set()
            raise

    def structured(self, request: ChatRequest, schema: Mapping[str, Any]) -> Piece:
        """It takes no schemas."""
        raise NotImplementedError
