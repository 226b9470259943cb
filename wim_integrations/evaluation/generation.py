"""`model.generate` on the kernel's model, greedy and with token counts, for the frameworks' chains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from wim_integrations.evaluation.outcomes import Call, Tokens


@dataclass
class Generator:
    """A loaded model that generates from prompts, and a record of its calls.

    Attributes:
        model: a transformers causal LM.
        tokenizer: the model's tokenizer.
        batch_size: how many prompts are generated from in one batch.
        calls: every prompt so far, with its output.
        prompt_tokens: tokens of these prompts, without padding.
        output_tokens: tokens generated, without padding and end-of-sequence.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch_size: int = 8
    calls: list[Call] = field(default_factory=list)
    prompt_tokens: int = 0
    output_tokens: int = 0

    @property
    def has_template(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return bool(self.tokenizer.chat_template)

    @property
    def tokens(self) -> Tokens:
        """The tokens so far, by kind."""
        return Tokens(prompt=self.prompt_tokens, output=self.output_tokens)

    def reset(self) -> None:
        """Clear the record."""
        self.calls = []
        self.prompt_tokens = self.output_tokens = 0

    def count_tokens(self, text: str) -> int:
        """How many tokens a text has."""
        return len(self.tokenizer.encode(text, add_special_tokens=False))

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Messages as one prompt by the tokenizer's chat template.

        Where the template knows no system role, the system's message becomes part of the user's first one.

        Args:
            messages: each with a ``role`` and its ``content``.
        """
        given = [dict(message) for message in messages]
        try:
            return self._rendered(given)
        except TemplateError:
            system = [message["content"] for message in given if message["role"] == "system"]
            others = [message for message in given if message["role"] != "system"]
            if not system or not others:
                raise
            others[0]["content"] = "\n\n".join([*system, others[0]["content"]])
            return self._rendered(others)

    def _rendered(self, messages: list[dict[str, str]]) -> str:
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def as_user(self, prompt: str) -> str:
        """A prompt as the user's turn; unchanged for a model without a chat template."""
        return self.render([{"role": "user", "content": prompt}]) if self.has_template else prompt

    def generate(
        self, prompts: Sequence[str], new_tokens: int, *, min_new_tokens: int | None = None
    ) -> list[str]:
        """Continue prompts greedily.

        Args:
            prompts: rendered prompts; special tokens in them are encoded as such.
            new_tokens: most tokens of each output.
            min_new_tokens: fewest tokens of each output.
        """
        texts: list[str] = []
        for start in range(0, len(prompts), self.batch_size):
            batch = prompts[start : start + self.batch_size]
            outputs = self._generate(batch, new_tokens, min_new_tokens)
            self.calls += map(Call, batch, outputs)
            texts += outputs
        return texts

    def _generate(self, prompts: Sequence[str], new_tokens: int, min_new_tokens: int | None) -> list[str]:
        # A template's prompt has its beginning-of-sequence token; a base model's gets it from the tokenizer.
        ids = self.tokenizer(list(prompts), add_special_tokens=not self.has_template)["input_ids"]
        width = max(map(len, ids))
        padding = self.tokenizer.pad_token_id or 0
        device = self.model.device
        padded = torch.tensor([[padding] * (width - len(row)) + row for row in ids], device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=device)
        config = GenerationConfig.from_dict(
            {
                "do_sample": False,
                "max_new_tokens": new_tokens,
                "min_new_tokens": min_new_tokens,
                "pad_token_id": padding,
            }
        )
        generate: Any = self.model.generate
        with torch.inference_mode():
            out = generate(padded, attention_mask=mask, generation_config=config)
        written = [self._until_end(row) for row in out[:, width:].tolist()]
        self.prompt_tokens += sum(map(len, ids))
        self.output_tokens += sum(map(len, written))
        return [str(self.tokenizer.decode(row, skip_special_tokens=True)) for row in written]

    def _until_end(self, row: list[int]) -> list[int]:
        """A row's tokens before the first end-of-sequence token."""
        end = self.model.generation_config.eos_token_id if self.model.generation_config else None
        ends = set(end) if isinstance(end, list) else {end}
        return next((row[:index] for index, token in enumerate(row) if token in ends), row)
