"""Finding directions: each method against a case whose answer is known, and what a file of directions may hold."""

from __future__ import annotations

import io
import json
import math
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from small_networks import solid_generator

from headlift import direction_files
from headlift.config import DirectionImportConfig, LearnConfig, preset
from headlift.direction_files import fit_to, import_into, learn_into, read_labels, read_vectors, report, user_scorer
from headlift.editing import discover
from headlift.editing.directions import load_directions, save_directions
from headlift.editing.discover import along, boundaries, conditional, entanglement, linear_svm, pca, regression, sefa
from headlift.editing.effects import face_measures
from headlift.editing.styles import affine, style_layers
from headlift.eg3d.camera import orbit
from headlift.eg3d.generator import Generator
from headlift.eg3d.pickles import Limits, read_tensors
from headlift.errors import CheckpointError, ConfigError, DataError, HeadliftError, OutputError
from headlift.generate import codes_of_seeds
from headlift.head import Head, write_head
from headlift.values import Similarity

SHA = "ab" * 32


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Generator:
    generator = solid_generator()
    monkeypatch.setattr(direction_files, "load_generator", lambda name, device="cpu": (generator, SHA))
    return generator


def normal(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


# SeFa and PCA


def test_sefa_finds_the_eigenvectors_of_a_hand_made_weight() -> None:
    generator = solid_generator()
    axes = torch.linalg.qr(normal(8, 8))[0]
    strengths = torch.tensor([5.0, 3.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.05])
    with torch.no_grad():
        for layer in style_layers(generator):
            module = affine(generator, layer)
            module.weight.zero_()
        first = affine(generator, style_layers(generator)[0])
        rows = (axes * strengths).T[: len(first.weight)]  # row i is the i-th axis, as long as its strength
        first.weight[: len(rows)] = rows / first.weight_gain
    vectors, values = sefa(generator, 3, unit_rows=False)
    torch.testing.assert_close((vectors @ axes[:, :3]).abs(), torch.eye(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(values, strengths[:3].square(), atol=1e-3, rtol=1e-4)
    assert bool((vectors.gather(1, vectors.abs().argmax(1, keepdim=True)) > 0).all())


def test_sefa_of_some_layers_looks_at_their_weights_alone() -> None:
    generator = solid_generator()
    before, _ = sefa(generator, 2, layers=(0,))
    with torch.no_grad():
        for layer in style_layers(generator):
            if layer.row != 0:
                affine(generator, layer).weight.mul_(3).add_(1)
    assert torch.equal(sefa(generator, 2, layers=(0,))[0], before)
    assert not torch.allclose(sefa(generator, 2)[0], before)
    with pytest.raises(ConfigError, match="9 directions"):
        sefa(generator, 9)


def test_pca_finds_the_axes_and_their_spread() -> None:
    axes = torch.linalg.qr(normal(5, 5, 1))[0]
    points = normal(4000, 5, 2) * torch.tensor([4.0, 2.0, 1.0, 0.5, 0.1]) @ axes.T + 3
    vectors, spread = pca(points, 2)
    torch.testing.assert_close((vectors @ axes[:, :2]).abs(), torch.eye(2), atol=0.05, rtol=0)
    torch.testing.assert_close(spread, torch.tensor([4.0, 2.0]), rtol=0.05, atol=0)
    found = along(vectors, points)
    torch.testing.assert_close(torch.linalg.vector_norm(found.vectors, dim=1), spread)
    torch.testing.assert_close(entanglement(found.vectors, found.readers), torch.eye(2), atol=1e-4, rtol=0)
    with pytest.raises(ConfigError, match="components"):
        pca(points[:3], 3)


# Scores


def test_the_machine_separates_with_the_widest_margin() -> None:
    """Two points on each side of x = 1: the normal is the x axis, the boundary half way."""
    x = np.array([[0.0, 0.0], [0.0, 1.0], [2.0, 0.0], [2.0, 1.0]])
    found, offset = linear_svm(x, np.array([-1.0, -1.0, 1.0, 1.0]), cost=1e4)
    np.testing.assert_allclose(found / np.linalg.norm(found), [1, 0], atol=1e-3)
    assert -offset / found[0] == pytest.approx(1.0, abs=1e-3)


def test_a_planted_direction_is_recovered_by_both_methods() -> None:
    points = normal(600, 6)
    planted = torch.nn.functional.normalize(normal(2, 6, 5), dim=1)
    scores = (points @ planted.T).double().numpy() + 0.1 * np.random.default_rng(0).normal(size=(600, 2))
    scores[::50, 0] = np.nan
    svm = boundaries(points, scores)
    cosines = torch.nn.functional.cosine_similarity(svm.vectors, planted)
    assert float(cosines.min()) > 0.95
    assert min(svm.quality) > 0.9
    fitted = regression(points, scores)
    assert float(torch.nn.functional.cosine_similarity(fitted.readers.T, planted).min()) > 0.99
    torch.testing.assert_close(entanglement(fitted.vectors, fitted.readers), torch.eye(2), atol=0.15, rtol=0)
    assert min(fitted.quality) > 0.95


def test_useless_scores_are_explained() -> None:
    points = normal(100, 4)
    with pytest.raises(ConfigError, match="only 5 heads"):
        boundaries(points, np.where(np.arange(100) < 5, 1.0, np.nan)[:, None])
    for fit in (boundaries, regression):
        with pytest.raises(ConfigError, match="all scores"):
            fit(points, np.ones((100, 1)))
    with pytest.raises(ConfigError, match="does not differ"):
        regression(points, np.stack([np.arange(100.0), np.ones(100)], axis=1))


def test_conditional_projection_is_orthogonal_and_the_published_formula() -> None:
    one, two = (torch.nn.functional.normalize(v, dim=0) for v in normal(2, 6, 3))
    torch.testing.assert_close(conditional(one[None], two[None])[0], one - (one @ two) * two)
    several, against = normal(3, 6, 4), torch.cat([normal(2, 6, 5), 2 * normal(1, 6, 5)])
    left = conditional(several, against)
    assert float((left @ against.T).abs().max()) < 1e-5
    with pytest.raises(ConfigError, match="nothing is left"):
        conditional((against[0] + against[1])[None], against)


def test_measures_of_a_face_grow_with_what_they_are_called() -> None:
    rng = np.random.default_rng(1)
    points = np.concatenate([rng.uniform(50, 200, (478, 2)), np.zeros((478, 1))], axis=1)
    points[10], points[152], points[33], points[263] = (125, 40, 0), (125, 220, 0), (80, 100, 0), (170, 100, 0)
    points[13], points[14], points[61], points[291] = (125, 170, 0), (125, 172, 0), (100, 171, 0), (150, 171, 0)
    still = face_measures(points)
    opened = points.copy()
    opened[14, 1] += 20
    assert face_measures(opened)["lips apart"] - still["lips apart"] == pytest.approx(20 / 180)
    smiling = points.copy()
    smiling[[61, 291], 1] -= 9
    assert face_measures(smiling)["mouth corners up"] - still["mouth corners up"] == pytest.approx(9 / 180)
    for grown in (2.0, 0.5):  # size in the picture does not matter
        assert face_measures(points * grown)["mouth wide"] == pytest.approx(still["mouth wide"])


# The verb `learn`


def test_learned_directions_are_read_back_and_can_stay_in_their_layers(base: Generator, tmp_path: Path) -> None:
    out = tmp_path / "d.safetensors"
    learn_into(out, LearnConfig(method="pca", count=2, samples=50))
    found = load_directions(out, SHA)
    assert (found.names, found.space) == (("pca0", "pca1"), "w")
    with pytest.raises(OutputError, match="already there"):
        learn_into(out, LearnConfig())
    learn_into(out, LearnConfig(count=3, samples=50, layers="1-2"), overwrite=True)
    found = load_directions(out, SHA)
    assert found.space == "w+"
    moved = found.vectors.abs().sum(2) > 0
    assert moved.tolist() == [[False, True, True, *[False] * (base.num_ws - 3)]] * 3
    learn_into(out, LearnConfig(method="pca", space="s", count=2, samples=50), overwrite=True)
    assert load_directions(out).vectors.shape == (2, sum(layer.width for layer in style_layers(base)))


def test_labels_by_seed_find_what_they_were_made_from(base: Generator, tmp_path: Path) -> None:
    codes = codes_of_seeds(base, range(120), 1.0)[:, 0]
    truth = codes @ torch.nn.functional.normalize(normal(1, 8, 9), dim=1)[0]
    lines = ["seed,thing,other"] + [f"{i},{float(v)},{'' if i % 9 == 0 else i % 5}" for i, v in enumerate(truth)]
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(lines))
    out = tmp_path / "d.safetensors"
    found = learn_into(out, LearnConfig(method="regression", labels=labels, attributes=("thing",)))
    assert found.names == ("thing",)
    assert found.entries[0].correlation > 0.95
    as_json = tmp_path / "labels.json"
    as_json.write_text(json.dumps([{"seed": i, "thing": float(v)} for i, v in enumerate(truth)]))
    same = learn_into(out, LearnConfig(method="regression", labels=as_json), overwrite=True)
    torch.testing.assert_close(same.vectors, found.vectors, atol=1e-4, rtol=0)
    freed = LearnConfig(method="svm", labels=as_json, against=("pca0",), against_file=tmp_path / "pca.safetensors")
    learn_into(tmp_path / "pca.safetensors", LearnConfig(method="pca", count=1, samples=50))
    other = load_directions(tmp_path / "pca.safetensors").vectors[0]
    assert abs(float(learn_into(out, freed, overwrite=True).vectors[0] @ other)) < 1e-4


def test_a_scorer_of_the_users_own_sees_renders(
    base: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_scores.py").write_text(
        "def red(picture):\n    return {'red': float(picture[..., 0].mean()), 'shape': picture.shape[2]}\n"
        "def one(picture):\n    return float(picture.mean())\nnothing = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    codes = discover.sample_codes(base, discover.random_z(base, 3, 0))
    scores = discover.scores_of_renders(base, codes, user_scorer("my_scores:red"))
    assert scores["shape"] == [3, 3, 3]
    assert len(set(scores["red"])) == 3
    assert list(discover.scores_of_renders(base, codes, user_scorer("my_scores:one"))) == ["score"]
    assert discover.scores_of_renders(base, codes, lambda picture: None) == {}
    for name in ("my_scores", "my_scores:", "my_scores:absent", "my_scores:nothing", "no_such_module:f"):
        with pytest.raises(ConfigError, match="scorer"):
            user_scorer(name)
    sys.modules.pop("my_scores", None)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (LearnConfig(method="svm"), "needs scores"),
        (LearnConfig(method="sefa", landmarks=True), "takes no scores"),
        (LearnConfig(method="svm", landmarks=True, scorer="a:b"), "needs scores"),
        (LearnConfig(space="s"), "SeFa finds directions in W"),
        (LearnConfig(count=0), "at least"),
        (LearnConfig(layers="0-99"), "layers 0 to"),
        (LearnConfig(count=2, against=("age",), against_file=Path("nowhere")), "cannot be read"),
        (LearnConfig(method="svm", labels=Path("nowhere.csv")), "cannot be read"),
    ],
)
def test_bad_settings_end_in_a_message_and_write_nothing(
    base: Generator, tmp_path: Path, config: LearnConfig, words: str
) -> None:
    with pytest.raises(HeadliftError, match=words):
        learn_into(tmp_path / "d.safetensors", config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "name,thing\nx,1\n"),
        ("b.csv", "seed,thing\n1,much\n"),
        ("c.json", "{}"),
        ("d.json", "[1]"),
        ("e.csv", ""),
        ("f.csv", "seed\n1\n"),
        ("g.csv", "seed,thing\n-1,2\n"),
        ("h.csv", "seed,thing\n4294967296,2\n"),
    ],
)
def test_damaged_labels_are_refused(base: Generator, tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=name):
        read_labels(tmp_path / name, base, SHA)


def test_columns_that_nobody_asked_for_are_not_looked_at(base: Generator, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("head,seed,who,age\na.safetensors,1,Ann,30\nb.safetensors,2,Ben,40\n")
    _, scores = read_labels(path, base, SHA, ("age",))
    assert scores == {"age": [30.0, 40.0]}
    with pytest.raises(DataError, match=r"row 1, column 'who': 'Ann' is no number"):
        read_labels(path, base, SHA)
    with pytest.raises(DataError, match=r"no column 'aeg'; there are: who, age"):
        read_labels(path, base, SHA, ("aeg",))


def test_labels_of_heads_are_read_with_the_generator_that_is_loaded(base: Generator, tmp_path: Path) -> None:
    crop, nowhere = np.zeros((8, 8, 3), np.uint8), Similarity(np.eye(2, 3))
    ws = normal(base.num_ws, 8)[None]
    for name, sha256 in (("a", SHA), ("b", "cd" * 32)):
        head = Head(base, ws, orbit(0.0, 0.0), crop, crop[..., 0], nowhere, preset("fast"), "moved", sha256)
        write_head(tmp_path / f"{name}.safetensors", head, base)
    path = tmp_path / "labels.csv"
    path.write_text("head,age\na.safetensors,30\n")
    codes, _ = read_labels(path, base, SHA)
    torch.testing.assert_close(codes, ws.mean(1))
    for row, words in (("b.safetensors", "tuned from a generator with sha256 cdcd"), ("", "row 1 has no 'head'")):
        path.write_text(f"head,age\n{row},30\n")
        with pytest.raises(HeadliftError, match=words):
            read_labels(path, base, SHA)


def test_an_attribute_may_be_missing_in_some_rows(base: Generator, tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text('[{"seed": 1, "one": 2}, {"seed": 2, "one": 3, "other": 4}]')
    codes, scores = read_labels(path, base, SHA)
    assert len(codes) == 2
    assert scores["one"] == [2.0, 3.0]
    assert np.isnan(scores["other"][0])
    assert scores["other"][1] == 4.0


# The verb `import`


def torch_bytes(value: object) -> io.BytesIO:
    stream = io.BytesIO()
    torch.save(value, stream)
    stream.seek(0)
    return stream


def test_a_torch_file_gives_its_tensors_back() -> None:
    t = normal(3, 4)
    assert torch.equal(read_tensors(torch_bytes(t))[""], t)
    assert torch.equal(read_tensors(torch_bytes([t, t.T]))["1"], t.T)
    found = read_tensors(torch_bytes({"age": t, "half": t.half(), "p": torch.nn.Parameter(t), "n": t.numpy()}))
    assert list(found) == ["age", "half", "p", "n"]
    torch.testing.assert_close(found["half"], t.half().float())
    assert torch.equal(found["n"], t)


class Evil:
    def __reduce__(self):
        return (print, ("run",))


def test_nothing_in_a_torch_file_is_run(capsys: pytest.CaptureFixture[str]) -> None:
    t = normal(3, 4)
    whole = torch_bytes(t).getvalue()
    hostile = [
        torch_bytes(Evil()), torch_bytes({"a": torch.nn.Linear(2, 2)}), torch_bytes({"a": "text"}), torch_bytes(5),
        io.BytesIO(pickle.dumps(Evil())), io.BytesIO(b""), io.BytesIO(whole[: len(whole) // 2]),
    ]  # fmt: skip
    for stream in hostile:
        with pytest.raises(CheckpointError, match="file of tensors"):
            read_tensors(stream)
    with pytest.raises(CheckpointError, match="larger"):
        read_tensors(io.BytesIO(whole), Limits(file_bytes=100))
    assert capsys.readouterr().out == ""


def test_a_tensor_that_claims_more_than_its_storage_has_is_refused() -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(torch_bytes(normal(3, 4))) as archive, zipfile.ZipFile(packed, "w") as cut:
        for entry in archive.infolist():
            data = archive.read(entry)
            cut.writestr(entry.filename, data[:8] if entry.filename.endswith("data/0") else data)
    packed.seek(0)
    with pytest.raises(CheckpointError, match="not where it says"):
        read_tensors(packed)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(1 << 20))
    bomb.seek(0)
    with pytest.raises(CheckpointError, match="compressed"):
        read_tensors(bomb)


def test_spaces_are_told_by_their_shapes(base: Generator) -> None:
    rows = base.num_ws
    parts = [layer.width for layer in style_layers(base)]
    cases = {
        (8,): "w", (1, 8): "w", (3, 8): "w", (1, rows, 8): "w+", (2, rows, 8): "w+",
        (sum(parts),): "s", (2, sum(parts)): "s",
    }  # fmt: skip
    for shape, space in cases.items():
        found, vectors, names = fit_to(base, {"": torch.ones(shape)}, None, "f.npy", "name")
        assert found == space, shape
        assert len(vectors) == len(names)
    with pytest.raises(ConfigError, match="say which with --space"):
        fit_to(base, {"": torch.ones(rows, 8)}, None, "f.npy", "name")
    assert fit_to(base, {"": torch.ones(rows, 8)}, "w+", "f.npy", "name")[1].shape == (1, rows, 8)
    layered = {str(i): torch.full((n,), float(i)) for i, n in enumerate(parts)}
    space, vectors, _ = fit_to(base, layered, None, "f.pt", "name")
    assert (space, vectors.shape) == ("s", (1, sum(parts)))
    assert vectors[0, -1] == len(parts) - 1
    with pytest.raises(ConfigError, match="does not fit") as told:
        fit_to(base, {"": torch.ones(1, 14, 512)}, None, "age.npy", "embedded")
    assert "do not fit the embedded prior" in str(told.value)


def test_imported_directions_are_kept_as_they_were(base: Generator, tmp_path: Path) -> None:
    vectors = normal(2, 8)
    np.save(tmp_path / "mine.npy", vectors.numpy())
    config = DirectionImportConfig(weights="some", names=("age", "smile"))
    import_into(tmp_path / "mine.npy", tmp_path / "d.safetensors", config)
    found = load_directions(tmp_path / "d.safetensors", SHA)
    torch.testing.assert_close(found.vectors, vectors)
    assert found.names == ("age", "smile")
    assert math.isnan(found.entries[0].std)
    torch.testing.assert_close(found.entanglement.diagonal(), torch.ones(2))
    torch.save({"glasses": vectors[:1]}, tmp_path / "g.pt")
    import_into(tmp_path / "g.pt", tmp_path / "g.safetensors", DirectionImportConfig(weights="some"))
    found = load_directions(tmp_path / "g.safetensors")
    assert found.names == ("glasses",)
    assert found.licence == "that of its source"
    torch.save([torch.ones(layer.width) for layer in style_layers(base)], tmp_path / "hat.pt")
    import_into(tmp_path / "hat.pt", tmp_path / "h.safetensors", DirectionImportConfig(weights="some"))
    assert load_directions(tmp_path / "h.safetensors").names == ("hat",)
    with pytest.raises(ConfigError, match="1 names were given"):
        import_into(tmp_path / "mine.npy", tmp_path / "x.safetensors", DirectionImportConfig("some", ("one",)))


def test_bad_files_of_vectors_are_refused(base: Generator, tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "words.npy", np.array(["a"]))
    np.save(tmp_path / "nan.npy", np.full(8, np.nan))
    np.save(tmp_path / "zero.npy", np.zeros(8))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "nan.npy").read_bytes()[:-4])
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "vectors.txt").write_text("1 2 3")
    for name in ("objects.npy", "words.npy", "nan.npy", "cut.npy", "text.npy", "vectors.txt", "absent.npy"):
        with pytest.raises(DataError, match=name):
            read_vectors(tmp_path / name)
    with pytest.raises(ConfigError, match="leads nowhere"):
        import_into(tmp_path / "zero.npy", tmp_path / "out.safetensors", DirectionImportConfig(weights="some"))
    assert not (tmp_path / "out.safetensors").exists()


# The verb `report`


def test_the_report_names_what_moves_along(base: Generator, tmp_path: Path) -> None:
    points = normal(500, 8)
    planted = torch.nn.functional.normalize(normal(2, 8, 6), dim=1)
    scores = (points @ planted.T).double().numpy()
    fitted = boundaries(points, scores)
    found = discover.directions_of(base, fitted, ("a", "b"), SHA, "w", "svm", "free")
    save_directions(tmp_path / "d.safetensors", found)
    text, about = report(tmp_path / "d.safetensors", 0, "some")
    assert f"b {float(found.entanglement[0, 1]):+.2f}" in text
    assert float(found.entanglement[0, 1]) == pytest.approx(float(found.cosines[0, 1]), abs=0.15)
    assert about["names"] == ["a", "b"]
    with pytest.raises(ConfigError, match="same name"):
        discover.directions_of(base, fitted, ("a", "a"), SHA, "w", "svm", "free")
    with pytest.raises(ConfigError, match="limited when they are used"):
        discover.directions_of(base, fitted, ("a", "b"), SHA, "s", "svm", "free", (0,))
