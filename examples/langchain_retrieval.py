"""A retrieval chain whose answer streams token by token, and a retriever that gives margins in place of documents."""

from pathlib import Path

from langchain_classic.chains import create_retrieval_chain
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_text_splitters import CharacterTextSplitter

from wim_integrations.langchain import WimDocumentCompressor, create_wim_documents_chain
from wim_kernel import WimKernel


class WordRetriever(BaseRetriever):
    """Documents that share most words with the query; your vector store stands here."""

    documents: list[Document]
    k: int = 4

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        words = {word for word in query.lower().split() if len(word) > 3}
        ranked = sorted(self.documents, key=lambda d: -len(words & set(d.page_content.lower().split())))
        return ranked[: self.k]


text = (Path(__file__).parent / "data" / "alice-chapters-3-4.txt").read_text()
splitter = CharacterTextSplitter(separator="\n\n", chunk_size=1200, chunk_overlap=0)
documents = splitter.split_documents([Document(text, metadata={"source": "Alice"})])
question = "What did the Rabbit tell Mary Ann to fetch?"

kernel = WimKernel.from_pretrained("embedded")
retriever = WordRetriever(documents=documents)

chain = create_retrieval_chain(
    retriever, create_wim_documents_chain(kernel, margin_style="verbatim", answer_tokens=48)
)
for chunk in chain.stream({"input": question}):
    if "context" in chunk:
        print(f"{len(chunk['context'])} documents found")
    print(chunk.get("answer", ""), end="", flush=True)
print("\n")

compressed = ContextualCompressionRetriever(
    base_compressor=WimDocumentCompressor(kernel=kernel, options={"top_k": 2}), base_retriever=retriever
)
for margin in compressed.invoke(question):
    print(f"[{margin.metadata['relevance_score']:.2f}] {' '.join(margin.page_content.split())}")
