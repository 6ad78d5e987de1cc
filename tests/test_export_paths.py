"""Camera paths close, keep their distance, and survive being written and read."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headlift.config import VideoConfig
from headlift.eg3d.camera import orbit, project, yaw_pitch
from headlift.errors import ConfigError
from headlift.export.paths import cameras_json, path_cameras, read_cameras, sway, turntable, write_cameras


@given(st.integers(2, 200))
def test_turntable_goes_once_round_in_even_steps(frames: int) -> None:
    cameras = turntable(frames)
    yaw, pitch = yaw_pitch(cameras)
    step = 2 * math.pi / frames
    expected = torch.arange(frames) * step
    torch.testing.assert_close(torch.exp(1j * yaw), torch.exp(1j * expected), atol=1e-5, rtol=0)
    torch.testing.assert_close(pitch, torch.zeros(frames), atol=1e-6, rtol=0)
    torch.testing.assert_close(cameras.origin.norm(dim=-1), torch.full((frames,), 2.7))


def test_turntable_keeps_the_middle_of_the_head_in_the_middle() -> None:
    cameras = turntable(12, pitch=0.3)
    uv, _ = project(cameras, torch.tensor([0.0, -0.02, 0.0]).expand(12, 1, 3))
    torch.testing.assert_close(uv, torch.full_like(uv, 0.5))


def test_sway_is_an_ellipse_in_front_of_the_face() -> None:
    yaw, pitch = yaw_pitch(sway(48))
    torch.testing.assert_close((yaw / 0.35) ** 2 + (pitch / 0.2) ** 2, torch.ones(48), atol=1e-4, rtol=0)


def test_path_of_the_settings() -> None:
    assert len(path_cameras(VideoConfig(frames=7))) == 7
    assert float(yaw_pitch(path_cameras(VideoConfig(frames=16, path="sway")))[0].abs().max()) < 0.36


def test_json_round_trip(tmp_path: Path) -> None:
    cameras = orbit(torch.tensor([0.1, -1.2, 3.0]), torch.tensor([0.0, 0.2, -0.3]))
    write_cameras(tmp_path / "path.json", cameras, ["a", "b", "c"])
    torch.testing.assert_close(read_cameras(tmp_path / "path.json").label, cameras.label, atol=0, rtol=0)
    content = json.loads((tmp_path / "path.json").read_text())
    assert [name for name, _ in content["labels"]] == ["a", "b", "c"]
    assert content["degrees"][1]["yaw"] == pytest.approx(math.degrees(-1.2), abs=1e-3)


def test_dataset_json_and_plain_lists(tmp_path: Path) -> None:
    label = orbit(0.4, 0.1).label[0].tolist()
    for content in ({"labels": [["img0.png", label]]}, {"labels": {"img0.png": label}}, [label]):
        (tmp_path / "c.json").write_text(json.dumps(content))
        torch.testing.assert_close(read_cameras(tmp_path / "c.json").label, orbit(0.4, 0.1).label)


def test_tables_are_in_degrees(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("Yaw, pitch, focal\n-90, 0, 4\n\n45, 30,\n")
    cameras = read_cameras(tmp_path / "a.csv")
    yaw, pitch = yaw_pitch(cameras)
    torch.testing.assert_close(yaw, torch.tensor([-math.pi / 2, math.pi / 4]))
    torch.testing.assert_close(pitch, torch.tensor([0.0, math.pi / 6]))
    torch.testing.assert_close(cameras.intrinsics[:, 0, 0], torch.tensor([4.0, 3.1]))
    (tmp_path / "a.json").write_text('{"cameras": [{"yaw": -90, "pitch": 0, "focal": 4}, {"yaw": 45, "pitch": 30}]}')
    torch.testing.assert_close(read_cameras(tmp_path / "a.json").label, cameras.label)


def test_csv_of_labels(tmp_path: Path) -> None:
    cameras = orbit(torch.tensor([0.3, -0.3]), 0.1)
    rows = [",".join(repr(v) for v in label) for label in cameras.label.tolist()]
    (tmp_path / "a.csv").write_text("\n".join(rows))
    torch.testing.assert_close(read_cameras(tmp_path / "a.csv").label, cameras.label)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.json", "{", "not valid JSON"),
        ("a.json", "3", "no `labels`"),
        ("a.json", "[]", "no cameras"),
        ("a.json", '[{"pitch": 3}]', "yaw is missing"),
        ("a.json", '[{"yaw": 3, "jaw": 1}]', "unknown jaw"),
        ("a.json", '[{"yaw": NaN}]', "not a number"),
        ("a.json", "[[1, 2, 3]]", "camera 1 is neither"),
        ("a.json", json.dumps([[0.0] * 25]), "no camera"),
        ("a.json", '[{"yaw": 0}, {"yaw": 0, "focal": 0}]', "camera 2: radius and focal must be above 0"),
        ("a.json", '[{"yaw": 0, "focal": -4}]', "camera 1: radius and focal"),
        ("a.json", '[{"yaw": 0, "radius": -1}]', "camera 1: radius and focal"),
        ("a.json", '[{"yaw": 0, "radius": 0}]', "camera 1: radius and focal"),
        ("a.json", '[{"yaw": 0, "radius": 2, "x": 0, "y": 0, "z": 2}]', "cannot look at its own place"),
        ("a.csv", "yaw,pitch,focal\n1,2,0\n", "camera 1: radius and focal"),
        ("a.csv", "yaw,pitch\n1,two\n", "line 1"),
        ("a.csv", "", "no cameras"),
        ("a.csv", "1,2,3\n", "camera 1 is neither"),
    ],
)
def test_what_is_no_path_is_told(tmp_path: Path, name: str, content: str, told: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=told):
        read_cameras(tmp_path / name)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_cameras(tmp_path / "none.json")


def test_json_has_one_row_a_camera() -> None:
    assert cameras_json(turntable(5)).count("\n  [") == 5
