"""Head files: one `.safetensors` that holds all that makes a head, save the generator it was tuned from.

Inside: the latent code, the camera label, what tuning added to each tensor of the base generator (fp16, scaled by
that tensor's largest change; a second volume beside it or a plane for the back, where there is one, whole), the crop
with its mask and how it was cut, and as JSON the base's name and sha256, the settings and the figures of the inversion.
A render after loading has a PSNR of at least 60 dB against the one before saving.

The state of an interrupted run is kept in the same form.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from headlift.config import ReconstructConfig, from_table, to_table
from headlift.eg3d.composite import CompositeGenerator, OuterSpec, compose
from headlift.eg3d.generator import Generator
from headlift.eg3d.own_planes import BACK, OWN, REACH, own_planes, with_own_planes
from headlift.errors import CheckpointError, ConfigError, HeadFileError, WeightsError
from headlift.export.files import atomic_path
from headlift.invert.preview import pixels
from headlift.invert.result import Inversion, InversionState
from headlift.values import Camera, Crop, Similarity, Step

HEAD = "head.safetensors"
"""Name of the head file in the folder of a run or an edit."""
FORMAT = "headlift head 1"
STATE_FORMAT = "headlift inversion state 1"
DELTA, SCALE = "delta.", "scale."
Loader = Callable[[str, torch.device | str], tuple[Generator, str]]
"""From a generator's name or file and a device to it and its file's sha256 (`headlift.weights.load_generator`)."""


@dataclass(frozen=True)
class Head:
    """A head that can be rendered, edited and exported."""

    generator: Generator
    """The tuned generator, in eval mode, its parameters frozen."""
    ws: Float[Tensor, "1 l w"]
    camera: Camera
    """The camera that belongs to `image`."""
    image: UInt8[np.ndarray, "s s 3"]
    """The crop, sRGB, with its background."""
    mask: UInt8[np.ndarray, "s s"]
    """Head, neck and shoulders, 255 inside."""
    similarity: Similarity
    """From photo pixels to crop fractions."""
    config: ReconstructConfig
    """The settings that made it."""
    base_name: str
    """Name or file of the base generator."""
    base_sha256: str
    reason: str = ""
    """Why the inversion ended."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Figures of the inversion (`headlift.invert.result.Inversion.metrics`)."""
    edits: tuple[Mapping[str, Any], ...] = ()
    """What was done to it since, in order (`headlift.edits.edit_head`)."""


def head_of(inversion: Inversion, base_sha256: str, crop: Crop, config: ReconstructConfig) -> Head:
    """The head that an inversion found."""
    mask = (crop.mask[0, 0].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return Head(
        inversion.generator,
        inversion.ws,
        inversion.camera,
        pixels(crop.image),
        mask,
        crop.similarity,
        config,
        config.weights,
        base_sha256,
        inversion.reason,
        dict(inversion.metrics),
    )


def save_head(
    path: Path | str, inversion: Inversion, base: Generator, base_sha256: str, crop: Crop, config: ReconstructConfig
) -> None:
    """Write what an inversion found, whole or not at all.

    Raises:
        OutputError: the place cannot be written.
    """
    write_head(path, head_of(inversion, base_sha256, crop, config), base)


def write_head(path: Path | str, head: Head, base: Generator) -> None:
    """Write a head, edited or not; `base` is the generator that it was tuned from.

    Raises:
        OutputError: the place cannot be written.
    """
    tensors = {
        "ws": head.ws.detach().float(),
        "camera": head.camera.label.detach().double(),
        "image": torch.from_numpy(np.ascontiguousarray(head.image)),
        "mask": torch.from_numpy(np.ascontiguousarray(head.mask)),
        "similarity": torch.from_numpy(np.asarray(head.similarity.matrix, dtype=np.float64)),
        **pack_changes(built_like(head.generator, base).state_dict(), head.generator.state_dict()),
    }
    about = {
        "base": {"name": head.base_name, "sha256": head.base_sha256},
        "config": to_table(head.config),
        "reason": head.reason,
        "metrics": {name: value for name, value in head.metrics.items() if np.isfinite(value)},
        "edits": list(head.edits),
    }
    if isinstance(head.generator, CompositeGenerator):
        about["outer"] = head.generator.outer.to_dict()
    about |= dict.fromkeys(own_planes(head.generator), True)
    _write(path, tensors, FORMAT, about)


def built_like(generator: Generator, base: Generator) -> Generator:
    """The base with a second volume or planes of its own, if the generator has such, of zeros: what its tensors are
    changes of."""
    if isinstance(generator, CompositeGenerator):
        return compose(base, generator.outer)
    return with_own_planes(base, *own_planes(generator))


def without_outer(head: Head) -> Head:
    """The head without what the method `in-n-out` added beside the prior; as it is where nothing was added."""
    if not isinstance(head.generator, CompositeGenerator):
        return head
    return replace(head, generator=head.generator.own())


def head_file(path: Path) -> Path:
    """The head of a run's folder, or the file itself."""
    return path / HEAD if path.is_dir() and (path / HEAD).exists() else path


def load_head(
    path: Path | str, weights: str | None = None, device: torch.device | str = "cpu", loader: Loader | None = None
) -> Head:
    """Read a head and put its base generator together with what tuning added.

    Args:
        weights: where the base is, if not under the name that the file knows.
        loader: finds generators; `headlift.weights.load_generator` when nothing is said.

    Raises:
        HeadFileError: the file is missing, damaged or none of headlift's, or its base is missing or another one.
    """
    tensors, about = _read(Path(path), FORMAT, "head file")
    try:
        name, sha256 = str(about["base"]["name"]), str(about["base"]["sha256"])
        config = from_table(about["config"])
        check_layout(tensors)
        similarity = Similarity(tensors["similarity"].numpy())
        label, ws = tensors["camera"].to(device), tensors["ws"].to(device)
        image, mask = tensors["image"].numpy(), tensors["mask"].numpy()
        reason, metrics = str(about.get("reason", "")), {k: float(v) for k, v in about.get("metrics", {}).items()}
        edits = tuple(dict(entry) for entry in about.get("edits", ()))
        camera = Camera.from_label(label.float())
        outer = OuterSpec.from_dict(about["outer"]) if "outer" in about else None
        if outer:
            outer.check({name.removeprefix(DELTA): tuple(value.shape) for name, value in tensors.items()})
    except (CheckpointError, LookupError, TypeError, ValueError, AttributeError, RuntimeError, ConfigError) as error:
        raise HeadFileError(f"{path} is damaged or was written by another headlift: {error}. Make it anew.") from None
    base = load_base(Path(path), weights or name, sha256, device, loader)
    if outer:
        generator: Generator = compose(base, outer)
    else:
        if about.get(BACK) and DELTA + REACH not in tensors:
            raise HeadFileError(f"{path} was written by an earlier headlift. Reconstruct the photo again.")
        generator = with_own_planes(base, *(name for name in OWN if about.get(name)))
    generator.load_state_dict(unpack_changes(Path(path), generator.state_dict(), tensors))
    if tuple(ws.shape) != (1, generator.num_ws, generator.spec.mapping.w_dim):
        raise HeadFileError(f"{path} holds a code of shape {tuple(ws.shape)}, which its base generator does not take.")
    frozen = generator.eval().requires_grad_(False)
    return Head(frozen, ws, camera, image, mask, similarity, config, weights or name, sha256, reason, metrics, edits)


def check_layout(tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError when what stands beside the changes of tensors is not what `write_head` writes."""
    side = tensors["image"].shape[:1]
    wanted = {
        "ws": (torch.float32, (1, *tensors["ws"].shape[1:])),
        "camera": (torch.float64, (1, 25)),
        "image": (torch.uint8, (*side, *side, 3)),
        "mask": (torch.uint8, (*side, *side)),
        "similarity": (torch.float64, (2, 3)),
    }
    for name, (kind, shape) in wanted.items():
        value = tensors[name]
        if value.dtype != kind or tuple(value.shape) != shape:
            raise ValueError(f"its {name} is {value.dtype} of shape {tuple(value.shape)}, not {kind} of {shape}")
        if not torch.isfinite(value).all():
            raise ValueError(f"its {name} holds what is no number")
    if not float(torch.linalg.det(tensors["similarity"][:, :2])):
        raise ValueError("its similarity has no inverse")


def load_base(
    path: Path, name: str, sha256: str, device: torch.device | str, loader: Loader | None = None
) -> Generator:
    """The generator that a head was tuned from.

    Raises:
        HeadFileError: it is missing, or the file of that name is another one.
    """
    if loader is None:
        from headlift.weights import load_generator

        loader = load_generator
    try:
        base, found = loader(name, device)
    except (WeightsError, CheckpointError) as error:
        raise HeadFileError(
            f"{path} was tuned from the generator {name!r}, which cannot be loaded: {error} If its file has moved, "
            "say where it is with --weights FILE."
        ) from error
    if found != sha256:
        raise HeadFileError(
            f"{path} was tuned from a generator with sha256 {sha256[:12]}..., but {name!r} is {found[:12]}... now. "
            "Say where the right file is with --weights FILE, or reconstruct the photo again."
        )
    return base


def pack_changes(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """(after - before) of each tensor that changed, as fp16 fractions of its largest entry, and those entries.

    Raises HeadFileError when a change is no number.
    """
    packed = {}
    for name, value in after.items():
        change = (value.detach().float() - before[name].detach().float()).cpu()
        largest = change.abs().max() if change.numel() else torch.zeros(())
        if not torch.isfinite(largest):
            raise HeadFileError(f"The head cannot be kept: its {name} holds what is no number. Its tuning went astray.")
        if float(largest) > 0:
            packed[DELTA + name] = (change / largest).half()
            packed[SCALE + name] = largest.reshape(1)
    return packed


def unpack_changes(path: Path, before: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tuned tensors.

    Raises HeadFileError when a change is no number, or has no tensor of its name and shape in the base.
    """
    state = {name: value.clone() for name, value in before.items()}
    for key, change in tensors.items():
        if not key.startswith(DELTA):
            continue
        name = key.removeprefix(DELTA)
        scale = tensors.get(SCALE + name, torch.empty(0))
        if name not in state or state[name].shape != change.shape or scale.shape != (1,):
            wanted = tuple(state[name].shape) if name in state else "no such tensor"
            raise HeadFileError(
                f"{path} does not fit its base generator: {name} has shape {tuple(change.shape)}, the base {wanted}."
            )
        if not (torch.isfinite(change).all() and torch.isfinite(scale).all()):
            raise HeadFileError(f"{path} is damaged: its {name} holds what is no number. Make it anew.")
        state[name] += change.to(state[name]) * scale.to(state[name])[0]
    return state


def save_state(path: Path | str, state: InversionState) -> None:
    """Write where an inversion stands, whole or not at all. Raises OutputError when the place cannot be written."""
    about = {
        "stage": state.stage,
        "step": state.step,
        "history": [[s.stage, s.index, s.total, dict(s.losses)] for s in state.history],
    }
    _write(path, dict(state.tensors), STATE_FORMAT, about)


def load_state(path: Path | str) -> InversionState:
    """Read what `save_state` wrote. Raises HeadFileError when it is missing or damaged."""
    tensors, about = _read(Path(path), STATE_FORMAT, "state of a run")
    try:
        history = tuple(Step(stage, index, total, losses) for stage, index, total, losses in about["history"])
        return InversionState(str(about["stage"]), int(about["step"]), tensors, history)
    except (KeyError, TypeError, ValueError) as error:
        raise HeadFileError(f"{path} is damaged: {error}. Start the run anew with --overwrite.") from None


def _write(path: Path | str, tensors: Mapping[str, Tensor], kind: str, about: Mapping[str, Any]) -> None:
    stored = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(stored, temporary, {"format": kind, "about": json.dumps(about)})


def _read(path: Path, kind: str, what: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.exists():
        raise HeadFileError(f"there is no file {path}. Make a head with `headlift reconstruct PHOTO`.")
    if path.is_dir():
        inner = path / HEAD
        advice = f"Did you mean {inner}?" if inner.exists() else "Give the .safetensors file."
        raise HeadFileError(f"{path} is a folder, not a {what}. {advice}")
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise HeadFileError(
            f"{path} cannot be read as a {what}: {error}. It may be cut off or of another kind."
        ) from None
    if metadata.get("format") != kind:
        raise HeadFileError(
            f"{path} is not a {what} of this headlift (it says {metadata.get('format', 'nothing')!r}, not {kind!r})."
        )
    try:
        about = json.loads(metadata.get("about", ""))
    except ValueError as error:
        raise HeadFileError(f"{path} is damaged: {error}.") from None
    if not isinstance(about, dict):
        raise HeadFileError(f"{path} is damaged: its description is {type(about).__name__}.")
    return tensors, about
