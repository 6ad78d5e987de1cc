"""The micro reference, through the same program that checks any other: values, gradients, logits."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
MICRO = ROOT / "tests" / "data" / "eg3d_micro"


def parity(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "parity.py"), str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )


def test_every_array_of_the_reference_is_matched() -> None:
    result = parity(MICRO)
    assert result.returncode == 0, result.stdout + result.stderr
    compared = [line for line in result.stdout.splitlines() if "arrays compared" in line]
    assert compared[0].startswith("119 arrays compared, 0 failed")


@pytest.mark.parametrize("fault", ["altered", "unknown"])
def test_a_wrong_or_unknown_array_fails(tmp_path: Path, fault: str) -> None:
    arrays = dict(np.load(MICRO / "reference.npz"))
    if fault == "altered":
        arrays = {k: arrays[k] for k in ("z", "c_cond", "c_render", "ws_psi1")}
        arrays["ws_psi1"] = arrays["ws_psi1"] * np.float32(1.001)
    else:
        arrays = {"z": arrays["z"], "mid/never_heard_of": arrays["z"]}
    np.savez(tmp_path / "reference.npz", **arrays)
    for name in ("G_ema.safetensors", "D.safetensors", "settings.json"):
        shutil.copyfile(MICRO / name, tmp_path / name)
    result = parity(tmp_path)
    assert result.returncode == 1
    assert "FAILED" in result.stdout
