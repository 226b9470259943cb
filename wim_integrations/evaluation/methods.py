"""The methods that are compared, all on the same loaded model with the same token limits.

==================  ===========================================================================================
``plain``           the whole document, then the question; no margins
``wim``             the kernel's defaults; ``wim:KEY=VALUE,...`` sets options of `wim_kernel.Options`
``wim-free``        margins in the model's own words
``wim-verbatim``    margins that are whole sentences of the document
``gold``            margins that quote the gold paragraphs: how much perfect margins would help
``rag``             the best chunks by BM25 as the document; ``rag:top_k=N`` chooses how many, 3 by default
``map-reduce``      LangChain's ``MapReduceDocumentsChain``
``refine``          LlamaIndex's ``Refine``
``tree-summarize``  LlamaIndex's ``TreeSummarize``
==================  ===========================================================================================
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from wim_integrations.evaluation.errors import EvaluationError, require
from wim_integrations.evaluation.generation import Generator
from wim_integrations.evaluation.outcomes import Call, ChunkScore, Outcome, Reference, Tokens
from wim_integrations.evaluation.specs import MethodSpec
from wim_integrations.evaluation.tasks import Document, Question
from wim_kernel import Margin, Reading, WimKernel, WimResult

Method: TypeAlias = Callable[[Question, Document], Outcome]


@dataclass(frozen=True)
class Limits:
    """Token limits that all methods share.

    Attributes:
        answer_tokens: most tokens of an answer.
        margin_tokens: most tokens of a margin, or of a chain's note on a chunk; None is the kernel's default for
            margins and `NOTE_TOKENS` for notes.
    """

    answer_tokens: int = 48
    margin_tokens: int | None = None


NOTE_TOKENS = 64  # the kernel's default for margins in the model's own words


def make_method(spec: MethodSpec, kernel: WimKernel, limits: Limits) -> Method:
    """Make the method of a spec.

    Raises:
        EvaluationError: if a package that the method needs is not installed.
    """
    if spec.kind == "wim":
        return _margins(kernel, limits, spec.options)
    if spec.kind == "rag":
        return _rag(kernel, limits, spec.options)
    return _MAKERS[spec.kind](kernel, limits)


def _read(kernel: WimKernel, document: Document) -> Reading:
    """Make a reading with the document's chunks.

    Raises:
        EvaluationError: if the kernel splits chunks.
    """
    reading = kernel.read(document.chunks)
    if len(reading.chunks) != len(document.chunks):
        raise EvaluationError("The model's window is too short for the chunks: use a smaller --chunk-tokens.")
    return reading


def _plain(kernel: WimKernel, limits: Limits) -> Method:
    def answer(question: Question, document: Document) -> Outcome:
        with closing(kernel.read(document.chunks, overflow="error")) as reading:
            result = reading.answer(question.question, [], answer_tokens=limits.answer_tokens)
            return _outcome(kernel, reading, result)

    return answer


def _margins(kernel: WimKernel, limits: Limits, options: Mapping[str, Any]) -> Method:
    sizes: dict[str, Any] = {"answer_tokens": limits.answer_tokens, "margin_tokens": limits.margin_tokens}
    cites = bool(options.get("citations"))

    def answer(question: Question, document: Document) -> Outcome:
        with closing(_read(kernel, document)) as reading:
            result = reading.ask(question.question, **{**sizes, **options})
            scores = [ChunkScore(m.index, m.relevance, m.kept, m.text) for m in result.margins]
            outcome = _outcome(kernel, reading, result, scores, calibrated=True)
            return replace(outcome, references=references_of(result, document)) if cites else outcome

    return answer


def references_of(result: WimResult, document: Document) -> tuple[Reference, ...]:
    """A result's citations. Whether a quote is in the source is looked up in the document itself."""
    return tuple(
        Reference(
            quote=citation.quote,
            margin=citation.margin,
            in_source=citation.quote in document.chunks[citation.margin],
            located=citation.located,
            marked=citation.number is not None,
        )
        for citation in result.citations
    )


def _gold(kernel: WimKernel, limits: Limits) -> Method:
    def answer(question: Question, document: Document) -> Outcome:
        with closing(_read(kernel, document)) as reading:
            margins = [
                Margin(index, evidence, relevance=1.0, kept=True, chunk=reading.chunks[index])
                for index, evidence in enumerate(document.evidence)
                if evidence
            ]
            result = reading.answer(question.question, margins, answer_tokens=limits.answer_tokens)
            return _outcome(kernel, reading, result)

    return answer


def _rag(kernel: WimKernel, limits: Limits, options: Mapping[str, Any]) -> Method:
    # Where JAX is installed, bm25s imports it, and JAX takes most of a GPU's memory at its first use.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    bm25s = require("bm25s", "The method rag")
    top_k = int(options.get("top_k", 3))

    def scores_of(question: str, chunks: Sequence[str]) -> list[float]:
        retriever = bm25s.BM25()
        retriever.index(
            bm25s.tokenize(list(chunks), return_ids=False, show_progress=False), show_progress=False
        )
        words = bm25s.tokenize([question], return_ids=False, show_progress=False)[0]
        return [float(score) for score in retriever.get_scores(words)] if words else [0.0] * len(chunks)

    def answer(question: Question, document: Document) -> Outcome:
        scores = scores_of(question.question, document.chunks)
        best = sorted(range(len(scores)), key=lambda index: -scores[index])[:top_k]
        with closing(kernel.read([document.chunks[index] for index in sorted(best)])) as reading:
            result = reading.answer(question.question, [], answer_tokens=limits.answer_tokens)
            chunk_scores = [ChunkScore(index, score, index in best) for index, score in enumerate(scores)]
            return _outcome(kernel, reading, result, chunk_scores, read=sorted(best))

    return answer


def _map_reduce(kernel: WimKernel, limits: Limits) -> Method:
    require("langchain_classic", "The method map-reduce")
    chain = require("wim_integrations.evaluation.langchain_chain", "The method map-reduce")
    generator = Generator(kernel.model, kernel.tokenizer)
    return _chain(
        generator,
        chain.map_reduce(generator, limits.margin_tokens or NOTE_TOKENS, limits.answer_tokens),
    )


def _synthesizer(mode: str) -> Callable[[WimKernel, Limits], Method]:
    def make(kernel: WimKernel, limits: Limits) -> Method:
        require("llama_index.core", f"The method {mode}")
        module = require("wim_integrations.evaluation.llama_index_synthesizers", f"The method {mode}")
        generator = Generator(kernel.model, kernel.tokenizer)
        return _chain(
            generator, module.synthesize(mode, generator, kernel.engine.window, limits.answer_tokens)
        )

    return make


def _chain(generator: Generator, ask: Callable[[str, Sequence[str]], str]) -> Method:
    """A framework's chain as a method; its calls of the model are recorded."""

    def answer(question: Question, document: Document) -> Outcome:
        generator.reset()
        text = ask(question.question, document.chunks)
        calls = tuple(
            Call(_abbreviated(call.prompt, document.chunks), call.output) for call in generator.calls
        )
        return Outcome(text, generator.tokens, calls)

    return answer


_MAKERS: dict[str, Callable[[WimKernel, Limits], Method]] = {
    "plain": _plain,
    "gold": _gold,
    "map-reduce": _map_reduce,
    "refine": _synthesizer("refine"),
    "tree-summarize": _synthesizer("tree-summarize"),
}


def _outcome(
    kernel: WimKernel,
    reading: Reading,
    result: WimResult,
    chunks: Sequence[ChunkScore] = (),
    *,
    calibrated: bool = False,
    read: Sequence[int] | None = None,
) -> Outcome:
    """A kernel's result as an outcome.

    Args:
        kernel: the kernel.
        reading: the reading.
        result: the reading's result.
        chunks: the method's score of each chunk.
        calibrated: whether these scores are probabilities.
        read: the indexes of the document's chunks in the reading; None for all chunks.
    """
    usage = result.usage
    tokens = Tokens(usage.prefill_tokens, usage.cached_tokens or 0, usage.prompt_tokens, usage.output_tokens)
    names = [f"[chunk {index}]" for index in (range(len(reading.chunks)) if read is None else read)]
    head = _head(kernel, reading, result)
    calls = []
    written = [(margin.branch, margin.text, margin.index + 1) for margin in result.margins]
    for branch, output, end in [*written, (result.branch, result.answer, len(names))]:
        if branch is not None:  # otherwise the model was not called
            suffix = kernel.tokenizer.decode(list(branch.suffix_ids))
            calls.append(Call(head + "".join(names[branch.first_chunk : end]) + str(suffix), output))
    return Outcome(result.answer, tokens, tuple(calls), tuple(chunks), calibrated)


def _head(kernel: WimKernel, reading: Reading, result: WimResult) -> str:
    """The text before the document in every prompt on a reading."""
    if result.branch is None or result.volumes > 1:
        return "[head]"
    length = result.branch.prefix_tokens - reading.tokens
    return str(kernel.tokenizer.decode(reading.prompt_ids(result)[:length]))


def _abbreviated(prompt: str, chunks: Sequence[str]) -> str:
    """A prompt with names in place of the document's chunks."""
    for index, chunk in sorted(enumerate(chunks), key=lambda pair: -len(pair[1])):
        prompt = prompt.replace(chunk, f"[chunk {index}]")
    return prompt
