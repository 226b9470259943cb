"""Ways to measure likelihoods: what they make of replies, which of them are used, and when."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from proxy import Proxy, http, proxied

from wim_kernel import ServerError, WimKernel
from wim_kernel.engines.server.deciding import Reply
from wim_kernel.engines.server.deltas import StreamDelta
from wim_kernel.engines.server.families import FAMILIES
from wim_kernel.engines.server.likelihoods import Measurement, best_way, find_ways, measure
from wim_kernel.engines.server.prefixes import Claim
from wim_kernel.engines.server.reuse import HITS_DUE_BEFORE_WARNING, CacheHits
from wim_kernel.engines.server.transport import Server
from wim_kernel.engines.server.trial import TRIAL

IDS = [1, 2, 3, 4, 5]
USAGE = {"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 2}}


@pytest.fixture
def odd() -> Iterator[Proxy]:
    """A server whose replies the test chooses."""
    with proxied(9) as server:
        yield server


def on(odd: Proxy) -> Server:
    return Server(f"http://127.0.0.1:{odd.port}/v1", None, 5.0, 4)


def told(logprobs: list[float], ids: list[int]) -> dict[str, Any]:
    """vLLM's reply with log-probabilities of a prompt's last tokens, and of next tokens."""
    of_prompt = [None, *({str(token): {"logprob": -9.0, "rank": 1}} for token in IDS[1 : -len(ids)])]
    of_prompt += [{str(token): {"logprob": each}} for token, each in zip(ids, logprobs, strict=True)]
    of_next = {f"token_id:{token}": each for token, each in zip(ids, logprobs, strict=True)}
    choice = {"prompt_logprobs": of_prompt, "logprobs": {"top_logprobs": [of_next]}}
    return {"choices": [choice], "usage": USAGE}


async def test_measure_on_vllm_reads_prompt_or_next_token_logprobs(odd):
    odd.answers = {b"/v1/completions": http(json.dumps(told([-0.5, -1.5], [4, 5])).encode())}
    for way in ("prompt", "next"):
        (delta,) = [delta async for delta in measure(on(odd), way, Measurement(IDS, 2, "m"))]
        assert delta.likelihoods == (-0.5, -1.5)
    assert (
        delta.usage.prompt_tokens - delta.usage.cached_tokens == 2 * 3
    )  # as both requests together computed


@pytest.mark.parametrize("details", [{}, {"prompt_tokens_details": None}], ids=["missing", "null"])
async def test_measure_leaves_unreported_cached_tokens_unknown(odd, details):
    usage = {"prompt_tokens": 5, "completion_tokens": 1, **details}
    odd.answers = {
        b"/v1/completions": http(json.dumps({**told([-0.5, -1.5], [4, 5]), "usage": usage}).encode())
    }
    reuse = CacheHits("start it otherwise", exact=True)
    for way in ("prompt", "next"):
        (delta,) = [delta async for delta in measure(on(odd), way, Measurement(IDS, 2, "m"))]
        assert (delta.usage.prompt_tokens, delta.usage.cached_tokens) == (5, None)
        found = reuse.record(delta.usage, HITS_DUE_BEFORE_WARNING + 1)  # and nobody is warned
        assert Claim(expected=3, new=2, charged=2).recomputed(3, found) == 0
    assert reuse.reported is False


async def test_measure_on_llama_cpp_forces_tokens_by_a_grammar(odd):
    reply = {
        "completion_probabilities": [{"id": 4, "logprob": -0.5}, {"id": 5, "logprob": -1.5}],
        "tokens_evaluated": 3,
        "timings": {"cache_n": 1},
    }
    odd.answers = {b"/completion": http(json.dumps(reply).encode())}
    (delta,) = [delta async for delta in measure(on(odd), "forced", Measurement(IDS, 2, "m", 1))]
    assert delta.likelihoods == (-0.5, -1.5)
    assert (delta.usage.prompt_tokens, delta.usage.cached_tokens) == (3, 1)
    reply["completion_probabilities"][1]["id"] = 6
    odd.answers = {b"/completion": http(json.dumps(reply).encode())}
    with pytest.raises(ServerError, match="other tokens than the grammar allows"):
        [delta async for delta in measure(on(odd), "forced", Measurement(IDS, 2, "m", 1))]


@pytest.mark.parametrize("reply", [{}, {"choices": []}, {"choices": [{"prompt_logprobs": None}]}, [1], "no"])
async def test_find_ways_leaves_out_unknown_methods(odd, reply):
    odd.answers = {b"/v1/completions": http(json.dumps(reply).encode())}
    assert await find_ways(on(odd), FAMILIES["vllm"], "m", IDS) == ()


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_find_ways_raises_transient_failures(odd, status):
    odd.answers = {b"/v1/completions": http(b"{}", status)}
    with pytest.raises(ServerError):
        await find_ways(on(odd), FAMILIES["vllm"], "m", IDS)


@pytest.mark.parametrize("status", [400, 404, 501])
async def test_find_ways_leaves_out_refused_methods(odd, status):
    odd.answers = {b"/v1/completions": http(b"{}", status)}
    assert await find_ways(on(odd), FAMILIES["vllm"], "m", IDS) == ()


def test_likelihood_trial_is_repeated_after_a_failure(odd, smollm2):
    tokenizer = smollm2[1]
    ids = tokenizer.encode(TRIAL, add_special_tokens=False)
    odd.answers = {
        b"/v1/models": http(b'{"data": [{"id": "m", "object": "model"}]}'),
        b"/v1/completions": http(b"{}", 500),
    }
    kernel = WimKernel.from_server(
        f"http://127.0.0.1:{odd.port}/v1", tokenizer=tokenizer, family="vllm", window=99, retries=0
    )
    assert not kernel.engine.measures_likelihood
    odd.answers[b"/v1/completions"] = http(json.dumps(told([-0.5] * 3, ids[-3:])).encode())
    assert not kernel.engine.measures_likelihood  # not at once
    kernel.engine._trial._next = 0.0  # as half a minute later
    assert kernel.engine.measures_likelihood
    odd.answers.clear()
    assert kernel.engine.measures_likelihood


async def test_find_ways_leaves_out_methods_that_disagree(odd):
    reply = told([-0.5, -1.5, -2.5], [3, 4, 5])
    odd.answers = {b"/v1/completions": http(json.dumps(reply).encode())}
    assert await find_ways(on(odd), FAMILIES["vllm"], "m", IDS) == ("prompt", "next")
    reply["choices"][0]["logprobs"]["top_logprobs"][0]["token_id:4"] = -1.6
    odd.answers = {b"/v1/completions": http(json.dumps(reply).encode())}
    assert await find_ways(on(odd), FAMILIES["vllm"], "m", IDS) == ()
    del reply["choices"][0]["logprobs"]
    odd.answers = {b"/v1/completions": http(json.dumps(reply).encode())}
    assert await find_ways(on(odd), FAMILIES["vllm"], "m", IDS) == ("prompt",)


def test_best_way_computes_least():
    both = ("prompt", "next")
    assert best_way(both, 40, 200, 12) == "prompt"  # a passage alone, behind a cached head
    assert best_way(both, 8000, 8030, 12) == "next"  # a question behind a cached document
    assert best_way(both, 0, 8030, 12) == "prompt"  # nothing is cached
    assert best_way(("forced",), 0, 10, 2) == "forced"


@pytest.mark.parametrize(
    ("pieces", "ids", "expected"),
    [
        (["YES", ":", " It"], [], "yes"),
        (["YES: It"], [], "no"),  # in other tokens
        (["YES"], [], "not yet"),
        (["NO"], [], "no"),
        (["YES", ":"], [7, 8], "yes"),
        (["YES", ":"], [7, 9], "no"),
        (["YES"], [7], "not yet"),
    ],
)
def test_reply_begins_with_a_choice_by_its_tokens(pieces, ids, expected):
    reply = Reply()
    for number, text in enumerate(pieces):
        reply.add(StreamDelta(text, tuple(ids[number : number + 1])))
    assert reply.begins_with([7, 8], "YES:") == expected


def test_reply_that_ended_has_decided():
    reply = Reply()
    reply.add(StreamDelta("YES", (7,)))
    assert not reply.has_decided
    reply.add(StreamDelta(finish="length"))
    assert reply.has_decided
    assert reply.begins_with([7, 8], "YES:") == "no"
