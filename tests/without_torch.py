"""Lists what the tests of `make test-pythons` need: the package's own requirements and extras, without torch.

Run in an environment where the package is installed without its dependencies.
"""

from __future__ import annotations

import re
from importlib.metadata import requires

EXTRAS = {"langchain", "llama-index", "structured", "server", "hosted", "cli", "eval"}
TOOLS = {
    "hypothesis",
    "langchain",
    "langchain-anthropic",
    "langchain-openai",
    "langchain-tests",
    "langgraph",
    "llama-index-observability-otel",
}
NEEDS_TORCH = {"torch", "accelerate"}


def requirements() -> list[str]:
    """Requirements as pip takes them, such as ``numpy>=1.26``."""
    found = []
    for line in requires("wim-integrations") or []:
        wanted, _, marker = line.partition(";")
        name = re.split(r"[^\w.-]", wanted)[0]
        extra = re.search(r"extra == ['\"](.+?)['\"]", marker)
        chosen = extra is None or extra[1] in EXTRAS
        if extra is not None and extra[1] == "dev":
            chosen = name in TOOLS or name.startswith("pytest")
        if chosen and name not in {*NEEDS_TORCH, "wim-integrations"}:
            found.append(wanted.strip())
    return found


if __name__ == "__main__":
    print("\n".join(requirements()))
