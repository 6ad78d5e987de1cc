"""The prior's adversarial stage on a few balls: from the supervised run to weights that can be carried away."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headlift.config import PRIOR_NAME
from headlift.eg3d.camera import orbit
from headlift.eg3d.checkpoint import load_checkpoint, load_discriminator, read_metadata
from headlift.eg3d.training.ranks import Ranks
from headlift.eg3d.training.step import Reals
from headlift.errors import ConfigError
from headlift.evaluate.distribution import fid, kid
from headlift.prior import adversarial
from headlift.prior import measure as measuring
from headlift.prior.adversarial import PRIOR, Feed, Pool, StageConfig, begin, read_pool
from headlift.prior.dataset import DEPTH_UNIT
from headlift.prior.measure import Known, Measure, MeasureConfig
from headlift.prior.ship import MARGIN, as_it_ships, carry_away, ship
from headlift.prior.train import main, parse
from headlift.values import Camera
from tests.helpers.ball_heads import write_heads

PLACE = slice(0, 2)
CONFIG = replace(PRIOR, batch=2, density_points=20, hold_kimg=0.0, blur_fade_kimg=0.5, neural_initial=16, bf16=False)
STAGE = StageConfig(judge_base=256, judge_most=8, kimg=0.006, sheet_heads=1)  # three steps
FIGURES = MeasureConfig(swd_images=2, swd_draws=1, swd_projections=16)
SUPERVISED = ["--widths", "8,8", "--plane-channels", "4", "--w-dim", "8", "--hidden", "8", "--features", "4"]
SUPERVISED += ["--superres", "4,4", "--heads", "2", "--patch", "16", "--rays", "8", "--others", "1", "--coarse", "4"]
SUPERVISED += ["--fine", "4", "--hull", "16", "--steps", "1", "--warmup", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    write_heads(folder, 3, side=256)
    return folder


@pytest.fixture(scope="module")
def start(heads: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the supervised stage, one step long, from the command line."""
    out = tmp_path_factory.mktemp("supervised")
    main([str(heads), str(out), "--cache", str(heads / "cache"), *SUPERVISED])
    return out


def test_what_ships_is_rendered_as_finely_as_super_resolution_takes_it_and_has_no_frame(
    start: Path, tmp_path: Path
) -> None:
    file = tmp_path / "prior.safetensors"
    sha256 = ship(start, file)
    learned, shipped = load_checkpoint(start / "ema.safetensors"), load_checkpoint(file)
    assert (learned.spec.neural_resolution, learned.spec.superres.input_resolution) == (64, 128)
    superres = replace(learned.spec.superres, margin=MARGIN)
    assert shipped.spec == replace(learned.spec.rendered_at(128, 64), superres=superres)
    for one, other in zip(learned.parameters(), shipped.parameters(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4)
    assert read_metadata(file)["name"] == PRIOR_NAME
    assert sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    without = replace(learned.spec, render=replace(learned.spec.render, importance_samples=0))
    assert as_it_ships(without) == replace(without.rendered_at(128), superres=superres)
    assert as_it_ships(shipped.spec) == shipped.spec


@pytest.fixture(scope="module")
def pool(heads: Path) -> Pool:
    return read_pool(heads, heads / "cache")


def test_pictures_come_on_white_with_their_cameras_and_mirrored_ones_with_mirrored_cameras(pool: Pool) -> None:
    feed = Feed(pool, replace(CONFIG, batch=24), True, torch.device("cpu"))
    (found,) = feed.take(0, [slice(0, 24)], 256)
    assert found.alpha is not None
    assert found.image.min() >= -1
    assert torch.equal(
        found.image[(found.alpha == 0).expand_as(found.image)],
        torch.tensor(1.0).expand(int((found.alpha == 0).sum()) * 3),
    )
    rgba = torch.from_numpy(np.array(pool.known.images)).permute(0, 3, 1, 2).float() / 255
    white = (rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:]) * 2 - 1
    plain = mirrored = 0
    for image, label in zip(found.image, found.label, strict=True):
        rows = [torch.isclose(torch.from_numpy(pool.labels[i]), label, atol=1e-5).all(1) for i in range(2)]
        plain += any(torch.allclose(x, image, atol=1e-5) for x in white[rows[0]])
        mirrored += any(torch.allclose(x, image.flip(2), atol=1e-5) for x in white[rows[1]])
    assert plain + mirrored >= 24  # each picture is one of the pool's under its own camera, or both mirrored
    assert min(plain, mirrored) > 3
    everyone = torch.cat([torch.from_numpy(pool.labels[i]) for i in range(2)])
    assert all(torch.isclose(everyone, x).all(1).any() for x in found.fake_labels.flatten(0, 1))


def test_what_a_step_sees_depends_on_nothing_but_seed_and_step(pool: Pool) -> None:
    feed = Feed(pool, replace(CONFIG, batch=4), True, torch.device("cpu"))
    ahead = Feed(pool, replace(CONFIG, batch=4), True, torch.device("cpu"), workers=2)

    def take(feed: Feed, step: int) -> Reals:
        parts = feed.take(step, [slice(0, 2), slice(2, 4)], 64)
        image, alpha, label = (torch.cat([getattr(part, k) for part in parts]) for k in ("image", "alpha", "label"))
        return Reals(image, alpha, label, torch.cat([part.fake_labels for part in parts], dim=1))

    (whole,) = feed.take(3, [slice(0, 4)], 64)
    for step in (2, 3):
        one, other = take(feed, step), take(ahead, step)
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.label, other.label)
    assert torch.equal(take(feed, 3).image, whole.image)
    assert not torch.equal(take(feed, 2).image, whole.image)


def test_a_run_resumes_bit_for_bit_and_leaves_what_is_needed(
    pool: Pool, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = adversarial.run(pool, tmp_path / "whole", CONFIG, STAGE, 5.0, start, figures=FIGURES)
    assert whole.step == 3
    short = replace(STAGE, kimg=0.002)
    adversarial.run(pool, tmp_path / "parts", CONFIG, short, 5.0, start, figures=FIGURES)
    parts = adversarial.run(pool, tmp_path / "parts", CONFIG, STAGE, 5.0, workers=2, figures=FIGURES)
    for name in ("generator", "discriminator", "ema"):
        one, other = getattr(whole, name).state_dict(), getattr(parts, name).state_dict()
        assert all(torch.equal(value, other[key]) for key, value in one.items()), name
    log = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 3
    assert log[-1]["swd"] > 0
    assert log[-1]["swd_data"] > 0
    assert (tmp_path / "parts" / "samples.png").stat().st_size > 1000
    supervised = load_checkpoint(start / "ema.safetensors")
    learned = load_checkpoint(tmp_path / "parts" / "ema.safetensors")
    assert learned.spec == replace(supervised.spec, neural_resolution=16)  # what it was trained at
    assert not torch.equal(learned.decoder.layers()[0], supervised.decoder.layers()[0])
    assert load_discriminator(tmp_path / "parts" / "discriminator.safetensors").spec.image_channels == 7


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"condition": True}, "--no-condition, not --condition"),
        ({"judge_base": 512}, "--judge-base 256, not --judge-base 512"),
        ({"masks": False}, "--masks, not --no-masks"),
    ],
)
def test_a_run_keeps_its_stages_settings(
    pool: Pool, start: Path, tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    device, ranks = torch.device("cpu"), Ranks()
    adversarial.save(begin(start, CONFIG, STAGE, device, ranks), tmp_path, STAGE)
    with pytest.raises(ConfigError, match=words):
        adversarial.run(pool, tmp_path, CONFIG, replace(STAGE, **changed), 5.0)
    assert adversarial.resume(tmp_path, CONFIG, replace(STAGE, kimg=1.0), device, ranks).step == 0


def test_carried_parts_join_again(start: Path) -> None:
    command = carry_away(start, limit=20_000)
    parts = sorted((start / "parts").glob("*.part??"))
    assert len(parts) > 2
    assert max(part.stat().st_size for part in parts) <= 20_000
    joined = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    assert joined.returncode == 0, joined.stderr
    assert load_checkpoint(start / "parts" / "ema.safetensors").spec == load_checkpoint(start / "ema.safetensors").spec
    parts[0].write_bytes(b"x" + parts[0].read_bytes()[1:])
    assert subprocess.run(command.split(), capture_output=True, check=False).returncode != 0


def test_a_run_goes_on_from_carried_weights(
    pool: Pool, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(CONFIG, augment_p=0.25)
    old = adversarial.run(pool, tmp_path / "old", config, replace(STAGE, kimg=0.002), 5.0, start, figures=FIGURES)
    command = carry_away(tmp_path / "old")
    subprocess.run(command.split(), check=True, capture_output=True)
    new = begin(tmp_path / "old" / "parts", replace(CONFIG, neural_initial=None), STAGE, torch.device("cpu"), Ranks())
    assert (new.step, new.images) == (old.step, old.images) == (1, 2)
    assert new.augment_p == old.augment_p == 0.25
    assert new.neural_initial == old.neural_initial == 16
    assert "another kind" not in capsys.readouterr().out
    for name in ("ema", "discriminator"):
        one, other = getattr(old, name).state_dict(), getattr(new, name).state_dict()
        assert all(torch.allclose(value, other[key], rtol=1e-3, atol=1e-4) for key, value in one.items()), name
    fresh = begin(tmp_path / "old" / "parts", CONFIG, replace(STAGE, judge_most=4), torch.device("cpu"), Ranks())
    assert (fresh.step, fresh.images) == (0, 0)
    assert "discriminator.safetensors is of another kind" in capsys.readouterr().out


def test_pose_conditioning_changes_nothing_at_first_and_is_learned(pool: Pool, start: Path) -> None:
    plain, new = (
        begin(start, replace(CONFIG, mapping_share=1.0), replace(STAGE, condition=c), torch.device("cpu"), Ranks())
        for c in (False, True)
    )
    z = torch.randn(4, plain.generator.spec.mapping.z_dim, generator=torch.Generator().manual_seed(0))
    label, other = torch.from_numpy(pool.labels[0, :4]), torch.from_numpy(pool.labels[1, 4:8])
    assert not new.generator.spec.mapping.zero_label
    assert torch.allclose(plain.generator.mapping(z, label), new.generator.mapping(z, label), atol=1e-6)
    feed = Feed(pool, CONFIG, True, torch.device("cpu"))
    new.take_step(feed.take(0, new.places, 256))
    assert not torch.allclose(new.generator.mapping(z, label), new.generator.mapping(z, other), atol=1e-6)


def test_without_conditioning_what_is_made_of_a_camera_stays(pool: Pool, start: Path) -> None:
    """From zero, where the supervised stage leaves its bias, any step of it would turn the codes of all heads."""
    trainer = begin(start, replace(CONFIG, mapping_share=1.0), STAGE, torch.device("cpu"), Ranks())
    embed = trainer.generator.backbone.mapping.embed
    assert not embed.bias.any()
    before = {name: p.clone() for name, p in trainer.generator.backbone.mapping.named_parameters()}
    trainer.take_step(Feed(pool, CONFIG, True, torch.device("cpu")).take(0, trainer.places, 256))
    after = dict(trainer.generator.backbone.mapping.named_parameters())
    assert {name for name, p in before.items() if torch.equal(p, after[name])} == {"embed.weight", "embed.bias"}


def test_without_a_start_there_is_advice(pool: Pool, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--start-from"):
        adversarial.run(pool, tmp_path / "new", CONFIG, STAGE, 5.0)


def test_pictures_of_the_data_are_nearer_than_the_generators(pool: Pool, start: Path) -> None:
    measure = Measure(pool.known, MeasureConfig(swd_images=6, swd_projections=64), 256, torch.device("cpu"))
    found = measure(load_checkpoint(start / "ema.safetensors"))
    assert 0 < found["swd_data"] < found["swd"]
    assert {f"swd_{side}" for side in (256, 128, 64, 32, 16)} < set(found)


def test_with_inception_the_sets_are_compared_by_its_features(
    pool: Pool, start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def colours(weights: Path) -> Callable[[Sequence[torch.Tensor]], np.ndarray]:
        """Mean colours instead of a network's features."""
        asked.append(weights)
        return lambda pictures: np.stack([picture.mean((0, 2, 3)).numpy() for picture in pictures])

    monkeypatch.setattr(measuring, "inception", colours)
    config = MeasureConfig(swd_images=6, swd_projections=16, swd_draws=1, known_images=0, inception="inception.pth")
    measure = Measure(pool.known, config, 256, torch.device("cpu"))
    found = measure(load_checkpoint(start / "ema.safetensors"))
    assert set(asked) == {Path("inception.pth")}
    true, data = (measure.pictures(rows).mean((2, 3)).numpy() for rows in (measure.others, measure.learned))
    assert found["fid_data"] == pytest.approx(fid(data, true))
    assert found["kid_data"] == pytest.approx(kid(data, true))
    assert found["fid"] != found["fid_data"]


def test_heads_drawn_by_their_codes_are_held_against_the_truth(start: Path) -> None:
    generator = load_checkpoint(start / "ema.safetensors")
    labels = torch.cat([orbit(yaw, 0.0).label for yaw in (0.0, 0.3)])
    codes = torch.randn(2, generator.spec.mapping.z_dim, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ws = generator.mapping(codes, labels)
        shown = generator.render(generator.planes(ws), ws, Camera.from_label(labels))
    pictures = ((shown.image.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).byte()
    opaque = torch.full((2, 256, 256, 1), 255, dtype=torch.uint8)
    depth = (shown.depth[:, 0] / DEPTH_UNIT).round().numpy().astype(np.uint16)
    rows = np.arange(2)
    known = Known(torch.cat([pictures, opaque], 3).numpy(), labels.numpy(), rows, rows, codes.numpy(), depth)
    device = torch.device("cpu")
    right = Measure(known, replace(FIGURES, swd_images=0), 256, device)(generator)
    assert right["known_psnr"] > 50
    assert right["known_depth"] < DEPTH_UNIT
    assert set(right) == {"known_psnr", "known_depth"}
    others = replace(known, codes=codes.flip(0).numpy(), depth=None)
    assert (
        Measure(others, replace(FIGURES, swd_images=0), 256, device)(generator)["known_psnr"] < right["known_psnr"] - 3
    )
    deeper = Measure(replace(known, depth=depth + 100), replace(FIGURES, swd_images=0), 256, device)(generator)
    assert deeper["known_depth"] == pytest.approx(100 * DEPTH_UNIT, abs=DEPTH_UNIT)
    longer = replace(known, codes=np.zeros((2, codes.shape[1] + 1)))
    assert Measure(longer, replace(FIGURES, swd_images=0), 256, device)(generator) == {}


def test_flags_of_both_stages() -> None:
    stage, options = parse(["data", "out", "--heads", "3", "--lr", "0.5"])
    assert (stage, options["heads"], options["lr"], options["minutes"]) == ("supervised", 3, 0.5, 9.0)
    flags = ["--stage", "adversarial", "--chunk", "8", "--ema-rampup", "none", "--no-bf16", "--augment", "fixed"]
    stage, options = parse(["data", "out", *flags])
    assert (stage, options["chunk"], options["ema_rampup"], options["bf16"]) == ("adversarial", 8, None, False)
    assert (options["augment"], options["noise_mode"], options["masks"]) == ("fixed", "none", True)


@pytest.mark.parametrize("module", ["headlift.prior.train"])
def test_training_needs_few_packages(module: str) -> None:
    code = f"import sys, {module}; print(' '.join(sorted({{m.split('.')[0] for m in sys.modules}})))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    foreign = {"cv2", "scipy", "skimage", "trimesh", "lpips", "torchvision", "mediapipe", "rich", "tyro", "pooch", "av"}
    assert not foreign & set(loaded)
