"""Log-probabilities of a prompt's last tokens, in the ways that servers offer. Each way is tried before it is used.

- SGLang's ``/generate`` tells those of a prompt, and takes the tokens before them from its cache.
- vLLM's ``prompt_logprobs`` tells those of a prompt, and computes all of it again. That costs nothing for a passage
  that is read alone, because no cache has it.
- vLLM tells that of a given next token (``logprob_token_ids``) behind a cached prompt: one small request a token.
- llama.cpp tells that of each token it writes before any sampling, also of tokens that a grammar leaves no choice in.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import openai

from wim_kernel.common.errors import ServerError
from wim_kernel.engines.server.deltas import (
    StreamDelta,
    UsageReport,
    checked_counts,
    name_of,
    parse_likelihoods,
)
from wim_kernel.engines.server.families import Family
from wim_kernel.engines.server.transport import Server

Way = Literal["generate", "prompt", "next", "forced"]
CLOSE = (
    0.02  # nats by which two ways may differ in a trial: servers compute in 16 bits, and batches change sums
)
BLOCK = 16  # tokens of a block of a prefix cache, of which a request runs half again on average


@dataclass(frozen=True)
class Measurement:
    """A prompt whose last tokens are measured.

    Attributes:
        ids: token ids of the prompt.
        scored: how many of the last tokens are measured; another token precedes them.
        model: name of the model on the server.
        slot: llama.cpp's slot.
    """

    ids: Sequence[int]
    scored: int
    model: str
    slot: int = 0


async def measure(server: Server, way: Way, of: Measurement) -> AsyncGenerator[StreamDelta, None]:
    """Measure log-probabilities; yields one delta, with the server's usage report.

    Raises:
        ServerError: if a request fails, or its reply makes no sense.
    """
    if way == "generate":
        body = _generate(of.ids, of.scored, ())
        answer = await server.ask("/generate", body)
        yield server.parsed(lambda: parse_likelihoods(answer, of.scored, server.base_url))
    elif way == "prompt":
        answer = await server.ask("/v1/completions", {**_one_token(of.ids, of.model), "prompt_logprobs": 0})
        yield server.parsed(lambda: _of_prompt(answer, of, server.base_url))
    elif way == "forced":
        answer = await server.ask("/completion", _forced(of))
        yield server.parsed(lambda: _of_forced(answer, of, server.base_url))
    else:
        start = len(of.ids) - of.scored
        # the first one brings what the others find in the cache
        bodies = [_next(of.ids[:end], of.ids[end], of.model) for end in range(start, len(of.ids))]
        answers = [await server.ask("/v1/completions", bodies[0])]
        answers += await asyncio.gather(*(server.ask("/v1/completions", body) for body in bodies[1:]))
        yield server.parsed(lambda: _of_next(answers, of, server.base_url))


async def candidates(
    server: Server, ids: Sequence[int], tokens: Sequence[int]
) -> AsyncGenerator[StreamDelta, None]:
    """Log-probabilities of candidates for the next token, by SGLang's ``/generate``, in one delta."""
    answer = await server.ask("/generate", _generate(ids, 0, tokens))
    yield server.parsed(lambda: parse_likelihoods(answer, 0, server.base_url))


def ways_of(family: Family) -> tuple[Way, ...]:
    """The ways that a family may offer."""
    return {"sglang": ("generate",), "vllm": ("prompt", "next"), "llama.cpp": ("forced",)}.get(
        family.name, ()
    )  # type: ignore[return-value]


async def find_ways(
    server: Server, family: Family, model: str, ids: Sequence[int], slot: int = 0
) -> tuple[Way, ...]:
    """The ways that work on a server, by a trial on a short prompt. Ways that disagree are not used.

    Args:
        server: the server.
        family: its family.
        model: name of the model on the server.
        ids: token ids of a short text, of which the last three are measured.
        slot: llama.cpp's slot to use.

    Raises:
        ServerError: for failures that may pass; status 500 may mean that a way is not known, so it is raised only if no
            other way works.
    """
    found: dict[Way, tuple[float, ...]] = {}
    failed: ServerError | None = None
    for way in ways_of(family):
        try:
            async for delta in measure(server, way, Measurement(ids, 3, model, slot)):
                found[way] = delta.likelihoods
        except ServerError as error:
            unreachable = isinstance(error.__cause__, openai.APIConnectionError)
            if unreachable or error.status in (408, 409, 429, 502, 503, 504):
                raise
            failed = error if error.status == 500 else failed
    if failed is not None and not found:
        raise failed
    first = next(iter(found.values()), ())
    agree = all(
        math.isclose(one, other, abs_tol=CLOSE)
        for each in found.values()
        for one, other in zip(first, each, strict=True)
    )
    return tuple(found) if agree else ()


def best_way(ways: Sequence[Way], cached: int, length: int, scored: int) -> Way:
    """The way that has the server compute least.

    Args:
        ways: the ways that work.
        cached: how many of the prompt's tokens the server has in its cache.
        length: how many tokens the prompt has.
        scored: how many of them are measured.
    """
    if "prompt" in ways and "next" in ways:
        return "prompt" if length <= scored * (BLOCK // 2 + length - cached) else "next"
    return ways[0]


def _generate(ids: Sequence[int], scored: int, tokens: Sequence[int]) -> dict[str, Any]:
    return {
        "input_ids": list(ids),
        "sampling_params": {"max_new_tokens": 1 if tokens else 0, "temperature": 0.0},
        "return_logprob": True,
        "logprob_start_len": len(ids) - scored - 1 if scored else -1,
        "token_ids_logprob": list(tokens) or None,
    }


def _one_token(ids: Sequence[int], model: str) -> dict[str, Any]:
    return {"model": model, "prompt": list(ids), "max_tokens": 1, "temperature": 0.0}


def _next(ids: Sequence[int], token: int, model: str) -> dict[str, Any]:
    asks = {"logprobs": 0, "logprob_token_ids": [token], "return_tokens_as_token_ids": True}
    return {**_one_token(ids, model), **asks}


def _forced(of: Measurement) -> dict[str, Any]:
    prompt, forced = list(of.ids[: -of.scored]), of.ids[-of.scored :]
    return {
        "prompt": prompt,
        "n_predict": of.scored,
        "grammar": "root ::= " + " ".join(f"<[{token}]>" for token in forced),
        "n_probs": 1,
        "temperature": 0.0,
        "cache_prompt": True,
        "id_slot": of.slot,
    }


def _of_prompt(answer: Any, of: Measurement, server: str) -> StreamDelta:
    told = answer["choices"][0]["prompt_logprobs"][-of.scored :]
    found = [at[str(token)]["logprob"] for at, token in zip(told, of.ids[-of.scored :], strict=True)]
    return _delta(found, _usage([answer], server))


def _of_next(answers: Sequence[Any], of: Measurement, server: str) -> StreamDelta:
    found = [
        answer["choices"][0]["logprobs"]["top_logprobs"][0][name_of(token)]
        for answer, token in zip(answers, of.ids[-of.scored :], strict=True)
    ]
    return _delta(found, _usage(answers, server))


def _of_forced(answer: Any, of: Measurement, server: str) -> StreamDelta:
    told = answer["completion_probabilities"]
    if [item["id"] for item in told] != list(of.ids[-of.scored :]):
        raise ValueError("the reply has other tokens than the grammar allows")
    timings = answer.get("timings") or {}
    prompt, cached = answer.get("tokens_evaluated"), timings.get("cache_n")
    return _delta([item["logprob"] for item in told], checked_counts(prompt, len(told), cached, server))


def _usage(answers: Sequence[Any], server: str) -> UsageReport | None:
    """The usage of several requests, of which each found what the one before it left in the cache."""
    reports = list[UsageReport]()
    for answer in answers:
        usage = answer.get("usage") or {}
        report = checked_counts(
            usage.get("prompt_tokens"),
            usage.get("completion_tokens"),
            (usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
            server,
        )
        if report is None:
            return None
        reports.append(report)
    longest, output = max(each.prompt_tokens for each in reports), sum(each.output_tokens for each in reports)
    if all(each.cached_tokens is None for each in reports):
        return UsageReport(longest, output, None, server)
    # as one request that computed as much; some servers leave out a count of 0
    computed = sum(each.prompt_tokens - (each.cached_tokens or 0) for each in reports)
    return UsageReport(longest, output, longest - computed, server)


def _delta(found: Sequence[Any], usage: UsageReport | None) -> StreamDelta:
    if not all(isinstance(number, int | float) for number in found):
        raise ValueError("the reply lacks log-probabilities")
    return StreamDelta(finish="length", usage=usage, likelihoods=tuple(map(float, found)))
