"""What is imported when: no model library before a model is loaded, and never torch where the model is elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_server import MODEL, ChatServer, chat_server
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

ROOT = Path(__file__).parent.parent
MODEL_LIBRARIES = {"torch", "transformers", "accelerate", "safetensors.torch", "triton"}
HEAVY = {
    *MODEL_LIBRARIES,
    "scipy",
    "numba",
    "bm25s",
    "matplotlib",
    "openai",
    "llguidance",
    "lxml",
    "pypdf",
    "gguf",
}
QUESTION = "Who owned the ship?"
DOCUMENT = "Elsa Brandt owned the ship Aurora. The gull sat on the mast."

LIBRARY = """
import wim_kernel.kernel, wim_kernel.reading
from wim_kernel import *
"""
ADAPTERS = """
import wim_kernel.engines.server.engine
import wim_integrations.langchain
import wim_integrations.langchain.classic
import wim_integrations.llama_index
"""
ASK = f"""
from wim_kernel import WimKernel
kernel = WimKernel.from_server(sys.argv[1], tokenizer=sys.argv[2] or None)
reading = kernel.read([{DOCUMENT!r}, "The fog was thick."])
assert len(reading.ask({QUESTION!r}, margin_tokens=4, answer_tokens=4).margins) == 2
assert not hasattr(kernel, "model")
"""
CHAIN = f"""
from wim_integrations.langchain import create_wim_map_reduce_chain
from wim_kernel import WimKernel
chain = create_wim_map_reduce_chain(WimKernel.from_server(sys.argv[1]))
assert chain.invoke({{"question": {QUESTION!r}, "input_documents": [{DOCUMENT!r}]}})["output_text"]
"""
SYNTHESIZER = f"""
from llama_index.core.schema import NodeWithScore, TextNode
from wim_integrations.llama_index import WimSynthesizer
from wim_kernel import WimKernel
synthesizer = WimSynthesizer(WimKernel.from_server(sys.argv[1]))
assert str(synthesizer.synthesize({QUESTION!r}, [NodeWithScore(node=TextNode(text={DOCUMENT!r}))]))
"""
CHAT_MODEL = f"""
from langchain_core.language_models import FakeListChatModel
from wim_kernel import WimKernel
kernel = WimKernel.from_chat_model(FakeListChatModel(responses=['{{"relevance": 9, "quotes": []}}', "Elsa Brandt."]))
assert kernel.ask({QUESTION!r}, [{DOCUMENT!r}]).answer == "Elsa Brandt."
"""
HELP = """
from wim_kernel.cli.main import main
main(["--help"], standalone_mode=False)
main(["ask", "--help"], standalone_mode=False)
"""
COMMAND = """
from wim_kernel.cli.main import main
main(sys.argv[3:], standalone_mode=False)
"""


def imported(code: str, *arguments: str) -> set[str]:
    """The modules that a program has imported when it ends."""
    program = f"import sys\n{code}\nprint(); print(*sys.modules, file=sys.stdout)"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


@pytest.fixture(scope="module")
def server() -> Iterator[ChatServer]:
    with chat_server() as made:
        yield made


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tokenizer of single bytes and a chat template, and no model's config."""
    folder = tmp_path_factory.mktemp("tokenizer")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({char: index for index, char in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|end|>"])
    made.save(str(folder / "tokenizer.json"))
    template = (
        "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}<|end|>{% endfor %}bot: "
    )
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return str(folder)


@pytest.mark.parametrize(
    ("code", "left_out"),
    [(LIBRARY, HEAVY), (HELP, HEAVY), (ADAPTERS, MODEL_LIBRARIES)],
    ids=["kernel", "help", "server and adapters"],
)
def test_no_model_library_is_imported_before_a_model_is_used(code: str, left_out: set[str]) -> None:
    assert not imported(code) & left_out


def test_a_kernel_on_a_chat_model_imports_no_model_library_and_no_client() -> None:
    assert not imported(CHAT_MODEL) & {*MODEL_LIBRARIES, "openai"}


def test_kernel_and_adapters_on_a_server_import_no_model_library(server: ChatServer) -> None:
    before = len(server.asked)
    found = imported(f"{ASK}{CHAIN}{SYNTHESIZER}", server.url, "")
    assert len(server.asked) >= before + 3
    assert "openai" in found
    assert not found & MODEL_LIBRARIES


def test_a_kernel_on_a_server_with_a_tokenizer_imports_no_torch(server: ChatServer, tokenizer: str) -> None:
    server.asked.clear()
    found = imported(ASK, server.url, tokenizer)
    assert all(isinstance(body["prompt"], str) for body in server.asked)
    assert "bot: " in server.asked[-1]["prompt"]
    assert "transformers" in found
    assert "torch" not in found


def test_a_generation_config_for_a_server_imports_no_torch(server: ChatServer) -> None:
    code = f"""
from transformers import GenerationConfig
from wim_kernel import WimKernel
config = GenerationConfig(max_new_tokens=5, do_sample=True, top_p=0.5)
WimKernel.from_server(sys.argv[1]).ask({QUESTION!r}, {DOCUMENT!r}, answer_config=config, margin_tokens=3)
"""
    assert "torch" not in imported(code, server.url)
    assert server.asked[-1]["top_p"] == 0.5


def test_the_command_line_on_a_server_imports_no_model_library(server: ChatServer, tmp_path: Path) -> None:
    document = tmp_path / "log.txt"
    document.write_text(DOCUMENT)
    command = ["ask", QUESTION, str(document), "--server", server.url, "--model", MODEL, "-q"]
    before = len(server.asked)
    assert not imported(COMMAND, "", "", *command) & MODEL_LIBRARIES
    assert len(server.asked) > before


@pytest.mark.in_process
def test_a_model_in_this_process_imports_torch() -> None:
    """So the tests above would see it."""
    assert "torch" in imported("import wim_kernel.engines.local.attention.parts")
