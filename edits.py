"""From a head file to an edited one, with the pictures that show what the edit did: `headlift edit`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from headlift.config import EditConfig
from headlift.device import find_device
from headlift.editing.carry import (
    change_inside_and_outside,
    goal_of_colour,
    goal_of_edit,
    goal_of_paint,
    reach,
)
from headlift.editing.directions import Directions, load_directions
from headlift.editing.edit import blend, edit, mix, moved_generator, parse_amounts, parse_layers, truncated
from headlift.editing.identity import Drift, Ruler, identity_drift, in_words, to_json
from headlift.editing.paste import into_photo
from headlift.editing.regions import Region, check_name, named_region, painted_region
from headlift.editing.sheets import before_after, frames_between, strip, there_and_back
from headlift.eg3d.generator import Generator
from headlift.errors import ConfigError, PhotoError
from headlift.export.files import refuse_existing, write_text
from headlift.export.images import write_png
from headlift.export.paths import sway
from headlift.export.video import write_video
from headlift.head import HEAD, Head, head_file, load_base, load_head, write_head
from headlift.invert.follow import follow
from headlift.invert.perceptual import load_distance
from headlift.photo import read_photo
from headlift.pose_estimation import mediapipe_models
from headlift.pose_estimation.crop import cut, to_tensor
from headlift.pose_estimation.identity import Recogniser, recogniser
from headlift.values import Similarity, Step
from headlift.weights import FACENET, file_sha256, find_measure

STRENGTHS = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
"""Of the strip, in the amounts that were asked for, where the edit can be turned round."""
NEARLY = 32
"""Levels that a mask's black and white may be off."""
PLAIN = 0.8
"""Share of a mask that is black or white: soft edges are neither."""
VISIBLE = 24
"""Levels by which pixels of one picture do not differ, however it was saved."""
ANOTHER, REPAINTED = 0.1, 0.5
"""Shares of the crop that differ in another photo, and in a picture that was not only painted over."""
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Of the strip otherwise: parts of the way to the edited head."""


@dataclass(frozen=True)
class Edited:
    """What an edit has given."""

    before: Head
    after: Head
    drift: tuple[Drift, ...]
    files: tuple[Path, ...]
    """The head file first."""


def edit_head(
    path: Path,
    out: Path,
    config: EditConfig,
    overwrite: bool = False,
    on_step: Callable[[Step], None] = lambda step: None,
) -> Edited:
    """Edit a head (a head file or a run folder) and write the new one with its pictures.

    Raises:
        ConfigError: nothing was asked for, or something that does not exist.
        CheckpointError: the directions belong to another prior than the head.
        HeadFileError: a head cannot be read, or its base is missing.
        PhotoError: a mask, a painted crop or the photo cannot be read, or belongs to another head.
        OutputError: files are in the way and `overwrite` was not asked for, or the place cannot be written.
    """
    check(config)
    names = [HEAD, "before_after.png", "strip.png", "edit.json"]
    names += ["photo.png"] if config.into_photo else []
    names += ["sweep.mp4"] if config.video else []
    files = tuple(out / name for name in names)
    refuse_existing(files, overwrite)

    before = load_head(head_file(path), config.weights, find_device(config.device))
    others = {name: other_head(given, before, config) for name, given in others_of(config).items()}
    directions = load_directions(config.directions, before.base_sha256) if config.move else None
    photo = photo_of(config.into_photo, before) if config.into_photo else None
    painted = painted_crop(config.paint, before) if config.paint else None
    region = region_of(before, config)
    after = apply(before, config, directions, others)
    after = in_region(before, after, region, painted, config, on_step)
    drift = measure(before, after, config, directions)
    about = provenance(path, config, directions, before, drift)
    if region is not None:
        inside, outside = change_inside_and_outside(before, after, region, before.camera)
        about["mean_change"] = {"inside": round(inside, 5), "outside": round(outside, 5)}
    after = replace(after, edits=(*before.edits, about))
    base = load_base(path, before.base_name, before.base_sha256, before.ws.device)
    write_head(files[0], after, base)
    caption = f"{summary(config)}\n{in_words(drift)}"
    write_png(files[1], before_after(before, after, caption))
    write_png(files[2], strip(strip_rows(before, after, config, directions), before.camera))
    write_text(files[3], json.dumps(about, indent=2) + "\n")
    if photo is not None:
        write_png(out / "photo.png", into_photo(photo, before.similarity, before, after, region).photo)
    if config.video:
        write_sweep(out / "sweep.mp4", before, after, config, on_step)
    return Edited(before, after, drift, files)


def check(config: EditConfig) -> None:
    """Raises ConfigError for settings that ask for nothing, or contradict one another."""
    moves = bool(config.move or config.mix or config.towards or config.truncation != 1)
    named = config.region is not None or config.region_mask is not None
    if named and not moves and config.color is None:
        raise ConfigError("--region says where; say with --move, --mix, --towards or --color what shall change there")
    if not (moves or config.color or config.paint):
        raise ConfigError(
            "nothing to do: ask for --move NAME=AMOUNT, --truncation, --mix HEAD, --towards HEAD, --color or --paint "
            "(headlift directions list shows the names)"
        )
    parse_amounts(config.move)
    if config.region is not None and config.region_mask is not None:
        raise ConfigError("--region and --region-mask both say where; give one of them")
    if config.region is not None:
        check_name(config.region)
    if config.color is not None:
        parse_colour(config.color)
        if not named:
            raise ConfigError("--color needs a place: --region hair, for one, or --region-mask PICTURE")
    if config.steps < 1:
        raise ConfigError(f"--steps {config.steps}: a region needs at least one tuning step")
    if config.layers is not None and not config.move and config.truncation == 1:
        raise ConfigError("--layers says which layers --move and --truncation change; neither is asked for")
    for flag, owner in (("mix_layers", "mix"), ("share", "towards"), ("color_strength", "color")):
        if getattr(config, owner) is None and getattr(config, flag) != getattr(EditConfig, flag):
            raise ConfigError(f"--{flag.replace('_', '-')} means nothing without --{owner}")
    for name in ("truncation", "share", "color_strength"):
        if not math.isfinite(getattr(config, name)):
            raise ConfigError(f"--{name.replace('_', '-')} is {getattr(config, name)}; it must be a finite number")
    if config.frames < 2 or config.fps < 1:
        raise ConfigError("a video needs at least 2 frames, and 1 a second")


def others_of(config: EditConfig) -> dict[str, Path]:
    """The other heads that an edit needs, by the setting's name."""
    return {name: path for name, path in (("mix", config.mix), ("towards", config.towards)) if path is not None}


def other_head(path: Path, head: Head, config: EditConfig) -> Head:
    """A second head, which must be of the same prior. Raises ConfigError if it is not."""
    other = load_head(head_file(path), config.weights, head.ws.device)
    if other.base_sha256 != head.base_sha256:
        raise ConfigError(
            f"{path} was tuned from the generator with sha256 {other.base_sha256[:12]}..., this head from "
            f"{head.base_sha256[:12]}...: their codes cannot be mixed. Reconstruct both photos with the same --weights."
        )
    return other


def apply(head: Head, config: EditConfig, directions: Directions | None, others: dict[str, Head]) -> Head:
    """The edited head: truncation, moves, mixing, interpolation, in this order.

    Raises:
        ConfigError: a direction or a layer that does not exist.
    """
    count = head.generator.num_ws
    layers = None if config.layers is None else parse_layers(config.layers, count)
    if config.truncation != 1:
        head = truncated(head, config.truncation, layers)
    if directions is not None:
        head = edit(head, directions, parse_amounts(config.move), layers)
    if "mix" in others:
        head = mix(head, others["mix"], parse_layers(config.mix_layers or f"{count // 2}-{count - 1}", count))
    if "towards" in others:
        head = blend(head, others["towards"], config.share)
    return head


def region_of(head: Head, config: EditConfig) -> Region | None:
    """The part of the head that is named or painted, if one is."""
    if config.region is not None:
        return named_region(config.region, head, mediapipe_models.face_mesh)
    if config.region_mask is not None:
        return painted_region(read_mask(config.region_mask), head)
    return None


def read_mask(path: Path) -> Float[Tensor, "1 1 s s"]:
    """A painted region, 1 where the picture is white; what is transparent counts as black.

    Raises:
        ConfigError: it is not square, or has much that is neither black nor white.
    """
    mask = read_photo(path, ground=0)
    if mask.shape[0] != mask.shape[1]:
        raise ConfigError(
            f"{path} has {mask.shape[1]} x {mask.shape[0]} pixels; paint a region over crop.png, which is square"
        )
    plain = (mask <= NEARLY).all(2) | (mask >= 255 - NEARLY).all(2)
    if plain.mean() < PLAIN:
        raise ConfigError(
            f"{path} is black or white in {100 * plain.mean():.0f} % of its pixels only. Paint white on black, or on "
            "an empty layer over crop.png, and save that layer alone."
        )
    return (torch.from_numpy(mask.mean(2)) >= 127.5)[None, None].float()


def photo_of(path: Path, head: Head) -> UInt8[np.ndarray, "h w 3"]:
    """The photo that a head was made of. Raises PhotoError for one that does not show the head's crop in its place."""
    photo = read_photo(path)
    apart = unlike(cut(photo, head.similarity, head.image.shape[0]), head)
    if apart > ANOTHER:
        raise PhotoError(
            f"{path} is not the photo that this head was made of, in its size: {100 * apart:.0f} % of the crop differ. "
            "Give the original photo, neither scaled nor cut."
        )
    return photo


def painted_crop(path: Path, head: Head) -> Float[Tensor, "1 3 s s"]:
    """The crop of a painted picture: the crop of any size, or the photo, which is cut; whichever is more like it.

    Raises:
        PhotoError: more than half of it is unlike the head's crop.
    """
    picture, side = read_photo(path), head.image.shape[0]
    crops = [cut(picture, head.similarity, side)]
    if picture.shape[0] == picture.shape[1]:
        crops.append(cut(picture, Similarity(np.eye(2, 3) / len(picture)), side))
    apart, nearest = min((unlike(crop, head), i) for i, crop in enumerate(crops))
    if apart > REPAINTED:
        raise PhotoError(
            f"{path} is neither this head's crop nor its photo: {100 * apart:.0f} % of the crop differ. Paint over the "
            "run's crop.png, or over the original photo in its size."
        )
    return to_tensor(crops[nearest])


def unlike(crop: UInt8[np.ndarray, "s s 3"], head: Head) -> float:
    """The share of a crop's pixels that differ from the head's own for all to see."""
    apart = np.abs(crop.astype(np.float32) - head.image).mean(2)
    return float((apart > VISIBLE).mean())


def in_region(
    before: Head,
    after: Head,
    region: Region | None,
    painted: Tensor | None,
    config: EditConfig,
    on_step: Callable[[Step], None],
) -> Head:
    """What was asked for a region: the edit held to it, its colour, and what was painted; each takes a short tuning."""
    if not region_tuned(config):
        return after
    distance = load_distance("builtin", "tuning", before.ws.device)
    whole = before.generator.spec.render.white_background and config.region == "hair"
    head = after
    if region is not None:
        head = before
        if after is not before:
            goal = goal_of_edit(before, after, region, whole)
            head = follow(reach(before, goal, distance, config.steps, config.seed), on_step)
        if config.color is not None:
            colour = torch.tensor(parse_colour(config.color)) * 2 - 1
            goal = goal_of_colour(head, region, colour, config.color_strength, whole)
            head = follow(reach(head, goal, distance, config.steps, config.seed), on_step)
    if painted is not None:
        goal = goal_of_paint(head, to_tensor(before.image), painted)
        head = follow(reach(head, goal, distance, config.steps, config.seed), on_step)
    return head


def region_tuned(config: EditConfig) -> bool:
    """Whether an edit is tuned into a part of the head."""
    return any(part is not None for part in (config.region, config.region_mask, config.paint))


def parse_colour(text: str) -> tuple[float, float, float]:
    """#rrggbb as shares of red, green and blue. Raises ConfigError for anything else."""
    digits = text.removeprefix("#")
    try:
        red, green, blue = bytes.fromhex(digits)
    except ValueError:
        raise ConfigError(f"{text!r} is no colour; write it as #rrggbb, such as #a03020") from None
    return red / 255, green / 255, blue / 255


def measure(before: Head, after: Head, config: EditConfig, directions: Directions | None) -> tuple[Drift, ...]:
    """Identity drift; what moves along directions are meant to do to a face's shape is taken off."""
    distance = load_distance("builtin", "tuning", before.ws.device)
    variant = None
    if directions is not None and only_moves(config):
        layers = None if config.layers is None else parse_layers(config.layers, before.generator.num_ws)

        def variant(generator: Generator, ws: Tensor) -> tuple[Generator, Tensor]:
            return moved_generator(generator, ws, directions, parse_amounts(config.move), layers)

    known = known_recogniser()
    return identity_drift(before, after, distance, mediapipe_models.face_mesh, known, variant, config.seed)


def ruler_of(before: Head, seed: int = 0) -> Ruler:
    """Measures edits of a head as `measure` does, one after the other, without the face's landmarks."""
    return Ruler(before, load_distance("builtin", "tuning", before.ws.device), known_recogniser(), seed)


def known_recogniser() -> Recogniser | None:
    """The face-recognition network, if its weights are on this machine."""
    network = find_measure(FACENET)
    return None if network is None else recogniser(network)


def only_moves(config: EditConfig) -> bool:
    """Whether the edit is nothing but a sum of moves, which can be turned round and told apart."""
    regional = config.region or config.region_mask or config.color or config.paint
    return not (others_of(config) or config.truncation != 1 or regional)


def strip_rows(
    before: Head, after: Head, config: EditConfig, directions: Directions | None
) -> list[list[tuple[str, Head]]]:
    """One row a direction, from its amount backwards to one and a half times it forwards; then all together.

    Other edits have one row, from the head to the edited one.
    """
    amounts = parse_amounts(config.move)
    if directions is None or not only_moves(config):
        return [[(f"{100 * share:.0f} %", blend(before, after, share)) for share in SHARES]]
    layers = None if config.layers is None else parse_layers(config.layers, before.generator.num_ws)
    rows = [
        [(f"{name} {amount * t:+.2g}", edit(before, directions, {name: amount * t}, layers)) for t in STRENGTHS]
        for name, amount in amounts.items()
    ]
    if len(rows) > 1:
        rows.append([(f"all, {100 * t:+.0f} %", blend(before, after, t)) for t in STRENGTHS])
    return rows


def write_sweep(path: Path, before: Head, after: Head, config: EditConfig, on_step: Callable[[Step], None]) -> None:
    """The way from the head to the edited one and back, while the camera sways."""
    shares = there_and_back(config.frames)

    def counted() -> Any:
        for i, frame in enumerate(frames_between(before, after, shares, sway(config.frames).to(before.ws.device))):
            on_step(Step("frames", i + 1, config.frames))
            yield frame

    write_video(counted(), path, config.fps)


def summary(config: EditConfig) -> str:
    """What was done, in a line."""
    parts = [f"{name} {amount:+g}" for name, amount in parse_amounts(config.move).items()]
    parts += [f"layers {config.layers}"] if config.layers else []
    parts += [f"truncation {config.truncation:g}"] if config.truncation != 1 else []
    parts += [f"layers {config.mix_layers or 'of the second half'} of {config.mix.name}"] if config.mix else []
    parts += [f"{100 * config.share:.0f} % of the way to {config.towards.name}"] if config.towards else []
    parts += [f"colour {config.color}"] if config.color else []
    parts += [f"in the {config.region} only"] if config.region else []
    parts += [f"inside {config.region_mask.name} only"] if config.region_mask else []
    parts += [f"painted as in {config.paint.name}"] if config.paint else []
    return ", ".join(parts)


def provenance(
    path: Path, config: EditConfig, directions: Directions | None, before: Head, drift: tuple[Drift, ...]
) -> dict[str, Any]:
    """What the head file and `edit.json` say about an edit: enough to do it again."""
    about: dict[str, Any] = {
        "of": {"file": head_file(path).name, "sha256": file_sha256(head_file(path)), "base_sha256": before.base_sha256},
        "summary": summary(config),
        "move": parse_amounts(config.move),
        "layers": config.layers,
        "truncation": config.truncation,
        "region": config.region,
        "color": config.color,
        "color_strength": config.color_strength if config.color else None,
        "steps": config.steps if region_tuned(config) else None,
        "seed": config.seed,
    }
    if directions is not None:
        about["directions"] = {
            "file": "embedded" if config.directions is None else config.directions.name,
            "space": directions.space,
            "source": directions.source,
            "licence": directions.licence,
        }
    for name, given in others_of(config).items():
        about[name] = {"file": head_file(given).name, "sha256": file_sha256(head_file(given))}
    if config.mix:
        about["mix"]["layers"] = config.mix_layers
    if config.towards:
        about["towards"]["share"] = config.share
    for name, picture in (("region_mask", config.region_mask), ("paint", config.paint)):
        if picture is not None:
            about[name] = {"file": picture.name, "sha256": file_sha256(picture)}
    about["identity_drift"] = to_json(drift)
    return {key: value for key, value in about.items() if value not in (None, {})}
