"""Methods as a command line names them."""

from __future__ import annotations

import pytest

from wim_integrations.evaluation.errors import EvaluationError
from wim_integrations.evaluation.specs import NAMES, parse_methods


def test_every_method_can_be_named() -> None:
    specs = parse_methods(",".join(NAMES))
    assert [spec.name for spec in specs] == list(NAMES)


def test_options_belong_to_the_method_before_them() -> None:
    plain, wim, rag = parse_methods("plain, wim:relevance=decision,top_k=3 ,rag:top_k=5,plain")
    assert (plain.name, plain.options) == ("plain", {})
    assert (wim.name, wim.kind) == ("wim:relevance=decision,top_k=3", "wim")
    assert wim.options == {"relevance": "decision", "top_k": 3}
    assert rag.options == {"top_k": 5}


def test_methods_set_the_margin_style() -> None:
    free, verbatim = parse_methods("wim-free,wim-verbatim:threshold=0.25")
    assert free.options == {"margin_style": "free"}
    assert verbatim.options == {"margin_style": "verbatim", "threshold": 0.25}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "No method is named"),
        ("wim,magic", "Unknown method: 'magic'"),
        ("top_k=3,wim", "option without a method"),
        ("wim,top_k=3", "write METHOD:top_k=3"),
        ("wim:top_k", "written KEY=VALUE, not 'top_k'"),
        ("wim:top_k=0", "top_k is at least 1"),
        ("wim:threshold=2", "threshold is between 0 and 1"),
        ("wim:margin_style=short", "margin_style is one of"),
        ("wim:keep=all", "keep cannot be set here"),
        ("wim:answer_tokens=9", "answer_tokens cannot be set here"),
        ("plain:top_k=1", "unknown option top_k. The method plain has no options"),
        ("rag:threshold=1", "unknown option threshold. The method rag has the option top_k"),
        ("rag:top_k=many", "top_k is at least 1, not many"),
    ],
)
def test_invalid_specs_are_refused(text: str, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        parse_methods(text)
