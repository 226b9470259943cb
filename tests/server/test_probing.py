"""What kind of server answers, and its window, by what it says of itself: also where that makes no sense."""

from __future__ import annotations

import json
from typing import Any

import pytest
from proxy import http, proxied

from wim_kernel import WimKernel


@pytest.mark.parametrize(
    ("about", "beside", "family", "window"),
    [
        ({"owned_by": "vllm", "max_model_len": 4096}, {}, "vllm", 4096),
        ({"owned_by": "sglang"}, {"/get_server_info": {"context_length": 2048}}, "sglang", 2048),
        ({}, {"/get_model_info": {"model_path": "m"}}, "sglang", None),
        ({"max_model_len": 512}, {}, "vllm", 512),
        ({}, {"/props": {"default_generation_settings": {"n_ctx": 512}}}, "llama.cpp", 512),
        ({}, {"/openapi.json": {"paths": {"/load_model": {}}}}, "transformers", None),
        ({}, {}, "openai", None),
        (
            {"owned_by": 7, "max_model_len": "many"},
            {"/props": [1], "/get_model_info": "m", "/openapi.json": {"paths": ["/load_model"]}},
            "vllm",
            None,
        ),
        ({"owned_by": None}, {"/props": None, "/openapi.json": {"paths": 7}}, "openai", None),
        ({"owned_by": "llamacpp"}, {"/props": {"default_generation_settings": [512]}}, "llama.cpp", None),
        ({"owned_by": "sglang"}, {"/get_server_info": {"context_length": -1}}, "sglang", None),
    ],
)
def test_family_of_recognises_servers_by_their_replies(about, beside, family, window):
    said: dict[str, Any] = {"/models": {"object": "list", "data": [{"id": "m", "object": "model", **about}]}}
    with proxied(9) as server:
        server.answers = {
            path.encode(): http(json.dumps(answer).encode()) for path, answer in {**said, **beside}.items()
        }
        engine = WimKernel.from_server(f"http://127.0.0.1:{server.port}/v1").engine
    assert (engine.family.name, engine.window, engine.route) == (family, window, "chat")
    assert not engine.measures_likelihood  # without a tokenizer
