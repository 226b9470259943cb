"""Reads a prompt and decodes after it with llama.cpp, in the Python that has its wheel; see `benchmarks.llama_cpp`.

Takes JSON on the standard input (``model``, ``ids``, ``new_tokens``, ``threads``, ``rounds``) and prints JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main() -> None:
    """Run the prompt a number of times, each time afresh, and print llama.cpp's own timings."""
    import xllamacpp

    asked: dict[str, Any] = json.load(sys.stdin)
    params = xllamacpp.CommonParams()
    params.model.path = asked["model"]
    params.n_ctx = len(asked["ids"]) + asked["new_tokens"] + 64
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = asked["threads"]
    server = xllamacpp.Server(params)
    request = {
        "prompt": asked["ids"],
        "n_predict": asked["new_tokens"],
        "temperature": 0,
        "ignore_eos": True,
        "cache_prompt": False,
    }
    timings = []
    for _ in range(asked["rounds"]):
        reply = server.handle_completions(request)
        timings.append((reply if isinstance(reply, dict) else json.loads(reply))["timings"])
    print("\n" + json.dumps({"version": xllamacpp.__version__, "timings": timings}))


if __name__ == "__main__":
    main()
