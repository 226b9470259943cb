"""Calibrations: read, kept, found on examples, and left out where they mean nothing."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from halcyon import FOUND, PASSAGES, QUESTION
from helpers import FREE, SHORT, TinyModel

from wim_kernel import (
    WimKernel,
)
from wim_kernel.engines.local.selfcheck import reads_text
from wim_kernel.run.relevance import calibration
from wim_kernel.run.relevance.calibration import Calibration
from wim_kernel.run.relevance.examples import Example, packaged_examples
from wim_kernel.run.relevance.logistic import logistic


def test_a_calibration_is_read_back_as_it_was_written() -> None:
    read = Calibration.from_dict(json.loads(json.dumps(FOUND.to_dict())), "examples")
    assert read == FOUND
    assert read.is_found
    assert not Calibration().is_found
    curve = FOUND.probability("combined", np.array([-1000.0, 0.0, 1000.0]))
    assert np.all(np.diff(curve) > 0)
    assert np.all((curve > 0) & (curve <= 1))


DAMAGE = [
    {"version": 0},
    {"version": None},
    {"heads": [[1]]},
    {"heads": "no"},
    {"spread": {}},
    {"spread": {**FOUND.spread, "passage": 0}},
    {"spread": {**FOUND.spread, "passage": float("nan")}},
    {"spread": None},
    {"curves": {**FOUND.curves, "combined": [1.0]}},
    {"curves": {**FOUND.curves, "combined": ["a", "b"]}},
    {"curves": {**FOUND.curves, "alone": [float("inf"), 0]}},
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_invalid_calibrations_are_refused(damage: dict) -> None:
    with pytest.raises(ValueError, match=r"it|numbers|convert|unpack"):
        Calibration.from_dict({**FOUND.to_dict(), **damage}, "cache")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The user's cache folder."""
    monkeypatch.setattr(calibration, "user_cache_path", lambda *_, **__: tmp_path / "cache")
    return tmp_path / "cache"


def test_a_calibration_is_kept_and_known_again(cache) -> None:
    assert calibration.known("a model") is None
    calibration.keep("a model", FOUND)
    assert calibration.known("a model") == replace(FOUND, source="cache")
    assert [path.name for path in (cache / "calibrations").iterdir()] == ["a model.json"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"version": 99}', b"\xff\xfe\x00", b'{"version": 1}']
)
def test_a_damaged_file_is_said_and_not_used(cache, caplog, content: bytes) -> None:
    calibration.keep("a model", FOUND)
    (cache / "calibrations" / "a model.json").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert calibration.known("a model") is None
    assert "is not used" in caplog.text


def test_a_cache_that_cannot_be_written_is_said(cache, caplog) -> None:
    cache.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        calibration.keep("a model", FOUND)
        assert calibration.known("a model") is None
    assert "cannot be cached" in caplog.text


def test_logistic_finds_the_curve_that_data_came_from() -> None:
    random = np.random.default_rng(3)
    scores = random.normal(-1, 2, 40_000)
    labels = (random.random(40_000) < 1 / (1 + np.exp(-(1.7 * scores + 0.6)))).astype(float)
    slope, intercept = logistic(scores, labels)
    assert slope == pytest.approx(1.7, abs=0.1)
    assert intercept == pytest.approx(0.6, abs=0.1)


def test_logistic_is_finite_where_data_are_few_or_say_everything() -> None:
    apart = logistic(np.array([-2.0, -1.0, 1.0, 2.0]), np.array([0.0, 0.0, 1.0, 1.0]))
    assert apart[0] > 1
    assert np.isfinite(apart).all()
    for labels in (np.zeros(4), np.ones(4)):
        slope, intercept = logistic(np.array([-2.0, -1.0, 1.0, 2.0]), labels)
        assert np.isfinite([slope, intercept]).all()
        assert (intercept > 0) is bool(labels[0])
    slope, intercept = logistic(np.zeros(4), np.array([0.0, 0.0, 0.0, 1.0]))
    assert slope == pytest.approx(0)
    assert 1 / (1 + np.exp(-intercept)) == pytest.approx(0.25, abs=1e-3)


GOOD = {"passages": ["a", "b"], "questions": [{"question": "?", "evidence": [0], "sentences": ["a"]}]}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "has passages"),
        ({"passages": ["a"]}, "has passages"),
        ({**GOOD, "passages": None}, "has passages"),
        ({**GOOD, "questions": 3}, "has passages"),
        ({**GOOD, "questions": ["?"]}, "has passages"),
        ({**GOOD, "questions": [{"question": "?"}]}, "has passages"),
        ({**GOOD, "questions": [{"question": "?", "evidence": 0}]}, "has passages"),
        ({**GOOD, "questions": [{"question": "?", "evidence": [2]}]}, "indexes of the example's passages"),
        ({**GOOD, "questions": [{"question": "?", "evidence": [-1]}]}, "indexes of the example's passages"),
        ({**GOOD, "questions": [{"question": "?", "evidence": ["a"]}]}, "indexes of the example's passages"),
    ],
)
def test_invalid_examples_are_refused(data: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Example.from_dict(data)


def test_examples_are_read() -> None:
    assert Example.from_dict(GOOD) == Example(("a", "b"), (("?", frozenset({0}), ("a",)),))
    examples = packaged_examples()
    assert len(examples) > 10
    for example in examples:
        for _, evidence, sentences in example.questions:
            where = [example.passages[index] for index in evidence]
            assert all(any(sentence in passage for passage in where) for sentence in sentences)


def test_an_untrained_model_is_not_calibrated(kernel: WimKernel, cache) -> None:
    assert not kernel.engine.reads_text
    assert kernel.engine.heads
    assert kernel.find_calibration() == Calibration()
    assert not cache.exists()
    kernel.ask(QUESTION, PASSAGES, **SHORT)
    assert not cache.exists()


def test_a_tokenizer_that_has_no_word_of_a_probe_leaves_the_model_uncalibrated(
    tiny_model: TinyModel, smollm2, monkeypatch
) -> None:
    known = WimKernel(tiny_model("llama"), smollm2[1])
    monkeypatch.setattr(known.engine.codec, "encode", lambda text: [])
    assert not reads_text(known.model, known.engine.codec, torch.device("cpu"))


def test_a_calibration_found_on_two_examples_is_used(real_kernel: WimKernel, cache) -> None:
    kernel = WimKernel(engine=real_kernel.engine, calibration="off")
    assert kernel.find_calibration() == Calibration()
    examples = [
        {"passages": PASSAGES, "questions": [{"question": QUESTION, "evidence": [0]}]},
        Example(
            ("The Varn Canal is nine miles long.", "Agnes Pell dug the Varn Canal.", "Coal was its cargo."),
            (("Who dug the canal?", frozenset({1}), ()), ("What was its cargo?", frozenset({2}), ())),
        ),
    ]
    rough = kernel.read(PASSAGES).relevance(QUESTION)
    found = kernel.calibrate(examples, seconds=1)
    assert found.source == "examples"
    assert found.is_found
    assert 0 < len(found.heads) <= 8
    assert set(found.heads) <= set(kernel.engine.heads)
    assert kernel.find_calibration() is found
    assert Calibration.from_dict(found.to_dict(), "examples").heads == found.heads
    relevance = kernel.read(PASSAGES).relevance(QUESTION)
    assert relevance != pytest.approx(rough, abs=1e-3)
    other = WimKernel(engine=real_kernel.engine, calibration=found)
    assert other.read(PASSAGES).relevance(QUESTION) == pytest.approx(relevance, abs=1e-4)
    assert not cache.exists()  # the caller's own is the caller's to keep
    for wrong in ([{"passages": ["a"]}], [{"passages": ["a"], "questions": []}]):
        with pytest.raises(ValueError, match=r"[Ee]xample"):
            kernel.calibrate(wrong)
    assert kernel.find_calibration() is found


def test_where_attention_cannot_be_seen_there_is_nothing_to_calibrate(tiny_model: TinyModel, smollm2) -> None:
    kernel = WimKernel(tiny_model("llama"), smollm2[1], cache_mode="snapshot")
    with pytest.raises(ValueError, match="cannot see the model's attention"):
        kernel.calibrate()
    for name in ("attention", "combined"):
        options = {"relevance": name, **FREE}
        if name == "attention":
            with pytest.raises(ValueError, match="cannot see the model's attention"):
                kernel.ask(QUESTION, PASSAGES, **options)
        else:
            assert kernel.ask(QUESTION, PASSAGES, **options).relevance_by == "lexical+passage"
