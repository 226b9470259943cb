"""A summary index over a long document: margins as events while it is read, then the answer; asked again, not read."""

from pathlib import Path
from typing import Any

from llama_index.core import Document, SummaryIndex
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.node_parser import SentenceSplitter

from wim_integrations.llama_index import WimChunkRead, WimMarginWritten, WimSynthesizer
from wim_kernel import WimKernel


class Show(BaseEventHandler):
    """Prints what happens while a question is answered."""

    def handle(self, event: Any, **kwargs: Any) -> None:
        """Show chunks and kept margins."""
        if isinstance(event, WimChunkRead) and not event.cached:
            print(f"read {event.tokens} of {event.total_tokens} tokens", flush=True)
        elif isinstance(event, WimMarginWritten) and event.margin["kept"]:
            print(f"[{event.margin['relevance']:.2f}] {' '.join(event.margin['text'].split())}", flush=True)


get_dispatcher().add_event_handler(Show())

text = (Path(__file__).parent / "data" / "alice-chapters-3-4.txt").read_text()[:8000]
nodes = SentenceSplitter(chunk_size=400, chunk_overlap=40).get_nodes_from_documents([Document(text=text)])

kernel = WimKernel.from_pretrained("embedded")
synthesizer = WimSynthesizer(kernel, streaming=True, margin_style="verbatim", answer_tokens=48)
engine = SummaryIndex(nodes).as_query_engine(
    llm=synthesizer.llm, response_synthesizer=synthesizer, streaming=True
)
for question in (
    "What did the Mouse say is the driest thing it knows?",
    "What prize was given after the race?",
):
    print(f"\n== {question}")
    response: Any = engine.query(question)
    for piece in response.response_gen:
        print(piece, end="", flush=True)
    usage = response.metadata["usage"]
    print(f"\n({usage['prefill_tokens']} document tokens read, {usage['cached_tokens']} found read)")
