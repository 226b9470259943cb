"""Ask a question of a long text, and see the margins and the answer as they are written."""

from pathlib import Path

from wim_kernel import AnswerToken, MarginWritten, WimKernel

text = (Path(__file__).parent / "data" / "alice-chapters-3-4.txt").read_text()
document = text[text.index("CHAPTER IV") :]

kernel = WimKernel.from_pretrained("embedded")
reading = kernel.read(document)
for event in reading.stream("What did the Rabbit tell Mary Ann to run home and fetch?"):
    match event:
        case MarginWritten(margin) if margin.kept:
            print(f"[{margin.relevance:.2f}] {margin.text}", flush=True)
        case AnswerToken(text):
            print(text, end="", flush=True)
