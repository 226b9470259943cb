"""How the code is built: files and lines a folder, import circles, and how far a note and a token travel.

Run it in two checkouts to compare them: ``python -m benchmarks.structure``.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("wim_kernel", "wim_integrations")


def sources() -> dict[str, Path]:
    """The modules of both packages by their dotted names."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def folders(modules: dict[str, Path]) -> dict[str, tuple[int, int]]:
    """Files and lines of each folder, without its subfolders."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for path in modules.values():
        count = counts[str(path.parent.relative_to(ROOT))]
        count[0] += 1
        count[1] += len(path.read_text(encoding="utf-8").splitlines())
    return {name: (files, lines) for name, (files, lines) in sorted(counts.items())}


def imports(modules: dict[str, Path]) -> dict[str, set[str]]:
    """Which modules each module imports, also for types alone and inside functions."""
    found: dict[str, set[str]] = {}
    for name, path in modules.items():
        mine = found.setdefault(name, set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    mine.add(whole if whole in modules else node.module)
            elif isinstance(node, ast.Import):
                mine.update(alias.name for alias in node.names)
        found[name] = mine & modules.keys()
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, by Tarjan's algorithm."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        number[name] = low[name] = len(number)
        stack.append(name)
        for other in graph[name]:
            if other not in number:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], number[other])
        if low[name] == number[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in graph:
        if name not in number:
            visit(name)
    return found


def project_frames(frame: FrameType | None) -> Iterator[str]:
    """The names of this project's functions on the stack, innermost first; generators are marked."""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in PACKAGES:
            mark = "*" if frame.f_code.co_flags & inspect.CO_GENERATOR else ""
            yield f"{path.relative_to(ROOT).with_suffix('')}:{frame.f_code.co_name}{mark}"
        frame = frame.f_back


def trip() -> list[str]:
    """The stack under which a free note's token is taken in, from the decoder up to ``Reading.stream``."""
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    from wim_kernel import WimKernel
    from wim_kernel.engines.local.decode.sampling import Sampler

    embedded = WimKernel.from_pretrained("embedded", dtype="float32")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(embedded.tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
    )
    kernel = WimKernel(Qwen2ForCausalLM(config), embedded.tokenizer)
    deepest: list[str] = []
    push = Sampler.push

    def watched(sampler: Sampler, token: int) -> bool:
        deepest[:] = deepest or project_frames(sys._getframe(1))
        return push(sampler, token)

    Sampler.push = watched  # type: ignore[method-assign]
    brief = GenerationConfig(max_new_tokens=4)
    options: Any = {"margin_style": "free", "threshold": 0, "margin_config": brief, "answer_config": brief}
    try:
        for _ in kernel.read(["The ship sailed."]).stream("Who owned it?", **options):
            pass
    finally:
        Sampler.push = push  # type: ignore[method-assign]
    return deepest


def main() -> None:
    """Print what was counted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    args = parser.parse_args()
    modules = sources()
    graph = imports(modules)
    frames = trip()
    generators = [name for name in frames if name.endswith("*")]
    report = {
        "folders": folders(modules),
        "modules": len(modules),
        "arrows": sum(map(len, graph.values())),
        "circles": circles(graph),
        "frames": frames,
        "generator frames": len(generators),
    }
    if args.json:
        print(json.dumps(report, indent=2))
        return
    for name, (files, lines) in report["folders"].items():  # type: ignore[attr-defined]
        print(f"{name:48} {files:3} files {lines:6} lines")
    print(f"{len(modules)} modules, {report['arrows']} imports, circles: {report['circles'] or 'none'}")
    print(
        f"A note's token passes {len(generators)} generator frames (marked *) on its way to `Reading.stream`:"
    )
    print("\n".join(f"  {name}" for name in frames))


if __name__ == "__main__":
    main()
