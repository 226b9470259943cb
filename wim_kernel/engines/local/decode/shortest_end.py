"""Finds the shortest end of a JSON text under a grammar, by Dijkstra's search in steps of a byte.

The search asks the grammar only which tokens are allowed next. A value that may end is ended, since nothing after it
depends on its content; so the search branches only at the beginning of values, between keys, and within strings and
numbers that must go on. States that allow the same tokens at the same position of the JSON are treated as equal.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import numpy as np

from wim_kernel.engines.local.decode.pattern_samples import completions

MOST_STEPS = 10_000
"""Most bytes that one search may try; that takes about a second."""
_ENDS = b"}],"
_PLAIN = {bytes([byte]) for byte in range(32, 127)} - {b'"', b"\\"}


@dataclass(frozen=True)
class JsonPosition:
    """A position in the structure of a JSON text.

    Attributes:
        open: for each open array and object, the number of its commas so far.
        in_string: whether the position is within a string.
        escaped: whether the previous byte is a backslash that escapes the next.
        since: number of bytes since the current scalar began.
        scalar: the number or word begun so far. Positions that differ in it alone count as one.
    """

    open: tuple[int, ...] = ()
    in_string: bool = False
    escaped: bool = False
    since: int = 0
    scalar: bytes = field(default=b"", compare=False)

    def after(self, text: bytes) -> JsonPosition:
        """The position after more text."""
        position = self
        for byte in text:
            position = position._after(byte)
        return position

    def _after(self, byte: int) -> JsonPosition:
        if self.in_string:
            if self.escaped:
                return replace(self, escaped=False, since=self.since + 1)
            if byte == ord('"'):
                return JsonPosition(self.open)
            return replace(self, escaped=byte == ord("\\"), since=self.since + 1)
        match chr(byte):
            case '"':
                return JsonPosition(self.open, in_string=True)
            case "{" | "[":
                return JsonPosition((*self.open, 0))
            case "}" | "]":
                return JsonPosition(self.open[:-1])
            case ",":
                return JsonPosition((*self.open[:-1], self.open[-1] + 1) if self.open else ())
            case ":":
                return JsonPosition(self.open)
        return replace(self, since=self.since + 1, scalar=self.scalar + bytes([byte]))


@dataclass(frozen=True)
class _State:
    matcher: Any
    position: JsonPosition
    text: bytes


def _is_end(state: _State) -> bool:
    return bool(state.matcher.is_accepting())


class ShortestEnds:
    """Searches for ends under one grammar; caches what the grammar allows.

    Args:
        tokens: the tokenizer as llguidance's object.
        hints: texts to try within strings, whose progress through a pattern the allowed tokens may not show.
        multiples: what numbers have to be multiples of, for the same reason.
    """

    def __init__(self, tokens: Any, hints: Sequence[bytes] = (), multiples: Sequence[Decimal] = ()) -> None:
        self.tokens = tokens
        self.hints = hints
        self.multiples = multiples
        self._byte_tokens = _single_bytes(tokens)
        self._choices_by_mask: dict[bytes, list[bytes]] = {}
        self._searches_by_value = False  # set once a search over the whole rest has failed
        self.steps = 0  # of the last search

    def find(self, matcher: Any, position: JsonPosition) -> list[int] | None:
        """About the fewest tokens that complete a text; None if the search takes too many steps.

        Args:
            matcher: the grammar's state, which is not changed.
            position: the position in the JSON text.
        """
        begin = _State(matcher.deep_copy(), position, b"")
        found = None if self._searches_by_value else self._search(begin, _is_end, MOST_STEPS // 4)
        if found is None:
            self._searches_by_value = True
            found = self._search_by_value(begin)
        return None if found is None else self._tokenized(matcher, found.text)

    def _search_by_value(self, state: _State) -> _State | None:
        """An end that is shortest value by value, where consecutive choices are too many to search at once.

        A value that is a member of a currently open array or object is searched as a whole.
        """
        left, depth = MOST_STEPS, max(1, len(state.position.open))
        while not _is_end(state):
            depth = max(1, min(depth, len(state.position.open)))
            before = state.position.open[:depth]

            def is_behind_a_value(
                other: _State, depth: int = depth, before: tuple[int, ...] = before
            ) -> bool:
                return _is_end(other) or other.position.open[:depth] != before

            successor = self._search(state, is_behind_a_value, left)
            left -= self.steps
            if successor is None:
                return None
            state = successor
        return state

    def _search(self, begin: _State, is_goal: Callable[[_State], bool], most: int) -> _State | None:
        """The nearest state for which ``is_goal`` is true; None if there is none within ``most`` steps."""
        self.steps = 0
        ticket = itertools.count()
        queue = [(0, next(ticket), begin)]
        seen: set[tuple[bytes, JsonPosition]] = set()
        while queue and self.steps < most:
            _, _, state = heapq.heappop(queue)
            if is_goal(state):
                return state
            mask = state.matcher.compute_bitmask()
            if (mask, state.position) in seen:
                continue
            seen.add((mask, state.position))
            for successor in self._successors(state, mask):
                heapq.heappush(queue, (len(successor.text), next(ticket), successor))
        return None

    def ending(self, matcher: Any, position: JsonPosition) -> list[int]:
        """The token that ends the current value, as a list; empty if the value may not end now."""
        state, mask = _State(matcher, position, b""), matcher.compute_bitmask()
        return [
            token
            for byte in self._ending(state, _bits(mask))
            if (token := self._byte_tokens.get(byte)) is not None
        ]

    def _successors(self, state: _State, mask: bytes) -> Iterator[_State]:
        forced = state.matcher.compute_ff_bytes()
        if forced:
            successor = self._step(state, forced)
            if successor is not None:
                yield successor
                return
        for text in self._choices(state, mask):
            successor = self._step(state, text)
            if successor is not None:
                yield successor

    def _choices(self, state: _State, mask: bytes) -> list[bytes]:
        """The texts to try next: what ends the current value, or one text for each distinct set of successors."""
        bits = _bits(mask)
        ending = self._ending(state, bits)
        if ending:
            return [ending]
        for hint in self.hints if state.position.in_string else self._multiples(state.position.scalar):
            if self._can_end(self._step(state, hint)):
                return [hint]
        if mask in self._choices_by_mask:
            return self._choices_by_mask[mask]
        allowed = [bytes([byte]) for byte, token in self._byte_tokens.items() if bits[token]]
        if state.position.in_string:
            # plain characters suffice where they are allowed: any string that begins with them can be ended
            allowed = [*self.hints, *([text for text in allowed if text in _PLAIN] or allowed)]
        found: dict[bytes, bytes] = {}
        for text in allowed or self._short_tokens(bits):
            successor = self._step(state, text)
            if successor is not None:
                found.setdefault(successor.matcher.compute_bitmask(), text)
        self._choices_by_mask[mask] = list(found.values())
        return self._choices_by_mask[mask]

    def _multiples(self, begun: bytes) -> list[bytes]:
        """Texts that complete a begun number to an allowed multiple, shortest first."""
        found = {text for step in self.multiples for text in completions(begun, step)}
        return sorted(found, key=len)

    def _can_end(self, state: _State | None) -> bool:
        if state is None:
            return False
        return bool(self._ending(state, _bits(state.matcher.compute_bitmask()))) or _is_end(state)

    def _ending(self, state: _State, bits: Any) -> bytes:
        """The byte that ends the current value; empty if the value may not end now."""
        ends = _ENDS if not state.position.in_string else b"" if state.position.escaped else b'"'
        for byte in ends:
            token = self._byte_tokens.get(byte)
            if token is not None and bits[token]:
                return bytes([byte])
        return b""

    def _short_tokens(self, bits: Any) -> list[bytes]:
        """The texts of the shortest allowed tokens, for tokenizers without tokens for the single bytes."""
        allowed = np.flatnonzero(bits)[:4096].tolist()
        texts = sorted({self.tokens.decode_bytes([token]) for token in allowed} - {b""}, key=len)
        return texts[:64]

    def _step(self, state: _State, text: bytes) -> _State | None:
        self.steps += 1 + len(text) // 16
        matcher = state.matcher.deep_copy()
        tokens = self.tokens.tokenize_bytes(text)
        if matcher.try_consume_tokens(tokens) != len(tokens):
            return None
        return _State(matcher, state.position.after(text), state.text + text)

    def _tokenized(self, matcher: Any, text: bytes) -> list[int]:
        """The tokenizer's tokens of a text, if the grammar accepts them; else tokens byte by byte."""
        tokens: list[int] = self.tokens.tokenize_bytes(text)
        if matcher.validate_tokens(tokens) == len(tokens):
            return tokens
        return [token for byte in text for token in self.tokens.tokenize_bytes(bytes([byte]))]


def _bits(mask: bytes) -> Any:
    return np.unpackbits(np.frombuffer(mask, dtype=np.uint8), bitorder="little")


def _single_bytes(tokens: Any) -> dict[int, int]:
    """The token of each byte that has a token of its own."""
    found = {}
    for byte in range(256):
        ids = tokens.tokenize_bytes(bytes([byte]))
        if len(ids) == 1 and tokens.decode_bytes(ids) == bytes([byte]):
            found[byte] = ids[0]
    return found
