"""The command lines round the prior: errors of the user are messages, and sheets may end in a shorter row."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from headlift.prior.sheets import sheet, write


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("sheets", ["none.safetensors", "--samples", "sheet.png"]),
        ("faces", ["none.safetensors"]),
        ("handles", ["none", "embedded", "out.safetensors"]),
        ("ship", ["none", "out.safetensors"]),
        ("perceptual", ["none"]),
        ("depth", ["none", "first.npy", "last.npy"]),
        ("sides", ["none"]),
    ],
)
def test_what_is_not_there_is_told_without_a_traceback(
    name: str, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.delitem(sys.modules, f"headlift.prior.{name}", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"headlift.prior.{name}", run_name="__main__")
    assert ended.value.code == 2
    assert "none" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_sheet_may_end_in_a_shorter_row(tmp_path: Path) -> None:
    tiles = [np.full((8, 8, 3), value, np.uint8) for value in (10, 20, 30, 40, 50)]
    picture = sheet([tiles[:2], tiles[2:4], tiles[4:]], 4)
    assert picture[::4, ::4, 0].tolist() == [[10, 20], [30, 40], [50, 255]]
    write(tmp_path / "new" / "sheet.png", picture)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["sheet.png"]
