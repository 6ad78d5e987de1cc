"""From a head file to an edited one, with the pictures that show what the edit did: `headlift edit`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from headlift.config import EditConfig
from headlift.device import find_device
from headlift.editing.directions import Directions, load_directions
from headlift.editing.edit import blend, edit, mix, parse_amounts, parse_layers, truncated
from headlift.editing.identity import Drift, identity_drift, in_words, to_json
from headlift.editing.sheets import before_after, frames_between, strip, there_and_back
from headlift.errors import ConfigError
from headlift.export.files import refuse_existing, write_text
from headlift.export.images import write_png
from headlift.export.paths import sway
from headlift.export.video import write_video
from headlift.head import Head, load_base, load_head, write_head
from headlift.invert.perceptual import load_distance
from headlift.pose_estimation import mediapipe_models
from headlift.values import Step
from headlift.weights import file_sha256

HEAD = "head.safetensors"
STRENGTHS = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
"""Of the strip, where the edit can be turned round; half of the last frames of a video otherwise."""
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


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
        PhotoError: a mask, a painted crop or the photo cannot be read.
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
    after = apply(before, config, directions, others)
    drift = measure(before, after, config, directions)
    about = provenance(path, config, directions, before, drift)
    after = replace(after, edits=(*before.edits, about))
    base = load_base(path, before.base_name, before.base_sha256, before.ws.device)
    write_head(files[0], after, base)
    caption = f"{summary(config)}\n{in_words(drift)}"
    write_png(files[1], before_after(before, after, caption))
    write_png(files[2], strip(strip_rows(before, after, config, directions), before.camera))
    write_text(files[3], json.dumps(about, indent=2) + "\n")
    if config.video:
        write_sweep(files[-1], before, after, config, on_step)
    return Edited(before, after, drift, files)


def check(config: EditConfig) -> None:
    """Raises ConfigError for settings that ask for nothing, or contradict one another."""
    if not (config.move or config.mix or config.towards or config.truncation != 1):
        raise ConfigError(
            "nothing to do: ask for --move NAME=AMOUNT, --truncation, --mix HEAD or --towards HEAD "
            "(headlift directions list shows the names)"
        )
    parse_amounts(config.move)
    if config.layers is not None and not config.move and config.truncation == 1:
        raise ConfigError("--layers says which layers --move and --truncation change; neither is asked for")
    if config.frames < 2 or config.fps < 1:
        raise ConfigError("a video needs at least 2 frames, and 1 a second")


def head_file(path: Path) -> Path:
    """The head of a run folder, or the file itself."""
    return path / HEAD if path.is_dir() and (path / HEAD).exists() else path


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


def measure(before: Head, after: Head, config: EditConfig, directions: Directions | None) -> tuple[Drift, ...]:
    """Identity drift; what moves along directions are meant to do to a face's shape is taken off."""
    distance = load_distance("builtin", "tuning", before.ws.device)
    variant = None
    if directions is not None and not others_of(config) and config.truncation == 1:
        layers = None if config.layers is None else parse_layers(config.layers, before.generator.num_ws)

        def variant(generator: Any, ws: Any) -> Any:
            moved = edit(replace(before, generator=generator, ws=ws), directions, parse_amounts(config.move), layers)
            return moved.generator, moved.ws

    return identity_drift(before, after, distance, mediapipe_models.face_mesh, None, variant, config.seed)


def strip_rows(
    before: Head, after: Head, config: EditConfig, directions: Directions | None
) -> list[list[tuple[str, Head]]]:
    """One row a direction, from its amount backwards to one and a half times it forwards; then all together.

    Other edits have one row, from the head to the edited one.
    """
    amounts = parse_amounts(config.move)
    if directions is None or others_of(config) or config.truncation != 1:
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
    about["identity_drift"] = to_json(drift)
    return {key: value for key, value in about.items() if value not in (None, {})}
