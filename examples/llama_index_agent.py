"""An agent workflow whose tool reads a long document and shows its margins in the stream; the agent is scripted."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.llms.mock import MockLLM

from wim_integrations.llama_index import WimMargin, WimProgress, create_wim_tool
from wim_kernel import WimKernel


class Scripted(MockLLM, FunctionCallingLLM):
    """Stands for your chat model: asks once, then is done, so that this example runs offline."""

    asked: bool = False

    @property
    def metadata(self) -> Any:
        """What the agent wants to know of a model."""
        found = super().metadata
        found.is_function_calling_model = True
        return found

    def _prepare_chat_with_tools(self, tools: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {}

    async def astream_chat_with_tools(self, tools: Any, **kwargs: Any) -> AsyncGenerator[ChatResponse, None]:
        """The script."""
        call, self.asked = not self.asked, True

        async def respond() -> AsyncGenerator[ChatResponse, None]:
            message = ChatMessage(role="assistant", content="" if call else "Done.")
            message.additional_kwargs["call"] = call
            yield ChatResponse(message=message)

        return respond()

    def get_tool_calls_from_response(self, response: Any, *args: Any, **kwargs: Any) -> list[ToolSelection]:
        """The one call."""
        if not response.message.additional_kwargs["call"]:
            return []
        question = "What is the driest thing the Mouse knows?"
        return [ToolSelection(tool_id="1", tool_name="ask_document", tool_kwargs={"question": question})]


async def main() -> None:
    """Run the agent and show what its tool does meanwhile."""
    text = (Path(__file__).parent / "data" / "alice-chapters-3-4.txt").read_text()[:3500]
    kernel = WimKernel.from_pretrained("embedded")
    tool = create_wim_tool(kernel, text, chunk_tokens=400, margin_style="verbatim", answer_tokens=48)
    handler = AgentWorkflow(agents=[FunctionAgent(tools=[tool], llm=Scripted())]).run("Find out.")
    async for event in handler.stream_events():
        if isinstance(event, WimProgress):
            print(f"read {event.tokens} of {event.total_tokens} tokens", flush=True)
        elif isinstance(event, WimMargin) and event.margin["kept"]:
            print(f"[{event.margin['relevance']:.2f}] {' '.join(event.margin['text'].split())}", flush=True)
    result = await handler
    print("\ntool:", result.tool_calls[0].tool_output.content)


asyncio.run(main())
