"""Providers' prompt caches: the facts that the engine goes by, one row for each provider, with sources and dates.

All rows were read in documentation in November 2026; none was measured with a hosted model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Mark = Literal["", "cache_control", "prompt_cache_breakpoint"]


@dataclass(frozen=True)
class Provider:
    """A provider's prompt cache.

    Attributes:
        name: the row's name, for ``from_chat_model(provider=)``.
        kinds: names of the model classes of LangChain and LlamaIndex that it goes for.
        models: a regular expression that a model's name has to match.
        caches: whether it keeps prefixes of prompts, so that a request may read what another wrote.
        mark: how the end of a prefix to cache is marked: a key of content blocks; empty for no marks.
        most_marks: most marks in one request.
        least_tokens: the shortest prefix that is cached, in tokens.
        seconds: how long an unused prefix is surely kept.
        write: the price of a token written to the cache, in tokens of plain input.
        read: the price of a token read from the cache, in tokens of plain input.
        keyed: whether ``prompt_cache_key`` sends requests on one document to the same machine.
        extra: further fields of each request.
        schema_in_prefix: whether a schema (of a tool, or of the reply) stands before the messages. Then a request with
            a schema shares no prefix with one without, and ratings are asked for in the text of the prompt.
        sources: where these facts stand, and when they were read.
    """

    name: str
    kinds: tuple[str, ...] = ()
    models: str = ""
    caches: bool = True
    mark: Mark = ""
    most_marks: int = 4
    least_tokens: int = 1024
    seconds: float = 300.0
    write: float = 1.0
    read: float = 1.0
    keyed: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)
    schema_in_prefix: bool = False
    sources: tuple[str, ...] = ()


_OPENAI = ("ChatOpenAI", "AzureChatOpenAI", "OpenAI", "AzureOpenAI", "OpenAIResponses")
_OPENAI_GUIDE = "developers.openai.com/api/docs/guides/prompt-caching (read November 2026)"
_OPENAI_SCHEMA = "the same guide: the schema of structured outputs is a prefix to the system message"

PROVIDERS = (
    Provider(
        "anthropic",
        ("ChatAnthropic", "Anthropic"),
        mark="cache_control",
        write=1.25,
        read=0.1,
        schema_in_prefix=True,
        sources=(
            "platform.claude.com/docs/en/build-with-claude/prompt-caching (read November 2026): 4 breakpoints, 5 "
            "minutes renewed by use, 1.25 and 0.1 times the price of input, an entry is there once the first response "
            "has begun; tools, then system, then messages, so that tools and tool_choice change the prefix",
            "least_tokens: 512 to 4,096 by model, and sources differ (docs.litellm.ai, docs.orq.ai, October 2026); a "
            "mark on a shorter prefix is ignored without an error",
        ),
    ),
    Provider(
        "openai",  # GPT-5.6 and later families
        _OPENAI,
        r"^(openai/)?gpt-(5\.([6-9]|\d\d)|[6-9]|\d\d)",
        mark="prompt_cache_breakpoint",
        seconds=1800.0,
        write=1.25,
        read=0.1,
        keyed=True,
        extra={"prompt_cache_options": {"mode": "explicit"}},
        schema_in_prefix=True,
        sources=(
            _OPENAI_GUIDE + ": explicit breakpoints, writes at 1.25 times the price of input, 30 minutes",
            "docs.langchain4j.dev, OpenAiOfficialPromptCacheBreakpoint (November 2026): matched exactly at a "
            "breakpoint, four cache writes a request",
            "read: 0.1 follows from an audit (github.com/thibautrey/multivibe); OpenAI's price page was not seen",
            _OPENAI_SCHEMA,
        ),
    ),
    Provider(
        "openai-automatic",  # GPT-4o up to GPT-5.5
        _OPENAI,
        r"^(openai/)?(gpt|chatgpt|o\d)",
        write=1.0,
        read=0.1,
        keyed=True,
        schema_in_prefix=True,
        sources=(
            _OPENAI_GUIDE
            + ": the longest prefix, in steps of 128 tokens from 1,024 on, writes without a fee; reads "
            "at 0.1 times the price of input in the GPT-5 family (0.5 for gpt-4o)",
            _OPENAI_SCHEMA,
        ),
    ),
    Provider(
        "google",
        ("ChatGoogleGenerativeAI", "ChatVertexAI", "GoogleGenAI", "Gemini"),
        least_tokens=2048,
        read=0.1,
        sources=(
            "ai.google.dev/gemini-api/docs/caching (7 July 2026): implicit caching of prefixes, without a guarantee",
        ),
    ),
    Provider(
        "openai-compatible",  # a server behind the OpenAI classes: see docs/servers.md for the engine for servers
        (*_OPENAI, "OpenAILike"),
        least_tokens=1,
        read=0.0,
        sources=(
            "vLLM, SGLang and llama.cpp keep prefixes by themselves and bill nothing; see docs/servers.md",
        ),
    ),
    Provider("other", caches=False, sources=("nothing is known of the provider's cache",)),
)
"""The providers, the first that fits a model first."""
BY_NAME = {provider.name: provider for provider in PROVIDERS}


def provider_of(kind: str, name: str, host: str) -> Provider:
    """The provider of a chat model.

    Args:
        kind: the name of the model's class.
        name: the model's name.
        host: the host that requests go to; empty for the provider's own.
    """
    for provider in PROVIDERS:
        if kind not in provider.kinds or not re.match(provider.models, name, re.IGNORECASE):
            continue
        is_elsewhere = bool(host) and not host.endswith(_OWN_HOSTS)
        if kind not in _OPENAI or provider.name == "openai-compatible" or not is_elsewhere:
            return provider
    return BY_NAME["other"]


_OWN_HOSTS = ("openai.com", "azure.com", "microsoft.com")
