"""The kernel as a model of EleutherAI's lm-evaluation-harness, for its tasks of the kind ``generate_until``.

    python -m wim_integrations.evaluation.lm_eval run --model wim --model_args pretrained=FOLDER --tasks NAME

The module registers the model ``wim`` and then runs the harness's own command line. `WimLM` can be given to
``lm_eval.simple_evaluate`` as well. Tasks that ask for likelihoods of given texts are refused: nothing is generated
there, so there is nothing that margins could help.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any

import torch
from transformers import GenerationConfig

from wim_integrations.evaluation.contexts import split_context, until
from wim_integrations.evaluation.errors import EvaluationError, require
from wim_integrations.evaluation.loading import load_kernel
from wim_integrations.evaluation.specs import parse_methods
from wim_kernel import WimKernel

require("lm_eval", "The lm-evaluation-harness adapter", "lm-eval")

from lm_eval.api.model import LM  # noqa: E402
from lm_eval.api.registry import register_model  # noqa: E402

MAX_GEN_TOKS = 256  # the harness's own default
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@register_model("wim")
class WimLM(LM):
    """The kernel as a model of the harness.

    Args:
        pretrained: a hub id, a path, or ``"embedded"``.
        kernel: a loaded kernel, in place of ``pretrained``.
        method: ``"wim"``, ``"wim-free"``, ``"wim-verbatim"`` or ``"plain"``; see `wim_integrations.evaluation.methods`.
        chunk_tokens: most tokens of a chunk.
        split: a text behind which a context's question begins; see `split_context`.
        dtype: the type of the weights: ``"bfloat16"``, ``"float16"`` or ``"float32"``.
        device: the device. The harness asks for a GPU by default, which is ignored on a machine without one.
        gguf_file: the GGUF file within the model's repository or folder.
        batch_size: ignored; the margins of a document are decoded in batches of the engine's size.
        max_batch_size: ignored.
        options: options of `wim_kernel.Options`, such as ``top_k=3``.

    Raises:
        EvaluationError: for a method or an option that cannot be set here.
    """

    def __init__(
        self,
        pretrained: str = "embedded",
        *,
        kernel: WimKernel | None = None,
        method: str = "wim",
        chunk_tokens: int = 1024,
        split: str | None = None,
        dtype: str | None = None,
        device: str | None = None,
        gguf_file: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        given = ",".join(f"{name}={value}" for name, value in options.items())
        spec = parse_methods(f"{method}:{given}" if given else method)[0]
        if spec.kind not in ("wim", "plain"):
            raise EvaluationError(f"Here method is a wim method or plain, not {method!r}.")
        self._margins, self._options = spec.kind == "wim", spec.options
        self._split, self._chunk_tokens = split, chunk_tokens
        if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
            device = None
        self.kernel = kernel or load_kernel(pretrained, gguf_file, dtype, device)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Answer each request's context, up to its stop texts."""
        texts = []
        for request in requests:
            context, settings = request.args
            texts.append(self._answer(context, settings))
            self.cache_hook.add_partial("generate_until", request.args, texts[-1])
        return texts

    def _answer(self, context: str, settings: Mapping[str, Any]) -> str:
        document, question = split_context(context, self._split)
        stops = settings.get("until") or []
        generation = {
            "do_sample": bool(settings.get("do_sample")),
            "max_new_tokens": settings.get("max_gen_toks") or settings.get("max_new_tokens") or MAX_GEN_TOKS,
        }
        if generation["do_sample"]:
            generation |= {name: settings[name] for name in _SAMPLING if name in settings}
        config = GenerationConfig.from_dict(generation)
        with closing(self.kernel.read(document, chunk_tokens=self._chunk_tokens)) as reading:
            if self._margins:
                result = reading.ask(question, **{**self._options, "answer_config": config})
            else:
                result = reading.answer(question, [], answer_config=config)
        return until(result.answer, [stops] if isinstance(stops, str) else stops)

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Not supported.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "The model wim generates answers and gives no likelihoods of given texts: choose tasks of the kind "
            "generate_until, or the harness's own model hf."
        )

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """Not supported.

        Raises:
            NotImplementedError: always.
        """
        self.loglikelihood(requests)
        return []


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
