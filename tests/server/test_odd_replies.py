"""Replies that no server should give: each is a `ServerError` or is left out, and none shows a key."""

from __future__ import annotations

import json

import pytest
from helpers import config
from proxy import http, proxied

from wim_kernel import ServerError, WimKernel
from wim_kernel.engines.server.likelihoods import Measurement, candidates, measure
from wim_kernel.engines.server.transport import Server

QUESTION = "Who owned the ship?"
TEXTS = ["The gull sat on the mast.", "Elsa Brandt owned the ship."]
OPTIONS = {"threshold": 0, "margin_config": config(4), "answer_config": config(8)}


@pytest.fixture
def odd():
    """Answers what it is told."""
    with proxied(9) as made:
        yield made


def url(proxy, login: str = "") -> str:
    return f"http://{login}127.0.0.1:{proxy.port}/v1"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"<html>Sign in</html>", "text/html"),
        (b"[1, 2]", "application/json"),
        (b'{"data": [', "application/json"),
    ],
)
@pytest.mark.parametrize("model", [None, "m"])
def test_models_reply_that_is_no_list_raises(odd, body, kind, model):
    odd.answers = {b"/models": http(body, kind=kind)}
    with pytest.raises(ServerError, match="models could not be listed"):
        WimKernel.from_server(url(odd), model, retries=0)


def test_models_without_a_name_are_left_out(odd):
    odd.answers = {b"/models": http(b'{"object": "list", "data": [{"object": "model"}, {"id": null}]}')}
    with pytest.raises(ValueError, match="Say which model"):
        WimKernel.from_server(url(odd), retries=0)


async def deltas(odd, *events: dict) -> list:
    lines = [f"data: {json.dumps(event)}\n\n" for event in events] + ["data: [DONE]\n\n"]
    odd.answers = {b"/completions": http("".join(lines).encode(), kind="text/event-stream")}
    server = Server(url(odd), None, 5.0, 1)
    return [delta async for delta in server.stream({"model": "m", "prompt": "It"}, {})]


@pytest.mark.parametrize(
    "logprobs",
    [
        {"top_logprobs": [{"YES": None, "NO": -1.5}]},
        {
            "content": [
                {
                    "token": "NO",
                    "top_logprobs": [{"token": "YES", "logprob": None}, {"token": "NO", "logprob": -1.5}],
                }
            ]
        },
    ],
)
async def test_top_logprobs_without_a_number_are_left_out(odd, logprobs):
    choice = {"index": 0, "text": "NO", "finish_reason": "length", "logprobs": logprobs}
    (delta,) = await deltas(odd, {"object": "text_completion", "choices": [choice]})
    assert delta.top == {"NO": -1.5}


@pytest.mark.parametrize(("said", "taken"), [(-5, 0), (50, 9), (4, 4), (None, None), ("many", None)])
async def test_cached_count_is_clipped_to_the_prompt(odd, said, taken):
    choice = {"index": 0, "text": "NO", "finish_reason": "length"}
    usage = {"prompt_tokens": 9, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": said}}
    (delta,) = await deltas(odd, {"object": "text_completion", "choices": [choice], "usage": usage})
    assert delta.usage is not None
    assert (delta.usage.prompt_tokens, delta.usage.cached_tokens) == (9, taken)


def test_server_errors_hide_a_login_in_the_address():
    with pytest.raises(ServerError, match=r"at http://127\.0\.0\.1:9/v1") as caught:
        WimKernel.from_server("http://elsa:very-secret@127.0.0.1:9/v1", retries=0)
    assert "secret" not in str(caught.value) + repr(
        Server("http://elsa:very-secret@127.0.0.1:9/v1", None, 1.0, 1)
    )


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>Sign in</html>",
        b"[]",
        b'{"meta_info": {}}',
        b'{"meta_info": {"input_token_logprobs": 7}}',
        b'{"meta_info": {"prompt_tokens": 4, "completion_tokens": 0, "input_token_logprobs": [[-0.5, 2, null]]}}',
        b'{"meta_info": {"prompt_tokens": 4, "completion_tokens": 0, "input_token_logprobs": [["x", 2], [-1.5, 3]]}}',
        b'{"meta_info": {"prompt_tokens": 4, "completion_tokens": 0, "input_token_logprobs": [null, null, null]}}',
    ],
)
async def test_likelihood_reply_without_numbers_raises(odd, answer):
    odd.answers = {b"/generate": http(answer)}
    server = Server(url(odd), "a key", 5.0, 1)
    with pytest.raises(ServerError, match="a request failed") as caught:
        [delta async for delta in measure(server, "generate", Measurement([1, 2, 3, 4], 2, "m"))]
    assert "a key" not in str(caught.value)
    assert server.running == 0


@pytest.mark.parametrize(("cached", "taken"), [(2, 2), (50, 4), ("many", None)])
async def test_likelihood_reply_has_a_usage_report(odd, cached, taken):
    about = {
        "input_token_logprobs": [[None, 2, None], [-0.5, 3, None], [-1.5, 4, None]],
        "output_token_ids_logprobs": [[[-0.25, 7, None], [-3.0, 8, None]]],
        **{"prompt_tokens": 4, "completion_tokens": 1, "cached_tokens": cached},
    }
    odd.answers = {b"/generate": http(json.dumps({"text": "", "meta_info": about}).encode())}
    server = Server(url(odd), None, 5.0, 1)
    (delta,) = [delta async for delta in measure(server, "generate", Measurement([1, 2, 3, 4], 2, "m"))]
    assert delta.likelihoods == (-0.5, -1.5)
    (delta,) = [delta async for delta in candidates(server, [1, 2, 3, 4], [7, 8])]
    assert delta.top == {"token_id:7": -0.25, "token_id:8": -3.0}
    assert delta.usage is not None
    assert (delta.usage.prompt_tokens, delta.usage.output_tokens, delta.usage.cached_tokens) == (4, 1, taken)
