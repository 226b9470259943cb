"""What kind of server answers at an address, and what it says of its window."""

from __future__ import annotations

from typing import Any

from wim_kernel.engines.server.families import Family, FamilyName
from wim_kernel.engines.server.transport import Server


async def family_of(server: Server, about: dict[str, Any]) -> FamilyName:
    """Found out by asking."""
    owner = str(about.get("owned_by", "")).lower()
    by_owner: dict[str, FamilyName] = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llama.cpp"}
    if owner in by_owner:
        return by_owner[owner]
    props = await server.get("/props")
    if isinstance(props, dict) and "default_generation_settings" in props:
        return "llama.cpp"
    if isinstance(await server.get("/get_model_info"), dict):
        return "sglang"
    if "max_model_len" in about:
        return "vllm"
    described = await server.get("/openapi.json")
    if isinstance(described, dict) and "/load_model" in described.get("paths", {}):
        return "transformers"
    return "openai"


async def window_of(server: Server, family: Family, about: dict[str, Any]) -> int | None:
    """What the server says its window is."""
    if about.get("max_model_len"):
        return int(about["max_model_len"])
    if family.name == "llama.cpp":
        props = await server.get("/props") or {}
        size = props.get("default_generation_settings", {}).get("n_ctx")
        return int(size) if size else None
    if family.name == "sglang":
        said = await server.get("/get_server_info") or {}
        size = said.get("context_length") or said.get("max_total_num_tokens")
        return int(size) if size else None
    return None
