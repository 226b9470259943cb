"""The adapter for lm-evaluation-harness. What needs the harness itself is left out where it is not installed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wim_integrations.evaluation.contexts import split_context, until
from wim_integrations.evaluation.errors import EvaluationError
from wim_kernel import WimKernel


@pytest.mark.parametrize(
    ("context", "document", "question"),
    [
        ("A text.\n\nQuestion: Who?\nAnswer:", "A text.", "Who?"),
        ("A text.\nQ: One?\nA: x\n\nMore.\nQ: Who?\nA:", "A text.\nQ: One?\nA: x\n\nMore.", "Who?"),
        ("A text.\n\nMore of it.\n\nWho owned it?", "A text.\n\nMore of it.", "Who owned it?"),
        ("A text.\nWho owned it?", "A text.", "Who owned it?"),
        ("Question: Who?\n\nA text.\n\nAnswer:", "Question: Who?", "A text."),
        ("Who owned it?", "Who owned it?", "Who owned it?"),
    ],
)
def test_split_context_separates_document_and_question(context: str, document: str, question: str) -> None:
    assert split_context(context) == (document, question)


def test_split_context_takes_the_callers_marker() -> None:
    assert split_context("A text. ### Who? ### Where?", "###") == ("A text. ### Who?", "Where?")
    with pytest.raises(EvaluationError, match="The marker '###' is not in a context that begins 'A text"):
        split_context("A text.", "###")


def test_until_cuts_at_the_first_stop_string() -> None:
    assert until("Elsa.\n\nQ: more", ["Q:", "\n"]) == "Elsa."
    assert until("Elsa", ["", "Q:"]) == "Elsa"
    assert until("Elsa", []) == "Elsa"


def requests(*contexts: str, **settings: Any) -> list[Any]:
    return [SimpleNamespace(args=(context, settings)) for context in contexts]


def test_the_model_generates_and_refuses_likelihoods(kernel: WimKernel) -> None:
    pytest.importorskip("lm_eval")
    from wim_integrations.evaluation.lm_eval import WimLM

    context = "The gull sat.\n\nElsa owned the ship.\n\nQuestion: Who owned it?\nAnswer:"
    asked = requests(context, until=["\n"], max_gen_toks=6, do_sample=False, temperature=0.0)
    plain = WimLM(kernel=kernel, method="plain", chunk_tokens=16)
    reading = kernel.read("The gull sat.\n\nElsa owned the ship.", chunk_tokens=16)
    expected = reading.answer("Who owned it?", [], answer_tokens=6).answer
    assert plain.generate_until(asked) == [until(expected, ["\n"])]
    margins = WimLM(kernel=kernel, chunk_tokens=16, top_k=1, margin_tokens=4)
    assert len(margins.generate_until(asked * 2)) == 2
    for call in (plain.loglikelihood, plain.loglikelihood_rolling):
        with pytest.raises(NotImplementedError, match="tasks of the kind generate_until"):
            call(asked)
    with pytest.raises(EvaluationError, match="a wim method or plain, not 'rag'"):
        WimLM(kernel=kernel, method="rag")


def test_the_harness_runs_a_task_on_it(
    kernel: WimKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm_eval = pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    from lm_eval.tasks import TaskManager

    from wim_integrations.evaluation.lm_eval import WimLM

    rows = [{"document": "Elsa owned the ship.", "question": "Who owned it?", "answer": "Elsa"}] * 2
    data = tmp_path / "qa.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "qa.yaml").write_text(
        f"task: local_qa\ndataset_path: json\ndataset_kwargs:\n  data_files: {{test: {data}}}\n"
        f"  cache_dir: {tmp_path}\ntest_split: test\noutput_type: generate_until\n"
        'doc_to_text: "{{document}}\\n\\nQuestion: {{question}}\\nAnswer:"\ndoc_to_target: "{{answer}}"\n'
        "generation_kwargs: {until: ['\\n'], max_gen_toks: 4}\n"
        "metric_list:\n  - {metric: exact_match, aggregation: mean, higher_is_better: true}\n"
    )
    found = lm_eval.simple_evaluate(
        model=WimLM(kernel=kernel),
        tasks=["local_qa"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
    )
    assert found["results"]["local_qa"]["exact_match,none"] == 0.0
    assert len(found["samples"]["local_qa"]) == 2
