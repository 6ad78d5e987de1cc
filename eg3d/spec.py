"""What a network looks like, as frozen values: written to JSON beside the weights and checked when made.

Defaults are the published EG3D settings for FFHQ at 512 pixels (Chan et al., CVPR 2022, with the constants of the
released configuration). Widths are explicit, one number for each resolution, so that any backbone can be described;
`stylegan_channels` gives StyleGAN2's usual ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from headlift.errors import CheckpointError, ConfigError

PlaneLayout = Literal["official", "zy", "yz"]
SuperresKind = Literal["2X", "4X", "8X", "8XDC"]
NoiseMode = Literal["const", "random", "none"]
DensityClamp = Literal["softplus", "relu"]

SUPERRES_INPUT: Mapping[SuperresKind, int] = {"2X": 64, "4X": 128, "8X": 128, "8XDC": 128}
"""Side of the feature map that each published super-resolution works on, pixels."""
SUPERRES_FACTOR: Mapping[SuperresKind, int] = {"2X": 2, "4X": 2, "8X": 4, "8XDC": 4}
"""Side of its result over the side of the feature map it works on."""


def stylegan_channels(resolution: int, base: int = 32768, maximum: int = 512) -> tuple[int, ...]:
    """StyleGAN2's widths for the resolutions 4, 8 ... `resolution`: min(base / r, maximum) (Karras et al. 2020)."""
    return tuple(min(base // r, maximum) for r in resolutions(resolution))


def resolutions(last: int) -> tuple[int, ...]:
    """The powers of two from 4 to `last`. Raises ConfigError when `last` is none of them."""
    exponent = int(math.log2(last)) if last > 0 else 0
    if last < 4 or 2**exponent != last:
        raise ConfigError(f"a network's resolution must be a power of two from 4 on, not {last}")
    return tuple(2**i for i in range(2, exponent + 1))


@dataclass(frozen=True)
class MappingSpec:
    """From (z, camera label) to w."""

    z_dim: int = 512
    """Length of z; 0 for a mapping of the label alone (the discriminator's)."""
    w_dim: int = 512
    """Length of w."""
    label_dim: int = 25
    """Length of the camera label; 0 for none."""
    layers: int = 2
    """Fully connected layers."""
    layer_features: int | None = None
    """Width of the layers between the first and the last; None for w_dim."""
    embed_features: int | None = None
    """Width of the embedded label; None for w_dim."""
    lr_multiplier: float = 0.01
    """Learning rate of the layers relative to the others."""
    w_avg_beta: float = 0.998
    """Decay of the running mean of w."""
    label_scale: float = 1.0
    """What the label is multiplied by (`c_scale`)."""
    zero_label: bool = False
    """Feed zeros instead of the label (`c_gen_conditioning_zero`: trained without pose conditioning)."""

    def __post_init__(self) -> None:
        _positive(self, "w_dim", "layers", "lr_multiplier")
        _not_negative(self, "z_dim", "label_dim")
        _positive_or_none(self, "layer_features", "embed_features")
        if self.z_dim == 0 and self.label_dim == 0:
            raise ConfigError("MappingSpec: z_dim and label_dim are both 0, so there is nothing to map")


@dataclass(frozen=True)
class BackboneSpec:
    """StyleGAN2's synthesis network, which draws the planes."""

    resolution: int = 256
    """Side of the planes, texels: a power of two."""
    channels: tuple[int, ...] = stylegan_channels(256)
    """Widths at 4, 8 ... resolution. With fewer, the learned constant is larger: three widths up to 128 start at 32."""
    conv_clamp: float | None = None
    """Clamp of each layer's output; None for none."""

    @property
    def sides(self) -> tuple[int, ...]:
        """Sides of the blocks, the first of which holds the learned constant."""
        return resolutions(self.resolution)[-len(self.channels) :]

    def __post_init__(self) -> None:
        _widths(self, self.channels, self.sides if self.channels else resolutions(self.resolution))
        _positive_or_none(self, "conv_clamp")


@dataclass(frozen=True)
class DecoderSpec:
    """The small network from plane features to density and colour features."""

    hidden: int = 64
    """Width of the hidden layer."""
    features: int = 32
    """Colour features; the first three are RGB."""
    lr_multiplier: float = 1.0
    """Learning rate relative to the other layers (`decoder_lr_mul`)."""

    def __post_init__(self) -> None:
        _positive(self, "hidden", "features", "lr_multiplier")
        if self.features < 3:
            raise ConfigError(f"DecoderSpec: features is {self.features}, but the first three are the picture's RGB")


@dataclass(frozen=True)
class RenderSpec:
    """How rays go through the volume."""

    ray_start: float | Literal["auto"] = 2.25
    """Distance of the first sample along the ray, world units; "auto" for where the ray enters the box."""
    ray_end: float | Literal["auto"] = 3.3
    """Distance of the last; "auto" for where the ray leaves the box."""
    box_warp: float = 1.0
    """Side of the cube that the planes span, world units."""
    within_box: bool = False
    """With "auto" limits: keep all samples inside the cube. As published, a ray's last sample lies up to a spacing
    beyond the wall, where some planes are zero and others not, which a network may never have been trained for."""
    depth_samples: int = 48
    """Stratified samples a ray."""
    importance_samples: int = 48
    """Samples a ray placed by the first pass; 0 for none."""
    coarse_resolution: int | None = None
    """Pictures larger than this many pixels a side take their coarse samples along the rays of one of that size, shared
    by the rays nearby (`eg3d.shared_look`); None for each ray's own, as published."""
    disparity_sampling: bool = False
    """Space the samples evenly in 1 / distance."""
    white_background: bool = False
    """What the volume does not cover is white (`white_back`)."""
    clamp_mode: DensityClamp = "softplus"
    """What keeps the density positive."""
    camera_radius: float = 2.7
    """Distance of the usual cameras from the world's origin, world units."""
    camera_pivot: tuple[float, float, float] = (0.0, 0.0, 0.2)
    """What the usual cameras look at, world units."""
    camera_focal: float = 4.2647
    """Their focal length over the image's side."""

    def __post_init__(self) -> None:
        _positive(self, "box_warp", "depth_samples", "camera_radius", "camera_focal")
        _not_negative(self, "importance_samples")
        _positive_or_none(self, "coarse_resolution")
        if self.coarse_resolution and not self.importance_samples:
            raise ConfigError("RenderSpec: coarse_resolution needs importance_samples, which alone are composited then")
        if self.depth_samples < 2:
            raise ConfigError(
                "RenderSpec: depth_samples must be at least 2, for a ray has intervals only between samples"
            )
        if self.importance_samples and self.depth_samples < 4:
            raise ConfigError("RenderSpec: importance sampling needs depth_samples of at least 4")
        auto = (self.ray_start == "auto", self.ray_end == "auto")
        if auto[0] != auto[1]:
            raise ConfigError("RenderSpec: ray_start and ray_end must both be 'auto' or both be numbers")
        if not auto[0] and not 0 <= float(self.ray_start) < float(self.ray_end):
            raise ConfigError(f"RenderSpec: 0 <= ray_start < ray_end does not hold: {self.ray_start}, {self.ray_end}")
        if self.disparity_sampling and not auto[0] and float(self.ray_start) == 0:
            raise ConfigError("RenderSpec: disparity_sampling needs a ray_start above 0")


@dataclass(frozen=True)
class SuperresSpec:
    """From the rendered feature map to the picture."""

    kind: SuperresKind = "8XDC"
    """The published module: 2X (to 128 pixels), 4X (256), 8X and 8XDC (512)."""
    input_resolution: int = 128
    """Side that the feature map is brought to first, pixels."""
    channels: tuple[int, int] = (256, 128)
    """Widths of the two blocks."""
    antialias: bool = True
    """Antialias when the feature map is resized."""
    conv_clamp: float | None = 256.0
    """Clamp of each layer's output; None for none."""
    noise_mode: NoiseMode = "none"
    """Noise that each layer adds (`superresolution_noise_mode`)."""
    margin: int = 0
    """Pixels by which the feature map goes on past its edges, as it is there, before the first convolution. Those see
    zeros past the edges, and draw a frame round the picture unless they learned not to."""

    def __post_init__(self) -> None:
        _positive(self, "input_resolution")
        _positive_or_none(self, "conv_clamp")
        if self.margin < 0 or (self.margin and self.noise_mode != "none"):
            raise ConfigError("SuperresSpec: margin must not be negative, and needs noise_mode 'none'")
        if len(self.channels) != 2 or min(self.channels) < 1:
            raise ConfigError(f"SuperresSpec: channels must be two positive widths, not {self.channels}")

    @property
    def output_resolution(self) -> int:
        """Side of the picture, pixels."""
        return self.input_resolution * SUPERRES_FACTOR[self.kind]


@dataclass(frozen=True)
class GeneratorSpec:
    """A whole EG3D generator."""

    mapping: MappingSpec = field(default_factory=MappingSpec)
    backbone: BackboneSpec = field(default_factory=BackboneSpec)
    decoder: DecoderSpec = field(default_factory=DecoderSpec)
    render: RenderSpec = field(default_factory=RenderSpec)
    superres: SuperresSpec = field(default_factory=SuperresSpec)
    plane_channels: int = 32
    """Channels of each of the three planes."""
    plane_layout: PlaneLayout = "official"
    """What the planes span: (xy, xz, zx) as released, or (xy, xz, zy), or (xy, xz, yz)."""
    photo_plane: bool = False
    """A plane of its own, xy once more, is added to the others as far back as a photo sees, whatever the code
    (`eg3d.own_planes`)."""
    side_planes: bool = False
    """Two more are added to the planes other than that of x and y, whatever the code."""
    back_plane: bool = False
    """Another one, xy once more, is added to the others behind what the photo sees, whatever the code."""
    image_resolution: int = 512
    """Side of the picture, pixels."""
    neural_resolution: int = 128
    """Side of the feature map that is rendered when nothing else is said, pixels."""
    published_faults: bool = False
    """Reproduce the published code where it is at fault: `raw` overwritten in place by the 2X and 4X
    super-resolutions, the depth of empty rays and the limits of rays beside the box taken from the whole batch."""

    def __post_init__(self) -> None:
        _positive(self, "plane_channels", "image_resolution", "neural_resolution")
        if self.superres.output_resolution != self.image_resolution:
            raise ConfigError(
                f"GeneratorSpec: super-resolution {self.superres.kind} of {self.superres.input_resolution} pixels gives"
                f" {self.superres.output_resolution}, not image_resolution {self.image_resolution}"
            )

    @property
    def has_reach(self) -> bool:
        """Whether there is a plane that goes by how far a photo sees."""
        return self.photo_plane or self.back_plane

    @property
    def num_ws(self) -> int:
        """Codes that a head has: one for each convolution of the backbone and one for its last ToRGB."""
        return 2 * len(self.backbone.channels)

    def rendered_at(self, side: int, coarse: int | None = None) -> GeneratorSpec:
        """The same rendered at `side` pixels, with the coarse samples of `coarse` (`RenderSpec.coarse_resolution`)."""
        render = replace(self.render, coarse_resolution=coarse)
        return replace(self, neural_resolution=side, render=render)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` is the inverse."""
        return cast(dict[str, Any], _plain(asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GeneratorSpec:
        """Read what `to_dict` wrote. Raises CheckpointError on unknown, missing-typed or contradictory fields."""
        return _read(cls, values, "spec")


@dataclass(frozen=True)
class DiscriminatorSpec:
    """EG3D's dual discriminator: StyleGAN2's residual one on picture and raw picture together."""

    image_resolution: int = 512
    """Side of the picture, pixels: a power of two."""
    channels: tuple[int, ...] = stylegan_channels(512)
    """Widths at 4, 8 ... image_resolution."""
    image_channels: int = 6
    """Channels of what it sees: picture and raw picture; 7 with the raw picture's opacity."""
    mapping: MappingSpec = field(default_factory=lambda: MappingSpec(z_dim=0, layers=8))
    """From the camera label to the vector that the last features are projected on; w_dim is its length."""
    group_size: int = 4
    """Images whose spread is compared (minibatch standard deviation)."""
    group_channels: int = 1
    """Channels that this adds; 0 for none."""
    conv_clamp: float | None = 256.0
    """Clamp of each layer's output; None for none."""
    label_noise: float = 0.0
    """Noise on the label, in standard deviations over the batch (`disc_c_noise`)."""

    def __post_init__(self) -> None:
        _widths(self, self.channels, resolutions(self.image_resolution))
        _positive(self, "image_channels", "group_size")
        _not_negative(self, "group_channels", "label_noise")
        _positive_or_none(self, "conv_clamp")
        if len(self.channels) < 2:
            raise ConfigError("DiscriminatorSpec: image_resolution must be at least 8")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` is the inverse."""
        return cast(dict[str, Any], _plain(asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DiscriminatorSpec:
        """Read what `to_dict` wrote. Raises CheckpointError on unknown or contradictory fields."""
        return _read(cls, values, "spec")


def _positive(spec: object, *names: str) -> None:
    for name in names:
        if not getattr(spec, name) > 0:
            raise ConfigError(f"{type(spec).__name__}: {name} must be above 0, not {getattr(spec, name)}")


def _not_negative(spec: object, *names: str) -> None:
    for name in names:
        if not getattr(spec, name) >= 0:
            raise ConfigError(f"{type(spec).__name__}: {name} must not be negative, but is {getattr(spec, name)}")


def _positive_or_none(spec: object, *names: str) -> None:
    _positive(spec, *(name for name in names if getattr(spec, name) is not None))


def _widths(spec: object, channels: tuple[int, ...], sides: tuple[int, ...]) -> None:
    if len(channels) != len(sides) or min(channels) < 1:
        raise ConfigError(
            f"{type(spec).__name__}: channels must be a positive width for each of the sides {sides}, not {channels}"
        )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


T = TypeVar("T")


def _read(cls: type[T], values: Any, where: str) -> T:
    """A spec of class `cls` from plain values; types are checked, so that a damaged file gives one clear error."""
    if not isinstance(values, Mapping):
        raise CheckpointError(f"{where} should be a table, but is {type(values).__name__}")
    hints = get_type_hints(cls)
    names = [f.name for f in fields(cast(Any, cls))]
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise CheckpointError(f"{where} has unknown fields {unknown}: the file may come from a newer headlift")
    read = {name: _value(hints[name], values[name], f"{where}.{name}") for name in names if name in values}
    try:
        return cls(**read)
    except ConfigError as error:
        raise CheckpointError(f"{where} contradicts itself: {error}") from error


def _value(hint: Any, value: Any, where: str) -> Any:
    if is_dataclass(hint):
        return _read(cast(Any, hint), value, where)
    if get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise CheckpointError(f"{where} should be a list, but is {value!r}")
        kinds = get_args(hint)
        if kinds[-1] is Ellipsis:
            kinds = (kinds[0],) * len(value)
        if len(kinds) != len(value):
            raise CheckpointError(f"{where} should have {len(kinds)} entries, but has {len(value)}")
        return tuple(
            _value(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for option in options:
        if option is NoneType and value is None:
            return None
        if get_origin(option) is Literal and value in get_args(option):
            return value
        if option is bool and isinstance(value, bool):
            return value
        if option is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        if option is float and isinstance(value, (int, float)) and not isinstance(value, bool) and _finite(value):
            return float(value)
    raise CheckpointError(f"{where} is {value!r}, which is not one of the values it can have ({hint})")


def _finite(value: int | float) -> bool:
    """Whether a float can hold it: JSON's whole numbers have any number of digits."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
