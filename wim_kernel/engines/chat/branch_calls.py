"""Makes a branch's request, and brings its reply into the shape that was asked for."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

from wim_kernel.common.errors import ChatModelError, WimError, status_of
from wim_kernel.engines.base import Branch
from wim_kernel.engines.chat import codec
from wim_kernel.engines.chat.backend import (
    Billed,
    Block,
    ChatBackend,
    ChatRequest,
    Piece,
    UnreadableReplyError,
)
from wim_kernel.engines.chat.layout import request_of
from wim_kernel.engines.chat.prefixes import ChatPrefix
from wim_kernel.engines.chat.providers import Provider
from wim_kernel.engines.chat.replies import SCHEMAS, fits, json_values
from wim_kernel.engines.chat.reuse import CacheReads


@dataclass(frozen=True)
class Reply:
    """A finished reply: its text, its data if it was asked for under a schema, its bill, and the number of requests.

    The bill is that of all these requests.
    """

    text: str
    data: Any = None
    billed: Billed | None = None
    calls: int = 1


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
        asks_again: whether what came under a schema, and is no data of it, is asked for once more in the text.
    """

    def __init__(
        self,
        backend: ChatBackend,
        provider: Provider,
        reuse: CacheReads,
        *,
        structured: bool,
        asks_again: bool = True,
    ) -> None:
        self.backend = backend
        self.provider = provider
        self.reuse = reuse
        self._structured = structured
        self._refused = False  # a schema; from then on the prompt alone asks for data
        self._asks_again = asks_again

    def call(self, prefix: ChatPrefix, index: int, branch: Branch) -> Generator[Item, None, None]:
        """Make a branch's request; yields new text of an answer as it comes, and last the reply."""
        try:
            request = request_of(prefix, branch, self.provider)
            warm = max(self.warm(prefix, branch.at), default=0)
            shows = not (branch.rates or branch.choices or branch.json_schema)
            reply = Reply("")
            for piece in self._pieces(request, branch):
                self._touch(prefix, branch.at, warm)
                if isinstance(piece, UnreadableReplyError):  # another request follows
                    reply = Reply("", None, piece.piece.billed, calls=2)
                    continue
                reply = replace(
                    reply,
                    text=reply.text + piece.text,
                    data=piece.data if piece.data is not None else reply.data,
                    billed=_sum(reply.billed, piece.billed),
                )
                yield Item(index, piece.text if shows else "")
            if reply.billed is not None:
                sent = reply.calls * (branch.at + len(suffix_ids(branch)))
                self.reuse.record(reply.billed, sent, reply.calls * warm)
            if branch.json_schema is not None:
                reply = self._fitting(reply, json.loads(branch.json_schema))
                yield Item(index, reply.text)
        except (WimError, GeneratorExit):
            raise
        except Exception as error:
            raise ChatModelError(self.backend.name, error) from error
        yield Item(index, reply=reply)

    def _pieces(
        self, request: ChatRequest, branch: Branch
    ) -> Generator[Piece | UnreadableReplyError, None, None]:
        """The reply to a request, under a schema if the branch asks for data and the model takes schemas.

        If what came under the schema is no data of it, the error is yielded, and then the reply to another request.
        """
        schema = SCHEMAS[branch.rates] if branch.rates else json.loads(branch.json_schema or "null")
        if schema is None or self._refused or not self._structured:
            yield from self.backend.stream(request)
            return
        try:
            yield self.backend.structured(request, schema)
            return
        except UnreadableReplyError as error:
            # an answer is put into shape later, without the document
            if not self._asks_again or (branch.json_schema and error.piece.text):
                self._refused = True
                yield error.piece
                return
            yield error
        except Exception as error:
            if not _refuses_schemas(error):
                raise
        yield from self.backend.stream(request)
        self._refused = True

    def _fitting(self, reply: Reply, schema: dict[str, Any]) -> Reply:
        """A reply as JSON that fits a schema. If it does not, the model puts it into shape, without the document.

        Raises:
            ChatModelError: if that fails, too.
        """
        for again in (False, True):
            found = json_values(reply.text) if reply.data is None else iter([reply.data])
            for data in found:
                if fits(data, schema):
                    return replace(reply, text=json.dumps(data, ensure_ascii=False), data=data)
            if again:
                break
            wants = (
                f"Put this into JSON that fits the schema, and reply with that alone: {json.dumps(schema)}"
            )
            request = ChatRequest("", [Block(f"{reply.text}\n\n{wants}")])
            piece = self._whole(request, schema)
            reply = Reply(piece.text, piece.data, _sum(reply.billed, piece.billed), reply.calls + 1)
        raise ChatModelError(
            self.backend.name, ValueError(f"its reply does not fit the schema: {reply.text[:200]!r}")
        )

    def _whole(self, request: ChatRequest, schema: dict[str, Any]) -> Piece:
        """The whole reply to one request, under a schema unless the model has refused one."""
        if not self._refused:
            try:
                return self.backend.structured(request, schema)
            except UnreadableReplyError as error:
                return error.piece
            except Exception as error:
                if not _refuses_schemas(error):
                    raise
        pieces = list(self.backend.stream(request))
        billed = next((each.billed for each in reversed(pieces) if each.billed), None)
        return Piece("".join(each.text for each in pieces), billed)

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
    """Whether an error says that a model cannot reply under a schema, or that its reply does not fit one."""
    status = status_of(error)
    if status is not None:
        return status in (400, 404, 422)
    return isinstance(error, (NotImplementedError, TypeError, ValueError)) and not isinstance(error, OSError)


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
