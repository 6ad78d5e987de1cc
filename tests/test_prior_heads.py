"""Reading archives of heads, the density of codes, the hull."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from ball_heads import write_heads

from headlift.eg3d.camera import orbit
from headlift.errors import PhotoError
from headlift.prior.codes import Density, fit_density
from headlift.prior.heads import HELD_OUT, Heads, read_heads
from headlift.prior.hull import cell_centres, dilate, head_cover
from headlift.prior.perceptual import read_small

VIEWS = 2


def write_archive(
    folder: Path, heads: range, views: int = VIEWS, side: int = 32, radius: float = 0.2, name: str = "heads-00.zip"
) -> None:
    """Heads that are balls about the origin, each of its own colour, seen from cameras all round."""
    from PIL import Image

    labels = []
    with zipfile.ZipFile(folder / name, "w") as archive:
        for head in heads:
            for view in range(views):
                camera = orbit(2 * np.pi * view / views, 0.2, pivot=(0.0, 0.0, 0.0), focal=3.1)
                line = (torch.arange(side) + 0.5) / side - 0.5
                sine = torch.hypot(*torch.meshgrid(line, line, indexing="ij")) / 3.1
                picture = np.zeros((side, side, 4), np.uint8)
                picture[..., :3] = (20 * head % 256, 100, 200)
                picture[..., 3] = 255 * (np.sin(np.arctan(sine.numpy())) < radius / 2.7)
                shown = f"00000/img{head * views + view:08d}.webp"
                with io.BytesIO() as stream:
                    Image.fromarray(picture).save(stream, "WEBP", lossless=True, exact=True)
                    archive.writestr(shown, stream.getvalue())
                labels.append([shown, camera.label[0].tolist()])
            archive.writestr(f"params/head{head:06d}.json", json.dumps({"age": head}))
        archive.writestr("dataset.json", json.dumps({"labels": labels}))


def test_heads_come_with_their_pictures_cameras_and_parameters(tmp_path: Path) -> None:
    write_archive(tmp_path, range(3, 8))
    heads = read_heads(tmp_path)
    assert heads.images.shape == (5 * VIEWS, 32, 32, 4)
    assert heads.head.tolist() == [h for h in range(3, 8) for _ in range(VIEWS)]
    assert heads.params[4] == {"age": 4}
    assert heads.images[2, 16, 16].tolist() == [80, 100, 200, 255]
    assert np.allclose(heads.labels[1], orbit(np.pi, 0.2, pivot=(0.0, 0.0, 0.0), focal=3.1).label[0], atol=1e-6)
    assert np.allclose(heads.pitch, 0.2, atol=1e-5)
    assert heads.wide.all()
    assert heads.views([5])[5].tolist() == [4, 5]


def test_a_cache_holds_the_same_pictures(tmp_path: Path) -> None:
    write_archive(tmp_path, range(4))
    cache = tmp_path / "cache" / "images.npy"
    first, second = read_heads(tmp_path, cache), read_heads(tmp_path, cache)
    assert cache.exists()
    assert (read_heads(tmp_path).images == first.images).all()
    assert (second.images == first.images).all()
    # Other pictures under the same names are not taken for those in the cache.
    write_archive(tmp_path, range(4), radius=0.3)
    third = read_heads(tmp_path, cache)
    assert third.digest != first.digest
    assert (third.images == read_heads(tmp_path).images).all()
    assert not (third.images == first.images).all()


def test_views_from_far_below_are_left_out() -> None:
    labels = torch.cat([orbit(0.0, pitch).label for pitch in (0.0, -0.6)]).numpy()
    heads = Heads(np.zeros((2, 4, 4, 4), np.uint8), labels, np.zeros(2, int), {0: {}})
    assert heads.views([0])[0].tolist() == [0]


def test_a_folder_without_archives_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PhotoError, match="heads-"):
        read_heads(tmp_path)


def test_an_archive_without_labels_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "heads-00.zip", "w") as archive:
        archive.writestr("params/head000000.json", "{}")
    with pytest.raises(PhotoError, match="dataset.json"):
        read_heads(tmp_path)


def test_archives_may_differ_in_the_number_of_views(tmp_path: Path) -> None:
    write_archive(tmp_path, range(2), views=4)
    write_archive(tmp_path, range(2, 5), views=2, name="heads-01.zip")
    heads = read_heads(tmp_path)
    assert heads.head.tolist() == [0] * 4 + [1] * 4 + [2, 2, 3, 3, 4, 4]
    assert (heads.images[:, 16, 16, 0] == 20 * heads.head).all()  # each shows the head that it is counted to
    assert heads.params == {head: {"age": head} for head in range(5)}


def test_an_archive_whose_pictures_have_no_parameters_is_refused(tmp_path: Path) -> None:
    write_archive(tmp_path, range(1, 3))
    for kept in ((), ("params/head000001.json",)):
        with zipfile.ZipFile(tmp_path / "heads-00.zip") as whole, zipfile.ZipFile(tmp_path / "part.zip", "w") as part:
            for entry in whole.namelist():
                if not entry.startswith("params/") or entry in kept:
                    part.writestr(entry, whole.read(entry))
        with pytest.raises(PhotoError, match=f"4 pictures and the parameters of {len(kept)} heads"):
            read_heads(tmp_path / "part.zip")


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    write_archive(tmp_path, range(2))
    path = tmp_path / "heads-00.zip"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PhotoError, match=r"heads-00.zip is damaged"):
        read_heads(tmp_path)
    picture = whole.index(b"WEBPVP8L")
    path.write_bytes(whole[:picture] + bytes(40) + whole[picture + 40 :])
    with pytest.raises(PhotoError, match=r"heads-00.zip is damaged"):
        read_heads(tmp_path, tmp_path / "images.npy")
    assert [p.name for p in tmp_path.iterdir()] == ["heads-00.zip"]  # half a cache is none


def test_the_perceptual_network_learns_from_all_but_the_held_out(tmp_path: Path) -> None:
    write_heads(tmp_path, 2, views=2, side=64)
    write_archive(tmp_path, range(HELD_OUT.start, HELD_OUT.start + 2), name="heads-01.zip")
    pixels, owners, parameters = read_small(tmp_path, 16)
    assert pixels.shape == (4, 4, 16, 16)
    assert owners == [0, 0, 1, 1]
    assert sorted(parameters) == [0, 1]
    assert parameters[0].shape == (9,)  # gender, age, three of ancestry, weight, three axes


def skewed_table(n: int = 3000) -> np.ndarray:
    """A skewed feature, one that follows it, a coin, and one that half of the heads have not."""
    rng = np.random.default_rng(0)
    a = rng.exponential(size=n)
    maybe = np.where(rng.random(n) < 0.5, np.nan, rng.random(n))
    return np.stack([a, a + 0.3 * rng.normal(size=n), (rng.random(n) < 0.3).astype(float), maybe], axis=1)


def test_codes_of_heads_are_standard_normal() -> None:
    table = skewed_table()
    density = fit_density(("a", "b", "coin", "maybe"), table)
    z = density.encode(table, np.random.default_rng(1))
    assert np.allclose(z.mean(0), 0, atol=0.06)
    assert np.allclose(np.cov(z.T), np.eye(4), atol=0.06)
    tails = (np.abs(z) > 1.96).mean(0)
    assert np.allclose(tails, 0.05, atol=0.015)


def test_a_coin_takes_its_share_of_the_axis() -> None:
    column = np.array([0.0] * 7 + [1.0] * 3)[:, None]
    density = Density(("coin",), np.sort(column, axis=0), np.eye(1))
    rng = np.random.default_rng(0)
    tails = density.encode(np.zeros((2000, 1)), rng)
    heads = density.encode(np.ones((2000, 1)), rng)
    edge = 0.5244  # 70 % of a standard normal lies below
    assert tails.max() <= edge + 1e-3
    assert heads.min() >= edge - 1e-3
    middle = density.encode(np.ones((1, 1)), None)[0, 0]
    assert middle == pytest.approx(1.0364, abs=1e-3)  # 85 %: the middle of its interval


def test_the_hull_of_a_ball_is_the_ball(tmp_path: Path) -> None:
    write_archive(tmp_path, range(1), views=8, side=128)
    cover = head_cover(read_heads(tmp_path), [0], 32, 1.0).reshape(-1)
    radius = np.linalg.norm(cell_centres(32, 1.0), axis=1)
    assert (cover[radius < 0.19] == 1).all()
    upright = np.abs(cell_centres(32, 1.0)[:, 1]) < 0.1  # near the poles eight views from one height leave a cap
    assert cover[upright & (radius > 0.25)].mean() < 0.02


def test_dilation_grows_by_the_six_neighbours() -> None:
    cells = np.zeros((5, 5, 5), bool)
    cells[0, 2, 2] = True
    assert dilate(cells, 1).sum() == 6  # itself, four beside it, one inwards, none beyond the border
    assert (dilate(cells, 2) == dilate(dilate(cells))).all()
