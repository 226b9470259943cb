"""A web server that streams margins and the answer as server-sent events, and stops reading when the client leaves.

    python examples/fastapi_stream.py                       # serves, asks itself one question, and stops
    uvicorn --factory examples.fastapi_stream:create_app    # serves, until Ctrl-C
    curl -N 'http://127.0.0.1:8000/ask?question=Who+caused+the+race%3F'

In a page, ``new EventSource("/ask?question=...")`` listens to ``margin_written``, ``margin_revised``, ``answer_token``
and ``answered``. Needs fastapi 0.135 or newer and uvicorn.
"""

import json
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any

import httpx
import uvicorn
from fastapi import FastAPI, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent

from wim_kernel import Reading, WimError, WimKernel

Question = Annotated[str, Query(pattern=r"\S", max_length=2000)]


def create_app(reading: Reading | None = None, **options: Any) -> FastAPI:
    """The application: ``GET /ask?question=...`` about one document, which is read at the first question only."""
    if reading is None:
        text = (Path(__file__).parent / "data" / "alice-chapters-3-4.txt").read_text()[:3500]
        reading = WimKernel.from_pretrained("embedded").read(text, chunk_tokens=400)
        options = {"margin_style": "verbatim", "answer_tokens": 48, **options}
    document, app = reading, FastAPI(title="Margins")

    @app.get("/ask", response_class=EventSourceResponse)
    async def ask(question: Question) -> AsyncIterator[ServerSentEvent]:
        # When the client leaves, FastAPI cancels this function, and the kernel stops within a token.
        try:
            async with aclosing(document.astream(question, **options)) as events:
                async for event in events:
                    data = event.to_dict()
                    yield ServerSentEvent(event=data.pop("event"), data=data)
        except WimError as error:  # such as a question that does not fit
            yield ServerSentEvent(event="error", data={"message": str(error)})

    return app


def main() -> None:
    """Serve on a free port, ask one question, and print what comes."""
    server = uvicorn.Server(uvicorn.Config(create_app(), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.1)
    port = server.servers[0].sockets[0].getsockname()[1]
    name = ""
    asked = {"question": "What did the Mouse say is the driest thing it knows?"}
    with httpx.stream("GET", f"http://127.0.0.1:{port}/ask", params=asked, timeout=300) as reply:
        for line in reply.iter_lines():
            field, _, value = line.partition(": ")
            if field == "event":
                name = value
            elif field == "data" and name == "margin_written" and json.loads(value)["margin"]["kept"]:
                print("margin:", " ".join(json.loads(value)["margin"]["text"].split()), flush=True)
            elif field == "data" and name == "answered":
                print("answer:", json.loads(value)["result"]["answer"].strip())
    server.should_exit = True
    thread.join()


if __name__ == "__main__":
    main()
