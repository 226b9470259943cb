"""Retrieval with citations that point to characters: margins are sentences of the source, and say where they stand."""

from pathlib import Path
from typing import Any

from llama_index.core import Document, QueryBundle
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import BaseNode, NodeWithScore

from wim_integrations.llama_index import WimSynthesizer
from wim_kernel import WimKernel


class WordRetriever(BaseRetriever):
    """Nodes that share most words with the question; your vector index stands here."""

    def __init__(self, nodes: list[BaseNode], k: int = 4) -> None:
        super().__init__()
        self.nodes = nodes
        self.k = k

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        words = {word for word in query_bundle.query_str.lower().split() if len(word) > 3}
        scored = [
            NodeWithScore(node=node, score=float(len(words & set(node.get_content().lower().split()))))
            for node in self.nodes
        ]
        return sorted(scored, key=lambda item: -(item.score or 0))[: self.k]


text = (Path(__file__).parent / "data" / "alice-chapters-3-4.txt").read_text()
nodes = SentenceSplitter(chunk_size=250, chunk_overlap=30).get_nodes_from_documents([Document(text=text)])

kernel = WimKernel.from_pretrained("embedded")
synthesizer = WimSynthesizer(kernel, order="document", margin_style="verbatim", answer_tokens=48)
engine = RetrieverQueryEngine(WordRetriever(nodes), response_synthesizer=synthesizer)

response: Any = engine.query("What did the Rabbit tell Mary Ann to fetch?")
print(response)
for margin in response.metadata["margins"]:
    for quote in margin["quotes"]:
        start, end = quote["start_char_idx"], quote["end_char_idx"]
        print(
            f"  [{margin['relevance']:.2f}] characters {start} to {end}: {' '.join(text[start:end].split())}"
        )
for source in response.source_nodes:
    print(f"  {source.score:.2f} {source.node.node_id}")
