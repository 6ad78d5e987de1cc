"""Inversion methods side by side: laws of the figures, what is measured on, and going on after a stop."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from known_heads import write_known_heads
from PIL import Image
from small_networks import solid_generator

from headlift import cli
from headlift.config import EvaluateInversionConfig, InversionConfig, PoseConfig
from headlift.eg3d.camera import orbit, project, rotation_angle, yaw_pitch
from headlift.eg3d.checkpoint import save_checkpoint
from headlift.eg3d.generator import Generator
from headlift.errors import ConfigError, DataError, InversionError, OutputError, WeightsError
from headlift.evaluate import figures, inversion
from headlift.evaluate.cost import costing
from headlift.evaluate.distribution import fid, inception, kid
from headlift.evaluate.figures import Judges, compare_faces, measure
from headlift.evaluate.inversion import Comparison, Group, Row, evaluate_inversion, settings_of, verdicts
from headlift.evaluate.inversion_page import html, notes, table
from headlift.evaluate.statistics import SIGNIFICANT, fewest, holm, interval, paired
from headlift.evaluate.subjects import PhotoSource, SampleSource, ViewsSource, find_sources, turned, turned_off
from headlift.invert.metrics import ms_ssim, ssim
from headlift.invert.perceptual import load_builtin
from headlift.invert.result import Inversion, Target
from headlift.pose_estimation import identity
from headlift.pose_estimation.frames import FFHQ_TILT, from_ffhq
from headlift.pose_estimation.redetect import Seen
from headlift.values import Camera, Step

JUDGES = Judges(load_builtin(), None, None, "embedded")


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
def _blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """No face is looked for: the tiny generator's heads have none."""
    monkeypatch.setattr(figures, "see", lambda image, frame: None)


def quick(weights: str, **changes: object) -> EvaluateInversionConfig:
    return replace(EvaluateInversionConfig(weights=weights, device="cpu", steps=1), **changes)


# Figures


def test_multi_scale_similarity() -> None:
    random = torch.Generator().manual_seed(0)
    a = torch.rand(1, 3, 200, 200, generator=random) * 2 - 1
    near, far = (a + s * torch.randn(a.shape, generator=random) for s in (0.1, 0.5))
    assert ms_ssim(a, a) == pytest.approx(1)
    assert 1 > ms_ssim(a, near) > ms_ssim(a, far) > 0
    # where only one scale fits it is the plain one; each further scale tells of coarser structure
    small, other = a[..., :16, :16], near[..., :16, :16]
    assert ms_ssim(small, other) == pytest.approx(ssim(small, other))
    # what lies outside the mask does not count, but for the pixels that coarse windows share
    half = torch.zeros(1, 1, 200, 200)
    half[..., :100] = 1
    spoilt = a.clone()
    spoilt[..., 150:] = -a[..., 150:]
    assert ms_ssim(a, spoilt, half) > ms_ssim(a, spoilt) + 0.01


def known(generator: Generator, seed: int = 1) -> tuple[figures.Subject, Inversion]:
    """A sample, and the inversion that is right in everything."""
    subject = SampleSource(seed, 0.7).load(generator, PoseConfig())
    assert subject.ws is not None
    target = Target(subject.crop.image, subject.crop.mask, True)
    found = Inversion(subject.ws, subject.photo.camera, generator, target, (), "known", {"depth_moved": 0.0})
    return subject, found


@pytest.mark.usefixtures("_blind")
def test_the_truth_is_perfect_in_every_figure(generator: Generator) -> None:
    subject, found = known(generator)
    values, shown = measure(subject, found, JUDGES)
    for view in ("", "_30", "_60"):
        assert values["psnr" + view] > 45  # rounding, and pixels outside [-1, 1]
        assert values["ms_ssim" + view] == pytest.approx(1, abs=2e-3)
        assert values["silhouette" + view] == 0
        assert values["depth" + view] < 2e-3  # depth at 128 pixels and at the generator's own side
        assert values["landmarks" + view] is None
    assert values["code"] == 0
    assert values["camera_error"] == pytest.approx(0, abs=1e-4)
    assert [sight.yaw for sight in shown] == [subject.photo.yaw, -60, -30, 30, 60]
    # another head is worse in all of them
    other = replace(found, ws=known(generator, seed=2)[1].ws, camera=turned(found.camera, 0.1, 0.0))
    worse, _ = measure(subject, other, JUDGES)
    assert all(worse[name] < values[name] for name in ("psnr", "psnr_60", "ssim_30"))
    assert all(worse[name] > values[name] for name in ("mse", "perceptual", "code", "depth_30"))
    assert worse["camera_error"] == pytest.approx(math.degrees(0.1), abs=1e-3)


def test_faces_are_compared_where_both_have_one() -> None:
    points = np.random.default_rng(0).random((468, 2))
    seen = Seen(points, 0.1, 0.0)
    assert compare_faces(seen, None) == compare_faces(None, seen) == {"landmarks": None, "pose": None}
    moved = Seen(points + (0.03, 0.04), 0.3, 0.0)
    found = compare_faces(seen, moved)
    assert found["landmarks"] == pytest.approx(5)
    expected = rotation_angle(orbit(0.1, 0.0).rotation, orbit(0.3, 0.0).rotation)
    assert found["pose"] == pytest.approx(math.degrees(float(expected[0])), abs=1e-3)


def test_a_symmetric_pair_and_a_carried_picture(generator: Generator) -> None:
    _, found = known(generator)
    a, b = figures.sights(found, [-30, 30], Camera(*(torch.cat([getattr(orbit(y, 0.0), part) for y in (-0.5, 0.5)])
                                                     for part in ("cam2world", "intrinsics"))), fine=False)  # fmt: skip
    assert figures.mirror_psnr([a, replace(a, yaw=30, image=a.image.flip(-1), alpha=a.alpha.flip(-1))]) == math.inf
    assert figures.mirror_psnr([a, b]) < 40
    assert figures.carried_psnr(a, a) > 25  # at the depth's side, bilinear: not the same pixels
    assert figures.carried_psnr(a, replace(a, opacity=torch.zeros_like(a.opacity))) is None


def test_costs_are_taken() -> None:
    with costing(torch.device("cpu")) as empty:
        pass
    with costing(torch.device("cpu")) as cost:
        held = np.ones(2**25)
        assert held.sum() == 2**25
    assert cost.seconds > empty.seconds > 0
    assert 0.2 < cost.memory - empty.memory < 0.5  # GiB: a quarter, and what else comes or goes


# Networks that may be here


def test_fid_and_kid_by_hand() -> None:
    random = np.random.default_rng(0)
    a = random.normal(size=(40, 6))
    assert fid(a, a[::-1]) == pytest.approx(0, abs=1e-9)
    assert fid(a, a + 2) == pytest.approx(6 * 4)
    assert fid(a, 3 * (a - a.mean(0)) + a.mean(0)) == pytest.approx(4 * np.trace(np.cov(a.T)))  # (3 - 1)^2 of variance
    x, y = np.array([[0.0], [1.0]]), np.array([[2.0], [0.0]])
    # kernel (xy + 1)^3: within x: k(0, 1) = 1, within y: 1, across: k(0,2) = 1, k(0,0) = 1, k(1,2) = 27, k(1,0) = 1
    assert kid(x, y) == pytest.approx(1 + 1 - 2 * 30 / 4)
    same = [kid(random.normal(size=(30, 4)), random.normal(size=(30, 4))) for _ in range(40)]
    assert abs(np.mean(same)) < 3 * np.std(same) / math.sqrt(40)  # unbiased


def test_damaged_networks_are_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"wrong": torch.zeros(2)}, path)
    with pytest.raises(WeightsError, match="Inception v3"):
        inception(path)
    with pytest.raises(WeightsError, match="InceptionResnetV1"):
        identity.recogniser(path)
    page = tmp_path / "page.pt"
    page.write_text("<html>not found</html>")
    with pytest.raises(WeightsError, match="page.pt does not hold"):
        identity.recogniser(page)


def test_a_face_is_cut_square_and_identity_is_a_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    box = type("Found", (), {"box": (30.0, 0.0, 50.0, 40.0)})()
    monkeypatch.setattr(identity, "find_boxes", lambda picture: [box] if picture.any() else [])
    picture = np.zeros((60, 60, 3), np.uint8)
    assert identity.face_of(picture) is None
    picture[:, :, 0] = np.arange(60)[:, None]
    face = identity.face_of(picture)
    assert face.shape == (44, 44, 3)
    assert list(face[:4, 0, 0]) == [0, 0, 0, 1]  # two rows above the picture repeat its edge
    assert identity.likeness(np.array([0.6, 0.8] + [0.0] * 510), np.array([1.0] + [0.0] * 511)) == pytest.approx(0.6)
    assert identity.likeness(np.full(512, np.nan), np.zeros(512)) is None


# Statistics


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=20))
def test_intervals_hold_their_mean(values: list[float]) -> None:
    found = interval(values)
    assert found.n == len(values)
    assert min(values) - 1e-9 <= found.low <= found.mean + 1e-9
    assert found.mean <= found.high + 1e-9
    assert found.high <= max(values) + 1e-9


def test_an_interval_covers_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    found = [interval(random.normal(size=30).tolist()) for _ in range(60)]
    assert np.mean([one.low <= 0 <= one.high for one in found]) > 0.85


def test_paired_comparison_by_hand() -> None:
    second = np.linspace(0, 1, 8)
    found = paired((second + np.linspace(0.1, 0.2, 8)).tolist(), second.tolist())
    assert found.p == pytest.approx(2 / 2**8)  # all eight signs agree, either way
    assert found.difference.mean == pytest.approx(0.15)
    assert paired([1.0, 2.0], [1.0, 2.0]).p == 1
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    # 19 of 20 images are worse, and the mean is better: neither is shown
    turned_by_one = paired([-0.3 - 0.001 * k for k in range(19)] + [9.0], [0.0] * 20)
    assert turned_by_one.difference.mean > 0
    assert turned_by_one.p == 1


@pytest.mark.parametrize("tests", [1, 3, 21, 28])
def test_how_many_images_it_takes(tests: int) -> None:
    for images, enough in ((fewest(tests) - 1, False), (fewest(tests), True)):
        p = paired([float(k) for k in range(1, images + 1)], [0.0] * images).p  # as small as it can be
        assert (holm([p] * tests)[0] < SIGNIFICANT) is enough


# What is measured on


def test_cameras_are_turned_about_the_pivot() -> None:
    camera = orbit(0.3, 0.1)
    pivot = torch.tensor([[[0.0, 0.0, 0.2]]])
    for yaw, pitch in ((0.1, 0.0), (0.0, 0.1), (-0.1, 0.05)):
        found = turned(camera, yaw, pitch)
        assert torch.allclose(project(found, pivot)[0], project(camera, pivot)[0], atol=1e-5)
        assert torch.allclose(project(found, pivot)[1], project(camera, pivot)[1], atol=1e-5)
        change = [float(b - a) for a, b in zip(yaw_pitch(camera), yaw_pitch(found), strict=True)]
        assert [np.sign(c) * (abs(c) > 0.02) for c in change] == [np.sign(yaw), np.sign(pitch)]
    single = rotation_angle(turned(camera, 0.0, 0.1).rotation, camera.rotation)
    assert float(single) == pytest.approx(0.1, abs=1e-4)


def test_wrong_starts_differ_by_name_and_say_how_sure_they_are(generator: Generator) -> None:
    crop = known(generator)[0].crop
    starts = [turned_off(crop, 5.0, f"head{i}") for i in range(16)]
    errors = [figures.camera_error(start.camera, crop.camera) for start in starts]
    assert all(6 < error < 7.2 for error in errors)  # 5 degrees both ways
    assert len({tuple(start.camera.cam2world.flatten().tolist()) for start in starts}) == 4
    assert np.sqrt(starts[0].covariance[0, 0]) == pytest.approx(math.radians(5))
    assert torch.equal(turned_off(crop, 5.0, "head0").camera.cam2world, starts[0].camera.cam2world)
    assert turned_off(crop, 0.0, "head0") is crop


def test_further_photos_start_off_the_truth_too(generator: Generator) -> None:
    subject, _ = known(generator)
    for camera_off, least, most in ((0.0, 0.0, 1e-3), (5.0, 6.0, 7.2)):
        crops, rest = inversion.further_photos(subject, camera_off, "head0")
        true = [truth.camera for truth in subject.others if abs(truth.yaw) == 30]
        assert [truth.yaw for truth in rest] == [-60, 60]
        errors = [figures.camera_error(crop.camera, camera) for crop, camera in zip(crops, true, strict=True)]
        assert all(least <= error <= most for error in errors)


def test_a_camera_leaves_ffhqs_frame() -> None:
    """It sees of a head what the other camera sees of the head that was turned up."""
    camera = orbit(0.2, 0.1)
    brought = Camera(torch.from_numpy(from_ffhq(camera.cam2world[0].double().numpy())).float()[None], camera.intrinsics)
    points = torch.rand(1, 20, 3, generator=torch.Generator().manual_seed(0)) * 0.3 - 0.15
    about = torch.tensor([0.0, -0.02, 0.19])
    c, s = math.cos(FFHQ_TILT), math.sin(FFHQ_TILT)
    up = (points - about) @ torch.tensor([[1.0, 0.0, 0.0], [0.0, c, s], [0.0, -s, c]]).T + about
    assert torch.allclose(project(brought, points)[0], project(camera, up)[0], atol=1e-5)
    assert float(yaw_pitch(camera)[1] - yaw_pitch(brought)[1]) == pytest.approx(FFHQ_TILT, rel=0.2)


def test_forms_of_folders(folder: Path, tmp_path: Path) -> None:
    heads = find_sources(folder, 1, 1, 0.0, 0.7)
    assert [type(source) for source in heads] == [ViewsSource, SampleSource]
    assert [source.name for source in heads] == ["person0", "sample0000"]
    side = find_sources(folder, 0, None, 30.0, 0.7)[0]
    assert round(side.head.photo.yaw) == 30
    assert [round(view.yaw) for view in side.head.others] == [0, -30, -90, 180]
    assert side.digest() != find_sources(folder, 0, None, 0.0, 0.7)[0].digest()
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    assert find_sources(tmp_path, 0, None, 0.0, 0.7) == (PhotoSource(tmp_path / "a.png"),)
    label = orbit(0.2, 0.0).label[0].tolist()
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": [["a.png", label]]}))
    (crop,) = find_sources(tmp_path, 0, None, 0.0, 0.7)
    assert crop.known
    assert crop.label == pytest.approx(label)
    for name, wrong_label, words in (
        ("a.png", [0.0] * 25, "no camera"), ("../a.png", label, "outside"), ("b.png", label, "not there"),
    ):  # fmt: skip
        (tmp_path / "dataset.json").write_text(json.dumps({"labels": [["a.png", label], [name, wrong_label]]}))
        with pytest.raises(DataError, match=words):
            find_sources(tmp_path, 0, None, 0.0, 0.7)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": [["a.png", label]]}))
    Image.new("RGB", (64, 32)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="square"):
        find_sources(tmp_path, 0, None, 0.0, 0.7)
    for wrong, samples, words in ((None, 0, "nothing to measure"), (tmp_path / "none", 0, "no folder")):
        with pytest.raises(DataError, match=words):
            find_sources(wrong, samples, None, 0.0, 0.7)
    (tmp_path / "dataset.json").unlink()
    Image.new("RGB", (64, 64)).save(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="two images"):
        find_sources(tmp_path, 0, None, 0.0, 0.7)


# Methods by their labels


def test_labels_of_methods(weights: str) -> None:
    config = quick(weights, steps=None)
    best = settings_of("best", config, known=False)
    assert best.method == InversionConfig().method
    assert best.camera.enabled
    assert not settings_of("best", config, known=True).camera.enabled
    assert settings_of("pose", config, known=True).camera.enabled
    assert settings_of("best", replace(config, camera_off=5.0), known=True).camera.enabled
    changed = settings_of("spi@spi.mirror=0.0@tuning.steps=7", config, known=True)
    assert (changed.method, changed.spi.mirror, changed.tuning.steps) == ("spi", 0.0, 7)
    capped = settings_of("hfgi3d", quick(weights, steps=2), known=True)
    assert (capped.latent.steps, capped.tuning.steps, capped.hfgi3d.steps) == (2, 2, 2)
    for label, words in (("none", "unknown method"), ("spi@mirror", "NAME@SETTING"), ("spi@spi.nose=1", "nose")):
        with pytest.raises(ConfigError, match=words):
            settings_of(label, config, known=True)


# All of it


@pytest.mark.usefixtures("_blind")
def test_methods_times_images_resume_and_are_shown(folder: Path, weights: str, tmp_path: Path) -> None:
    out, config = tmp_path / "out", quick(weights, samples=1, images=1)
    methods = ["w", "pti@tuning.lr_gain=1.0", "multi"]
    seen: list[Step] = []

    def stop() -> bool:
        return any(step.stage == "inversions" and step.index == 2 for step in seen)

    assert evaluate_inversion(folder, out, methods, config, 1, on_step=seen.append, should_stop=stop) is None
    assert len(list((out / "rows").iterdir())) == 2
    seen.clear()
    results: list[Comparison] = []
    found = evaluate_inversion(folder, out, methods, config, 1, on_step=seen.append, on_result=results.append)
    assert found is not None
    assert results == [found]  # within a minute nothing is summed up on the way
    assert [step.index for step in seen if step.stage == "inversions"] == [2, 3, 4, 5, 6]
    rows = json.loads((out / "rows.json").read_text())
    assert [(row["method"], row["image"]) for row in rows] == [
        (method, image) for image in ("person0", "sample0000") for method in methods
    ]
    w, _, several = rows[:3]
    assert w["steps"] == 1
    assert w["psnr_30"] > 0
    assert "psnr_90" in w
    assert "psnr_30" not in several  # these views went in
    assert "psnr_90" in several
    assert (w["camera_error"], w["kind"], rows[3]["kind"]) == (0, "views", "sample")
    assert rows[3]["code"] > 0
    lines = list(csv.DictReader(io.StringIO(inversion.to_csv(found))))
    assert [line["method"] for line in lines] == [row["method"] for row in rows]
    assert float(lines[0]["psnr"]) == w["psnr"]
    heading, *body = lines = table(found)
    assert [line[:2] for line in body] == [[m, kind] for kind in ("1 head", "1 sample") for m in methods]
    assert all(len(line) == len(heading) for line in body)
    assert [line[heading.index("PSNR in view, dB")] for line in body] == [f"{row['psnr']:.2f}" for row in rows]
    assert sum(note.startswith("No difference between methods can be shown") for note in notes(found)) == 2
    page = html(found, lines, notes(found))
    for source in page.split("src='")[1:]:
        assert (out / unquote(source.split("'")[0])).is_file()
    with pytest.raises(OutputError, match="--overwrite"):
        evaluate_inversion(folder, out, methods, replace(config, seed=1), 1)


@pytest.mark.usefixtures("_blind")
def test_a_photo_without_a_face_has_a_row_that_says_so(weights: str, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (96, 96), (90, 120, 150)).save(tmp_path / "photos" / "sky.png")
    found = evaluate_inversion(tmp_path / "photos", tmp_path / "out", ["w"], quick(weights), 1)
    assert found is not None
    assert "No face" in found.rows[0].error
    assert found.rows[0].figures == {}
    assert table(found)[1][:2] == ["w", "0 photos"]
    assert any("sky, w: No face" in note for note in notes(found))


@pytest.mark.usefixtures("_blind")
def test_a_method_that_goes_astray_leaves_the_others(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    invert = inversion.invert

    def some_astray(generator: Generator, crops: object, config: InversionConfig, *rest: object) -> object:
        if config.method == "w":
            raise InversionError("astray")
        return invert(generator, crops, config, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(inversion, "invert", some_astray)
    found = evaluate_inversion(None, tmp_path, ["w", "w+"], quick(weights, samples=1), 1)
    assert found is not None
    assert [(row.error, bool(row.figures)) for row in found.rows] == [("astray", False), ("", True)]
    lines = table(found)
    assert [line[1] for line in lines[1:]] == ["0 samples", "1 sample"]
    assert "sample0000, w: astray" in notes(found)
    assert "sample0000--w.jpg" not in html(found, lines, [])


def test_figures_of_other_judges_are_measured_anew(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key() -> str:
        (task,) = inversion.plan([SampleSource(0, 0.7)], ["w"], quick(weights), "0" * 64, tmp_path)
        return task.key

    file = tmp_path / "facenet.pt"
    monkeypatch.setattr(inversion, "judge_files", dict)
    keys = [key()]
    monkeypatch.setattr(inversion, "judge_files", lambda: {"facenet": file})
    for content in ("one", "another"):
        file.write_text(content)
        keys.append(key())
    assert len(set(keys)) == 3
    assert key() == keys[-1]


@pytest.mark.usefixtures("_blind")
def test_a_method_that_refines_starts_off_the_truth(weights: str, tmp_path: Path) -> None:
    config = quick(weights, samples=1, camera_off=5.0)
    found = evaluate_inversion(None, tmp_path / "out", ["w", "best"], config, 1)
    assert found is not None
    fixed, refined = (row.figures for row in found.rows)
    assert 6 < fixed["camera_start"] < 7.2
    assert fixed["camera_error"] == fixed["camera_start"] == refined["camera_start"]
    assert "camera error, \N{DEGREE SIGN}" in table(found)[0]


def group(values: dict[str, list[float | None]], figure: str = "psnr") -> Group:
    """Methods' figures, image by image."""
    return Group("views", tuple(
        Row(method, f"i{k}", "views", "", {figure: value}) for method, found in values.items()
        for k, value in enumerate(found)
    ), {})  # fmt: skip


def of(weights: str, *groups: Group) -> Comparison:
    methods = dict.fromkeys(method for group in groups for method in group.methods)
    return Comparison(groups, tuple(methods), quick(weights), "0" * 64, 1.0, True)


def rising(base: float, count: int = 8) -> list[float | None]:
    return [base + 0.1 * k + 0.001 * k**2 * base for k in range(count)]


def test_what_is_said_to_be_better(weights: str) -> None:
    found = group({"w": rising(20), "pti": rising(21), "spi": rising(21)})
    pairs = {(v.best, v.other): v for v in verdicts(found, "psnr")}
    assert list(pairs) == [("pti", "spi"), ("pti", "w"), ("spi", "w")]
    assert pairs["pti", "w"].shown
    assert pairs["pti", "w"].gain.mean > 1
    assert pairs["pti", "w"].p == pytest.approx(3 * 2 / 2**8)  # of three pairs
    assert not pairs["pti", "spi"].shown
    note = next(note for note in notes(of(weights, found)) if note.startswith("PSNR in view"))
    assert "on 8 heads: pti is better than w by" in note
    assert "not shown to differ from spi" in note
    assert json.loads(inversion.summary(of(weights, found)))["means"]["views"]["psnr"]["pti"]["n"] == 8
    assert verdicts(found, "depth") == []


def test_the_best_is_chosen_where_all_are_measured(weights: str) -> None:
    """A method that fails on the hard images has the better mean, and is the worse one."""
    easy = rising(30)
    found = group({"w": [*easy, 10.0, 11.0], "pti": [*(value - 1 for value in easy), None, None]}, "identity")
    (verdict,) = verdicts(found, "identity")
    assert (verdict.best, verdict.gain.n, verdict.shown) == ("w", 8, True)
    assert verdict.gain.mean == pytest.approx(1)
    heading, *lines = table(of(weights, found))
    column = heading.index("identity")
    assert [line[1] for line in lines] == ["10 heads", "10 heads"]
    assert "n 8)" in lines[1][column]
    assert "n " not in lines[0][column]


def test_kinds_of_images_stay_apart(weights: str) -> None:
    heads = group({"w": rising(20), "pti": rising(21)})
    samples = group({"w": rising(41), "pti": rising(40)})
    samples = Group("sample", tuple(replace(row, kind="sample") for row in samples.rows), {})
    lines = table(of(weights, heads, samples))[1:]
    assert [line[:2] for line in lines] == [
        ["w", "8 heads"], ["pti", "8 heads"], ["w", "8 samples"], ["pti", "8 samples"],
    ]  # fmt: skip
    told = [note.partition(" by")[0] for note in notes(of(weights, heads, samples)) if note.startswith("PSNR")]
    assert told == [
        "PSNR in view, dB, on 8 heads: pti is better than w",
        "PSNR in view, dB, on 8 samples: w is better than pti",
    ]


def test_cameras_are_told_by_their_median(weights: str) -> None:
    found = of(weights, group({"best": [1.0, 2.0, 30.0]}, "camera_error"))
    assert "Camera error on heads, degrees, median (least to most): best 2.0 (1.0 to 30.0)." in notes(found)


def test_bad_settings(weights: str, tmp_path: Path) -> None:
    for methods, config, words in (
        (["w"], quick(weights, images=0), "--images"),
        (["w"], quick(weights, samples=-1), "--samples"),
        (["w"], quick(weights, camera_off=-1.0), "--camera-off"),
        ([], quick(weights, samples=1), "no methods"),
        (["w", "w"], quick(weights, samples=1), "twice"),
        (["a/b"], quick(weights, samples=1), "slash"),
    ):
        with pytest.raises(ConfigError, match=words):
            evaluate_inversion(None, tmp_path, methods, config)


@pytest.mark.usefixtures("_blind")
def test_the_command_line(weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "found.json"
    command = ["evaluate", "inversion", "--samples", "1", "--methods", "w,w+", "--weights", weights, "--steps", "1"]
    command += ["--out", str(tmp_path / "out"), "--json", str(target), "--workers", "1", "--device", "cpu"]
    assert cli.run(command) == 0
    assert [row["method"] for row in json.loads(target.read_text())] == ["w", "w+"]
    assert "method" in capsys.readouterr().out
    assert (tmp_path / "out" / "index.html").is_file()
    assert (tmp_path / "out" / "table.csv").is_file()
