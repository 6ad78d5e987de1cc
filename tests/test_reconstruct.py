"""The main job, with few steps: a run folder, its resumption, and what is exported from its head."""

from __future__ import annotations

import json
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from headlift import cli, run_folder
from headlift.head import load_head
from headlift.run_folder import STATE, reconstruct_into

FLAGS = [
    "--preset=fast",
    "--device=cpu",
    "--inversion.latent.steps=4",
    "--inversion.latent.candidates=0",
    "--inversion.tuning.steps=3",
    "--inversion.tuning.finish-steps=2",
    "--inversion.keep-every=2",
    "--mesh.resolution=64",
    "--mesh.texture-size=256",
    "--mesh.views=4",
    "--video.frames=6",
]
FILES = {
    "camera.json",
    "config.toml",
    "crop.png",
    "head.safetensors",
    "log.jsonl",
    "mesh-texture.png",
    "mesh.glb",
    "mesh.mtl",
    "mesh.obj",
    "mesh.ply",
    "pose.png",
    "report.html",
    "turntable.mp4",
    "views.png",
}


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import skimage.data

    path = tmp_path_factory.mktemp("photo") / "astronaut.png"
    Image.fromarray(skimage.data.astronaut()).save(path)
    return path


@pytest.fixture(scope="module")
def finished(photo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert cli.run(["reconstruct", str(photo), "--out", str(out), *FLAGS]) == 0
    return out


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def message(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a command that must fail with exit code 2 says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["headlift", *map(str, arguments)])
        with pytest.raises(SystemExit, match="2"):
            cli.main()
    output = capsys.readouterr()
    assert "Traceback" not in output.out + output.err
    return output.err


def test_a_run_leaves_every_file_whole(finished: Path) -> None:
    assert names(finished) == FILES
    table = tomllib.loads((finished / "config.toml").read_text())
    assert table["run"]["finished"] is True
    records = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    stages = [record["stage"] for record in records]
    assert stages == ["latent"] * 4 + ["tuning"] * 3 + ["finish"] * 2
    camera = json.loads((finished / "camera.json").read_text())
    head = load_head(finished / "head.safetensors")
    np.testing.assert_allclose(camera["label"], head.camera.label[0].numpy(), atol=1e-5)
    assert (finished / "report.html").stat().st_size > 1_000_000


def test_the_same_command_again_finds_it_done(finished: Path, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.iterdir()}
    assert cli.run(["reconstruct", str(photo), "--out", str(finished), *FLAGS]) == 0
    assert "already" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in finished.iterdir()}
    assert "--overwrite" in message(capsys, "reconstruct", photo, "--out", finished, *FLAGS, "--seed=5")


def test_an_interrupted_run_goes_on_to_the_same_head(finished: Path, photo: Path, tmp_path: Path) -> None:
    config = cli.preset("fast")
    config = cli.tyro.cli(cli.ReconstructConfig, default=config, args=FLAGS)
    out = tmp_path / "run"
    asked = iter([False] * 3 + [True] * 10_000)
    stopped = False

    def should_stop() -> bool:
        nonlocal stopped
        stopped = stopped or next(asked)
        return stopped

    first = reconstruct_into(photo, config, out, should_stop=should_stop)
    assert first is not None
    assert (out / STATE).exists()
    assert names(out) == FILES | {STATE}
    second = reconstruct_into(photo, config, out)
    assert second is not None
    assert names(out) == FILES
    one, other = load_head(out / "head.safetensors"), load_head(finished / "head.safetensors")
    assert torch.equal(one.ws, other.ws)
    for name, value in other.generator.state_dict().items():
        assert torch.equal(one.generator.state_dict()[name], value), name


def test_another_run_takes_all_of_the_last_one_away(photo: Path, tmp_path: Path) -> None:
    config = cli.tyro.cli(cli.ReconstructConfig, default=cli.preset("fast"), args=FLAGS)
    first = run_folder.RunFolder.of(tmp_path, photo, config)
    first.begin(run_folder.Status.NEW)
    for name in (*FILES, "mesh.stl"):
        if name != "config.toml":
            (tmp_path / name).write_text("of the last run")
    (tmp_path / "notes.txt").write_text("the user's own")
    second = run_folder.RunFolder.of(tmp_path, photo, replace(config, seed=5))
    second.begin(second.check(overwrite=True))
    assert names(tmp_path) == {"config.toml", "notes.txt", "crop.png", "pose.png"}


def test_what_an_inversion_was_interrupted_at_does_not_hang_on_meshes_but_on_weights(
    photo: Path, tmp_path: Path
) -> None:
    config = cli.tyro.cli(cli.ReconstructConfig, default=cli.preset("fast"), args=FLAGS)
    run = run_folder.RunFolder.of(tmp_path, photo, config)
    run.begin(run_folder.Status.NEW)
    other_mesh = run_folder.RunFolder.of(tmp_path, photo, replace(config, mesh=replace(config.mesh, level=3.0)))
    assert other_mesh.status() is run_folder.Status.INTERRUPTED
    assert replace(run, weights_sha256="0" * 64).status() is run_folder.Status.OTHER
    run.finish()
    assert run.status() is run_folder.Status.DONE
    assert other_mesh.status() is run_folder.Status.OTHER


def test_two_photos_of_one_person_give_one_head(photo: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    Image.open(photo).crop((60, 0, 460, 400)).save(other)
    out = tmp_path / "run"
    flags = ["--inversion.latent.steps=2", "--inversion.tuning.steps=1", "--device=cpu", "--quiet"]
    flags += ["--mesh.resolution=48", "--mesh.texture-size=256", "--mesh.views=4", "--video.frames=2", "--preset=fast"]
    assert cli.run(["reconstruct", str(photo), str(other), "--method", "multi", "--out", str(out), *flags]) == 0
    assert names(out) == FILES
    head = load_head(out / "head.safetensors")
    assert head.config.inversion.method == "multi"
    assert head.metrics["psnr_photo_2"] > 5
    # another second photo is another run
    assert run_folder.RunFolder.of(out, photo, head.config, [other]).status() is run_folder.Status.DONE
    assert run_folder.RunFolder.of(out, photo, head.config, [photo]).status() is run_folder.Status.OTHER


def test_exports_from_a_head(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "path.csv"
    path.write_text("yaw,pitch\n0,0\n20,5\n40,10\n")
    arguments = ["export", str(finished), "--out", str(tmp_path), "--meshes", "stl", "--videos", "gif", "--views"]
    arguments += ["--maps", "--cameras", str(path), "--mesh.resolution=48", "--device=cpu"]
    assert cli.run(arguments) == 0
    expected = {"mesh.stl", "path.gif", "views.png", "depth.png", "depth-color.png", "normals.png", "path.csv"}
    assert names(tmp_path) == expected
    assert Image.open(tmp_path / "path.gif").n_frames == 3  # type: ignore[attr-defined]
    assert Image.open(tmp_path / "depth.png").mode.startswith("I")
    assert "already there" in message(capsys, *arguments)


def test_export_says_what_is_wrong(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = finished / "head.safetensors"
    assert "nothing to write" in message(capsys, "export", head, "--out", tmp_path)
    assert "'fbx'" in message(capsys, "export", head, "--out", tmp_path, "--meshes", "fbx")
    assert "no file" in message(capsys, "export", tmp_path / "none.safetensors", "--views")
    missing = tmp_path / "gone.safetensors"
    words = message(capsys, "export", head, "--out", tmp_path, "--views", "--weights", missing)
    assert "gone.safetensors" in words
    assert "--weights" in words
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(head.read_bytes()[:5000])
    assert "cut.safetensors" in message(capsys, "export", cut, "--views")
    assert names(tmp_path) == {"cut.safetensors"}


def test_random_heads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "heads"
    arguments = ["generate", "--seeds", "3-4", "--out", str(out), "--yaw", "-30", "30", "--mix", "5", "--device=cpu"]
    arguments += ["--video", "--frames", "4", "--meshes", "ply", "--mesh.resolution", "48"]
    arguments += ["--mesh.texture-size", "256", "--mesh.views", "4"]
    assert cli.run(arguments) == 0
    pictures = {"seed0003.png", "seed0004.png", "grid.png", "mix.png"}
    assert names(out) == pictures | {"walk.mp4", "seed0003.ply", "seed0004.ply"} | {
        "seed0003-texture.png",
        "seed0004-texture.png",
    }
    assert Image.open(out / "seed0003.png").size == (516, 256)
    before = (out / "grid.png").read_bytes()
    assert "already there" in message(capsys, *arguments)
    assert cli.run([*arguments, "--overwrite", "--quiet"]) == 0
    assert (out / "grid.png").read_bytes() == before
