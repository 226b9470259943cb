"""What several test files need: kernels on tiny models, a spy on the model, and generate as the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

from transformers import GenerationConfig

from wim_kernel import Margin, Reading, WimResult

if TYPE_CHECKING:  # some tests run without torch
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Loaded: TypeAlias = "tuple[PreTrainedModel, PreTrainedTokenizerBase]"
TinyModel: TypeAlias = "Callable[[str], PreTrainedModel]"


def config(new: int, least: int | None = None) -> GenerationConfig:
    """Greedy, at most ``new`` tokens, at least ``least``."""
    return GenerationConfig(do_sample=False, max_new_tokens=new, min_new_tokens=least)


SHORT = {"margin_config": config(6), "answer_config": config(8)}
FREE = {**SHORT, "margin_style": "free"}  # margins that are generated, token by token


class Spy:
    """Every batch of token ids that a model was run on."""

    def __init__(self) -> None:
        self.batches: list[torch.Tensor] = []

    def count(self, token: int) -> int:
        """How often a token was run."""
        return sum(int((batch == token).sum()) for batch in self.batches)

    @property
    def tokens(self) -> int:
        """How many tokens were run."""
        return sum(batch.numel() for batch in self.batches)


def fresh_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model, without what kernels have put on its modules."""
    copied = type(model)(model.config)
    copied.load_state_dict(model.state_dict())
    return copied.eval()


@contextmanager
def spying(model: PreTrainedModel) -> Iterator[Spy]:
    """Watch a model's inputs."""
    spy = Spy()

    def note(_module: object, _args: object, kwargs: dict[str, torch.Tensor]) -> None:
        spy.batches.append(kwargs["input_ids"].clone())

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield spy
    finally:
        hook.remove()


def generated(reading: Reading, of: Margin | WimResult, generation: GenerationConfig) -> list[int]:
    """What ``model.generate`` writes after the very tokens that a branch saw, without end-of-sequence."""
    import torch

    model = reading.kernel.model
    device = "cpu" if model.device.type == "meta" else model.device  # offloaded weights
    ids = torch.tensor([reading.prompt_ids(of)], device=device)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=generation)
    end = model.generation_config.eos_token_id
    ends = set(end) if isinstance(end, list) else {end}
    new = out[0, ids.shape[1] :].tolist()
    return new[:-1] if new and new[-1] in ends else new


def scored_alone(model: PreTrainedModel, before: list[int], scored: list[int]) -> float:
    """Mean log-probability of tokens behind others, by one plain forward pass."""
    import torch

    with torch.inference_mode():
        logits = model(torch.tensor([before + scored])).logits[0].float().log_softmax(-1)
    start = len(before) - 1
    return float(torch.stack([logits[start + i, token] for i, token in enumerate(scored)]).mean())
