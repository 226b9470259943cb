"""The dtype on a CPU: a trial, its memory, and what it decides."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from wim_kernel import WimKernel
from wim_kernel.engines.local import cpu_dtype
from wim_kernel.engines.local.cpu_dtype import FILE, VARIABLE, faster_dtype, measure
from wim_kernel.run.relevance.calibration import _shipped


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A processor that multiplies in bfloat16; the trial gives the first of these shares, and records nothing else."""
    shares: list[float] = []
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr(cpu_dtype, "_multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(cpu_dtype, "measure", lambda: shares.pop(0))
    cpu_dtype._tried.cache_clear()
    yield shares
    cpu_dtype._tried.cache_clear()


@pytest.mark.parametrize(
    ("share", "dtype"), [(0.5, torch.bfloat16), (0.8, torch.float32), (2.0, torch.float32)]
)
def test_the_trial_decides_and_is_made_once_for_a_machine(
    trial: list[float], tmp_path: Path, share: float, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    trial.append(share)
    folder = tmp_path / "new" / "folder"
    with caplog.at_level(logging.INFO, logger=cpu_dtype.__name__):
        assert faster_dtype(folder) == faster_dtype(folder) == dtype
    assert len(caplog.messages) == 1
    assert f"{share:.2f}" in caplog.text
    cpu_dtype._tried.cache_clear()  # another process
    assert faster_dtype(folder) == dtype
    assert not trial


@pytest.mark.parametrize("kept", ["{", "[]", "7", '{"SELF": "fast"}', '{"SELF": -1}', '{"SELF": NaN}', "{}"])
def test_a_damaged_memory_is_made_anew_beside_other_machines(
    trial: list[float], tmp_path: Path, kept: str
) -> None:
    (tmp_path / FILE).write_text(kept.replace("SELF", cpu_dtype.machine_key()))
    trial.append(0.5)
    assert faster_dtype(tmp_path) == torch.bfloat16
    assert json.loads((tmp_path / FILE).read_text())[cpu_dtype.machine_key()] == 0.5


def test_results_of_other_machines_stay(trial: list[float], tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"another": 0.3}')
    trial.append(0.95)
    assert faster_dtype(tmp_path) == torch.float32
    assert json.loads((tmp_path / FILE).read_text()) == {"another": 0.3, cpu_dtype.machine_key(): 0.95}
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_without_room_the_trial_still_decides(trial: list[float], tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    trial.append(0.5)
    assert faster_dtype(blocked) == torch.bfloat16


def test_the_variable_decides_without_a_trial(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        monkeypatch.setenv(VARIABLE, name)
        assert faster_dtype(tmp_path) == dtype
    monkeypatch.setenv(VARIABLE, "int8")
    with pytest.raises(ValueError, match="WIM_CPU_DTYPE is auto, float32 or bfloat16, not 'int8'"):
        faster_dtype(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_processor_without_products_in_bfloat16_makes_no_trial(
    trial: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cpu_dtype, "_multiplies_bfloat16", lambda: False)
    assert faster_dtype(tmp_path) == torch.float32
    assert not list(tmp_path.iterdir())


def test_the_trial_itself_leaves_the_threads_as_they_were() -> None:
    before = torch.get_num_threads()
    assert 0.01 < measure() < 100
    assert torch.get_num_threads() == before


def test_layers_compute_the_same_in_both_dtypes() -> None:
    plain, half = (cpu_dtype._Layer(dtype).run(8) for dtype in (torch.float32, torch.bfloat16))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), plain, rtol=0.05, atol=0.05)


@pytest.mark.slow
def test_the_embedded_model_in_bfloat16_has_the_shipped_calibration(real_kernel: WimKernel) -> None:
    half = WimKernel.from_pretrained("embedded", device="cpu", dtype="bfloat16")
    assert half.model.dtype == torch.bfloat16
    assert half.engine.calibration_key() == real_kernel.engine.calibration_key()
    assert half.engine.calibration_key() in _shipped()
    texts = [
        "The gull sat on the mast. It rained all night.",
        "Elsa Brandt owned the ship Aurora. She bought it in Brill.",
        "The fog was thick, and nobody saw the harbour.",
    ]
    found, wanted = (
        [
            margin.relevance
            for margin in kernel.read(texts).margins("Who owned the ship Aurora?", margin_tokens=2)
        ]
        for kernel in (half, real_kernel)
    )
    assert found == pytest.approx(wanted, abs=0.05)


def test_a_fresh_process_decides_as_the_variable_says(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from wim_kernel.engines.local.cpu_dtype import faster_dtype; "
        "print(faster_dtype(Path('never made')))"
    )
    for name in ("float32", "bfloat16"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), VARIABLE: name},
        )
        assert done.stdout == f"torch.{name}\n"
    assert not list(tmp_path.iterdir())
