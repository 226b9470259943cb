"""The shortest way from where a text under a grammar stands to an end of it: Dijkstra's search, in steps of a byte.

The grammar is only ever asked which tokens may come next. Where the value under way may end, it does, since nothing
that follows it depends on what it holds; so the search branches only where a value begins, between keys, and within
strings and numbers that must go on. States that allow the same tokens at the same place of the JSON count as one.
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
"""Bytes that one search may try, which takes about a second."""
_ENDS = b"}],"
_PLAIN = {bytes([byte]) for byte in range(32, 127)} - {b'"', b"\\"}


@dataclass(frozen=True)
class Place:
    """Where in a JSON text something stands.

    Attributes:
        open: for each array and object that is open, how many commas it has had.
        in_string: whether this is within a string.
        escaped: whether the byte before was a backslash that escapes the next.
        since: bytes since the string or other scalar began.
        scalar: the number or word under way. Places that differ in it alone count as one.
    """

    open: tuple[int, ...] = ()
    in_string: bool = False
    escaped: bool = False
    since: int = 0
    scalar: bytes = field(default=b"", compare=False)

    def after(self, text: bytes) -> Place:
        """The place behind more text."""
        place = self
        for byte in text:
            place = place._after(byte)
        return place

    def _after(self, byte: int) -> Place:
        if self.in_string:
            if self.escaped:
                return replace(self, escaped=False, since=self.since + 1)
            if byte == ord('"'):
                return Place(self.open)
            return replace(self, escaped=byte == ord("\\"), since=self.since + 1)
        match chr(byte):
            case '"':
                return Place(self.open, in_string=True)
            case "{" | "[":
                return Place((*self.open, 0))
            case "}" | "]":
                return Place(self.open[:-1])
            case ",":
                return Place((*self.open[:-1], self.open[-1] + 1) if self.open else ())
            case ":":
                return Place(self.open)
        return replace(self, since=self.since + 1, scalar=self.scalar + bytes([byte]))


@dataclass(frozen=True)
class _State:
    matcher: Any
    place: Place
    text: bytes


def _is_end(state: _State) -> bool:
    return bool(state.matcher.is_accepting())


class ShortestWays:
    """Searches one grammar, and keeps what it learns of it.

    Args:
        tokens: llguidance's view of the tokenizer.
        hints: texts to try within strings: how far a pattern has got does not always show in what may come next.
        multiples: what numbers are to be multiples of, for the same reason.
    """

    def __init__(self, tokens: Any, hints: Sequence[bytes] = (), multiples: Sequence[Decimal] = ()) -> None:
        self.tokens = tokens
        self.hints = hints
        self.multiples = multiples
        self._single = _single_bytes(tokens)
        self._distinct: dict[bytes, list[bytes]] = {}
        self._by_values = False  # whether there are too many choices to weigh all together
        self.steps = 0  # of the last search

    def find(self, matcher: Any, place: Place) -> list[int] | None:
        """Tokens that bring a text to an end, about the fewest; None if the search took too many steps.

        Args:
            matcher: the grammar's state; left as it is.
            place: where in the JSON that is.
        """
        begin = _State(matcher.deep_copy(), place, b"")
        found = None if self._by_values else self._search(begin, _is_end, MOST_STEPS // 4)
        if found is None:
            self._by_values = True
            found = self._value_by_value(begin)
        return None if found is None else self._tokenized(matcher, found.text)

    def _value_by_value(self, state: _State) -> _State | None:
        """An end by the shortest way through each value on its own: many choices that follow each other add up.

        Each value that is a member of something now open is looked at whole, however much it holds itself.
        """
        left, depth = MOST_STEPS, max(1, len(state.place.open))
        while not _is_end(state):
            depth = max(1, min(depth, len(state.place.open)))
            before = state.place.open[:depth]

            def is_behind_a_value(
                other: _State, depth: int = depth, before: tuple[int, ...] = before
            ) -> bool:
                return _is_end(other) or other.place.open[:depth] != before

            following = self._search(state, is_behind_a_value, left)
            left -= self.steps
            if following is None:
                return None
            state = following
        return state

    def _search(self, begin: _State, is_goal: Callable[[_State], bool], most: int) -> _State | None:
        """The nearest state that is a goal."""
        self.steps = 0
        ticket = itertools.count()
        queue = [(0, next(ticket), begin)]
        seen: set[tuple[bytes, Place]] = set()
        while queue and self.steps < most:
            _, _, state = heapq.heappop(queue)
            if is_goal(state):
                return state
            mask = state.matcher.compute_bitmask()
            if (mask, state.place) in seen:
                continue
            seen.add((mask, state.place))
            for following in self._following(state, mask):
                heapq.heappush(queue, (len(following.text), next(ticket), following))
        return None

    def ending(self, matcher: Any, place: Place) -> list[int]:
        """The token that ends the value under way, if it may end now."""
        state, mask = _State(matcher, place, b""), matcher.compute_bitmask()
        return [
            token
            for byte in self._ending(state, _bits(mask))
            if (token := self._single.get(byte)) is not None
        ]

    def _following(self, state: _State, mask: bytes) -> Iterator[_State]:
        forced = state.matcher.compute_ff_bytes()
        if forced:
            following = self._step(state, forced)
            if following is not None:
                yield following
                return
        for text in self._choices(state, mask):
            following = self._step(state, text)
            if following is not None:
                yield following

    def _choices(self, state: _State, mask: bytes) -> list[bytes]:
        """What to try next: what ends the value under way, or one text of each kind that leads somewhere else."""
        bits = _bits(mask)
        ending = self._ending(state, bits)
        if ending:
            return [ending]
        for hint in self.hints if state.place.in_string else self._multiples(state.place.scalar):
            if self._can_end(self._step(state, hint)):
                return [hint]
        if mask in self._distinct:
            return self._distinct[mask]
        allowed = [bytes([byte]) for byte, token in self._single.items() if bits[token]]
        if (
            state.place.in_string
        ):  # every string that may begin so can be ended, by these alone where they may come
            allowed = [*self.hints, *([text for text in allowed if text in _PLAIN] or allowed)]
        found: dict[bytes, bytes] = {}
        for text in allowed or self._longer(bits):
            following = self._step(state, text)
            if following is not None:
                found.setdefault(following.matcher.compute_bitmask(), text)
        self._distinct[mask] = list(found.values())
        return self._distinct[mask]

    def _multiples(self, begun: bytes) -> list[bytes]:
        """What makes a number that was begun a multiple of what it is to be one of, the shortest first."""
        found = {text for step in self.multiples for text in completions(begun, step)}
        return sorted(found, key=len)

    def _can_end(self, state: _State | None) -> bool:
        if state is None:
            return False
        return bool(self._ending(state, _bits(state.matcher.compute_bitmask()))) or _is_end(state)

    def _ending(self, state: _State, bits: Any) -> bytes:
        """The byte that ends the value under way, if it may end now."""
        ends = _ENDS if not state.place.in_string else b"" if state.place.escaped else b'"'
        for byte in ends:
            token = self._single.get(byte)
            if token is not None and bits[token]:
                return bytes([byte])
        return b""

    def _longer(self, bits: Any) -> list[bytes]:
        """The shortest of the allowed tokens, where the tokenizer has none for the bytes that are wanted."""
        allowed = np.flatnonzero(bits)[:4096].tolist()
        texts = sorted({self.tokens.decode_bytes([token]) for token in allowed} - {b""}, key=len)
        return texts[:64]

    def _step(self, state: _State, text: bytes) -> _State | None:
        self.steps += 1 + len(text) // 16
        matcher = state.matcher.deep_copy()
        tokens = self.tokens.tokenize_bytes(text)
        if matcher.try_consume_tokens(tokens) != len(tokens):
            return None
        return _State(matcher, state.place.after(text), state.text + text)

    def _tokenized(self, matcher: Any, text: bytes) -> list[int]:
        """As few tokens as the tokenizer makes of a text, if the grammar takes them."""
        tokens: list[int] = self.tokens.tokenize_bytes(text)
        if matcher.validate_tokens(tokens) == len(tokens):
            return tokens
        return [token for byte in text for token in self.tokens.tokenize_bytes(bytes([byte]))]


def _bits(mask: bytes) -> Any:
    return np.unpackbits(np.frombuffer(mask, dtype=np.uint8), bitorder="little")


def _single_bytes(tokens: Any) -> dict[int, int]:
    """The token of every byte that has one of its own."""
    found = {}
    for byte in range(256):
        ids = tokens.tokenize_bytes(bytes([byte]))
        if len(ids) == 1 and tokens.decode_bytes(ids) == bytes([byte]):
            found[byte] = ids[0]
    return found
