"""An agent that asks about a long document through a tool, twice in parallel; the agent's own model is scripted."""

from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models.fake_chat_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage, ToolMessage

from wim_integrations.langchain import create_wim_tool
from wim_kernel import WimKernel


class Scripted(FakeMessagesListChatModel):
    """Stands for your chat model: says what it was told to, so that this example runs offline."""

    def bind_tools(self, tools: Any, **kwargs: Any) -> "Scripted":
        return self


text = (Path(__file__).parent / "data" / "alice-chapters-3-4.txt").read_text()[:6000]
kernel = WimKernel.from_pretrained("embedded")
tool = create_wim_tool(
    kernel,
    {"alice": text, "tale": "A short tale."},
    chunk_tokens=400,
    margin_style="verbatim",
    answer_tokens=48,
)

questions = ["What is the driest thing the Mouse knows?", "What prize was given after the race?"]
calls = [
    {"type": "tool_call", "id": str(n), "name": tool.name, "args": {"question": q, "document": "alice"}}
    for n, q in enumerate(questions)
]
agent = create_agent(Scripted(responses=[AIMessage("", tool_calls=calls), AIMessage("Done.")]), [tool])

for mode, data in agent.stream({"messages": [("human", "Find out.")]}, stream_mode=["tools", "updates"]):
    if mode == "tools" and "delta" in data and data["delta"]["event"] == "wim_margin":
        margin = data["delta"]["data"]
        if margin["kept"]:
            print(f"[{margin['relevance']:.2f}] {' '.join(margin['text'].split())}", flush=True)
    elif mode == "updates" and "tools" in data:
        for message in data["tools"]["messages"]:
            if isinstance(message, ToolMessage):
                print("\ntool:", message.content)
