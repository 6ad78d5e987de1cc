"""Files appear whole or not at all, and a place that cannot be written is told apart from a bug."""

import os
from pathlib import Path

import pytest

from headlift.errors import OutputError
from headlift.export.files import atomic_path, write_bytes, write_text


def test_renamed_when_done_and_nothing_else_left(tmp_path: Path) -> None:
    target = tmp_path / "new" / "mesh.glb"
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"abc")
        assert temporary.suffix == ".glb"
        assert temporary.parent == target.parent
        assert not target.exists()
    assert target.read_bytes() == b"abc"
    assert os.listdir(target.parent) == ["mesh.glb"]


def test_failure_keeps_the_old_file_and_removes_the_temporary(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")

    def fail() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise KeyError("a bug of the writer")

    with pytest.raises(KeyError):
        fail()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_full_disk(tmp_path: Path) -> None:
    def fill() -> None:
        with atomic_path(tmp_path / "a.bin") as temporary, Path("/dev/full").open("wb", buffering=0) as full:
            temporary.write_bytes(b"half")
            full.write(b"x" * 10)

    with pytest.raises(OutputError, match=r"disk is full.*--out"):
        fill()
    assert os.listdir(tmp_path) == []


def test_file_where_a_folder_is_needed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another place"):
        write_bytes(tmp_path / "file" / "a.bin", b"x")


def test_folder_where_the_file_should_go(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="choose another place"):
        write_bytes(tmp_path / "out", b"x")
    assert os.listdir(tmp_path) == ["out"]


def test_read_only_folder(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    root = os.geteuid() == 0  # root may write anywhere: become nobody for a moment
    if root:
        for parent in [tmp_path, *tmp_path.parents][:3]:
            parent.chmod(0o755)
        os.seteuid(65534)
    try:
        with pytest.raises(OutputError, match="may write to"):
            write_bytes(folder / "a.bin", b"x")
    finally:
        if root:
            os.seteuid(0)
