"""Options in both frameworks: errors for unknown names, and shared defaults."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from wim_kernel import Options, UnknownOptionError, WimKernel
from wim_kernel.run.options import parse_options
from wim_kernel.run.settings import adapt_to_engine

OPTION_NAMES = tuple(Options.__annotations__)
RECALL_THRESHOLD = 0.1  # of a probability of evidence, for parts whose output has the kept margins only

# Options of the frameworks' own parts, and what to use in their place.
_RETIRED = {
    "token_max": "notes are chosen by relevance until they fit the window: use threshold or top_k",
    "collapse_prompt": "notes are never collapsed: use threshold or top_k to keep fewer",
    "collapse_llm": "notes are never collapsed, and the kernel is the model",
    "collapse_max_retries": "notes are never collapsed: use threshold or top_k to keep fewer",
    "collapse_documents_chain": "notes are never collapsed: use threshold or top_k to keep fewer",
    "reduce_documents_chain": "the answer is written by the kernel: give combine_prompt, or prompts={'answer': ...}",
    "combine_documents_chain": "the answer is written by the kernel: give combine_prompt, or prompts={'answer': ...}",
    "refine_prompt": "an answer is not refined chunk by chunk: give prompts={'margin': ..., 'answer': ...}",
    "refine_template": "an answer is not refined chunk by chunk: give margin_template and text_qa_template",
    "refine_llm": "an answer is not refined chunk by chunk, and the kernel is the model",
    "return_refine_steps": "an answer is not refined chunk by chunk: use return_intermediate_steps",
    "initial_response_name": "an answer is not refined chunk by chunk: leave it out",
    "document_variable_name": "the map prompt's and the combine prompt's variables have a name each: "
    "use map_reduce_document_variable_name and combine_document_variable_name",
    "verbose": "use the framework's callbacks or its global setting",
    "llm": "the kernel is the model",
    "llm_chain": "the kernel is the model: give prompts by name",
    "llm_chain_kwargs": "the kernel is the model: give prompts by name",
    "reduce_llm": "the kernel is the model",
    "chain_type": "there is one chain: leave it out",
    "prompt": "name it: prompts={'answer': ...} or prompts={'margin': ...}",
    "summary_template": "it is called text_qa_template here",
    "simple_template": "it is called text_qa_template here",
    "prompt_helper": "the kernel counts in the model's own tokenizer: leave it out",
    "chat_prompt_helper": "the kernel counts in the model's own tokenizer: leave it out",
    "response_mode": "there is one way to answer: leave it out",
    "structured_answer_filtering": "use threshold or top_k",
    "program_factory": "use output_cls",
    "use_async": "call the asynchronous methods",
    "service_context": "the kernel is the model",
    "multimodal": "the kernel reads text",
    "max_tokens": "use answer_tokens and margin_tokens",
    "max_new_tokens": "use answer_tokens and margin_tokens",
    "temperature": "use answer_config and margin_config, which are GenerationConfigs",
    "stop": "use answer_config, a GenerationConfig with stop_strings",
    "k": "use top_k",
}


def check_names(given: Iterable[str], known: Iterable[str], owner: str, lead: str = "") -> None:
    """Check that all options exist.

    Args:
        given: names of the options given.
        known: names of the options that exist.
        owner: the name of the class or function, for the error.
        lead: the beginning of the error.

    Raises:
        UnknownOptionError: for an unknown option; the message lists the options, and names a replacement if possible.
    """
    known = list(dict.fromkeys(known))
    unknown = [name for name in given if name not in known]
    if unknown:
        names = "; ".join(_with_hint(name, known) for name in unknown)
        raise UnknownOptionError(
            f"{lead}{owner} has no option {names}. Its options are {', '.join(sorted(known))}."
        )


def check_kernel(kernel: Any, owner: str) -> None:
    """Check that an argument is a kernel.

    Raises:
        TypeError: if it is not.
    """
    if not isinstance(kernel, WimKernel):
        raise TypeError(
            f"{owner} reads with a WimKernel, not a {type(kernel).__name__}: make one with "
            "WimKernel.from_pretrained(name), WimKernel(model, tokenizer) or WimKernel.from_chat_model(llm)."
        )


def leaning_to_recall(options: Options, kernel: WimKernel) -> Options:
    """Options with a lower default threshold, for parts whose output has the kept margins only.

    The kernel's own answers are written behind the whole document, so that a missing margin costs them little. Where
    only margins are passed on, a missing margin is lost evidence, and a needless one is a little more to read.

    Args:
        options: the caller's options; unchanged if ``threshold``, ``top_k`` or ``keep`` is set.
        kernel: the kernel that reads.
    """
    chosen = any(options.get(name) is not None for name in ("threshold", "top_k", "keep"))
    if chosen:
        return options
    try:
        settings = adapt_to_engine(parse_options(options), kernel.engine)
    except ValueError:  # the call itself will raise it
        return options
    is_probability = bool(getattr(settings.relevance, "searches", ()))
    return {**options, "threshold": RECALL_THRESHOLD} if is_probability else options


def _with_hint(name: str, known: list[str]) -> str:
    if name in _RETIRED:
        return f"{name!r} ({_RETIRED[name]})"
    near = get_close_matches(name, known, n=1)
    return f"{name!r} (did you mean {near[0]!r}?)" if near else repr(name)
