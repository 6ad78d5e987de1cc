"""Measuring a prior: laws of its figures, folders that are not as they should be, and going on after a stop."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from known_heads import camera_at, code, write_known_heads
from PIL import Image
from small_networks import random_generator, solid_generator

from headlift import cli
from headlift.config import EvaluatePriorConfig, InversionConfig, LatentConfig, TuningConfig, evaluation, preset
from headlift.eg3d.checkpoint import save_checkpoint
from headlift.eg3d.generator import Generator
from headlift.errors import ConfigError, DataError, OutputError
from headlift.evaluate import kept, prior
from headlift.evaluate.crew import Stopped, run_tasks
from headlift.evaluate.metrics import depth_error, pair, render_over_grey, score, shrink_depth
from headlift.evaluate.multiview import Picture, read_depth, read_folder, read_picture
from headlift.evaluate.page import html, markdown
from headlift.evaluate.prior import HeadRow, ViewRow, by_yaw, compare_distributions, evaluate_prior, gain
from headlift.invert.perceptual import load_builtin
from headlift.values import Step

QUICK = InversionConfig(
    latent=LatentConfig(steps=2, candidates=1, relief=0.0, w_stats_samples=20),
    camera=replace(InversionConfig().camera, enabled=False),
    tuning=TuningConfig(steps=2, relief=0.0, side_views=1),
)


@pytest.fixture(scope="module")
def generator() -> Generator:
    return solid_generator()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, generator: Generator) -> str:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_checkpoint(path, generator)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, generator: Generator) -> Path:
    path = tmp_path_factory.mktemp("known")
    write_known_heads(path, generator)
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def quick(weights: str, **changes: object) -> EvaluatePriorConfig:
    return replace(EvaluatePriorConfig(weights=weights, inversion=QUICK, device="cpu", distribution=False), **changes)


# The folder


def test_a_folder_is_read_by_its_form(folder: Path) -> None:
    heads = read_folder(folder)
    assert [head.name for head in heads] == ["person0", "person1"]
    head = heads[0]
    assert round(head.photo.yaw) == 0
    assert head.photo.is_crop
    assert [abs(round(view.yaw)) for view in head.others] == [30, 30, 90, 180]
    assert [view.is_crop for view in head.others] == [True, True, False, False]
    assert head.photo.depth is not None
    assert all(view.depth is None for view in head.others)
    assert torch.allclose(head.others[2].camera.label, camera_at(-90).label, atol=1e-5)


def test_depth_and_pixels_come_back(folder: Path, generator: Generator) -> None:
    ws = code(generator, 0)
    with torch.no_grad():
        output = generator.render(generator.planes(ws), ws, camera_at(0), neural_resolution=32)
    view = read_folder(folder)[0].photo
    assert view.depth is not None
    depth, solid = read_depth(view.depth), output.alpha > 0.5
    assert torch.equal(depth > 0, solid)
    assert float((depth - output.depth)[solid].abs().max()) <= 0.51e-4
    white = read_picture(view).over(1.0)
    assert float((white - output.raw.clamp(-1, 1)).abs().max()) < 0.03  # bytes of colour and of alpha


def test_the_digest_knows_pixels_and_cameras(copy: Path) -> None:
    before = [head.digest() for head in read_folder(copy)]
    assert len(set(before)) == 2
    path = copy / "person0_+030.png"
    pixels = np.array(Image.open(path))
    pixels[0, 0] = 255 - pixels[0, 0]
    Image.fromarray(pixels).save(path)
    after = [head.digest() for head in read_folder(copy)]
    assert after[0] != before[0]
    assert after[1] == before[1]


def edit(folder: Path, change: str) -> None:
    """Spoil a folder in one way."""
    path = folder / "dataset.json"
    table = json.loads(path.read_text())
    labels = table["labels"]
    first = folder / labels[0][0]
    if change == "no labels":
        path.unlink()
    elif change == "not json":
        path.write_text("{labels")
    elif change == "a list":
        path.write_text("[]")
    elif change == "short label":
        labels[0][1] = labels[0][1][:24]
    elif change == "not finite":
        labels[0][1][3] = math.nan
    elif change == "sheared":
        labels[0][1][0] *= 1.5
    elif change == "mirrored":
        for i in (0, 4, 8):
            labels[0][1][i] *= -1
    elif change == "nameless":
        labels[0][0] = "picture.png"
    elif change == "outside":
        labels[0][0] = "../person0_+000.png"
    elif change == "missing":
        first.unlink()
    elif change == "no picture":
        first.write_text("nothing")
    elif change == "no alpha":
        Image.open(first).convert("RGB").save(first)
    elif change == "not square":
        Image.open(first).crop((0, 0, 32, 16)).save(first)
    elif change == "8-bit depth":
        Image.new("L", (32, 32)).save(folder / "person0_+000_depth.png")
    elif change == "small depth":
        Image.fromarray(np.ones((16, 16), np.uint16)).save(folder / "person0_+000_depth.png")
    elif change == "no front":
        table["labels"] = [entry for entry in labels if "+000" not in entry[0]]
    elif change == "single view":
        table["labels"] = [entry for entry in labels if "+000" in entry[0]]
    if path.exists() and change not in ("not json", "a list"):
        path.write_text(json.dumps(table))


SPOILT = {
    "no labels": "dataset.json", "not json": "not JSON", "a list": "labels", "short label": "25 numbers",
    "not finite": "25 numbers", "sheared": "no camera", "mirrored": "no camera", "nameless": "which head",
    "outside": "outside", "missing": "not there", "no picture": "cannot be read", "no alpha": "RGBA",
    "not square": "square", "8-bit depth": "16 bit", "small depth": "agree", "no front": "front",
    "single view": "single view",
}  # fmt: skip


@pytest.mark.parametrize("change", sorted(SPOILT))
def test_spoilt_folders_are_named(copy: Path, change: str) -> None:
    edit(copy, change)
    with pytest.raises(DataError, match=SPOILT[change]):
        read_folder(copy)


def test_no_folder_and_an_archive(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        read_folder(tmp_path / "none")
    (tmp_path / "eval.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="unpack"):
        read_folder(tmp_path / "eval.zip")


def test_cut_and_empty_pictures_are_found_when_they_are_read(copy: Path) -> None:
    path = copy / "person0_+000.png"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="damaged"):
        read_picture(read_folder(copy)[0].photo)
    Image.new("RGBA", (32, 32)).save(path)
    with pytest.raises(DataError, match="shows nothing"):
        read_picture(read_folder(copy)[0].photo)


# The figures


def truth_of(colour: float, alpha: torch.Tensor) -> Picture:
    return Picture(torch.full((1, 3, *alpha.shape[2:]), colour), alpha)


def half_plane(side: int, share: float) -> torch.Tensor:
    alpha = torch.zeros(1, 1, side, side)
    alpha[..., : round(side * share)] = 1
    return alpha


def test_mid_grey_replaces_white() -> None:
    alpha = torch.tensor([1.0, 0.5, 0.0]).reshape(1, 1, 1, 3).expand(1, 1, 3, 3)
    on_white = 0.6 * alpha + (1 - alpha)
    grey = render_over_grey(on_white.expand(1, 3, 3, 3), alpha, 3)
    assert torch.allclose(grey[0, 0, 0], torch.tensor([0.6, 0.3, 0.0]), atol=1e-6)


def test_psnr_over_the_union_by_hand() -> None:
    # Truth: the left half in colour 0.5. Render: the left three quarters in colour 0.1. Over the union, two thirds
    # differ by 0.4 and one third (head where there is none) by 0.1: mse = (2 * 0.16 + 0.01) / 3 = 0.11.
    render = half_plane(256, 0.75)
    views = pair(truth_of(0.5, half_plane(256, 0.5)), (0.1 * render + 1 - render).expand(1, 3, -1, -1), render)
    assert float(views.union.mean()) == pytest.approx(0.75)
    assert score(views, load_builtin()).psnr == pytest.approx(10 * math.log10(4 / 0.11), abs=1e-3)


def test_equal_views_are_perfect() -> None:
    alpha = half_plane(64, 0.5)
    views = pair(truth_of(-0.3, alpha), (-0.3 * alpha + 1 - alpha).expand(1, 3, -1, -1), alpha)
    found = score(views, load_builtin())
    assert found.psnr > 60
    assert found.ssim == pytest.approx(1, abs=1e-3)
    assert found.perceptual == pytest.approx(0, abs=1e-4)


def test_what_lies_outside_both_silhouettes_does_not_count() -> None:
    alpha = half_plane(64, 0.5)
    image = (0.2 * alpha + 1 - alpha).expand(1, 3, -1, -1).clone()
    before = score(pair(truth_of(0.4, alpha), image, alpha), load_builtin())
    image[..., 48:] = -0.7
    after = score(pair(truth_of(0.4, alpha), image, alpha), load_builtin())
    assert after.psnr == pytest.approx(before.psnr, abs=1e-4)


@given(shift=st.floats(-0.3, 0.3), wrong=st.floats(0.0, 0.2))
def test_depth_error_is_free_of_the_shift_and_of_single_outliers(shift: float, wrong: float) -> None:
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    truth = (2.4 + 0.002 * x + 0.001 * y)[None, None]
    mean, solid = shrink_depth(truth, 16)
    assert bool(solid.all())
    depth = mean + shift
    depth[..., :4, :] += wrong  # a quarter of the picture: the median is that of the rest
    assert depth_error(depth, torch.ones_like(depth), truth) == pytest.approx(0, abs=1e-6)
    depth = mean + shift
    depth[..., :8, :] += wrong  # half of it: the best shift goes between
    assert depth_error(depth, torch.ones_like(depth), truth) == pytest.approx(wrong / 2, abs=1e-6)


def test_depth_counts_where_both_are_opaque() -> None:
    truth = torch.full((1, 1, 8, 8), 2.5)
    truth[..., 0:1] = 0  # the first column of the render's four covers a pixel without head
    depth, alpha = torch.full((1, 1, 4, 4), 2.5), torch.ones(1, 1, 4, 4)
    depth[..., 0], depth[..., 3], alpha[..., 3] = 9.0, 9.0, 0.2
    assert depth_error(depth, alpha, truth) == 0
    assert math.isnan(depth_error(depth, torch.zeros_like(alpha), truth))


# The evaluation


def test_the_generators_own_heads_are_shown_almost_perfectly(
    folder: Path, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the code known and no tuning every view is right; the truth is the volume's picture, before the fixed
    super-resolution, which therefore stands in for the picture here."""
    head = read_folder(folder)[0]

    def known(base: Generator, *rest: object) -> object:
        from headlift.invert.invert import make_target
        from headlift.invert.result import Inversion

        crop = rest[0]
        yield Step("tuning", 1, 1)
        target = make_target(crop, base)  # type: ignore[arg-type]
        return Inversion(code(base, 0), crop.camera, base, target, (), "known", {"depth_moved": 0.0})  # type: ignore[attr-defined]

    def volume(planes: torch.Tensor, ws: torch.Tensor, camera: object) -> object:
        output = render(planes, ws, camera, neural_resolution=32)
        return replace(output, image=output.raw)

    monkeypatch.setattr(prior, "invert", known)
    render = generator.render
    monkeypatch.setattr(generator, "render", volume)
    row, shown = prior.evaluate_head(generator, head, quick("unused"))
    assert [view.yaw for view in row.views] == [0, -30, 30, -90, 180]
    assert min(view.psnr for view in row.views) > 35  # bytes, and straight colours where there is little opacity
    assert min(view.ssim for view in row.views) > 0.97
    assert row.depth is not None
    assert row.depth < 1e-3
    assert row.reason == "known"
    assert shown.shape == (2 * 192 + 4, 5 * 196 - 4, 3)


def test_evaluation_resumes_and_refuses(
    folder: Path, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "REFRESH", 0.0)
    out, config = tmp_path / "out", quick(weights, baseline=1, distribution=True)
    # stopped after the second of four tasks
    seen: list[Step] = []

    def stop() -> bool:
        return any(step.stage == "heads" and step.index == 2 for step in seen)

    assert evaluate_prior(folder, out, config, 1, on_step=seen.append, should_stop=stop) is None
    files = sorted(path.name for path in out.rglob("*.json"))
    assert files == ["evaluation.json", "person0-search.json", "person1-search.json"]
    partial = json.loads((out / "evaluation.json").read_text())
    assert partial["heads"] == 2
    assert not partial["complete"]
    first = (out / "heads" / "person0-search.json").read_bytes()
    seen.clear()
    results: list[prior.Evaluation] = []
    found = evaluate_prior(folder, out, config, 1, on_step=seen.append, on_result=results.append)
    assert found is not None
    assert [step.index for step in seen if step.stage == "heads"] == [2, 3, 4]
    assert [result.complete for result in results] == [False, True]
    assert results[0].rows == results[1].rows == found.rows
    assert (out / "heads" / "person0-search.json").read_bytes() == first
    again = evaluate_prior(folder, out, config, 1)
    assert again is not None
    assert again.rows == found.rows
    assert again.baseline == found.baseline
    # an evaluation in one go gives the same figures
    fresh = evaluate_prior(folder, tmp_path / "fresh", quick(weights), 1)
    assert fresh is not None
    assert [row.views for row in fresh.rows] == [row.views for row in found.rows]
    # the search does something that the mean head lacks
    assert found.baseline[0].views != found.rows[0].views

    with pytest.raises(OutputError, match="--overwrite"):
        evaluate_prior(folder, out, quick(weights, seed=1))
    table = json.loads((out / "evaluation.json").read_text())
    assert list(table["psnr"]) == ["0", "30", "90", "180"]
    assert list(table["ssim"]) == list(table["perceptual"]) == list(table["psnr"])
    assert table["psnr"]["30"] == pytest.approx(
        np.mean([view["psnr"] for row in table["rows"][:2] for view in row["views"] if abs(view["yaw"]) == 30])
    )
    assert table["depth_median"] == pytest.approx(np.mean([row["depth"] for row in table["rows"][:2]]))
    assert table["heads"] == 2
    assert table["baseline"]["heads"] == 1
    assert set(table["gain"]) == set(table["psnr"])
    assert table["swd"]["samples"] > 0
    assert table["swd"]["pictures"] == 5
    assert len(table["weights"]["sha256"]) == 64
    assert "| input |" in markdown(found)
    page = html(found)
    assert "person1-search.jpg" in page
    assert "person0-mean.jpg" in page
    for source in page.split("src='")[1:]:
        assert (out / source.split("'")[0]).is_file()


def test_the_command_line(
    folder: Path, copy: Path, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, target = tmp_path / "out", tmp_path / "found.json"
    steps = ["--inversion.latent.steps", "1", "--inversion.tuning.steps", "1", "--inversion.latent.candidates", "0"]
    steps += ["--inversion.tuning.finish-steps", "1"]
    command = ["evaluate", "prior", str(folder), "--weights", weights, "--out", str(out), "--json", str(target)]
    command += ["--device", "cpu", "--heads", "1", "--no-distribution", "--workers", "1", *steps]
    assert cli.run(command) == 0
    assert json.loads(target.read_text())["heads"] == 1
    assert "input" in capsys.readouterr().out
    assert (out / "index.html").is_file()
    assert (out / "table.md").read_text().startswith("| view |")
    edit(copy, "no front")
    with pytest.raises(DataError):
        cli.run(["evaluate", "prior", str(copy)])


def test_settings_are_the_standard_preset_with_fixed_cameras() -> None:
    assert not evaluation("standard").inversion.camera.enabled
    assert evaluation("standard").inversion.tuning == preset("standard").inversion.tuning
    assert EvaluatePriorConfig() == evaluation("standard")
    token = cli._DEFAULTS.set(cli._defaults(["evaluate", "prior", "x"]))
    try:
        assert cli.EvaluatePrior(Path("x")).settings == evaluation("standard")
    finally:
        cli._DEFAULTS.reset(token)
    assert cli._defaults(["evaluate", "prior", "x", "--preset", "thorough"]) == preset("thorough")


def test_bad_settings(folder: Path, weights: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--workers"):
        evaluate_prior(folder, tmp_path, quick(weights), workers=0)
    with pytest.raises(ConfigError, match="--heads"):
        evaluate_prior(folder, tmp_path, quick(weights, heads=0))
    with pytest.raises(ConfigError, match="--baseline"):
        evaluate_prior(folder, tmp_path, quick(weights, baseline=-1))
    backgrounds = tmp_path / "backgrounds.safetensors"
    save_checkpoint(backgrounds, random_generator())
    with pytest.raises(ConfigError, match="draws backgrounds"):
        evaluate_prior(folder, tmp_path, quick(str(backgrounds)))


def row(head: str, start: str, psnr: float) -> HeadRow:
    views = (ViewRow(0, psnr + 5, 0.9, 0.1), ViewRow(-30, psnr, 0.8, 0.2), ViewRow(30, psnr + 2, 0.6, 0.4))
    return HeadRow(head, start, "", views, 0.01, 0.0, "", {"all": 1.0}, "cpu")  # type: ignore[arg-type]


def test_means_and_the_gain_over_the_mean_head() -> None:
    rows = (row("a", "search", 20.0), row("b", "search", 30.0))
    assert by_yaw(rows, "psnr") == {"0": 30.0, "30": 26.0}
    assert by_yaw(rows, "ssim") == {"0": pytest.approx(0.9), "30": pytest.approx(0.7)}
    found = prior.Evaluation(rows, (row("a", "mean", 17.0),), None, "0" * 64, EvaluatePriorConfig(), 1.0, True)
    assert gain(found) == {"0": 3.0, "30": 3.0}  # over head a alone
    assert json.loads(prior.to_json(found))["gain"]["30"] == 3.0


def test_another_view_from_the_front_is_not_the_one_that_went_in() -> None:
    found = row("a", "search", 20.0)
    found = replace(found, views=(*found.views, ViewRow(0, 10.0, 0.5, 0.3)))
    assert by_yaw([found], "psnr") == {"0": 25.0, "front": 10.0, "30": 21.0}
    told = markdown(prior.Evaluation((found,), (), None, "0" * 64, EvaluatePriorConfig(), 1.0, True))
    assert "| input | 25.00 |" in told
    assert "| front | 10.00 |  |" in told


def test_random_heads_are_as_far_as_halves_when_they_come_from_the_same_generator(
    tmp_path: Path, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prior, "PROJECTIONS", 64)
    write_known_heads(tmp_path, generator, heads=8)
    heads = read_folder(tmp_path)
    # the truth shows the volume's picture, so that the generator's super-resolution is bypassed here
    render = generator.render
    same = type("Same", (), {})()
    same.spec, same.mapping, same.planes, same.parameters = (
        generator.spec, generator.mapping, generator.planes, generator.parameters,
    )  # fmt: skip

    def volume(planes: torch.Tensor, ws: torch.Tensor, camera: object) -> object:
        output = render(planes, ws, camera, neural_resolution=32)
        return replace(output, image=output.raw)

    same.render = volume
    near = _compare(same, heads)
    other, _ = compare_distributions(generator, heads, seed=3)
    assert near.pictures == 20
    assert near.halves == pytest.approx(other.halves, rel=0.2)
    assert 0.5 < near.ratio < 2
    assert other.ratio > 2 * near.ratio


def _compare(generator: object, heads: object) -> prior.Distribution:
    """Past the type check of the generator, which a stand-in does not pass."""
    function = compare_distributions
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function(generator, heads, seed=3)[0]  # type: ignore[arg-type]


# The crew


def test_tasks_can_be_sent_to_other_processes(folder: Path, weights: str, tmp_path: Path) -> None:
    tasks = prior.plan(read_folder(folder), quick(weights, baseline=1, distribution=True), "0" * 64, tmp_path)
    assert pickle.loads(pickle.dumps(tasks)) == tasks
    assert len({task.key for task in tasks}) == len({task.row_path for task in tasks}) == 4


def double(task: int, on_step: object, should_stop: object) -> int:
    if task < 0:
        raise DataError("negative")
    return 2 * task * torch.get_num_threads()


def test_workers_do_the_same_as_one_with_one_thread_each() -> None:
    assert sorted(run_tasks(double, [1, 2, 3], 2)) == list(run_tasks(double, [1, 2, 3], 1)) == [2, 4, 6]
    with pytest.raises(DataError, match="negative"):
        list(run_tasks(double, [-1], 1))
    with pytest.raises(Stopped):
        list(run_tasks(double, [1, 2], 1, should_stop=lambda: True))
