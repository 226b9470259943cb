"""The example of a workflow: margins in its stream, a person between its steps, a restart while the person thinks."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from llama_index.core.workflow import Context
from pieces import LOG
from workflows.errors import WorkflowCancelledByUser

from examples.llama_index_workflow import Judged, MarginsToJudge, Question, ReadWithAPerson, judge
from wim_integrations.llama_index import WimMargin, WimProgress
from wim_kernel import Margin, MarginsError, WimKernel

QUESTION = "Who owned the ship?"
FEW: dict[str, Any] = {"threshold": 0, "margin_style": "free", "margin_tokens": 4, "answer_tokens": 6}


def workflow(kernel: WimKernel) -> ReadWithAPerson:
    return ReadWithAPerson(kernel, LOG, chunk_tokens=12, **FEW)


def notes(shown: MarginsToJudge, *kept: int) -> Judged:
    """The margins with a note of one's own for some, and without the others."""
    margins = [
        {**margin, "kept": margin["index"] in kept, "text": f"Note {margin['index']}."}
        for margin in shown.margins
    ]
    return Judged(question=shown.question, margins=margins, chunks_read=shown.chunks_read)


async def started(kernel: WimKernel) -> tuple[Any, list[Any], MarginsToJudge]:
    """A run up to where it waits for a person: its handler, the events before, and what the person is shown."""
    handler = workflow(kernel).run(start_event=Question(question=QUESTION))
    events: list[Any] = []
    async for event in handler.stream_events():
        if isinstance(event, MarginsToJudge):
            return handler, events, event
        events.append(event)
    raise AssertionError("nobody was asked")


async def test_margins_stream_and_a_person_decides(kernel: WimKernel) -> None:
    handler, events, shown = await started(kernel)
    margins = [event for event in events if isinstance(event, WimMargin)]
    progress = [event for event in events if isinstance(event, WimProgress)]
    assert {event.margin["index"] for event in margins} == set(range(len(shown.margins)))
    assert len(shown.margins) == shown.chunks_read > 2
    assert progress[-1].tokens == progress[-1].total_tokens
    assert events.index(margins[0]) < events.index(progress[-1])  # while it reads
    handler.ctx.send_event(notes(shown, 1))
    result = await handler
    assert [margin.text for margin in result.kept] == ["Note 1."]
    assert result.answer.strip()
    assert not any(live.in_use for live in kernel.readings.held)


@pytest.mark.in_process
async def test_the_answer_reads_nothing_again(kernel: WimKernel) -> None:
    handler, _, shown = await started(kernel)
    handler.ctx.send_event(notes(shown, 0))
    assert (await handler).usage.prefill_tokens == 0


async def test_saved_run_goes_on_after_a_person_has_judged(kernel: WimKernel) -> None:
    handler, _, shown = await started(kernel)
    saved = json.loads(json.dumps(handler.ctx.to_dict()))
    page = json.loads(shown.model_dump_json())  # what the person is shown, in another program
    await handler.cancel_run()
    kernel.readings.clear()
    again = workflow(kernel)
    resumed = again.run(ctx=Context.from_dict(again, saved))
    resumed.ctx.send_event(notes(MarginsToJudge(**page), 2))
    result = await asyncio.wait_for(resumed, 60)
    assert [(margin.index, margin.text) for margin in result.kept] == [(2, "Note 2.")]
    assert [Margin.from_dict(each).chunk for each in shown.margins] == [m.chunk for m in result.margins]


async def test_a_reply_that_is_no_margin_is_an_error(kernel: WimKernel) -> None:
    handler, _, shown = await started(kernel)
    wrong: list[dict[str, Any]] = [{"text": 1}]
    handler.ctx.send_event(Judged(question=QUESTION, margins=wrong, chunks_read=shown.chunks_read))
    with pytest.raises(MarginsError, match="text is a string"):
        await handler
    assert not any(live.in_use for live in kernel.readings.held)


async def test_a_cancelled_run_stops_reading(kernel: WimKernel) -> None:
    handler = workflow(kernel).run(start_event=Question(question=QUESTION))
    async for event in handler.stream_events():
        if isinstance(event, WimProgress):
            break
    await handler.cancel_run()
    with pytest.raises(WorkflowCancelledByUser):
        await handler
    for _ in range(100):  # the handler is done before the step that it cancels
        if not any(live.in_use for live in kernel.readings.held):
            return
        await asyncio.sleep(0.1)
    raise AssertionError("the reading is still in use")


def test_example_person_keeps_one_margin_with_a_remark() -> None:
    shown = MarginsToJudge(question="?", margins=[{"text": "the driest thing"}, {"text": "a"}], chunks_read=2)
    assert [(each["kept"], each["note"]) for each in judge(shown).margins] == [
        (True, "this is the one"),
        (False, ""),
    ]
