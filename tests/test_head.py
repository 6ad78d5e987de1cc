"""Head files: what comes back is what went in, and what is wrong is said."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_networks import solid_generator

from headlift import head
from headlift.config import ReconstructConfig, preset
from headlift.eg3d.camera import orbit
from headlift.eg3d.generator import Generator
from headlift.eg3d.own_planes import BACK, OWN, PHOTO, own_planes, with_own_planes
from headlift.eg3d.spec import DecoderSpec
from headlift.errors import CheckpointError, HeadFileError, OutputError, WeightsError
from headlift.head import load_head, load_state, save_head, save_state, write_head
from headlift.invert.metrics import psnr
from headlift.invert.result import Inversion, InversionState, Target
from headlift.values import Camera, Crop, Face, Similarity, Step, Verdict

SHA = "ab" * 32


def found(base: Generator) -> tuple[Inversion, Crop]:
    """An inversion as tuning leaves it: every synthesis weight moved a little, the mapping untouched."""
    rng = torch.Generator().manual_seed(1)
    tuned = copy.deepcopy(base)
    for name, parameter in tuned.named_parameters():
        if "mapping" not in name:
            parameter += 0.02 * torch.randn(parameter.shape, generator=rng)
    camera = orbit(0.2, 0.1)
    ws = torch.randn(1, base.num_ws, 8, generator=rng)
    image = torch.rand(1, 3, 32, 32, generator=rng) * 2 - 1
    mask = (torch.rand(1, 1, 32, 32, generator=rng) > 0.5).float()
    inversion = Inversion(
        ws, camera, tuned, Target(image, mask, True), (), "all done", {"psnr": 25.5, "depth_moved": float("nan")}
    )
    similarity = Similarity(np.array([[0.01, 0.001, -0.2], [-0.001, 0.01, 0.3]]))
    face = Face((0.0, 0.0, 1.0, 1.0), 1.0, np.zeros((478, 3)))
    return inversion, Crop(image, mask, camera, similarity, face, 0.0, np.eye(2), Verdict(()))


def loader(base: Generator, sha256: str = SHA):
    return lambda name, device: (base, sha256)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Generator, Inversion, Crop]:
    base = solid_generator(neural_resolution=16)
    inversion, crop = found(base)
    path = tmp_path / "head.safetensors"
    save_head(path, inversion, base, SHA, crop, replace(preset("fast"), seed=7))
    return path, base, inversion, crop


def picture(generator: Generator, ws: torch.Tensor, camera: Camera) -> torch.Tensor:
    return generator.render(generator.planes(ws), ws, camera).image


def test_a_head_comes_back_and_looks_the_same(saved) -> None:
    path, base, inversion, crop = saved
    head = load_head(path, loader=loader(base))
    for camera in (inversion.camera, orbit(1.2, -0.2)):
        before = picture(inversion.generator, inversion.ws, camera)
        after = picture(head.generator, head.ws, camera)
        assert psnr(before, after) >= 60
        assert psnr(before, picture(base, inversion.ws, camera)) < 45  # the changes matter
    assert torch.equal(head.ws, inversion.ws)
    torch.testing.assert_close(head.camera.cam2world, inversion.camera.cam2world)
    assert head.config == replace(preset("fast"), seed=7)
    np.testing.assert_array_equal(head.similarity.matrix, crop.similarity.matrix)
    assert head.image.shape == (32, 32, 3)
    assert np.abs(head.image / 127.5 - 1 - crop.image[0].permute(1, 2, 0).numpy()).max() <= 0.5 / 127.5 + 1e-6
    np.testing.assert_array_equal(head.mask, crop.mask[0, 0].numpy() * 255)
    assert (head.reason, head.metrics) == ("all done", {"psnr": 25.5})
    assert (head.base_name, head.base_sha256) == ("embedded", SHA)


@pytest.mark.parametrize("names", [(BACK,), (PHOTO,), (PHOTO, BACK), OWN])
def test_planes_of_its_own_come_back(tmp_path: Path, names: tuple[str, ...]) -> None:
    base = solid_generator()
    wider = with_own_planes(base, *names)
    wider.photo_reach.uniform_(-0.5, 0.5)
    inversion, crop = found(wider)
    path = tmp_path / "head.safetensors"
    save_head(path, inversion, base, SHA, crop, preset("fast"))
    head = load_head(path, loader=loader(base))
    behind = orbit(3.0, 0.1)
    assert tuple(own_planes(head.generator)) == names
    assert psnr(*(picture(g, inversion.ws, behind) for g in (inversion.generator, head.generator))) >= 60


def test_a_plane_for_the_back_of_which_nobody_says_where_it_begins_is_refused(tmp_path: Path) -> None:
    base = solid_generator()
    inversion, crop = found(with_own_planes(base, BACK))
    save_head(tmp_path / "head.safetensors", inversion, base, SHA, crop, preset("fast"))
    with pytest.raises(HeadFileError, match="earlier headlift. Reconstruct the photo again"):
        load_head(tmp_path / "head.safetensors", loader=loader(base))


def test_only_what_changed_is_stored_and_at_half_precision(saved) -> None:
    from safetensors import safe_open

    path, *_ = saved
    with safe_open(path, framework="pt") as stored:
        deltas = [name for name in stored.keys() if name.startswith("delta.")]  # noqa: SIM118
        assert deltas
        assert not any("mapping" in name for name in deltas)
        assert all(stored.get_tensor(name).dtype == torch.float16 for name in deltas)


def test_a_head_that_went_astray_is_not_kept(saved, tmp_path: Path) -> None:
    _, base, inversion, crop = saved
    next(inversion.generator.backbone.synthesis.parameters()).data[0] = float("nan")
    with pytest.raises(HeadFileError, match="went astray"):
        save_head(tmp_path / "astray.safetensors", inversion, base, SHA, crop, preset("fast"))
    assert not (tmp_path / "astray.safetensors").exists()


def test_a_loaded_head_can_be_edited_and_written_again(saved, tmp_path: Path) -> None:
    path, base, inversion, _ = saved
    head = load_head(path, loader=loader(base))
    edited = replace(head, ws=head.ws + 0.5)
    write_head(tmp_path / "edited.safetensors", edited, base)
    again = load_head(tmp_path / "edited.safetensors", loader=loader(base))
    assert torch.equal(again.ws, inversion.ws + 0.5)
    assert (
        psnr(picture(edited.generator, edited.ws, head.camera), picture(again.generator, again.ws, head.camera)) >= 60
    )


def test_another_base_is_refused(saved) -> None:
    path, base, *_ = saved
    with pytest.raises(HeadFileError, match="--weights FILE"):
        load_head(path, loader=loader(base, "cd" * 32))


@pytest.mark.parametrize("error", [WeightsError("not here."), CheckpointError("cut off.")])
def test_a_missing_base_is_said_with_the_remedy(saved, error: Exception) -> None:
    path, *_ = saved

    def fail(name: str, device: object):
        raise error

    with pytest.raises(HeadFileError, match=r"'embedded'.*--weights FILE"):
        load_head(path, loader=fail)


def test_a_base_of_another_shape_is_refused(saved) -> None:
    path, base, *_ = saved
    other = Generator(replace(base.spec, decoder=DecoderSpec(hidden=10, features=4))).eval()
    with pytest.raises(HeadFileError, match=r"decoder\..* has shape"):
        load_head(path, loader=loader(other))


def test_files_that_are_no_heads_are_refused(saved, tmp_path: Path) -> None:
    path, base, *_ = saved
    data = path.read_bytes()
    cases = {
        "cut.safetensors": data[: len(data) // 2],
        "empty.safetensors": b"",
        "text.safetensors": b"hello, this is not a head" * 9,
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(HeadFileError, match=name):
            load_head(tmp_path / name, loader=loader(base))
    with pytest.raises(HeadFileError, match="no file"):
        load_head(tmp_path / "nowhere.safetensors", loader=loader(base))
    with pytest.raises(HeadFileError, match="Did you mean"):
        load_head(tmp_path, loader=loader(base))
    save_state(tmp_path / "state.safetensors", InversionState("latent", 1, {"code": torch.zeros(1, 1, 8)}))
    with pytest.raises(HeadFileError, match="not a head file"):
        load_head(tmp_path / "state.safetensors", loader=loader(base))


def changed(path: Path, about: dict[str, object] | None = None, **tensors: torch.Tensor) -> Path:
    """A copy of a head file with other tensors, or more in its description."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as stored:
        metadata = stored.metadata()
        whole = {name: stored.get_tensor(name) for name in stored.keys()} | tensors  # noqa: SIM118 (not a dict)
    metadata["about"] = json.dumps(json.loads(metadata["about"]) | (about or {}))
    save_file(whole, path.with_name("changed.safetensors"), metadata)
    return path.with_name("changed.safetensors")


NAN = float("nan")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("camera", torch.zeros(25, dtype=torch.float64)),
        ("camera", torch.full((1, 25), NAN, dtype=torch.float64)),
        ("image", torch.zeros(32, 32)),
        ("mask", torch.zeros(16, 16, dtype=torch.uint8)),
        ("mask", torch.zeros((), dtype=torch.uint8)),
        ("ws", torch.full((1, 4, 8), NAN)),
        ("ws", torch.zeros(1, 4, 8, dtype=torch.int32)),
        ("similarity", torch.full((2, 3), NAN, dtype=torch.float64)),
        ("similarity", torch.zeros(2, 3, dtype=torch.float64)),
        ("scale.decoder.net.0.weight", torch.tensor([NAN])),
        ("scale.decoder.net.0.weight", torch.tensor(1.0)),
        ("delta.decoder.net.0.weight", torch.full((8, 4), NAN)),
    ],
)
def test_what_is_no_camera_crop_code_or_change_is_refused(saved, name: str, value: torch.Tensor) -> None:
    path, base, *_ = saved
    with pytest.raises(HeadFileError, match=name.partition(".")[2] or name):
        load_head(changed(path, **{name: value}), loader=loader(base))


def test_a_small_file_cannot_ask_for_a_large_second_volume(saved, monkeypatch: pytest.MonkeyPatch) -> None:
    path, base, *_ = saved

    def made(*given: object) -> None:
        raise AssertionError("made")

    monkeypatch.setattr(head, "compose", made)
    large = {"channels": 4096, "resolution": 4096, "hidden": 4096}
    small = {"delta.outer_planes": torch.zeros(3, 2, 4, 4), "scale.outer_planes": torch.ones(1)}
    for tensors in ({}, small):
        with pytest.raises(HeadFileError, match="outer_planes has shape"):
            load_head(changed(path, {"outer": large}, **tensors), loader=loader(base))
    sizes = {"channels": 2, "resolution": 4, "hidden": 4096}
    with pytest.raises(HeadFileError, match=r"decoder.outer.net.0.weight has shape None"):
        load_head(changed(path, {"outer": sizes}, **small), loader=loader(base))


def test_a_bad_place_is_an_output_error_and_leaves_nothing(saved, tmp_path: Path) -> None:
    _, base, inversion, crop = saved
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        save_head(tmp_path / "file" / "head.safetensors", inversion, base, SHA, crop, ReconstructConfig())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "head.safetensors"]


def test_states_come_back_exactly(tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(4)
    tensors = {"code": torch.randn(1, 1, 8, generator=rng), "rng": rng.get_state(), "adam.0.step": torch.tensor(3.0)}
    history = (Step("latent", 1, 5, {"total": 0.1 + 0.2}),)
    save_state(tmp_path / "s.safetensors", InversionState("latent", 1, tensors, history))
    back = load_state(tmp_path / "s.safetensors")
    assert (back.stage, back.step, back.history) == ("latent", 1, history)
    assert back.tensors.keys() == tensors.keys()
    assert all(torch.equal(back.tensors[name], value) for name, value in tensors.items())
