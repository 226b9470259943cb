"""Margins in a terminal, as they are written: from a runnable's stream, and from callback events of any chain."""

import asyncio
from pathlib import Path

from wim_integrations.langchain import WimRunnable, create_wim_documents_chain
from wim_kernel import WimKernel

text = (Path(__file__).parent / "data" / "alice-chapters-3-4.txt").read_text()[:6000]
kernel = WimKernel.from_pretrained("embedded")
options = {"chunk_tokens": 400, "margin_style": "verbatim", "answer_tokens": 48}

wim = WimRunnable(kernel=kernel, **options)
for chunk in wim.stream(
    {"question": "What did the Mouse say is the driest thing it knows?", "documents": text}
):
    for margin in chunk.get("margins", []):
        mark = "*" if margin["kept"] else " "
        print(f"{mark} [{margin['relevance']:.2f}] {' '.join(margin['text'].split())}", flush=True)
    print(chunk.get("answer", ""), end="", flush=True)
print("\n")


async def events() -> None:
    """The same from outside of a chain that streams nothing but its answer."""
    chain = create_wim_documents_chain(kernel, **options)
    asked = {"input": "What prize was given after the race?", "context": [text]}
    async for event in chain.astream_events(asked, version="v2"):
        match event["event"], event["name"]:
            case "on_custom_event", "wim_chunk":
                print(f"read {event['data']['tokens']} of {event['data']['total_tokens']} tokens", flush=True)
            case "on_custom_event", "wim_margin" if event["data"]["kept"]:
                print(f"* {' '.join(event['data']['text'].split())}", flush=True)
            case "on_chat_model_stream", _:
                print(event["data"]["chunk"].content, end="", flush=True)


asyncio.run(events())
