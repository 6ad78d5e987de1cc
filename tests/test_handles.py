"""Fitting directions to known parameters: planted ones are found again, and held-out heads judge them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ball_heads import parameters

from headlift.editing.directions import load_directions, move, save_directions
from headlift.editing.discover import report
from headlift.editing.effects import table_of_effects
from headlift.eg3d.generator import Generator
from headlift.eg3d.spec import BackboneSpec, DecoderSpec, GeneratorSpec, MappingSpec, RenderSpec, SuperresSpec
from headlift.errors import CheckpointError, DataError
from headlift.prior.codes import feature_table, fit_density
from headlift.prior.handles import (
    HANDLES,
    Handle,
    amount,
    codes_of,
    correlation,
    fit_handles,
    handles_for,
    raw_values,
    ridge,
    strip,
)

PLANTED = (
    Handle("age", ("age",), "older", "years"),
    Handle("gender", ("gender",), "more male"),
    Handle("open_mouth", ("mouth-open",), "jaw dropped"),
    Handle("hair_light", ("hair light",), "lighter hair"),
)
HELD_OUT = tuple(range(260, 300))


def known(count: int = 300) -> dict[int, dict[str, Any]]:
    """Heads whose age goes with gender, so that what belongs to one must be told from the other."""
    rng = np.random.default_rng(3)
    found = {}
    for number in range(count):
        params = parameters(rng)
        params["age"] = float(20 + 30 * params["gender"] + 20 * rng.random())
        found[number] = params
    return found


@pytest.fixture(scope="module")
def params() -> dict[int, dict[str, Any]]:
    return known()


@pytest.fixture(scope="module")
def generator(params: dict[int, dict[str, Any]]) -> Generator:
    """A generator whose w is a fixed linear map of its scores: the mapping's one layer undoes the whitening first."""
    names, table = feature_table([params[h] for h in params if h not in HELD_OUT])
    density = fit_density(names, table)
    spec = GeneratorSpec(
        mapping=MappingSpec(z_dim=len(names), w_dim=40, layers=2, layer_features=40, zero_label=True),
        backbone=BackboneSpec(resolution=8, channels=(4, 4)),
        decoder=DecoderSpec(hidden=8, features=4),
        render=RenderSpec(ray_start="auto", ray_end="auto", depth_samples=4, importance_samples=0,
                          white_background=True),
        superres=SuperresSpec(kind="2X", input_resolution=16, channels=(4, 4)),
        plane_channels=2, plane_layout="zy", image_resolution=32, neural_resolution=8,
    )  # fmt: skip
    torch.manual_seed(0)
    generator = Generator(spec).eval().requires_grad_(False)
    plan = planted_map(names)

    def mapping(z: torch.Tensor, *rest: object, **more: object) -> torch.Tensor:
        scores = z.double().numpy() @ np.linalg.inv(density.whiten)
        w = torch.from_numpy((scores @ plan).astype(np.float32))
        return w[:, None].repeat(1, generator.num_ws, 1)

    generator.mapping = mapping  # type: ignore[method-assign, assignment]
    return generator


def planted_map(names: tuple[str, ...]) -> np.ndarray:
    """Attributes along skewed directions, the other features faintly along all."""
    rng = np.random.default_rng(5)
    plan = rng.normal(size=(len(names), 40)) * 0.01
    for j, handle in enumerate(PLANTED):
        row = names.index(handle.features[0])
        plan[row] = 0
        plan[row, j] = 1.0
        plan[row, (j + 1) % 4] = 0.5
    return plan


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("conditional", [False, True])
def test_planted_directions_are_found_again(
    params: dict[int, dict[str, Any]], generator: Generator, conditional: bool
) -> None:
    fit = fit_handles(PLANTED, params, generator, "ab" * 32, conditional, HELD_OUT)
    names, _ = feature_table([params[0]])
    found = fit.directions
    for handle, vector in zip(PLANTED, found.vectors.numpy(), strict=True):
        planted = planted_map(names)[names.index(handle.features[0])]
        assert cosine(vector, planted) > 0.99, handle.name
        assert np.linalg.norm(vector) / np.linalg.norm(planted) == pytest.approx(1, abs=0.15)
    assert all(entry.correlation > 0.9 for entry in found.entries)
    assert fit.explained > 0.9
    own = found.entanglement.diagonal()
    rest = found.entanglement - torch.diag(own)
    assert float((own - 1).abs().max()) < 0.15
    assert float(rest.abs().max()) < (0.1 if conditional else 0.3)
    said = report(fit.directions)
    assert "| age | older | 0.9" in said or "| age | older | 1.0" in said


def test_moving_makes_the_heads_that_the_parameters_say(
    params: dict[int, dict[str, Any]], generator: Generator
) -> None:
    """The first head with 1.3 more in its score of age: moving its code along the direction of age leads there."""
    found = fit_handles(PLANTED, params, generator, "ab" * 32, True, HELD_OUT).directions
    names, table = feature_table([params[h] for h in params if h not in HELD_OUT])
    density = fit_density(names, table)
    z = density.encode(table[:1], None)
    scores = z @ np.linalg.inv(density.whiten)
    older = scores.copy()
    older[0, names.index("age")] += 1.3
    before, after = codes_of(generator, z), codes_of(generator, older @ density.whiten)
    ws = torch.from_numpy(before.astype(np.float32))[:, None].expand(-1, 3, -1)
    moved = move(ws, found, {"age": 1.3})[0, 0].numpy()
    assert np.abs(moved - after[0]).max() < 0.15 * np.abs(after - before).max()


def test_the_file_round_trip_and_the_picture(
    params: dict[int, dict[str, Any]], generator: Generator, tmp_path: Path
) -> None:
    fit = fit_handles(PLANTED[:2], params, generator, "ab" * 32, held_out=HELD_OUT)
    save_directions(tmp_path / "d.safetensors", fit.directions)
    back = load_directions(tmp_path / "d.safetensors", "ab" * 32)
    assert torch.equal(back.vectors, fit.directions.vectors)
    assert back.entries == fit.directions.entries
    assert back.std["age"] == pytest.approx(np.std([params[h]["age"] for h in params if h not in HELD_OUT]))
    ws = torch.zeros(1, generator.num_ws, 40)
    picture = strip(generator, back, ws, (-1.0, 0.0, 1.0), side=32, abreast=1)
    assert picture.shape == (2 * 32 + 4, 3 * 32 + 8, 3)


def test_unfit_data_is_refused(params: dict[int, dict[str, Any]], generator: Generator) -> None:
    with pytest.raises(DataError, match="too little"):
        fit_handles((Handle("x", ("no such feature",), ""),), params, generator, "")
    with pytest.raises(DataError, match="too little"):
        fit_handles(PLANTED, {h: params[h] for h in range(5)}, generator, "")
    other = Generator(generator.spec)
    other.spec = GeneratorSpec(mapping=MappingSpec(z_dim=3, w_dim=40))
    with pytest.raises(CheckpointError, match="3 numbers"):
        fit_handles(PLANTED, params, other, "")


def test_ridge_by_hand_and_amounts() -> None:
    x, y = np.array([[-1.0], [1.0]]), np.array([[-3.0], [5.0]])
    assert ridge(x, y, 0.0)[0, 0] == pytest.approx(4)  # about the means
    assert ridge(x, y, 1.0)[0, 0] == pytest.approx(2)  # gram 2, strength 1 times its mean diagonal 2
    values = np.linspace(0, 1, 1001)
    assert amount(values) == pytest.approx(1.0, abs=1e-3)
    rare = np.where(values > 0.9, values, 0.0)  # a tenth of the heads: +2 is the 99.77th percentile of all
    assert amount(rare) == pytest.approx(2.834 / 2, abs=2e-3)
    assert amount(np.append(values, np.nan)) == pytest.approx(1.0, abs=1e-3)


def test_correlation_leaves_out_what_is_missing() -> None:
    a, b = np.array([0.0, 1.0, 2.0, 3.0]), np.array([1.0, np.nan, 5.0, 7.0])
    assert correlation(a, b) == pytest.approx(1.0)
    assert np.isnan(correlation(a, np.ones(4)))


def test_values_are_sums_of_features(params: dict[int, dict[str, Any]]) -> None:
    names, table = feature_table([params[h] for h in params])
    handles = (Handle("both", ("age", "gender"), ""), PLANTED[0])
    found = raw_values(handles, names, table)
    assert found[7, 0] == pytest.approx(params[7]["age"] + params[7]["gender"])
    assert found[7, 1] == params[7]["age"]


def test_skin_has_a_tone_of_its_own_where_the_heads_have_one(params: dict[int, dict[str, Any]]) -> None:
    old = {number: params[number] for number in range(4)}
    names, table = feature_table([*old.values()])
    assert "skin tone" not in names
    mixed = old | {4: {**params[4], "skintone": 0.25}, 5: {**params[5], "skintone": None}}
    more, wider = feature_table([*mixed.values()])
    assert more == (*names, "skin tone")
    np.testing.assert_array_equal(wider[:4, :-1], table)
    np.testing.assert_array_equal(wider[:, -1], [np.nan] * 4 + [0.25, np.nan])
    for heads, feature in ((old, "skin african"), (mixed, "skin tone")):
        assert [h.features for h in handles_for(heads) if h.name == "skin_dark"] == [(feature,)]
        assert [h.name for h in handles_for(heads)] == [h.name for h in HANDLES]


def test_the_table_of_effects_names_what_should_move() -> None:
    text = table_of_effects({"smile": {"mouth corners up": 1.5, "lips apart": -0.2, "jaw wide": 0.9}}, others=1)
    assert text.splitlines()[-1] == "| smile | mouth corners up +1.50 | jaw wide +0.90 |"
