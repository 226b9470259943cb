"""A map-reduce chain and its replacement, side by side, on the same documents and the same loaded model."""

import time
import warnings
from pathlib import Path
from typing import Any

from langchain_classic.chains.question_answering import load_qa_chain
from langchain_core.documents import Document
from langchain_core.language_models.llms import LLM
from langchain_text_splitters import CharacterTextSplitter
from transformers import pipeline

from wim_integrations.langchain import create_wim_map_reduce_chain
from wim_kernel import WimKernel

text = (Path(__file__).parent / "data" / "alice-chapters-3-4.txt").read_text()[:4500]
splitter = CharacterTextSplitter(separator="\n\n", chunk_size=1500, chunk_overlap=0)
documents = splitter.split_documents([Document(text, metadata={"source": "Alice"})])
asked = {"input_documents": documents, "question": "What did the Mouse say is the driest thing it knows?"}

kernel = WimKernel.from_pretrained("embedded")


class Local(LLM):
    """The kernel's own model, called as LangChain's wrappers of local models call it."""

    generate_text: Any

    @property
    def _llm_type(self) -> str:
        return "local"

    def get_num_tokens(self, text: str) -> int:
        return kernel.count_tokens(text)

    def _call(self, prompt: str, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> str:
        message = [{"role": "user", "content": prompt}]
        return str(
            self.generate_text(message, max_new_tokens=48, do_sample=False, return_full_text=False)[0][
                "generated_text"
            ]
        )


# Before
llm = Local(generate_text=pipeline("text-generation", model=kernel.model, tokenizer=kernel.tokenizer))
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    old = load_qa_chain(llm, chain_type="map_reduce", return_map_steps=True)

# After
new = create_wim_map_reduce_chain(
    kernel, return_intermediate_steps=True, margin_style="verbatim", answer_tokens=48
)

for name, chain in (("before", old), ("after", new), ("after, asked again", new)):
    begun = time.perf_counter()
    output = chain.invoke(asked)
    print(f"\n== {name}: {time.perf_counter() - begun:.1f} s")
    for step in output["intermediate_steps"]:
        print("  note:", " ".join(step.split()) or "(nothing here)")
    print("  answer:", output["output_text"].strip())
