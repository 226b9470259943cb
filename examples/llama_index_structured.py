"""An answer that is an object: decoded under a grammar, so that even a small model gives what the class asks for."""

from pathlib import Path
from typing import Any

from llama_index.core import Document
from llama_index.core.schema import NodeWithScore
from pydantic import BaseModel, Field

from wim_integrations.llama_index import WimSynthesizer
from wim_kernel import WimKernel


class Errand(BaseModel):
    """What somebody was told to do."""

    told_by: str
    told_to: str
    things_to_fetch: list[str] = Field(max_length=3)


text = (Path(__file__).parent / "data" / "alice-chapters-3-4.txt").read_text()[10_500:13_500]
kernel = WimKernel.from_pretrained("embedded")
synthesizer = WimSynthesizer(kernel, output_cls=Errand, chunk_tokens=400, margin_style="verbatim")
response: Any = synthesizer.synthesize(
    "What was Mary Ann told to fetch, and by whom?", [NodeWithScore(node=Document(text=text))]
)
print(response.response.model_dump_json(indent=2))
