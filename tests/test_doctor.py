"""The doctor tries things, finds what is broken, and has a remedy for it."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from headlift import doctor
from headlift.doctor import Check, diagnose, healthy
from headlift.errors import WeightsError


@pytest.fixture(scope="module")
def checks() -> dict[str, Check]:
    return {check.name: check for check in diagnose()}


def test_everything_that_the_tests_rely_on_works(checks: dict[str, Check]) -> None:
    for name in ("python", "packages", "torch", "device", "face detection", "landmarks and mask", "mesh", "images"):
        assert checks[name].ok, checks[name]
        assert checks[name].found
    assert checks["video (H.264)"].ok
    assert metadata.version("torch") in checks["packages"].found


def test_every_fault_has_a_remedy(checks: dict[str, Check]) -> None:
    for check in checks.values():
        assert check.ok or len(check.remedy) > 20, check


def test_only_what_is_needed_decides() -> None:
    fine, hint, fault = Check("a", True, ""), Check("b", False, "", "x", needed=False), Check("c", False, "", "x")
    assert healthy([fine, hint])
    assert not healthy([fine, hint, fault])


def test_a_check_that_falls_over_is_a_fault_with_a_remedy() -> None:
    def missing() -> Check:
        raise ImportError("libGL.so.1: cannot open shared object file")

    def broken() -> Check:
        raise RuntimeError("x" * 10_000)

    def weights() -> Check:
        raise WeightsError("they are not here")

    found = doctor._guarded("images", True, missing)
    assert not found.ok
    assert "apt-get install" in found.remedy
    found = doctor._guarded("images", False, broken)
    assert (found.ok, found.needed) == (False, False)
    assert len(found.found) < 400
    assert doctor._guarded("weights", True, weights).found == "they are not here"


def test_packages_that_are_missing_or_too_old_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["torch>=900", "no-such-package-anywhere>=1", "numpy", 'pytest>=900; extra == "dev"']
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: wanted)
    check = doctor._packages()
    assert not check.ok
    assert "torch is" in check.found
    assert ">=900 was asked for" in check.found
    assert "no-such-package-anywhere is missing" in check.found
    assert "numpy" not in check.found
    assert "pytest" not in check.found


def test_a_full_or_unwritable_disk_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._disk(tmp_path / "not" / "made" / "yet").ok
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1})())
    assert not doctor._disk(tmp_path).ok
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    assert "cannot be written" in doctor._disk(tmp_path).found
    assert not doctor._cache().ok


def test_a_missing_generator_and_codec_are_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> Path:
        raise WeightsError("the embedded generator is not in this installation")

    monkeypatch.setattr("headlift.weights.find_generator", none)
    assert not doctor._guarded("embedded generator", True, doctor._embedded).ok

    import av

    def refuse(*arguments: Any, **options: Any) -> None:
        raise ValueError("unknown codec libx264")

    monkeypatch.setattr(av, "open", refuse)
    check = doctor._video()
    assert not check.ok
    assert "pip install" in check.remedy


@pytest.mark.parametrize(
    ("check", "loads"),
    [
        (doctor._guides, "headlift.invert.side_net.load_side_net"),
        (doctor._directions, "headlift.editing.directions.load_directions"),
        (doctor._head_model, "headlift.pose_estimation.head_model.load_head_model"),
        (doctor._viewer, "headlift.export.report.viewer_script"),
        (doctor._heic, "PIL.Image.open"),
    ],
)
def test_what_cannot_be_loaded_is_a_fault(check: Any, loads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check().ok

    def damaged(*given: object) -> None:
        raise OSError("it is cut off")

    monkeypatch.setattr(loads, damaged)
    found = doctor._guarded("it", True, check)
    assert not found.ok
    assert "it is cut off" in found.found


def test_a_gradio_that_does_not_import_is_no_web_app(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert not doctor._app().ok


def test_an_unsuitable_python_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 13, 0, "final", 0))
    assert not doctor._python().ok


def test_the_offline_switch_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HEADLIFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HEADLIFT_OFFLINE", "1")
    check = doctor._cache()
    assert check.ok
    assert "downloads off" in check.found
    assert not (tmp_path / "cache").exists()
