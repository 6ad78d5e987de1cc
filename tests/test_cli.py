"""The command line as a user meets it: quick help, clear errors, nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from headlift import batch, cli
from headlift.config import PoseConfig, output_folder
from headlift.poses import pose_folder


def fails(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 2) -> str:
    """Run a command that must end with an exit code, no traceback and one message; returns that message."""
    ended = ending(*arguments)
    output = capsys.readouterr()
    assert ended == code, output
    assert "Traceback" not in output.out + output.err
    return output.err


def ending(*arguments: object) -> object:
    """Exit code of a command, run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["headlift", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return ended.value.code


def astronaut() -> np.ndarray:
    import skimage.data

    return skimage.data.astronaut()


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "astronaut.png"
    Image.fromarray(astronaut()).save(path)
    return path


@pytest.mark.parametrize(
    "verb", [[], ["reconstruct"], ["pose"], ["generate"], ["export"], ["evaluate"], ["weights", "import"]]
)
def test_help_loads_no_network(verb: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "headlift", *verb, "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "usage: headlift" in done.stdout
    assert " torch\n" not in done.stderr


def test_help_names_every_verb() -> None:
    done = subprocess.run([sys.executable, "-m", "headlift", "--help"], capture_output=True, text=True, check=True)
    for verb in ("reconstruct", "pose", "generate", "export", "batch", "evaluate", "weights", "doctor"):
        assert f"• {verb}" in done.stdout


def test_settings_come_from_preset_then_file_then_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from headlift.config import ReconstructConfig, preset

    given: list[cli.Reconstruct] = []
    monkeypatch.setitem(cli._RUNS, cli.Reconstruct, lambda verb: given.append(verb) or 0)

    def settings(*flags: str) -> ReconstructConfig:
        assert cli.run(["reconstruct", "a.jpg", *flags]) == 0
        return given[-1].settings

    fast = preset("fast")
    assert settings("--preset", "fast") == fast
    path = tmp_path / "c.toml"
    path.write_text('preset = "fast"\nseed = 7\n[inversion.latent]\nsteps = 3\n')
    of_file = replace(fast.inversion, latent=replace(fast.inversion.latent, steps=3))
    assert settings(f"--config={path}") == replace(fast, seed=7, inversion=of_file)
    assert settings(f"--config={path}", "--seed", "9") == replace(fast, seed=9, inversion=of_file)
    of_flag = replace(fast.inversion, latent=replace(fast.inversion.latent, steps=5))
    assert settings("--inversion.latent.steps", "5", f"--config={path}") == replace(fast, seed=7, inversion=of_flag)


def test_a_method_brings_its_settings_and_flags_change_single_ones(tmp_path: Path) -> None:
    from headlift.config import preset, published

    assert cli._defaults(["reconstruct", "a.jpg"]) == preset("standard")
    assert cli._defaults(["reconstruct", "a.jpg", "--method", "spi"]).inversion == published("spi")
    assert cli._defaults(["batch", "a", "--preset=fast", "--inversion.method=pti"]) == preset("fast", "pti")
    path = tmp_path / "c.toml"
    path.write_text('seed = 7\n[inversion]\nmethod = "w+"\n')
    config = cli._defaults(["reconstruct", "a.jpg", f"--config={path}"])
    assert (config.seed, config.inversion.method, config.inversion.latent.space) == (7, "w+", "w+")
    config = cli._defaults(["reconstruct", "a.jpg", f"--config={path}", "--method", "hfgi3d"])
    assert (config.seed, config.inversion) == (7, published("hfgi3d"))


def test_several_photos_need_a_method_for_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = [picture(tmp_path / f"{name}.png", astronaut()) for name in "ab"]
    out = tmp_path / "out"
    message = fails(capsys, "reconstruct", *photos, "--out", out, "--method", "pti")
    assert "one photo, not 2" in message
    assert "multi" in message
    assert not out.exists()


def test_unknown_settings_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[inversion]\nstpes = 3\n")
    assert "stpes" in fails(capsys, "reconstruct", "a.jpg", "--config", path)
    path.write_text("this is no toml")
    assert "TOML" in fails(capsys, "reconstruct", "a.jpg", "--config", path)
    assert "cannot be read" in fails(capsys, "reconstruct", "a.jpg", "--config", tmp_path / "none.toml")
    path.write_text("seed = 3")
    assert "leave --preset out" in fails(capsys, "reconstruct", "a.jpg", "--config", path, "--preset", "fast")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--mesh.texture-size", "8192"], "256 to 4096"),
        (["--mesh.faces", "3"], "at least 4"),
        (["--mesh.views", "20"], "1 to 14"),
        (["--mesh.resolution", "1"], "at least 2"),
        (["--mesh.close", "--mesh.walls"], "choose one"),
        (["--mesh.up", "z"], "a GLB is y up"),
        (["--mesh.scale", "0"], "above 0"),
        (["--video.frames", "0"], "at least one frame"),
        (["--face", "0"], "Face 0 was asked for"),
    ],
)
def test_what_cannot_be_written_is_said_before_minutes_are_spent(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], told: str
) -> None:
    out = tmp_path / "out"
    assert told in fails(capsys, "reconstruct", photo, "--out", out, "--device", "cpu", *flags)
    assert not out.exists()


def picture(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("verb", ["reconstruct", "pose"])
def test_bad_photos_leave_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not a photo\n" * 50)
    whole = picture(tmp_path / "whole.jpg", astronaut()).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 3])
    Image.new("RGB", (1, 1)).save(tmp_path / "one.png")
    Image.new("1", (20_001, 10_000)).save(tmp_path / "huge.png")
    random = np.random.default_rng(0)
    picture(tmp_path / "noface.png", random.integers(100, 140, (300, 300, 3)).astype(np.uint8))
    small = Image.new("RGB", (400, 400), (90, 120, 90))
    small.paste(Image.fromarray(astronaut()).crop((150, 20, 300, 230)).resize((25, 35)), (180, 180))
    small.save(tmp_path / "small.png")
    cases = {
        "empty.jpg": "empty",
        "text.jpg": "not a picture",
        "cut.jpg": "damaged",
        "one.png": "1 x 1",
        "huge.png": "megapixels",
        "missing.jpg": "no such file",
        "noface.png": "face",
        "small.png": "face",
    }
    for name, words in cases.items():
        out = tmp_path / "out" / name
        message = fails(capsys, verb, tmp_path / name, "--out", out)
        assert words in message, (name, message)
        assert not out.exists(), name


def test_reconstruct_wants_a_photo_not_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is a folder" in fails(capsys, "reconstruct", tmp_path)


def test_a_face_that_is_not_there(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, "pose", photo, "--face", 3, "--out", tmp_path / "out")
    assert "3" in message
    assert not (tmp_path / "out").exists()


def test_unknown_devices_and_weights(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--out", tmp_path / "out")
    assert "unknown device" in fails(capsys, "reconstruct", photo, "--device", "abacus", *out)
    assert "not here" in fails(capsys, "reconstruct", photo, "--device", "cuda:99", *out)
    assert "nothing.safetensors" in fails(
        capsys, "reconstruct", photo, "--weights", tmp_path / "nothing.safetensors", *out
    )
    assert "nonsense" in fails(capsys, "generate", "--weights", "nonsense", *out)


def test_outputs_that_cannot_be_written(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file")
    assert "taken" in fails(capsys, "reconstruct", photo, "--out", taken)
    assert "taken" in fails(capsys, "pose", photo, "--out", taken / "inside")
    assert taken.read_text() == "a file"
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "diary.txt").write_text("dear diary")
    assert "--overwrite" in fails(capsys, "reconstruct", photo, "--out", mine)
    assert [path.name for path in mine.iterdir()] == ["diary.txt"]


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "full"), (errno.EROFS, "could not be written")])
def test_a_full_or_read_only_place(
    photo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    words: str,
) -> None:
    def refuse(self: Path, data: bytes) -> int:
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    for verb in ("pose", "reconstruct"):
        out = tmp_path / verb
        assert words in fails(capsys, verb, photo, "--out", out)
        assert [path for path in out.rglob("*") if path.is_file()] == []


def test_a_profile_is_refused_unless_forced(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    message = fails(capsys, "pose", photo, "--max-yaw", 0, "--out", out)
    assert "turned" in message
    assert "--force" in message
    assert not out.exists()
    assert cli.run(["pose", str(photo), "--max-yaw", "0", "--force", "--out", str(out)]) == 0


def test_a_checkpoint_of_another_shape(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    from headlift.weights import find_generator

    with safe_open(find_generator("embedded"), "pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
        metadata = stored.metadata()
    name = "decoder.net.0.weight"
    tensors[name] = tensors[name][:, :-1].contiguous()
    save_file(tensors, tmp_path / "other.safetensors", metadata)
    out = tmp_path / "out"
    for command in (["generate"], ["reconstruct", photo]):
        message = fails(capsys, *command, "--weights", tmp_path / "other.safetensors", "--out", out)
        assert name in message
    assert not (out / "grid.png").exists()


def test_of_several_faces_the_largest_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    face = Image.fromarray(astronaut()).crop((100, 0, 356, 256))
    both = Image.new("RGB", (700, 420), (120, 120, 120))
    both.paste(face.resize((200, 200)), (20, 100))
    both.paste(face.resize((400, 400)), (280, 10))
    both.save(tmp_path / "both.png")
    assert cli.run(["pose", str(tmp_path / "both.png"), "--out", str(tmp_path / "a")]) == 0
    assert "2 faces" in capsys.readouterr().out
    assert cli.run(["pose", str(tmp_path / "both.png"), "--face", "2", "--out", str(tmp_path / "b")]) == 0
    first, second = (json.loads((tmp_path / name / "camera.json").read_text())["photo_to_crop"] for name in "ab")
    assert second[0][0] > 1.5 * first[0][0]  # the smaller face is magnified more


def test_pose_writes_crop_overlay_and_camera(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pose"
    assert cli.run(["pose", str(photo), "--out", str(out)]) == 0
    assert "yaw" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["camera.json", "crop.png", "pose.png"]
    record = json.loads((out / "camera.json").read_text())
    assert len(record["label"]) == 25
    rotation = np.array(record["label"][:16]).reshape(4, 4)[:3, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-5)
    assert Image.open(out / "crop.png").size == (512, 512)
    assert "already there" in fails(capsys, "pose", photo, "--out", out)


def test_pose_of_a_folder_is_a_dataset(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(astronaut()).save(folder / "a.png")
    (folder / "broken.jpg").write_text("no picture")
    (folder / "notes.txt").write_text("not looked at")
    assert cli.run(["pose", str(folder), "--out", str(tmp_path / "set")]) == 0
    output = capsys.readouterr()
    assert "1 photos done, 1 failed" in output.out
    assert "broken.jpg" in output.err
    labels = json.loads((tmp_path / "set" / "dataset.json").read_text())["labels"]
    assert [name for name, _ in labels] == ["a.png"]
    assert len(labels[0][1]) == 25
    # Every picture of the dataset has a label, as EG3D's tools want it.
    assert sorted(path.name for path in (tmp_path / "set").rglob("*")) == ["a.png", "dataset.json"]
    assert (tmp_path / "set-overlay" / "a.png").is_file()
    # Photos are never replaced by their crops, and failures are told in any case.
    before = (folder / "a.png").read_bytes()
    assert "Give another --out" in fails(capsys, "pose", folder, "--out", folder, "--overwrite")
    assert (folder / "a.png").read_bytes() == before
    (tmp_path / "set" / "dataset.json").unlink()
    assert "already there" in fails(capsys, "pose", folder, "--out", tmp_path / "set")
    assert cli.run(["pose", str(folder), "--out", str(tmp_path / "more"), "--quiet"]) == 0
    assert "broken.jpg" in capsys.readouterr().err


def test_a_folder_of_poses_that_is_made_anew_keeps_no_crop_without_a_label(tmp_path: Path) -> None:
    folder, out, overlays = tmp_path / "photos", tmp_path / "set", tmp_path / "set-overlay"
    for place in (folder, out, overlays):
        place.mkdir()
    (folder / "broken.jpg").write_text("no picture")
    for file in (out / "old.png", overlays / "old.png", out / "mine.txt", tmp_path / "outside.png"):
        file.write_text("")
    (out / "dataset.json").write_text(json.dumps({"labels": [["old.png", []], ["../outside.png", []], ["..", []]]}))
    assert pose_folder(folder, out, PoseConfig(), True, cli.ignore, cli.ignore) == (0, 1)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    assert not any(overlays.iterdir())
    assert (tmp_path / "outside.png").exists()


def test_results_of_a_folder_have_its_whole_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "photos.2024"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for given in (Path(), folder):
        assert output_folder(given, "-pose") == Path("out/photos.2024-pose")
    assert output_folder(Path("anna.2024.jpg")) == Path("out/anna.2024")


def test_names_in_tables_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    cli.show_table([["photo", "[why]"], ["anna [final].jpg", "no [/usr/lib]"]])
    shown = capsys.readouterr().out
    for text in ("[why]", "anna [final].jpg", "no [/usr/lib]"):
        assert text in shown


def test_a_batch_that_was_interrupted_ends_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png", astronaut())

    def interrupted(*given: object) -> tuple[batch.Row, ...]:
        signal.raise_signal(signal.SIGINT)
        return (batch.Row("a.png", "a", "skipped"), batch.Row("b.png", "b", "stopped"))

    monkeypatch.setattr(batch, "run_batch", interrupted)
    assert cli.run(["batch", str(tmp_path), "--out", str(tmp_path / "out"), "--quiet"]) == 130
    assert (tmp_path / "out" / "batch.csv").exists()


def test_what_a_folder_has_given_is_kept_when_it_is_stopped(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tmp_path / "photos", tmp_path / "set"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(astronaut()).save(folder / name)

    def notice(text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pose_folder(folder, out, PoseConfig(crop_size=64), False, notice, notice)
    assert [name for name, _ in json.loads((out / "dataset.json").read_text())["labels"]] == ["a.png"]


def test_a_drawing_goes_through_or_is_refused_clearly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawing = Image.new("RGB", (400, 400), "white")
    pen = ImageDraw.Draw(drawing)
    pen.ellipse((100, 60, 300, 340), outline="black", fill=(250, 220, 190), width=4)
    for x in (160, 240):
        pen.ellipse((x - 22, 160, x + 22, 184), outline="black", fill="white", width=3)
        pen.ellipse((x - 8, 164, x + 8, 180), fill="black")
    pen.line((200, 190, 190, 235, 210, 238), fill="black", width=3)
    pen.arc((155, 240, 245, 290), 10, 170, fill=(180, 40, 40), width=5)
    drawing.save(tmp_path / "drawing.png")
    out = tmp_path / "out"
    ended = ending("pose", tmp_path / "drawing.png", "--out", out)
    output = capsys.readouterr()
    if ended == 0:
        assert "flat colour" in output.out
    else:
        assert ended == 2
        assert "face" in output.err
