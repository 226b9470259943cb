"""A graph that reads, shows its margins to a person, and answers from what the person leaves.

The request and the reply have the shapes of LangChain's ``HumanInTheLoopMiddleware``: approve, edit, reject, respond.
"""

from pathlib import Path
from typing import Any, TypedDict

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt

from wim_integrations.langchain import WimAnswer, WimMargins, review_request, reviewed
from wim_kernel import WimKernel


class State(TypedDict, total=False):
    """What the graph remembers."""

    question: str
    documents: list[str]
    margins: list[dict[str, Any]]
    chunks_read: int
    answer: str
    usage: dict[str, Any]


def review(state: State) -> State:
    """Stop, and go on with the margins as the person left them."""
    reply = interrupt(review_request(state["margins"]))
    return {"margins": reviewed(state["margins"], reply)}


text = (Path(__file__).parent / "data" / "alice-chapters-3-4.txt").read_text()[:3500]
kernel = WimKernel.from_pretrained("embedded")

builder = StateGraph(State)
builder.add_node("read", WimMargins(kernel=kernel, chunk_tokens=400, margin_style="verbatim"))
builder.add_node("review", review)
builder.add_node("reply", WimAnswer(kernel=kernel, chunk_tokens=400, answer_tokens=48))
builder.add_edge(START, "read")
builder.add_edge("read", "review")
builder.add_edge("review", "reply")
builder.add_edge("reply", END)
graph = builder.compile(checkpointer=InMemorySaver())

thread: Any = {"configurable": {"thread_id": "1"}}
asked = {"question": "What did the Mouse say is the driest thing it knows?", "documents": [text]}
for event in graph.stream(asked, thread, stream_mode="custom"):
    if event["event"] == "wim_margin" and event["data"]["kept"]:
        print(f"[{event['data']['relevance']:.2f}] {' '.join(event['data']['text'].split())}", flush=True)

(pause,) = graph.get_state(thread).interrupts
decisions: list[dict[str, Any]] = []
for action in pause.value["action_requests"]:  # the person: thumbs down for all, a remark on one
    if "driest" in action["args"]["text"]:
        edited = {"name": action["name"], "args": {"note": "this is the one"}}
        decisions.append({"type": "edit", "edited_action": edited})
    else:
        decisions.append({"type": "reject"})
done = graph.invoke(Command(resume={"decisions": decisions}), thread)
print("\nanswer:", done["answer"].strip())
print("document tokens read again for it:", done["usage"]["prefill_tokens"])
