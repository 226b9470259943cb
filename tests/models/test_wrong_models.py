"""The check on loading catches models that do something else than they tell transformers, each in one way."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_configs import build_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BertConfig, Lfm2Config, LlamaConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.lfm2 import modeling_lfm2
from transformers.models.llama import modeling_llama

from wim_kernel import UnsupportedModelError
from wim_kernel.engines.local.backends.torch_backend import TorchBackend
from wim_kernel.engines.local.model.runner import ModelRunner
from wim_kernel.engines.local.prefix import shared
from wim_kernel.engines.local.selfcheck import choose_cache

SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}


def make(config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


def llama(spread: float = 0.3, **settings: Any) -> PreTrainedModel:
    return make(LlamaConfig(**SIZES, num_hidden_layers=2, initializer_range=spread, **settings))


def lfm2() -> PreTrainedModel:
    kinds = ["conv", "full_attention"] * 2
    return make(Lfm2Config(**SIZES, num_hidden_layers=4, layer_types=kinds, initializer_range=0.3))


def path(model: PreTrainedModel) -> tuple[str, str]:
    """The cache mode that the check chooses, and the reason that it gives for not sharing."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        runner = ModelRunner(model)
        checked = choose_cache(runner, TorchBackend(runner), None, may_fall_back=True)
    return checked.mode, " ".join(str(item.message) for item in said)


def test_right_models_share():
    assert path(llama())[0] == path(lfm2())[0] == "shared"
    assert path(llama(spread=0.01))[0] == "shared"


# Attention that does more than its arguments say.


class Secretive(modeling_llama.LlamaAttention):
    """Llama's attention, whose own implementation has settings that it does not pass on."""

    scale = 1.0
    softcap: float | None = None
    window: int | None = None
    slope = 0.0

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        query, key, value = (
            linear(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for linear in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = modeling_llama.apply_rotary_pos_emb(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        out, weights = attend(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)
        return self.o_proj(out.flatten(2)), weights


def eager_attention_forward(
    module: Secretive,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    key, value = (item.repeat_interleave(module.num_key_value_groups, 1) for item in (key, value))
    scores = query @ key.transpose(-1, -2) * scaling * module.scale
    if module.softcap is not None:
        scores = module.softcap * torch.tanh(scores / module.softcap)
    keys = torch.arange(key.shape[2])
    queries = keys[-query.shape[2] :]
    distance = queries[:, None] - keys
    scores = scores - module.slope * distance
    if module.window is not None:
        scores = scores.masked_fill(distance >= module.window, -torch.inf)
    weights = (scores + attention_mask).softmax(-1)
    return (weights @ value).transpose(1, 2), weights


def secretive(spread: float = 0.3, **secrets: Any) -> PreTrainedModel:
    model = llama(spread, attn_implementation="eager")
    for layer in model.model.layers:
        layer.self_attn.__class__ = Secretive
        vars(layer.self_attn).update(secrets)
    return model


def test_attention_without_secrets_shares():
    assert path(secretive())[0] == "shared"


@pytest.mark.parametrize("spread", [0.3, 0.02])
@pytest.mark.parametrize(
    "secret", [{"scale": 1.2}, {"softcap": 50.0}, {"slope": 0.05}, {"window": 8}], ids=str
)
def test_scale_softcap_alibi_and_window_that_are_not_passed_on(secret, spread):
    mode, said = path(secretive(spread, **secret))
    assert mode == "snapshot"
    assert "Secretive attends in another way" in said or "its logits differ" in said


def test_attention_that_says_only_by_a_keyword_that_it_reads_both_ways(monkeypatch):
    model, forward = llama(), modeling_llama.LlamaAttention.forward

    def both_ways(self: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs, is_causal=False)

    monkeypatch.setattr(modeling_llama.LlamaAttention, "forward", both_ways)
    with pytest.raises(UnsupportedModelError, match="no shared-prefix form"):
        path(model)


# Masks that show something else.


def masked(
    monkeypatch: pytest.MonkeyPatch, make_mask: Callable[..., Any], **settings: Any
) -> PreTrainedModel:
    monkeypatch.setattr(modeling_llama, "create_causal_mask", make_mask)
    return llama(**settings)


@pytest.mark.parametrize("window", [8, 100, 1000, 32_768])
def test_a_window_that_is_not_passed_on(monkeypatch, window):
    """However long it is; the check runs 34 tokens."""

    def windowed(config: Any, **kwargs: Any) -> Any:
        other = copy.copy(config)
        other.sliding_window = window
        return create_sliding_window_causal_mask(config=other, **kwargs)

    mode, said = path(masked(monkeypatch, windowed))
    assert mode == "snapshot"
    assert "window" in said


def test_a_mask_that_the_model_makes_by_itself(monkeypatch):
    def by_hand(config: Any, inputs_embeds: Tensor, past_key_values: Any = None, **kwargs: Any) -> Tensor:
        before = 0 if past_key_values is None else past_key_values.get_seq_length()
        count = inputs_embeds.shape[1]
        distance = torch.arange(before, before + count)[:, None] - torch.arange(before + count)
        return ((distance >= 0) & (distance < 1000))[None, None]

    mode, said = path(masked(monkeypatch, by_hand))
    assert mode == "snapshot"
    assert "mask interface did not make" in said


def test_a_mask_that_shows_what_follows_within_a_run(monkeypatch):
    def prefix_sees_all(**kwargs: Any) -> Any:
        return create_causal_mask(**kwargs, or_mask_function=lambda batch, head, query, key: key < 3)

    with pytest.raises(UnsupportedModelError, match="other results on branches"):
        path(masked(monkeypatch, prefix_sees_all))


def test_a_mask_that_is_ignored(monkeypatch):
    """Attention both ways."""
    with pytest.raises(UnsupportedModelError, match="other results on branches"):
        path(masked(monkeypatch, lambda **kwargs: None, attn_implementation="eager"))


def test_an_encoder_is_refused():
    sizes = {**SIZES, "num_hidden_layers": 2, "initializer_range": 0.3}
    with pytest.raises(UnsupportedModelError):
        path(make(BertConfig(**sizes, is_decoder=False)))


# Positions.


def with_positions(change: Callable[[Tensor, Any], Tensor]) -> PreTrainedModel:
    model = llama()
    rotary = model.model.rotary_emb
    forward = rotary.forward
    rotary.forward = lambda hidden, position_ids: forward(hidden, position_ids=change(position_ids, hidden))
    return model


@pytest.mark.parametrize(
    "change",
    [
        lambda positions, hidden: torch.arange(positions.shape[1])[None].expand_as(positions),
        lambda positions, hidden: positions - positions[:, :1],
        lambda positions, hidden: positions + (positions.shape[1] == 1) * 1,
        lambda positions, hidden: positions // positions.shape[1],
    ],
    ids=["ignored", "from the pass's first", "shifted in steps", "divided"],
)
def test_positions_that_are_ignored_or_shifted(change):
    with pytest.raises(UnsupportedModelError, match="other results on branches"):
        path(with_positions(change))


def test_a_shift_that_is_the_same_everywhere_does_no_harm():
    assert path(with_positions(lambda positions, hidden: positions + 5))[0] == "shared"


# States.


def with_convolution(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[nn.Module, Any], Any]
) -> PreTrainedModel:
    """A model whose convolutions get another cache than they are given."""
    forward = modeling_lfm2.Lfm2ShortConv.forward

    def changed(self: Any, hidden_states: Tensor, past_key_values: Any = None, **kwargs: Any) -> Any:
        return forward(self, hidden_states, past_key_values=change(self, past_key_values), **kwargs)

    monkeypatch.setattr(modeling_lfm2.Lfm2ShortConv, "forward", changed)
    return lfm2()


def test_a_state_that_is_dropped(monkeypatch):
    with pytest.raises(UnsupportedModelError):
        path(with_convolution(monkeypatch, lambda module, cache: None))


def test_a_state_that_the_model_keeps_by_itself(monkeypatch):
    """It is then that of the last pass, whatever the boundary."""
    last: dict[nn.Module, Any] = {}

    def own(module: nn.Module, cache: Any) -> Any:
        return None if cache is None else last.setdefault(module, copy.deepcopy(cache))

    with pytest.raises(UnsupportedModelError):
        path(with_convolution(monkeypatch, own))


def test_a_state_from_the_wrong_boundary(monkeypatch):
    joined = shared.joined
    monkeypatch.setattr(shared, "joined", lambda parts: joined([parts[0]] * len(parts)))
    mode, said = path(lfm2())
    assert mode == "snapshot"
    assert "its logits differ" in said


def test_a_state_that_is_lost_between_chunks(monkeypatch):
    monkeypatch.setattr(shared, "copied", lambda states: {})
    mode, _said = path(lfm2())
    assert mode == "snapshot"


# Decoders of encoder-decoder models, which count positions by their cache.


@pytest.mark.parametrize(
    "kind", ["bart", "mbart", "pegasus", "marian", "blenderbot", "blenderbot-small", "plbart", "whisper"]
)
def test_decoders_take_their_own_cache(kind):
    mode, said = path(build_model(kind))
    assert mode == "snapshot"
    assert "one branch at a time" in said
