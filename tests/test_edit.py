"""Edits of a head: identities, linearity, layers that stay, S as a change of weights, what does not go together."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from small_networks import solid_generator

from headlift import cli, edits
from headlift.config import EditConfig, preset
from headlift.editing.directions import Direction, Directions, load_directions, save_directions
from headlift.editing.edit import blend, edit, mix, parse_amounts, parse_layers, truncated
from headlift.editing.identity import Drift, identity_drift, in_words, normal_shape, random_codes, without
from headlift.editing.sheets import before_after, captioned, strip, there_and_back
from headlift.editing.styles import shift_styles, style_layers, styles
from headlift.eg3d.camera import orbit
from headlift.eg3d.generator import Generator
from headlift.eg3d.own_planes import OWN, SIDES, with_own_planes
from headlift.errors import CheckpointError, ConfigError, HeadliftError, OutputError, PhotoError
from headlift.head import Head, load_head, write_head
from headlift.invert.perceptual import load_builtin
from headlift.pose_estimation.crop import cut, to_tensor
from headlift.values import Camera, Similarity

SHA = "ab" * 32


@dataclass(frozen=True)
class Simple:
    ws: torch.Tensor
    camera: Camera
    generator: Generator
    base_sha256: str = SHA


def tuned(base: Generator, seed: int, amount: float = 0.02) -> Generator:
    rng = torch.Generator().manual_seed(seed)
    moved = copy.deepcopy(base)
    for name, parameter in moved.named_parameters():
        if "mapping" not in name:
            parameter += amount * torch.randn(parameter.shape, generator=rng)
    return moved


def head(seed: int = 1) -> Simple:
    base = solid_generator(neural_resolution=16)
    ws = torch.randn(1, base.num_ws, 8, generator=torch.Generator().manual_seed(seed))
    return Simple(ws, orbit(0.1, 0.0), tuned(base, seed))


def stored_head(seed: int = 1) -> Head:
    one = head(seed)
    return Head(
        one.generator,
        one.ws,
        one.camera,
        np.full((32, 32, 3), 127, np.uint8),
        np.full((32, 32), 255, np.uint8),
        Similarity(np.array([[1 / 40, 0.0, -0.1], [0.0, 1 / 40, -0.1]])),
        preset("fast"),
        "embedded",
        SHA,
    )


def some(space: str = "w", base: Generator | None = None) -> Directions:
    base = base or solid_generator(neural_resolution=16)
    width = sum(layer.width for layer in style_layers(base))
    shape = {"w": (2, 8), "w+": (2, base.num_ws, 8), "s": (2, width)}[space]
    entries = tuple(Direction(name, "", "", 1.0, math.nan) for name in ("age", "smile"))
    vectors = torch.randn(shape, generator=torch.Generator().manual_seed(7)) * 0.3
    return Directions(entries, vectors, torch.eye(2), SHA, space)  # type: ignore[arg-type]


def picture(subject: Simple | Head) -> torch.Tensor:
    planes = subject.generator.planes(subject.ws)
    return subject.generator.render(planes, subject.ws, subject.camera).image


def same_weights(a: Generator, b: Generator) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("space", ["w", "w+", "s"])
def test_zero_amounts_change_nothing_and_amounts_something(space: str) -> None:
    start = head()
    still = edit(start, some(space), {"age": 0.0, "smile": 0.0})
    assert torch.equal(still.ws, start.ws)
    assert same_weights(still.generator, start.generator)
    moved = edit(start, some(space), {"age": 1.0})
    assert float((picture(moved) - picture(start)).abs().max()) > 1e-3
    back = edit(moved, some(space), {"age": -1.0})
    torch.testing.assert_close(picture(back), picture(start), atol=1e-4, rtol=0)


@pytest.mark.parametrize("space", ["w", "w+"])
def test_a_layer_range_leaves_the_other_rows_bit_for_bit(space: str) -> None:
    start = head()
    moved = edit(start, some(space), {"age": 1.0, "smile": -2.0}, layers=(1, 2))
    changed = [not torch.equal(a, b) for a, b in zip(moved.ws[0], start.ws[0], strict=True)]
    assert changed == [False, True, True] + [False] * (len(changed) - 3)


def test_styles_shift_by_exactly_what_was_asked_for_in_their_layers_alone() -> None:
    start, directions = head(), some("s")
    layers = style_layers(start.generator)
    moved = edit(start, directions, {"smile": 2.0}, layers=(0,))
    shift = styles(moved.generator, start.ws) - styles(start.generator, start.ws)
    wanted = torch.cat(
        [
            part * (layer.row == 0)
            for layer, part in zip(layers, directions.vectors[1].split([x.width for x in layers]), strict=True)
        ]
    )
    torch.testing.assert_close(shift[0], 2 * wanted, atol=1e-5, rtol=0)
    assert [layer.row for layer in layers] == sorted(layer.row for layer in layers)
    assert {layer.row for layer in layers} == set(range(start.generator.num_ws))


def test_a_constant_shift_of_styles_is_what_another_bias_gives() -> None:
    start = head()
    width = sum(layer.width for layer in style_layers(start.generator))
    moved = shift_styles(start.generator, torch.ones(width))
    first = style_layers(start.generator)[0].name
    before, after = (g.get_submodule(first).bias for g in (start.generator, moved))
    torch.testing.assert_close(after - before, torch.ones_like(before))


def test_truncation_and_blends_have_exact_ends() -> None:
    one, two = head(1), head(2)
    assert torch.equal(truncated(one, 1.0).ws, one.ws)
    torch.testing.assert_close(truncated(one, 0.0).ws[0, 0], one.generator.w_avg)
    assert torch.equal(truncated(one, 0.0, (0,)).ws[:, 1:], one.ws[:, 1:])
    for share, end in ((0.0, one), (1.0, two)):
        met = blend(one, two, share)
        torch.testing.assert_close(met.ws, end.ws)
        torch.testing.assert_close(picture(met), picture(end), atol=1e-5, rtol=0)
    half = blend(one, two, 0.5)
    name = "decoder.net.0.weight"
    torch.testing.assert_close(
        half.generator.state_dict()[name],
        (one.generator.state_dict()[name] + two.generator.state_dict()[name]) / 2,
    )


@pytest.mark.parametrize("name", OWN)
def test_heads_with_and_without_planes_of_their_own_meet(name: str) -> None:
    one, two = head(1), head(2)
    wider = replace(two, generator=with_own_planes(two.generator, name))
    wider.generator.get_parameter(name).add_(1.0)
    reaching = name != SIDES
    if reaching:
        wider.generator.photo_reach.fill_(0.1)
    for first, second in ((one, wider), (wider, one)):
        met = blend(first, second, 0.5)
        assert float(met.generator.get_parameter(name).mean()) == 0.5
        assert not reaching or torch.equal(met.generator.photo_reach, wider.generator.photo_reach)
        torch.testing.assert_close(picture(blend(first, second, 1.0)), picture(second), atol=1e-5, rtol=0)
    mixed = mix(one, wider, range(one.generator.num_ws)).generator
    assert torch.equal(mixed.get_parameter(name), wider.generator.get_parameter(name))


def test_mixing_all_layers_gives_the_other_head_and_some_layers_those_alone() -> None:
    one, two = head(1), head(2)
    rows = one.generator.num_ws
    every = mix(one, two, range(rows))
    assert torch.equal(every.ws, two.ws)
    assert same_weights(every.generator, two.generator)
    mixed = mix(one, two, (rows - 1,))
    assert torch.equal(mixed.ws[:, :-1], one.ws[:, :-1])
    assert torch.equal(mixed.ws[:, -1:], two.ws[:, -1:])
    own, other, got = (g.state_dict() for g in (one.generator, two.generator, mixed.generator))
    assert torch.equal(got["backbone.synthesis.b4.const"], own["backbone.synthesis.b4.const"])
    assert torch.equal(got["superresolution.block1.conv1.weight"], other["superresolution.block1.conv1.weight"])
    torch.testing.assert_close(
        got["decoder.net.0.weight"],
        own["decoder.net.0.weight"] + (other["decoder.net.0.weight"] - own["decoder.net.0.weight"]) / rows,
    )


def test_what_does_not_belong_together_is_refused() -> None:
    one = head()
    with pytest.raises(CheckpointError, match="belong to the generator"):
        edit(one, replace(some(), base_sha256="cd" * 32), {"age": 1.0})
    with pytest.raises(ConfigError, match="different generators"):
        blend(one, replace(one, base_sha256="cd" * 32), 0.5)
    with pytest.raises(ConfigError, match="layer 9 does not exist"):
        edit(one, some(), {"age": 1.0}, layers=(9,))
    with pytest.raises(ConfigError, match="another generator"):
        edit(one, replace(some("w+"), vectors=torch.zeros(2, 7, 8)), {"age": 1.0})
    with pytest.raises(ConfigError, match="belong to another"):
        edit(one, replace(some("s"), vectors=torch.zeros(2, 7)), {"age": 1.0})


def test_words_of_the_command_line() -> None:
    assert parse_amounts(["age=1.5", "smile=-1"]) == {"age": 1.5, "smile": -1.0}
    assert parse_layers("0-2,3,1", 4) == (0, 1, 2, 3)
    for words in (["age"], ["age=much"], ["age=1", "age=2"]):
        with pytest.raises(ConfigError):
            parse_amounts(words)
    for text in ("", "3-1", "a", "0-4", "-1", "\u00b2", "0-\u00b2", "9" * 5000):
        with pytest.raises(ConfigError, match="layers"):
            parse_layers(text, 4)
    assert edits.parse_colour("#ff0080") == (1.0, 0.0, 128 / 255)
    for text in ("red", "#12", "#zzzzzz"):
        with pytest.raises(ConfigError, match="#rrggbb"):
            edits.parse_colour(text)


# Drift


def test_drift_is_zero_for_the_same_head_about_one_between_random_ones_and_grows() -> None:
    start, distance = head(), load_builtin()
    assert [drift.value for drift in identity_drift(start, start, distance)] == [0.0]
    near = identity_drift(start, edit(start, some(), {"age": 0.2}), distance)[0].value
    far = identity_drift(start, edit(start, some(), {"age": 2.0}), distance)[0].value
    assert 0 < near < far
    random = random_codes(start.generator, 2, seed=3)
    one, two = (replace(start, ws=ws) for ws in random)
    assert 0.2 < identity_drift(one, two, distance)[0].value < 5


def test_a_recogniser_comes_first_and_is_no_stand_in() -> None:
    start = head()
    moved = edit(start, some(), {"age": 1.0})

    def recogniser(pictures):
        return np.stack([picture.reshape(-1, 3).mean(0) - 100 for picture in pictures]).astype(np.float64)

    found = identity_drift(start, moved, load_builtin(), recogniser=recogniser)
    assert [drift.measure for drift in found] == ["recognition", "features"]
    assert [drift.stand_in for drift in found] == [False, True]
    assert "no recognition" not in in_words(found)
    assert "no recognition" in in_words(found[1:])
    assert in_words((Drift("features", 0.25, "", True),)).startswith("identity drift: features 0.25")


def test_shape_drift_forgets_place_size_turn_and_what_was_meant() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(478, 3)) * 20
    angle = 0.4
    turned = points.copy()
    turned[:, :2] = points[:, :2] @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) * 3 + 50
    np.testing.assert_allclose(normal_shape(turned), normal_shape(points), atol=1e-9)
    meant = rng.normal(size=(468, 2))
    np.testing.assert_allclose(without(2.5 * meant, meant), 0, atol=1e-12)
    aside = rng.normal(size=(468, 2))
    left = without(meant + aside, meant)
    assert abs(float((left * meant).sum())) < 1e-9
    np.testing.assert_allclose(without(aside, 0 * meant), aside)


# Pictures


def test_sheets_have_their_places() -> None:
    one, two = head(1), head(2)
    sheet = before_after(one, two, "a caption of several words that has to be broken somewhere " * 3)
    assert sheet.shape[0] > 2 * 32 + 4
    assert sheet.shape[1] == 4 * 32 + 3 * 4
    assert strip([[("a", one), ("b", two)]], one.camera).shape == (32, 2 * 32 + 4, 3)
    made = ((("a", one) for _ in range(3)) for _ in range(2))  # as they are asked for
    assert strip(made, one.camera).shape == (2 * 32 + 4, 3 * 32 + 2 * 4, 3)
    plain = np.zeros((10, 300, 3), np.uint8)
    assert (captioned(plain, "word")[:10] == plain).all()
    assert captioned(plain, "word " * 60).shape[0] > captioned(plain, "word").shape[0]
    shares = there_and_back(4, -1.0, 1.0)
    np.testing.assert_allclose(shares, [-1, 0, 1, 0], atol=1e-12)


# The verb


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two small heads, `one` and `two`, their directions, and a loader that knows their generator."""
    base = solid_generator(neural_resolution=16)
    for name, seed in (("one", 1), ("two", 2)):
        write_head(tmp_path / name / "head.safetensors", stored_head(seed), base)
    save_directions(tmp_path / "d.safetensors", some())
    monkeypatch.setattr(
        "headlift.weights.load_generator", lambda name, device="cpu": (solid_generator(neural_resolution=16), SHA)
    )
    monkeypatch.setattr(edits.mediapipe_models, "face_mesh", lambda image: None)
    return tmp_path


def test_the_verb_writes_a_head_that_opens_again_with_its_pictures(files: Path) -> None:
    out = files / "out"
    config = EditConfig(
        move=("age=2", "smile=-1"), directions=files / "d.safetensors", layers="0-1", video=True, frames=4
    )
    done = edits.edit_head(files / "one", out, config)
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in done.files)
    assert {"head.safetensors", "before_after.png", "strip.png", "edit.json", "sweep.mp4"} == {
        p.name for p in done.files
    }
    before, after = load_head(files / "one" / "head.safetensors"), load_head(out / "head.safetensors")
    wanted = 2 * some().vectors[0] - some().vectors[1]
    torch.testing.assert_close(after.ws[0, 1] - before.ws[0, 1], wanted, atol=1e-5, rtol=0)
    assert torch.equal(after.ws[:, 2:], before.ws[:, 2:])
    about = json.loads((out / "edit.json").read_text())
    assert about["move"] == {"age": 2.0, "smile": -1.0}
    assert about["identity_drift"][0]["measure"] == "features"
    assert about["identity_drift"][0]["value"] > 0
    assert list(after.edits) == [about]
    again = edits.edit_head(
        out, files / "again", EditConfig(move=("age=-2", "smile=1"), directions=files / "d.safetensors", layers="0-1")
    )
    torch.testing.assert_close(again.after.ws, before.ws, atol=1e-5, rtol=0)
    assert len(again.after.edits) == 2
    with pytest.raises(OutputError, match="already there"):
        edits.edit_head(files / "one", out, config)


def test_mixing_and_interpolation_through_the_verb(files: Path) -> None:
    config = EditConfig(mix=files / "two", mix_layers="1-3", towards=files / "two", share=1.0)
    done = edits.edit_head(files / "one", files / "out", config)
    torch.testing.assert_close(done.after.ws, load_head(files / "two" / "head.safetensors").ws)
    about = json.loads((files / "out" / "edit.json").read_text())
    assert about["towards"]["share"] == 1.0
    assert about["mix"]["layers"] == "1-3"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (EditConfig(), "nothing to do"),
        (EditConfig(move=("age",)), "NAME=AMOUNT"),
        (EditConfig(color="#ff0000"), "needs a place"),
        (EditConfig(region="nose"), "what shall change"),
        (EditConfig(region="ear", color="#ff0000"), "there is no region"),
        (EditConfig(region="nose", color="#ff0000"), "no face is found"),
        (EditConfig(move=("agee=1",)), "did you mean age"),
        (EditConfig(move=("age=1",), layers="0-9"), "layers 0 to"),
        (EditConfig(mix=Path("nowhere.safetensors")), "no file"),
        (EditConfig(move=("age=1",), into_photo=Path("nowhere.jpg")), "no such file"),
        (EditConfig(truncation=0.5, frames=1), "at least 2 frames"),
        (EditConfig(layers="0", mix=Path("x")), "neither is asked for"),
        (EditConfig(move=("age=1",), mix_layers="0"), "--mix-layers means nothing without --mix"),
        (EditConfig(move=("age=1",), share=0.7), "--share means nothing without --towards"),
        (EditConfig(move=("age=1",), color_strength=0.1), "--color-strength means nothing without --color"),
        (EditConfig(truncation=math.nan), "--truncation is nan"),
        (EditConfig(towards=Path("x"), share=math.inf), "--share is inf"),
        (EditConfig(region="nose", color="#ff0000", color_strength=math.nan), "--color-strength is nan"),
    ],
)
def test_bad_requests_end_in_a_message_and_write_nothing(files: Path, config: EditConfig, words: str) -> None:
    with pytest.raises(HeadliftError, match=words):
        edits.edit_head(files / "one", files / "out", replace(config, directions=files / "d.safetensors"))
    assert not (files / "out").exists()


def test_directions_of_another_prior_are_no_silent_no_op(files: Path) -> None:
    with pytest.raises(CheckpointError, match="belong to the generator"):
        edits.edit_head(files / "one", files / "out", EditConfig(move=("age=1",)))
    assert not (files / "out").exists()


def test_the_command_line_takes_several_moves(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        edits, "edit_head", lambda *given: seen.append(given) or SimpleNamespace(drift=(), files=(files, files))
    )
    assert (
        cli.run(["edit", str(files / "one"), "--out", str(files / "o"), "--move", "age=1.5", "smile=-1", "--quiet"])
        == 0
    )
    assert seen[0][2].move == ("age=1.5", "smile=-1")


def test_an_edit_of_the_embedded_prior_ages_every_head_alike() -> None:
    """Moving along a shipped direction changes the picture of the shipped prior, and moving back undoes it."""
    from headlift.weights import load_generator

    generator, sha256 = load_generator("embedded")
    directions = load_directions(None, sha256)
    start = Simple(generator.w_avg.expand(1, generator.num_ws, -1), orbit(0.0, 0.0), generator, sha256)
    name = directions.names[0]
    moved = edit(start, directions, {name: 2.0})
    with torch.no_grad():
        still, went = (generator.volume(generator.planes(h.ws), h.camera, 32).features[:, :3] for h in (start, moved))
        back = edit(moved, directions, {name: -2.0})
    assert float((still - went).abs().mean()) > 0.005
    torch.testing.assert_close(back.ws, start.ws, atol=1e-5, rtol=0)


@pytest.mark.parametrize("over", ["crop", "photo"])
def test_what_is_painted_over_crop_or_photo_is_told_apart_where_both_have_one_size(tmp_path: Path, over: str) -> None:
    random, side = np.random.default_rng(0), 32
    photo = np.asarray(Image.fromarray(random.integers(0, 255, (9, 9, 3), np.uint8)).resize((side, side)))
    similarity = Similarity(np.array([[1.5, 0.0, -0.2 * side], [0.0, 1.5, -0.3 * side]]) / side)
    cropped = replace(stored_head(1), image=cut(photo, similarity, side), similarity=similarity)
    painted = (cropped.image if over == "crop" else photo).copy()
    painted[14:18, 14:18] = (255, 0, 0)
    Image.fromarray(painted).save(tmp_path / "painted.png")
    wanted = painted if over == "crop" else cut(painted, similarity, side)
    found = edits.painted_crop(tmp_path / "painted.png", cropped)
    torch.testing.assert_close(found, to_tensor(wanted))


def textured(side: int, seed: int = 0) -> np.ndarray:
    cells = np.random.default_rng(seed).integers(0, 255, (9, 9, 3), np.uint8)
    return np.asarray(Image.fromarray(cells).resize((side, side)))


def test_a_crop_that_was_painted_in_another_size_is_taken_and_another_picture_refused(tmp_path: Path) -> None:
    cropped, path = replace(stored_head(1), image=textured(32)), tmp_path / "painted.png"
    painted = Image.fromarray(cropped.image)
    painted.paste((255, 0, 0), (8, 8, 20, 20))
    painted.resize((128, 128)).save(path)
    assert float((edits.painted_crop(path, cropped) - to_tensor(np.asarray(painted))).abs().mean()) < 0.02
    Image.fromarray(textured(32, 1)).save(path)
    with pytest.raises(PhotoError, match="neither this head's crop nor its photo"):
        edits.painted_crop(path, cropped)


def test_an_edit_goes_back_into_its_own_photo_alone(files: Path) -> None:
    base, photo = solid_generator(neural_resolution=16), textured(96)
    similarity = Similarity(np.array([[1 / 60, 0.0, -0.3], [0.0, 1 / 60, -0.2]]))
    shown = replace(stored_head(1), image=cut(photo, similarity, 32), similarity=similarity)
    write_head(files / "three" / "head.safetensors", shown, base)
    config = EditConfig(move=("age=1",), directions=files / "d.safetensors", into_photo=files / "photo.png")
    for other in (textured(48), textured(96, 1), shown.image):
        Image.fromarray(other).save(files / "photo.png")
        with pytest.raises(PhotoError, match="not the photo that this head was made of"):
            edits.edit_head(files / "three", files / "out", config)
    assert not (files / "out").exists()
    Image.fromarray(photo).save(files / "photo.jpg", quality=60)
    assert edits.photo_of(files / "photo.jpg", shown).shape == photo.shape


def test_a_mask_is_white_on_black_or_on_an_empty_layer(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    wanted = torch.zeros(1, 1, 32, 32)
    wanted[..., 4:12, 8:24] = 1
    for ground in ((0, 0, 0, 255), (0, 0, 0, 0), (255, 255, 255, 0)):
        layer = Image.new("RGBA", (32, 32), ground)
        layer.paste((255, 255, 255, 255), (8, 4, 24, 12))
        layer.save(path)
        assert torch.equal(edits.read_mask(path), wanted)
    painted = Image.fromarray(textured(32))
    painted.paste((255, 255, 255), (8, 4, 24, 12))
    painted.save(path)
    with pytest.raises(ConfigError, match=r"black or white in \d+ % of its pixels only"):
        edits.read_mask(path)


def test_a_region_that_was_painted_over_something_else_than_the_crop_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.new("L", (400, 300), 255).save(path)
    with pytest.raises(ConfigError, match="400 x 300 pixels.*over crop.png"):
        edits.region_of(stored_head(1), EditConfig(region_mask=path))
