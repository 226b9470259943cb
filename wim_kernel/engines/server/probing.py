"""Finds out the family of a server, and its context window."""

from __future__ import annotations

from typing import Any

from wim_kernel.engines.server import ollama
from wim_kernel.engines.server.families import Family, FamilyName
from wim_kernel.engines.server.transport import Server


async def family_of(server: Server, about: dict[str, Any]) -> FamilyName:
    """The family of a server, by its entry in the list of models or by paths that only one family has."""
    owner = str(about.get("owned_by", "")).lower()
    by_owner: dict[str, FamilyName] = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llama.cpp"}
    if owner in by_owner:
        return by_owner[owner]
    props = await server.get("/props")
    if isinstance(props, dict) and "default_generation_settings" in props:
        return "llama.cpp"
    if isinstance(_table(await server.get("/api/version")).get("version"), str):
        return "ollama"
    if isinstance(await server.get("/get_model_info"), dict):
        return "sglang"
    if "max_model_len" in about:
        return "vllm"
    described = _table(await server.get("/openapi.json"))
    if "/load_model" in _table(described.get("paths")):
        return "transformers"
    return "openai"


async def window_of(server: Server, family: Family, about: dict[str, Any]) -> int | None:
    """The context window that the server reports; None if it reports none."""
    if family.name == "ollama":
        return await ollama.window_of(server, str(about.get("id")))
    if _number(about.get("max_model_len")):
        return _number(about["max_model_len"])
    if family.name == "llama.cpp":
        props = _table(await server.get("/props"))
        return _number(_table(props.get("default_generation_settings")).get("n_ctx"))
    if family.name == "sglang":
        said = _table(await server.get("/get_server_info"))
        return _number(said.get("context_length")) or _number(said.get("max_total_num_tokens"))
    return None


async def slots_of(server: Server) -> int:
    """How many prompts a llama.cpp server keeps; 1 if it does not say."""
    return _number(_table(await server.get("/props")).get("total_slots")) or 1


def _table(found: Any) -> dict[str, Any]:
    """``found`` if it is a JSON object; else an empty one."""
    return found if isinstance(found, dict) else {}


def _number(found: Any) -> int | None:
    return found if isinstance(found, int) and found > 0 else None
