"""Batches: every photo gets its row, whatever becomes of the others."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest
from batch_work import by_name

from headlift.batch import Row, run_batch, table, targets, to_csv, to_json
from headlift.config import ReconstructConfig
from headlift.errors import ConfigError, PhotoError


def photos(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"not looked into")
    return folder


def test_one_photo_does_not_stop_the_others(tmp_path: Path) -> None:
    """A face that is missing, a bug and a process that dies: three rows that failed, and the rest is done."""
    names = ["a.jpg", "b_noface.jpg", "c_bug.png", "d_killer.jpg", "e_dark.png", "f_odd.jpg"]
    folder = photos(tmp_path / "in", *names, "notes.txt")
    seen: list[Row] = []
    rows = run_batch(folder, tmp_path / "out", ReconstructConfig(), workers=2, on_row=seen.append, work=by_name)
    assert [row.photo for row in rows] == names
    assert [row.status for row in rows] == ["done", "failed", "failed", "failed", "done", "done"]
    assert sorted(seen, key=lambda row: row.photo) == list(rows)
    by = {row.photo: row for row in rows}
    assert by["a.jpg"].psnr == 26.0
    assert "no face was found" in by["b_noface.jpg"].message
    assert "ZeroDivisionError: a bug" in by["c_bug.png"].message
    assert "batch_work.py" in by["c_bug.png"].trace
    assert "process died" in by["d_killer.jpg"].message
    assert by["e_dark.png"].notices == ("the photo is dark",)
    assert by["f_odd.jpg"].message == "look here"
    pid, threads = (tmp_path / "out" / "a" / "result").read_text().split()
    assert int(pid) != os.getpid()
    assert int(threads) == max(1, (os.cpu_count() or 1) // 2)

    again = run_batch(folder, tmp_path / "out", ReconstructConfig(), work=by_name)
    assert [row.status for row in again] == ["skipped", "failed", "failed", "failed", "skipped", "skipped"]


def test_stopping_keeps_what_is_done_and_begins_nothing_new(tmp_path: Path) -> None:
    folder = photos(tmp_path / "in", "a.jpg", "b_slow.jpg", "c.jpg")
    done: list[Row] = []
    times: list[float] = []

    def on_row(row: Row) -> None:
        done.append(row)
        times.append(time.monotonic())

    def should_stop() -> bool:
        return bool(times) and time.monotonic() - times[0] > 0.5

    rows = run_batch(folder, tmp_path / "out", ReconstructConfig(), 1, False, on_row, should_stop, by_name)
    assert [row.status for row in rows] == ["done", "stopped", "stopped"]
    assert [row.photo for row in done] == ["a.jpg", "b_slow.jpg"]
    assert rows[2].message == "not begun"
    assert not (tmp_path / "out" / "c").exists()


def test_the_second_interrupt_waits_for_nobody(tmp_path: Path) -> None:
    folder = photos(tmp_path / "in", "b_stuck.jpg")
    began = tmp_path / "out" / "b_stuck" / "began"

    def should_stop() -> bool:
        if began.exists():
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        run_batch(folder, tmp_path / "out", ReconstructConfig(), 1, should_stop=should_stop, work=by_name)
    assert not (tmp_path / "out" / "b_stuck" / "result").exists()
    assert not multiprocessing.active_children()


def test_a_folder_without_photos_and_no_workers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PhotoError):
        run_batch(photos(tmp_path / "in", "notes.txt"), tmp_path / "out", ReconstructConfig())
    with pytest.raises(ConfigError, match="--workers"):
        run_batch(tmp_path / "in", tmp_path / "out", ReconstructConfig(), workers=0)


def test_photos_that_share_a_name_get_folders_of_their_own(tmp_path: Path) -> None:
    paths = [Path("a.jpg"), Path("a.png"), Path("b.png")]
    assert [folder for _, folder in targets(paths, tmp_path)] == [tmp_path / n for n in ("a.jpg", "a.png", "b")]


def test_tables_carry_every_row() -> None:
    rows = [
        Row("a.jpg", "out/a", "done", seconds=12.3, psnr=25.04, notices=("dark",)),
        Row("b, c.jpg", "out/b", "failed", 'no "face"', trace="Traceback"),
    ]
    assert table(rows) == [
        ["photo", "status", "seconds", "PSNR", "message"],
        ["a.jpg", "done", "12", "25.0", "dark"],
        ["b, c.jpg", "failed", "", "", 'no "face"'],
    ]
    read = list(csv.DictReader(to_csv(rows).splitlines()))
    assert [r["photo"] for r in read] == ["a.jpg", "b, c.jpg"]
    assert read[1]["message"] == 'no "face"'
    assert float(read[0]["psnr"]) == 25.04
    assert json.loads(to_json(rows))[1]["trace"] == "Traceback"
