"""From seed and number to pictures: sampling, building, drawing, and the tools that write it all, on a tiny bundle."""

from __future__ import annotations

import io
import json
import math
import os
import zipfile
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._dynamo  # now: loaded after an OpenGL context, its compiler and Mesa's end the process
from fake_makehuman import write_release
from PIL import Image
from scipy.spatial import cKDTree

from headlift.eg3d.camera import orbit, unproject, yaw_pitch
from headlift.errors import ConfigError, DataError, DeviceError, OutputError
from headlift.prior.codes import features
from headlift.prior.dataset import DEPTH_UNIT, beside
from headlift.prior.heads import read_heads, read_index
from headlift.prior.synthetic import assets, dataset, depths
from headlift.prior.synthetic.__main__ import main
from headlift.prior.synthetic.body import EYE_DISTANCE, EYE_HEIGHT, MOUTH_HEIGHT, Body
from headlift.prior.synthetic.bundle import Bundle, load_bundle
from headlift.prior.synthetic.cameras import EVALUATION_YAWS, LOWEST, View, draw_view, evaluation_views
from headlift.prior.synthetic.check import surface_points, unprojected
from headlift.prior.synthetic.dataset import Settings, Studio, write_dataset
from headlift.prior.synthetic.depths import SIDE, write_depths
from headlift.prior.synthetic.evalset import write_evalset
from headlift.prior.synthetic.lighting import draw_light, harmonics, spread_directions
from headlift.prior.synthetic.plan import HeadPlan, Shot, plan_head
from headlift.prior.synthetic.processes import spread
from headlift.prior.synthetic.sampling import BLOCK, Glasses, HeadParams, balanced_cell
from headlift.prior.synthetic.sheet import contact_sheet
from headlift.prior.synthetic.skin import SkinPainter, skin_colour
from headlift.values import Camera

SMALL = Settings(views=2, orbit=1, res=32, ss=1, fmt="png", depth=True)
GLASSES = Glasses(50.0, 40.0, 2.5, 0.1, 3.0, 2.0, (0.02, 0.02, 0.02), 0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    release = write_release(tmp_path_factory.mktemp("release"))
    out = tmp_path_factory.mktemp("bundle")
    assets.build_bundle(release, out, known={})
    return out


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return load_bundle(folder)


@pytest.fixture(scope="module")
def body(bundle: Bundle) -> Body:
    return Body(bundle)


@pytest.fixture(scope="module")
def studio(bundle: Bundle) -> Studio:
    return Studio(bundle, res=96, ss=1)


@pytest.fixture(scope="module")
def bald(body: Body) -> HeadParams:
    """A head with nothing on it that is thinner than a pixel."""
    params, _ = body.draw(0, 0, 1)
    return replace(params, hair="bald", groom=None, beard=0.0)


# Sampling


@pytest.mark.parametrize("recipe", [1, 2])
def test_a_head_depends_on_seed_and_number_alone(body: Body, bundle: Bundle, recipe: int) -> None:
    first = [body.draw(5, i, recipe)[0] for i in (3, 9)]
    again = [Body(bundle).draw(5, i, recipe)[0] for i in (9, 3)]
    assert first == again[::-1]
    assert first[0] != first[1]
    assert body.draw(6, 3, recipe)[0] != first[0]


@pytest.mark.parametrize("recipe", [1, 2])
def test_parameters_survive_their_file(body: Body, recipe: int) -> None:
    for index in range(8):
        params, _ = body.draw(0, index, recipe)
        assert HeadParams.from_json(json.loads(json.dumps(params.to_json()))) == params


def test_the_first_recipe_keeps_its_names_and_its_draws(body: Body) -> None:
    params, _ = body.draw(0, 0, 1)
    assert not {"recipe", "skintone", "glasses"} & set(params.to_json())
    # numpy's streams are stable: the first draws, whatever the bundle
    rng = np.random.default_rng([0, 0])
    assert params.gender == float(np.clip(rng.beta(0.35, 0.35), 0, 1)) == pytest.approx(0.92089049)
    assert params.age == pytest.approx(6.181804)
    assert params.race == pytest.approx((0.5051, 0.1910, 0.3039), abs=1e-4)


def test_damaged_parameters_are_refused(body: Body) -> None:
    values = body.draw(0, 0, 1)[0].to_json()
    del values["age"]
    with pytest.raises(DataError, match="age"):
        HeadParams.from_json(values)
    with pytest.raises(ConfigError, match="recipe 3"):
        body.draw(0, 0, 3)


def test_the_second_recipe_is_balanced_in_every_block() -> None:
    for block in (0, 5):
        cells = Counter(balanced_cell(0, i) for i in range(block * BLOCK, (block + 1) * BLOCK))
        assert len(cells) == BLOCK  # each of 2 genders, 4 ancestries, 8 ages once
    assert [balanced_cell(0, i) for i in range(8)] != [balanced_cell(1, i) for i in range(8)]


def test_the_second_recipe_leaves_out_what_was_odd(body: Body) -> None:
    heads = [body.draw(0, i, 2)[0] for i in range(BLOCK)]
    for i, p in enumerate(heads):
        male, origin, (youngest, oldest) = balanced_cell(0, i)
        assert (p.gender > 0.5) == male
        assert youngest <= p.age <= oldest
        assert sum(p.race) == pytest.approx(1)
        assert origin == 3 or int(np.argmax(p.race)) == origin
        assert p.hair not in ("bob01", "bob02", "short03")
        if p.age < 21 or not male:
            assert p.beard == 0 == p.stubble
        if p.hair == "bald":
            assert p.age > 25
    wearing = sum(p.glasses is not None for p in heads)
    assert 2 <= wearing <= 16
    tones = np.array([p.skintone for p in heads], float)
    assert np.histogram(tones, 4, (0, 1))[0].min() >= 6  # no gap between light and dark


def test_implausible_faces_are_drawn_again(body: Body, monkeypatch: pytest.MonkeyPatch) -> None:
    params, _ = body.draw(0, 0, 2)
    seen = []

    def judge(face: object, answers: list[bool] = [False, False, True]) -> bool:  # noqa: B006
        seen.append(face)
        return answers[len(seen) - 1]

    monkeypatch.setattr("headlift.prior.synthetic.body.Face.plausible", property(judge))
    other, _ = body.draw(0, 0, 2)
    assert len(seen) == 3
    assert other.axes != params.axes
    assert (other.gender > 0.5) == (params.gender > 0.5)


def test_a_wide_jaw_is_implausible(body: Body) -> None:
    face = body.measure(body.draw(0, 0, 2)[0])
    assert face.plausible
    assert not replace(face, jaw_width=0.9 * face.cheek_width).plausible
    assert not replace(face, length=2 * face.length).plausible


# Building


def test_eyes_and_mouth_are_where_the_crops_have_them(body: Body) -> None:
    for index in range(4):
        params = replace(body.draw(0, index, 1)[0], gaze=(0.0, 0.0), expr={})
        head = body.build(params)
        eyes = head.parts["eye"].positions
        left, right = eyes[eyes[:, 0] > 0].mean(0), eyes[eyes[:, 0] < 0].mean(0)
        lips = head.occluder[0][[468, 495]].mean(0)
        middle = (left + right) / 2
        # both distances are met on average
        by_eyes = np.linalg.norm(left - right) / EYE_DISTANCE
        by_height = (middle[1] - lips[1]) / (EYE_HEIGHT - MOUTH_HEIGHT)
        assert (1 / by_eyes + 1 / by_height) / 2 == pytest.approx(1, abs=1e-5)
        assert (middle[1] + lips[1]) / 2 == pytest.approx((EYE_HEIGHT + MOUTH_HEIGHT) / 2, abs=1e-6)
        assert middle[0] == pytest.approx(0, abs=1e-6)


def test_gaze_turns_the_eyes_about_their_centres(body: Body, bald: HeadParams) -> None:
    ahead = body.build(replace(bald, gaze=(0.0, 0.0)))
    aside = body.build(replace(bald, gaze=(0.3, 0.0)))
    np.testing.assert_allclose(ahead.gaze, [0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(aside.gaze, [math.sin(0.3), 0, math.cos(0.3)], atol=1e-6)
    for side in (1, -1):
        a, b = (h.parts["eye"].positions for h in (ahead, aside))
        ours = side * a[:, 0] > 0
        before, after = a[ours], b[ours]
        centre = (before.max(0) + before.min(0)) / 2
        turned = before - centre
        c, s = math.cos(0.3), math.sin(0.3)
        expected = np.stack(
            [c * turned[:, 0] + s * turned[:, 2], turned[:, 1], -s * turned[:, 0] + c * turned[:, 2]], 1
        )
        np.testing.assert_allclose(after - centre, expected, atol=1e-5)


def test_an_open_mouth_has_teeth_and_a_gap(body: Body, bald: HeadParams) -> None:
    shut, opened = (body.build(replace(bald, expr=e)) for e in ({}, {"mouth-open": 0.8}))
    assert shut.lip_gap == 0
    assert "teeth" not in shut.parts
    assert opened.lip_gap > 0.02
    assert {"teeth", "tongue"} <= set(opened.parts)


def test_hair_and_beard_start_on_the_skin_and_stay_out_of_it(body: Body) -> None:
    params = next(p for p in (body.draw(0, i, 1)[0] for i in range(40)) if p.hair == "+short")
    head = body.build(replace(params, beard=0.5, beardstyle=(0.5, 0.9, 0.5)))
    skin = cKDTree(head.parts["skin"].surface.mean(1))
    assert params.groom is not None
    for name, groom in (("hair", params.groom), ("beard", params.bgroom)):
        mesh = head.parts[name]
        assert np.isfinite(mesh.positions).all()
        per_strand = (groom.seg + 1) * 2
        roots = mesh.positions.reshape(groom.n, per_strand, 3)[:, :2].mean(1)
        assert np.quantile(skin.query(roots)[0], 0.99) < 0.05
        lengths = np.linalg.norm(np.diff(mesh.positions.reshape(groom.n, -1, 2, 3).mean(2), axis=1), axis=2).sum(1)
        assert lengths.max() < 0.026 * groom.top * 2
    again = body.build(replace(params, beard=0.5, beardstyle=(0.5, 0.9, 0.5)))
    np.testing.assert_array_equal(again.parts["hair"].positions, head.parts["hair"].positions)


def test_glasses_are_before_the_eyes_and_outside_of_the_head(body: Body, bald: HeadParams) -> None:
    head = body.build(replace(bald, recipe=2, glasses=GLASSES))
    eyes, frame, lens = (head.parts[k].positions for k in ("eye", "glasses", "lens"))
    assert lens[:, 2].min() > eyes[:, 2].mean()
    width = np.ptp(lens[lens[:, 0] > 0][:, 0]) * 396
    assert width == pytest.approx(50, rel=0.06)  # the taper takes some
    assert frame[:, 2].min() < lens[:, 2].min() - 0.1  # temples go back
    np.testing.assert_allclose(
        np.sort(frame[frame[:, 0] > 0.01][:, 0]).max(), -np.sort(frame[frame[:, 0] < -0.01][:, 0]).min(), atol=0.02
    )


def test_skin_is_taken_to_its_tone(body: Body, bald: HeadParams) -> None:
    painter = SkinPainter(body)
    params = replace(bald, recipe=2, tone=(0.0, 0.0, 0.0), skin=("young_asian_male", "young_asian_male"))
    untouched, *toned = (
        np.median(painter.paint(replace(params, skintone=tone))[..., :3].reshape(-1, 3), axis=0)
        for tone in (None, 0.1, 0.5, 0.9)
    )
    for colour, tone in zip(toned, (0.1, 0.5, 0.9), strict=True):
        np.testing.assert_allclose(colour, untouched**0.15 * skin_colour(tone) ** 0.85, rtol=0.02)
    assert (np.diff(np.array(toned), axis=0) < 0).all()  # darker in every channel
    assert 0 < painter.paint(bald)[..., 3].mean() < 0.1  # lips are there and small


# Light and cameras


def test_harmonics_are_orthonormal() -> None:
    basis = harmonics(spread_directions(4096)).astype("f8")
    np.testing.assert_allclose(basis.T @ basis * 4 * np.pi / 4096, np.eye(9), atol=2e-3)


def test_labels_are_cameras_that_look_at_their_pivot() -> None:
    for view in (View(0.4, -0.2), View(-2.5, 0.6, wide=True)):
        camera = Camera.from_label(torch.from_numpy(view.label)[None])
        yaw, pitch = yaw_pitch(camera)
        assert yaw.item() == pytest.approx(view.yaw, abs=1e-5)
        assert pitch.item() == pytest.approx(view.pitch, abs=1e-5)
        pivot = torch.tensor([0.0, -0.02, 0.0] if view.wide else [0.0, 0.0, 0.2])
        ahead = (pivot - camera.origin[0]) @ camera.rotation[0]
        assert ahead[:2].abs().max() < 1e-5
        assert ahead[2] > 2.4
        assert camera.intrinsics[0, 0, 0].item() == pytest.approx(3.1 if view.wide else 4.2647)


def test_orbits_of_the_second_recipe_do_not_look_under_the_bust() -> None:
    pitches = {
        recipe: np.array([draw_view(np.random.default_rng(i), True, recipe).pitch for i in range(2000)])
        for recipe in (1, 2)
    }
    assert pitches[1].min() < LOWEST - 0.2
    assert pitches[2].min() >= LOWEST
    assert (pitches[2] < LOWEST + 0.01).mean() < 0.02  # no heap at the bound
    np.testing.assert_allclose(np.median(pitches[2]), np.median(pitches[1]), atol=0.05)


def test_the_evaluation_set_looks_from_ten_sides() -> None:
    assert [round(math.degrees(v.yaw)) for v in evaluation_views()] == list(EVALUATION_YAWS)
    assert [v.wide for v in evaluation_views()] == [abs(y) > 60 for y in EVALUATION_YAWS]


# Drawing


def test_depth_lies_on_the_mesh_and_its_mask_is_alpha(studio: Studio, bald: HeadParams) -> None:
    light = draw_light(np.random.default_rng(1))
    views = (View(0.0, 0.0), View(0.9, 0.2), View(2.5, -0.1, wide=True))
    plan = HeadPlan(bald, np.full((1, 1, 3), 0.5), tuple(Shot(v, light) for v in views))
    surface = cKDTree(surface_points(studio.body.build(bald), per_triangle=16))
    values, pictures = studio.draw(plan)
    assert "lipgap" in values
    for drawn in pictures:
        distance, _ = surface.query(unprojected(drawn))
        assert np.median(distance) < 0.003  # 1.2 mm; points on the surface are about 1 mm apart
        assert np.quantile(distance, 0.97) < 0.02  # the rest is where brows and lashes are thinner than a pixel
        opaque, solid = drawn.rgba[..., 3] > 0.5, drawn.depth > 0
        assert 0.2 < opaque.mean() < 0.9
        assert (opaque == solid).mean() > 0.99
        assert (drawn.rgba[..., :3] <= drawn.rgba[..., 3:] + 1e-6).all()  # premultiplied
        # the same points by the house's own camera
        row, column = np.nonzero(solid)
        uv = torch.from_numpy(np.stack([column + 0.5, row + 0.5], 1) / len(solid)).float()[None]
        camera = Camera.from_label(torch.from_numpy(drawn.shot.view.label)[None])
        points = unproject(camera, uv, torch.from_numpy(drawn.depth[row, column])[None])
        np.testing.assert_allclose(points[0].numpy(), unprojected(drawn), atol=1e-5)


def test_the_last_surface_seen_from_the_front_is_the_first_seen_from_behind(studio: Studio, bald: HeadParams) -> None:
    geometry = studio.body.build(bald)
    ahead, behind = orbit(0.0, 0.0, pivot=(0.0, 0.0, 0.0)), orbit(math.pi, 0.0, pivot=(0.0, 0.0, 0.0))
    with studio.renderer.scene(geometry, bald, None) as scene:
        last = scene.depth(ahead.label[0].numpy(), last=True)
        first = scene.depth(behind.label[0].numpy())
    side, focal = last.shape[0], float(ahead.label[0, 16])
    row, column = np.nonzero(last > 0)
    z = last[row, column]
    x, y = ((column + 0.5) / side - 0.5) / focal * z, -((row + 0.5) / side - 0.5) / focal * z
    world = np.stack([x, y, 2.7 - z], 1)  # the camera on the z axis looks along -z
    far = 2.7 + world[:, 2]  # and the one behind sees it at
    pixel = np.stack([-world[:, 0], -world[:, 1]], 1) / far[:, None] * focal + 0.5
    at = np.clip((pixel * side).astype(int), 0, side - 1)
    seen = first[at[:, 1], at[:, 0]]
    inside = ((pixel > 0) & (pixel < 1)).all(1) & (seen > 0) & (np.abs(world[:, 1]) < 0.1)
    assert inside.sum() > 500
    assert np.median(np.abs(seen - far)[inside]) < 0.002
    assert np.quantile(np.abs(seen - far)[inside], 0.9) < 0.02


def test_light_from_one_side_lights_that_side(studio: Studio, bald: HeadParams) -> None:
    dark = replace(draw_light(np.random.default_rng(1)), environment=np.full((9, 3), 0.0, "f4"))
    lit = [replace(dark, key=np.array([side * 0.8, 0.0, 0.6]), key_colour=np.full(3, 2.0)) for side in (1.0, -1.0)]
    plan = HeadPlan(bald, np.full((1, 1, 3), 0.5), tuple(Shot(View(0.0, 0.0), light) for light in lit))
    _, pictures = studio.draw(plan)
    from_left, from_right = (d.rgba[30:70, :, :3].sum(2) for d in pictures)
    half = from_left.shape[1] // 2
    # +x is on the picture's right: EG3D's world seen from +z
    assert from_left[:, half:].sum() > 1.5 * from_left[:, :half].sum()
    assert from_right[:, :half].sum() > 1.5 * from_right[:, half:].sum()


def test_spectacles_are_seen(studio: Studio, bald: HeadParams) -> None:
    light = draw_light(np.random.default_rng(1))
    shots = (Shot(View(0.0, 0.0), light),)
    pictures = []
    for glasses in (None, replace(GLASSES, shade=0.9)):
        params = replace(bald, recipe=2, skintone=0.1, glasses=glasses)
        pictures.append(next(studio.draw(HeadPlan(params, np.full((1, 1, 3), 0.5), shots))[1]))
    bare, worn = pictures
    changed = np.abs(bare.rgba - worn.rgba).max(2) > 0.1
    rows = np.nonzero(changed.any(1))[0]
    assert 0.02 < changed.mean() < 0.4
    assert (bare.rgba[changed][:, :3].mean()) > worn.rgba[changed][:, :3].mean()  # shades are dark
    assert 20 < rows.mean() < 50  # at the eyes' height


# The dataset tool


def contents(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three heads, made in one go by one process."""
    out = tmp_path_factory.mktemp("made") / "set"
    assert write_dataset(folder, out, range(3), SMALL) == 3
    return out


def test_two_processes_write_the_same_bytes(folder: Path, made: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_dataset(folder, tmp_path / "two", range(3), SMALL, procs=2, progress=lambda a, b: seen.append((a, b)))
    assert contents(tmp_path / "two") == contents(made)
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_an_interrupted_run_goes_on(folder: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "set"
    save, written = dataset.save_picture, []

    def failing(path: Path, *rest: object) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        save(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(dataset, "save_picture", failing)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(folder, out, range(3), SMALL)
    assert [p.name for p in (out / "params").iterdir()] == ["head000000.json"]  # the second head is half done
    assert not (out / "dataset.json").exists()
    monkeypatch.setattr(dataset, "save_picture", save)
    assert write_dataset(folder, out, range(3), SMALL) == 2
    assert contents(out) == contents(made)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.png")}
    assert write_dataset(folder, out, range(3), SMALL) == 0
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.png")} == before


def test_parts_made_apart_are_the_whole(folder: Path, made: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    write_dataset(folder, out, range(2, 3), SMALL)
    write_dataset(folder, out, range(0, 2), SMALL)
    assert contents(out) == contents(made)


def test_a_zip_is_the_folder_and_the_trainer_reads_it(folder: Path, tmp_path: Path) -> None:
    settings = replace(SMALL, depth=False, fmt="webp")
    target = tmp_path / "heads-00.zip"
    assert write_dataset(folder, target, range(2), settings) == 2
    first = target.read_bytes()
    assert not list(tmp_path.glob("*.parts"))
    assert write_dataset(folder, target, range(2), settings) == 0  # done before
    with pytest.raises(OutputError, match="overwrite"):
        write_dataset(folder, target, range(3), settings)
    assert write_dataset(folder, target, range(2), settings, overwrite=True) == 2
    assert target.read_bytes() == first
    with zipfile.ZipFile(target) as archive:
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
    heads = read_heads(tmp_path)
    assert heads.images.shape == (4, 32, 32, 4)
    assert heads.head.tolist() == [0, 0, 1, 1]
    assert heads.wide.tolist() == [False, True, False, True]
    assert len(features(heads.params[0])) > 50


def test_labels_and_parameters_round_trip(body: Body, made: Path) -> None:
    labels = dict(json.loads((made / "dataset.json").read_bytes())["labels"])
    assert len(labels) == 6
    for index in range(3):
        plan = plan_head(body, 0, index, 2, 1, 2)
        for k, shot in enumerate(plan.shots):
            name = f"00000/img{index * 2 + k:08d}.png"
            np.testing.assert_array_equal(np.array(labels[name], "f4"), shot.view.label)
            assert np.asarray(Image.open(made / name)).shape == (32, 32, 4)
        values = json.loads((made / f"params/head{index:06d}.json").read_bytes())
        assert HeadParams.from_json(values) == plan.params
        assert values["lipgap"] == body.build(plan.params).lip_gap


def test_depth_pictures_are_distances_along_the_ray(folder: Path, made: Path) -> None:
    studio = Studio(load_bundle(folder), 32, 1)
    _, pictures = studio.draw(plan_head(studio.body, 0, 0, 2, 1, 2))
    for k, drawn in enumerate(pictures):
        stored = np.asarray(Image.open(made / f"depth/00000/img{k:08d}.png")).astype("f8") * DEPTH_UNIT
        np.testing.assert_allclose(stored, drawn.depth, atol=0.51 * DEPTH_UNIT)
        middle = drawn.depth[16, 16]
        assert 2.0 < middle < 2.8  # a head before a camera at 2.7


def test_depths_are_drawn_anew_from_an_archive(folder: Path, tmp_path: Path) -> None:
    settings = replace(SMALL, res=SIDE, fmt="webp", depth=True)
    write_dataset(folder, tmp_path / "heads-00.zip", range(2), settings)
    out = tmp_path / "depths.npy"
    assert write_depths(folder, tmp_path, out) == 4
    with zipfile.ZipFile(tmp_path / "heads-00.zip") as archive:
        for row, found in enumerate(np.load(out)):
            drawn = Image.open(io.BytesIO(archive.read(f"depth/00000/img{row:08d}.png")))
            np.testing.assert_allclose(found, np.asarray(drawn, np.int64), atol=1)  # its last bit
    last = tmp_path / "last.npy"
    assert write_depths(folder, tmp_path, last, last=True) == 4
    for near, far in zip(np.load(out).astype(np.int64), np.load(last).astype(np.int64), strict=True):
        assert ((near > 0) == (far > 0)).all()
        assert (far >= near - 1).all()
        assert np.median((far - near)[near > 0]) * DEPTH_UNIT > 0.2  # 8 cm: through the head
    with pytest.raises(OutputError, match="there already"):
        write_depths(folder, tmp_path, out)


def test_an_interrupted_drawing_of_depths_goes_on_with_the_same_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archives = tmp_path / "archives"
    tiny = replace(SMALL, views=1, orbit=0, res=8, depth=False)
    write_dataset(folder, archives / "heads-00.zip", range(2), tiny)
    whole, out = tmp_path / "whole.npy", tmp_path / "depths.npy"
    write_depths(folder, archives, whole)
    told = json.loads(beside(whole).read_bytes())
    assert (told["pictures"], told["last"]) == (read_index(archives).digest, False)

    def stop(done: int, heads: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_depths(folder, archives, out, progress=stop)
    assert not out.exists()
    with pytest.raises(OutputError, match=r"begun for other pictures, assets or the other surface \(last\)"):
        write_depths(folder, archives, out, last=True)
    with monkeypatch.context() as patch:
        patch.setattr(depths, "bundle_digest", lambda folder: "other assets")
        with pytest.raises(OutputError, match=r"\(bundle\)"):
            write_depths(folder, archives, out)
    seen: list[tuple[int, int]] = []
    write_depths(folder, archives, out, progress=lambda *done: seen.append(done))
    assert seen == [(2, 2)]  # the first was there
    np.testing.assert_array_equal(np.load(out), np.load(whole))
    out.rename(tmp_path / "depths.npy.part")
    with zipfile.ZipFile(archives / "heads-00.zip", "a") as archive:
        archive.writestr("other", b"")
    with pytest.raises(OutputError, match=r"\(pictures\)"):
        write_depths(folder, archives, out)
    beside(out).unlink()  # of before, when nothing told what it is of
    with pytest.raises(OutputError, match="cannot be gone on with"):
        write_depths(folder, archives, out)


def test_what_a_process_lacks_is_told_by_the_one_that_waits(tmp_path: Path) -> None:
    """An exception in a pool's initializer would end in a broken pool."""
    for procs in (1, 2):
        with pytest.raises(DataError, match="no bundle of assets"):
            list(spread(partial(load_bundle, tmp_path), max, [1, 2], procs))  # type: ignore[type-var]
    with pytest.raises(ConfigError, match="--procs must be at least 1"):
        list(spread(partial(load_bundle, tmp_path), max, [1, 2], 0))  # type: ignore[type-var]


class _Deadly:
    """Tools with which a process dies as by a fault of the graphics library."""

    def close(self) -> None: ...


def _die(tools: _Deadly, task: int) -> int:
    os._exit(1)


def test_the_death_of_a_process_is_told(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="give the same command again"):
        list(spread(_Deadly, _die, [1, 2], 2))


def test_other_settings_and_other_things_are_not_touched(folder: Path, made: Path, tmp_path: Path) -> None:
    before = contents(made)
    with pytest.raises(OutputError, match="seed 0 instead of 1"):
        write_dataset(folder, made, range(3), replace(SMALL, seed=1))
    assert contents(made) == before
    (tmp_path / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="something else"):
            write_dataset(folder, tmp_path, range(1), SMALL, overwrite=overwrite)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(ConfigError, match="--orbit"):
        write_dataset(folder, tmp_path / "x", range(1), replace(SMALL, orbit=5))
    with pytest.raises(ConfigError, match="--heads"):
        write_dataset(folder, tmp_path / "x", range(0), SMALL)
    assert not (tmp_path / "x").exists()


def test_pictures_without_alpha_have_a_background(folder: Path, tmp_path: Path) -> None:
    write_dataset(folder, tmp_path / "set", range(1), replace(SMALL, views=1, orbit=0, fmt="jpg", depth=False))
    picture = np.asarray(Image.open(tmp_path / "set/00000/img00000000.jpg"))
    assert picture.shape == (32, 32, 3)
    assert picture[0, 0].max() > 10  # not the black of nothing


def test_the_evaluation_set_has_views_depth_and_resumes(folder: Path, tmp_path: Path) -> None:
    write_evalset(folder, tmp_path / "eval", heads=1, res=32)
    before = contents(tmp_path / "eval")
    labels = json.loads(before["dataset.json"])["labels"]
    assert [name for name, _ in labels] == [f"head000_yaw{yaw:+04d}.webp" for yaw in EVALUATION_YAWS]
    assert {f"head000_yaw{yaw:+04d}_depth.png" for yaw in EVALUATION_YAWS} <= set(before)
    (tmp_path / "eval/params/head000.json").unlink()
    write_evalset(folder, tmp_path / "eval", heads=1, res=32)
    assert contents(tmp_path / "eval") == before
    with pytest.raises(OutputError, match="another folder"):
        write_evalset(folder, tmp_path / "eval", heads=1, seed=4, res=32)


def test_a_sheet_has_a_tile_for_each_head(folder: Path) -> None:
    sheet = contact_sheet(folder, heads=2, res=32, look="turn")
    assert sheet.shape == (64, 256, 3)
    assert sheet.std() > 10


def test_the_command_line_makes_a_set(
    folder: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["heads", str(folder), str(tmp_path / "set"), "--heads", "1", "--views", "2", "--orbit", "1"]
    arguments += ["--res", "32", "--ss", "1", "--fmt", "png", "--depth", "--procs", "1", "--seed", "0", "--quiet"]
    assert main(arguments) == 0
    assert "1 heads, 1 of them drawn now" in capsys.readouterr().out
    name = "00000/img00000001.png"
    assert (tmp_path / "set" / name).read_bytes() == (made / name).read_bytes()
    assert main([*arguments, "--recipe", "1"]) == 2
    assert "recipe 2 instead of 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["depths", "B", "H", "O", "--procs", "0"],
        ["sheet", "B", "O", "--heads", "0"],
        ["sheet", "B", "O", "--res", "0"],
        ["evalset", "B", "O", "--heads", "0"],
        ["check", "B", "--first", "-1"],
        ["heads", "B", "O", "--views", "0"],
    ],
)
def test_numbers_out_of_range_are_refused_at_once(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert f"{arguments[-2]}: must be at least" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["bundle", "R", "B"], "Stopped."),
        (["sheet", "B", "O"], "Stopped."),
        (["depths", "B", "H", "O"], "Stopped. The same command goes on from here."),
        (["heads", "B", "O", "--overwrite"], "Stopped. The same command, without --overwrite, goes on from here."),
    ],
)
def test_only_what_goes_on_is_said_to_go_on(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"headlift.prior.synthetic.__main__._{arguments[0]}", interrupted)
    assert main(arguments) == 130
    assert capsys.readouterr().err.strip() == told


def test_no_opengl_says_what_to_install(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from headlift.prior.synthetic import render

    monkeypatch.setitem(render.EGL, "libegl", "libNotHere.so")
    with pytest.raises(DeviceError, match="apt-get install"):
        render.Renderer(bundle, 32)
