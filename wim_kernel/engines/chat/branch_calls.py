"""Makes a branch's request, and brings its reply into the shape that was asked for."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from wim_kernel.common.errors import ChatModelError, WimError
from wim_kernel.engines.base import Branch
from wim_kernel.engines.chat import codec
from wim_kernel.engines.chat.backend import Billed, Block, ChatBackend, ChatRequest, Piece
from wim_kernel.engines.chat.layout import request_of
from wim_kernel.engines.chat.prefixes import ChatPrefix
from wim_kernel.engines.chat.providers import Provider
from wim_kernel.engines.chat.replies import SCHEMAS, fits, json_in
from wim_kernel.engines.chat.reuse import Reuse


@dataclass(frozen=True)
class Reply:
    """A finished reply: its text, its data if it was asked for under a schema, and its bill."""

    text: str
    data: Any = None
    billed: Billed | None = None


@dataclass(frozen=True)
class Item:
    """What a call yields: new text of a branch, or its reply."""

    index: int
    text: str = ""
    reply: Reply | None = None


class BranchCalls:
    """Makes the requests of branches.

    Args:
        backend: the chat model.
        provider: the provider, whose cache decides how a request is laid out.
        reuse: counts what the cache gave.
        structured: whether ratings and data are asked for under a schema.
    """

    def __init__(self, backend: ChatBackend, provider: Provider, reuse: Reuse, *, structured: bool) -> None:
        self.backend = backend
        self.provider = provider
        self.reuse = reuse
        self._structured = structured

    def call(self, prefix: ChatPrefix, index: int, branch: Branch) -> Generator[Item, None, None]:
        """Make a branch's request; yields new text of an answer as it comes, and last the reply."""
        try:
            request = request_of(prefix, branch, self.provider)
            warm = max(self.warm(prefix, branch.at), default=0)
            shows = not (branch.rates or branch.choices or branch.json_schema)
            text, billed, data = "", None, None
            for piece in self._pieces(request, branch):
                self._touch(prefix, branch.at, warm)
                text, billed = text + piece.text, piece.billed or billed
                data = piece.data if piece.data is not None else data
                yield Item(index, piece.text if shows else "")
            if billed is not None:
                self.reuse.record(billed, branch.at + len(suffix_ids(branch)), warm)
            reply = Reply(text, data, billed)
            if branch.json_schema is not None:
                reply = self._fitting(reply, json.loads(branch.json_schema))
                yield Item(index, reply.text)
        except (WimError, GeneratorExit):
            raise
        except Exception as error:
            raise ChatModelError(self.backend.name, error) from error
        yield Item(index, reply=reply)

    def _pieces(self, request: ChatRequest, branch: Branch) -> Generator[Piece, None, None]:
        """The reply to a request, under a schema if the branch asks for data and the model takes schemas."""
        schema = SCHEMAS[branch.rates] if branch.rates else json.loads(branch.json_schema or "null")
        if schema is not None and self._structured:
            try:
                yield self.backend.structured(request, schema)
                return
            except Exception as error:
                if not _refuses_schemas(error):
                    raise
                self._structured = False  # from now on the prompt alone asks for it
        yield from self.backend.stream(request)

    def _fitting(self, reply: Reply, schema: dict[str, Any]) -> Reply:
        """A reply as JSON that fits a schema. If it does not, the model puts it into shape, without the document.

        Raises:
            ChatModelError: if that fails, too.
        """
        for again in (False, True):
            data = reply.data if reply.data is not None else json_in(reply.text)
            if data is not None and fits(data, schema):
                return Reply(json.dumps(data, ensure_ascii=False), data, reply.billed)
            if again:
                break
            wants = (
                f"Put this into JSON that fits the schema, and reply with that alone: {json.dumps(schema)}"
            )
            request = ChatRequest("", [Block(f"{reply.text}\n\n{wants}")])
            try:
                piece = self.backend.structured(request, schema)
            except Exception as error:
                if not _refuses_schemas(error):
                    raise
                pieces = list(self.backend.stream(request))
                billed = next((each.billed for each in reversed(pieces) if each.billed), None)
                piece = Piece("".join(each.text for each in pieces), billed)
            reply = Reply(piece.text, piece.data, _sum(reply.billed, piece.billed))
        raise ChatModelError(
            self.backend.name, ValueError(f"its reply does not fit the schema: {reply.text[:200]!r}")
        )

    def warm(self, prefix: ChatPrefix, at: int) -> list[int]:
        """The boundaries up to ``at`` that the provider's cache should hold."""
        return prefix.warm(at, self.provider.seconds) if self.provider.caches else []

    def _touch(self, prefix: ChatPrefix, at: int, warm: int) -> None:
        """Record what a request that has begun has read and written."""
        if self.provider.caches and at * self.reuse.scale >= self.provider.least_tokens:
            prefix.touch(at)
            if warm:
                prefix.touch(warm)


def suffix_ids(branch: Branch) -> tuple[int, ...]:
    """Ids of a branch's prompt."""
    return tuple(codec.encode("".join(run.text for run in branch.prompt)))


def _refuses_schemas(error: Exception) -> bool:
    """Whether an error says that a model cannot reply under a schema, or that its reply does not fit one.

    What comes from the network or the provider's limits has a status, or a name that says so, in every client.
    """
    status = getattr(error, "status_code", None)
    if isinstance(status, int):
        return status in (400, 404, 422)
    names = " ".join(base.__name__ for base in type(error).__mro__)
    return not isinstance(error, OSError) and "Connection" not in names and "Timeout" not in names


def _sum(first: Billed | None, second: Billed | None) -> Billed | None:
    if first is None or second is None:
        return first or second

    def add(one: int | None, other: int | None) -> int | None:
        return None if one is None and other is None else (one or 0) + (other or 0)

    return Billed(
        first.input_tokens + second.input_tokens,
        first.output_tokens + second.output_tokens,
        add(first.cache_read, second.cache_read),
        add(first.cache_write, second.cache_write),
    )
