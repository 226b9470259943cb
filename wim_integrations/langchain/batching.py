"""Batches: inputs about the same documents are answered in one run, each with the callbacks of its own config."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass
from typing import Any

from langchain_core.runnables import RunnableConfig

from wim_integrations.langchain.base import DocumentRunnable
from wim_integrations.langchain.events import Emitter
from wim_integrations.langchain.outputs import Inputs, Outputs
from wim_integrations.langchain.requests import Request, Sources, someone_watches
from wim_kernel import Answered, ChunkRead, Event, Options, Reading, WimError
from wim_kernel.common.concurrency import in_thread
from wim_kernel.common.relay import Calls, arelay, relay


@dataclass
class Member:
    """One input of a group.

    Attributes:
        index: the input's index in the batch.
        request: the parsed input.
        emitter: the emitter to the input's callbacks.
        live: whether a consumer watches the input's events.
    """

    index: int
    request: Request
    emitter: Emitter
    live: bool


class Group:
    """Inputs that are answered in one run, as a listener: passes events on to each input's emitter."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = members

    def emit(self, event: Event) -> Calls:
        """Emit an event to the input that it belongs to; chunks are emitted to all inputs."""
        question = getattr(event, "question", 0)
        for member in self.members if isinstance(event, ChunkRead) else [self.members[question]]:
            yield from member.emitter.emit(event)

    def fail(self, error: BaseException) -> Calls:
        """Emit an error to all inputs."""
        for member in self.members:
            yield from member.emitter.fail(error)


class Batch:
    """One call of ``batch``.

    Args:
        runnable: the runnable.
        inputs: the inputs.
        run_managers: each input's run manager.
        configs: each input's config; ``max_concurrency`` of the first limits the size of a group.
    """

    def __init__(
        self,
        runnable: DocumentRunnable,
        inputs: Sequence[Inputs],
        run_managers: Sequence[Any],
        configs: Sequence[RunnableConfig],
    ) -> None:
        self.runnable = runnable
        self.inputs = inputs
        self.run_managers = run_managers
        self.configs = configs
        self.outputs: list[Exception | Outputs] = [{} for _ in inputs]

    def run(self) -> list[Exception | Outputs]:
        """Run the batch; returns each input's output or exception."""
        waiting = deque(self._groups())
        while waiting:
            group = waiting.popleft()
            try:
                events = _reading(group).stream_many(_questions(group), **self._options(group))
                with closing(relay(events, Group(group))) as relayed:
                    for event in relayed:
                        self._record(group, event)
            except BaseException as error:
                waiting.extendleft(self._handle_error(group, error))
        return self.outputs

    async def arun(self) -> list[Exception | Outputs]:
        """See `run`."""
        waiting = deque(await in_thread(self._groups))
        while waiting:
            group = waiting.popleft()
            try:
                events = _reading(group).astream_many(_questions(group), **self._options(group))
                async with aclosing(arelay(events, Group(group))) as relayed:
                    async for event in relayed:
                        self._record(group, event)
            except BaseException as error:
                waiting.extendleft(self._handle_error(group, error))
        return self.outputs

    def _groups(self) -> list[list[Member]]:
        """Group the inputs that have the same documents and the same prompts."""
        groups: list[list[Member]] = []
        limit = self.configs[0].get("max_concurrency") or len(self.inputs)
        if self.runnable.stop_when is not None or self.runnable.stop_after is not None:
            limit = 1  # each input stops reading at a chunk of its own
        sources: Sources = {}
        for index, (item, run_manager, config) in enumerate(
            zip(self.inputs, self.run_managers, self.configs, strict=True)
        ):
            try:
                request = self.runnable._request(item, sources)
            except Exception as error:
                self.outputs[index] = error
                continue
            if request.source is None:
                self.outputs[index] = self.runnable._output(request, None)
                continue
            emitter = self.runnable._emitter(request, run_manager.get_child(), config)
            member = Member(index, request, emitter, someone_watches(run_manager, config))
            for group in groups:
                if len(group) < limit and _can_share_run(group[0].request, request):
                    group.append(member)
                    break
            else:
                groups.append([member])
        return groups

    def _options(self, group: Sequence[Member]) -> Options:
        return self.runnable._paced(group[0].request, live=any(member.live for member in group))

    def _record(self, group: Sequence[Member], event: Event) -> None:
        if isinstance(event, Answered):
            member = group[event.question]
            self.outputs[member.index] = self.runnable._output(member.request, event)

    def _handle_error(self, group: Sequence[Member], error: BaseException) -> Iterator[list[Member]]:
        """Record a group's error; a group of several is split, so that one wrong input does not fail the others."""
        if not isinstance(error, Exception) or _is_control_flow(error):
            raise error
        if len(group) > 1 and isinstance(error, WimError | ValueError):
            return ([member] for member in reversed(group))
        for member in group:
            if not self.outputs[member.index]:
                self.outputs[member.index] = error
        return iter(())


def _reading(group: Sequence[Member]) -> Reading:
    return group[0].request.reading


def _questions(group: Sequence[Member]) -> list[str]:
    return [member.request.question for member in group]


def _can_share_run(one: Request, other: Request) -> bool:
    same_prompts = all(one.options.get(name) == other.options.get(name) for name in ("prompts", "variables"))
    return same_prompts and (one.source is other.source or one.reading.chunks == other.reading.chunks)


def _is_control_flow(error: Exception) -> bool:
    """Whether LangGraph raised the error to leave the node, as an interrupt does."""
    errors = sys.modules.get("langgraph.errors")
    return errors is not None and isinstance(error, errors.GraphBubbleUp)
