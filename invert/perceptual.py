"""How far apart two pictures look: the distance that inversion minimises beside the squared error of pixels.

`builtin` is headlift's own and works offline: unit-normalised features of a small convolutional network, compared as in
LPIPS (Zhang et al. 2018, eq. 1), plus the difference of a Laplacian pyramid. The network is trained by
`prior/perceptual.py` on synthetic heads. `lpips` is the field's distance; its backbones must have been fetched.

A target is prepared once (`Distance.prepare`) and compared many times, as optimisation needs it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional as F

from headlift.config import Perceptual
from headlift.errors import UNREADABLE, WeightsError
from headlift.invert.losses import COMPARE_AT, area_downsample

STAGES = (32, 64, 96, 128)
"""Channels of the network's four stages, at 1/2, 1/4, 1/8 and 1/16 of the picture's side."""
LAYER_WEIGHTS = (0.25, 0.25, 0.25, 0.25)
"""How much each stage counts."""
PYRAMID_WEIGHT = 0.25
"""How much each level of the Laplacian pyramid counts."""


class FeatureNet(nn.Module):
    """Four stages of two 3x3 convolutions each, halving the side by averaging between them."""

    def __init__(self, stages: Sequence[int] = STAGES) -> None:
        super().__init__()
        self.convs = nn.ModuleList()
        channels = 3
        for index, width in enumerate(stages):
            first = (
                nn.Conv2d(3, width, 5, stride=2, padding=2) if index == 0 else nn.Conv2d(channels, width, 3, padding=1)
            )
            self.convs.append(first)
            self.convs.append(nn.Conv2d(width, width, 3, padding=1))
            channels = width

    def forward(self, image: Float[Tensor, "n 3 h w"]) -> list[Float[Tensor, "n _ _ _"]]:
        """Features of each stage for pictures in [-1, 1]."""
        x = image
        out = []
        for index, conv in enumerate(self.convs):
            if index and index % 2 == 0:
                x = F.avg_pool2d(x, 2)
            x = F.leaky_relu(conv(x), 0.2)
            if index % 2:
                out.append(x)
        return out


CALIBRATED_STOP: Mapping[str, float] = {"lpips": 0.06, "builtin": 0.06}
"""Where tuning stops: PTI's value for LPIPS, and what is as near for the builtin distance."""


def calibrated_stop(kind: str, published: float) -> float:
    """The perceptual distance at which tuning may stop: as near as `published` is in LPIPS."""
    return CALIBRATED_STOP[kind] * published / CALIBRATED_STOP["lpips"]


@dataclass(frozen=True)
class Prepared:
    """A picture ready to be compared with: what the distance needs of it, and how much each pixel counts."""

    parts: tuple[Tensor, ...]
    weight: Float[Tensor, "n 1 h w"] | None


@runtime_checkable
class Distance(Protocol):
    """A perceptual distance between pictures in [-1, 1], RGB; larger ones are compared at 256 pixels."""

    @property
    def kind(self) -> str:
        """Its name in configs, head files and reports."""

    def prepare(self, image: Float[Tensor, "n 3 h w"], weight: Float[Tensor, "n 1 h w"] | None = None) -> Prepared:
        """Do once for a target what does not depend on the other picture; `weight` says where it counts."""

    def __call__(self, target: Prepared, image: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
        """The distance of each picture from its target, 0 for equal pictures."""

    def features(self, image: Float[Tensor, "n 3 h w"]) -> tuple[Tensor, ...]:
        """The network's unit features, fine to coarse: maps [n, c, r, r] of falling side."""


@dataclass(frozen=True)
class Builtin:
    """headlift's own distance: features of `FeatureNet` as in LPIPS, and a Laplacian pyramid."""

    net: FeatureNet
    layer_weights: tuple[float, ...] = LAYER_WEIGHTS
    pyramid_weight: float = PYRAMID_WEIGHT
    kind: str = "builtin"

    def prepare(self, image: Float[Tensor, "n 3 h w"], weight: Float[Tensor, "n 1 h w"] | None = None) -> Prepared:
        parts = self._parts(area_downsample(image, COMPARE_AT))
        return Prepared(tuple(p.detach() for p in parts), weight)

    def __call__(self, target: Prepared, image: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
        parts = self._parts(area_downsample(image, COMPARE_AT))
        layers = len(self.layer_weights)
        total = image.new_zeros(len(image))
        for factor, a, b in zip(self.layer_weights, target.parts[:layers], parts[:layers], strict=True):
            if factor:
                total = total + factor * spatial_mean((a - b).square().sum(1, keepdim=True), target.weight)
        for a, b in zip(target.parts[layers:], parts[layers:], strict=True):
            difference = (a - b).abs().mean(1, keepdim=True)
            total = total + self.pyramid_weight * spatial_mean(difference, target.weight)
        return total

    def features(self, image: Float[Tensor, "n 3 h w"]) -> tuple[Tensor, ...]:
        return tuple(unit(f) for f in self.net(area_downsample(image, COMPARE_AT)))

    def _parts(self, image: Float[Tensor, "n 3 h w"]) -> tuple[Tensor, ...]:
        features = [unit(f) for f in self.net(image)]
        return (*features, *laplacian_pyramid(image)) if self.pyramid_weight else tuple(features)


@dataclass(frozen=True)
class Lpips:
    """LPIPS (Zhang et al. 2018) with backbone weights that the user has fetched."""

    net: nn.Module
    backbone: str
    kind: str = "lpips"

    def prepare(self, image: Float[Tensor, "n 3 h w"], weight: Float[Tensor, "n 1 h w"] | None = None) -> Prepared:
        parts = self._parts(area_downsample(image, COMPARE_AT))
        return Prepared(tuple(p.detach() for p in parts), weight)

    def __call__(self, target: Prepared, image: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
        parts = self._parts(area_downsample(image, COMPARE_AT))
        total = image.new_zeros(len(image))
        for a, b, linear in zip(target.parts, parts, self.net.lins, strict=True):  # type: ignore[arg-type]
            total = total + spatial_mean(linear((a - b).square()), target.weight)
        return total

    def features(self, image: Float[Tensor, "n 3 h w"]) -> tuple[Tensor, ...]:
        return self._parts(area_downsample(image, COMPARE_AT))

    def _parts(self, image: Float[Tensor, "n 3 h w"]) -> tuple[Tensor, ...]:
        outputs = self.net.net(self.net.scaling_layer(image))  # type: ignore[operator]
        return tuple(unit(f) for f in outputs)


def unit(features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Scale the vector at each place to length 1."""
    return features * (features.square().sum(1, keepdim=True) + 1e-10).rsqrt()


def spatial_mean(value: Float[Tensor, "n 1 h w"], weight: Float[Tensor, "n 1 _ _"] | None) -> Float[Tensor, " n"]:
    """Mean over the places of each picture, counted by the weight brought to the same size."""
    if weight is None:
        return value.mean((1, 2, 3))
    small = F.interpolate(weight, size=value.shape[2:], mode="area")
    return (value * small).sum((1, 2, 3)) / small.sum((1, 2, 3)).clamp_min(1e-8)


def laplacian_pyramid(image: Float[Tensor, "n c h w"], levels: int = 4) -> list[Float[Tensor, "n c _ _"]]:
    """What each halving of the picture loses, then what remains (Burt and Adelson 1983, with 2 x 2 averages)."""
    out = []
    for _ in range(levels - 1):
        small = F.avg_pool2d(image, 2)
        out.append(image - F.interpolate(small, size=image.shape[2:], mode="bilinear", align_corners=False))
        image = small
    return [*out, image]


@cache
def load_builtin(device: torch.device | str = "cpu") -> Builtin:
    """The offline distance, from the weights in the package."""
    file = resources.files("headlift.prior.data") / "perceptual.safetensors"
    return Builtin(load_feature_net(load(file.read_bytes())).to(device))


def load_feature_net(weights: Mapping[str, Tensor]) -> FeatureNet:
    """A frozen network with these weights."""
    net = FeatureNet()
    net.load_state_dict({key: value.float() for key, value in weights.items()})
    return net.eval().requires_grad_(False)


BACKBONES = {"alex": ("alexnet", "alexnet-owt-"), "vgg": ("vgg16", "vgg16-")}
"""LPIPS's backbones: name in torchvision, and how its weight file's name begins."""


def load_lpips(backbone: Literal["alex", "vgg"], folders: Sequence[Path], device: torch.device | str = "cpu") -> Lpips:
    """LPIPS with torchvision's ImageNet weights out of one of the folders; nothing is ever downloaded.

    Raises:
        WeightsError: the backbone's file is in none of the folders, or holds something else.
    """
    name, prefix = BACKBONES[backbone]
    found = find_backbone(backbone, folders)
    if found is None:
        raise WeightsError(
            f"the perceptual distance 'lpips' needs the weights of {name} ({prefix}*.pth), which are in none of "
            f"{', '.join(map(str, folders))}. Run `headlift weights fetch {name}`, or use --perceptual builtin, "
            "which works offline."
        )
    import lpips

    net = lpips.LPIPS(net=backbone, pnet_rand=True, verbose=False)
    state = net.net.state_dict()
    try:
        stored = torch.load(found, map_location="cpu", weights_only=True)
        for key in state:
            _, layer, kind = key.split(".")
            state[key] = stored[f"features.{layer}.{kind}"]
        net.net.load_state_dict(state)
    except UNREADABLE as error:
        raise WeightsError(
            f"{found} does not hold the weights of {name} ({str(error)[:200]}). Delete it and run `headlift weights "
            f"fetch {name}`."
        ) from None
    return Lpips(net.eval().requires_grad_(False).to(device), backbone)


def find_backbone(backbone: Literal["alex", "vgg"], folders: Sequence[Path]) -> Path | None:
    """A backbone's file, from the first folder that has it; None where none has."""
    files = (path for folder in folders for path in sorted(folder.glob(f"{BACKBONES[backbone][1]}*.pth")))
    return next(files, None)


def backbone_folders() -> tuple[Path, ...]:
    """Where fetched backbones are looked for: headlift's cache, then torch's."""
    import pooch

    cache = os.environ.get("HEADLIFT_CACHE") or pooch.os_cache("headlift")
    return Path(cache), Path(torch.hub.get_dir()) / "checkpoints"


def load_distance(kind: Perceptual, stage: Literal["latent", "tuning"], device: torch.device | str = "cpu") -> Distance:
    """The distance of a config's name; for LPIPS, VGG finds the code and Alex tunes, as PTI has it.

    Raises:
        WeightsError: LPIPS was asked for and its backbone has not been fetched.
    """
    if kind == "builtin":
        return load_builtin(device)
    return load_lpips("vgg" if stage == "latent" else "alex", backbone_folders(), device)
