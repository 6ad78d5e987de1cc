"""Two volumes in one: a generator's own, and a second one beside it for what that generator cannot make.

In-N-Out (Xu et al., CVPR 2024): a second tri-plane, not made from a code, with a decoder of its own that gives density,
colour features and a share b in [0, 1]. A point absorbs b sigma_O + (1 - b) sigma_I for each unit of length, and its
colour is the mean of both, weighted by what each absorbs. To first order in the length of a ray's steps this is the
paper's compositing, with the transmittance of what is shown (published: of both densities in full, whatever b). So one
density and one colour describe a point, and everything that asks a generator for these (renders, meshes, textures) has
both volumes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from headlift.eg3d.active import FirstLook
from headlift.eg3d.decoder import Decoder
from headlift.eg3d.generator import Generator, VolumeOutput
from headlift.eg3d.rays import Jitter
from headlift.eg3d.spec import DecoderSpec, DensityClamp, GeneratorSpec
from headlift.errors import CheckpointError
from headlift.values import Camera

EXTRA = 2
"""Features that are rendered beside the colours: the second volume's share of what is seen, and b's entropy."""
START_SHARE, START_DENSITY = -3.0, -1.0
"""Logit of b and density (before activation) of a fresh second volume: next to nothing, with a gradient."""
PLANES, DECODER = "outer_planes", "decoder.outer."
"""Name of its planes, and what the names of its decoder's parameters begin with."""
START_PLANES = 0.1
"""Standard deviation of its planes."""


@dataclass(frozen=True)
class OuterSpec:
    """The second volume."""

    channels: int = 32
    """Of each of its three planes."""
    resolution: int = 256
    """Their side; brought to that of the generator's own planes when the two are looked up."""
    hidden: int = 64
    """Width of its decoder."""

    def to_dict(self) -> dict[str, int]:
        """Plain JSON values; `from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: object) -> OuterSpec:
        """Read what `to_dict` wrote. Raises CheckpointError when it is something else."""
        names = set(cls.__dataclass_fields__)
        if not (isinstance(values, dict) and set(values) == names):
            raise CheckpointError(f"the second volume is described by {values!r}, not by {', '.join(sorted(names))}")
        if not all(isinstance(v, int) and not isinstance(v, bool) and 1 <= v <= 4096 for v in values.values()):
            raise CheckpointError(f"the second volume is described by {values!r}, which are no sizes")
        return cls(**values)

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Hold stored tensors, by the names of their parameters, against the sizes: a few bytes can claim gigabytes.

        Raises CheckpointError when those that give the sizes are missing or have others.
        """
        wanted = {
            PLANES: (3, self.channels, self.resolution, self.resolution),
            DECODER + "net.0.weight": (self.hidden, self.channels),
        }
        for name, shape in wanted.items():
            if shapes.get(name) != shape:
                raise CheckpointError(f"the second volume's {name} has shape {shapes.get(name)}, not {shape}")


class CompositeDecoder(Decoder):
    """The generator's own decoder for the first channels of a point's features, a second one for the rest.

    Colours come with `EXTRA` further ones: how much of the density is the second volume's, and the entropy of b^2 (in
    nats; of the square, so that b nearer to 0 costs less than nearer to 1: D2NeRF, Wu et al. 2022).
    """

    def __init__(self, inputs: int, spec: DecoderSpec, clamp: DensityClamp, outer: OuterSpec) -> None:
        super().__init__(inputs, spec)
        self.inputs, self.clamp = inputs, clamp
        self.outer = Decoder(outer.channels, DecoderSpec(hidden=outer.hidden, features=spec.features + 1))

    def forward(self, features: Float[Tensor, "n c m"]) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n f m"]]:
        own, beside = features[:, : self.inputs], features[:, self.inputs :]
        return self._mix(super().forward(own), self.outer(beside))

    def rows(self, features: Float[Tensor, "n m c"]) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n f m"]]:
        own, beside = features[..., : self.inputs], features[..., self.inputs :]
        return self._mix(super().rows(own), self.outer.rows(beside))

    def density(self, features: Float[Tensor, "n c m"]) -> Float[Tensor, "n m"]:
        return self(features)[0]  # type: ignore[no-any-return]

    def _mix(self, own: tuple[Tensor, Tensor], beside: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        (sigma_own, colour_own), (sigma_outer, rest) = own, beside
        share, colour_outer = rest[:, -1].clamp(0, 1), rest[:, :-1]
        absorbed = (1 - share) * self._absorbs(sigma_own), share * self._absorbs(sigma_outer)
        both = absorbed[0] + absorbed[1]
        part = (absorbed[1] / both.clamp_min(1e-20))[:, None]
        b = share.square().clamp(1e-6, 1 - 1e-6)
        entropy = -(b * b.log() + (1 - b) * (1 - b).log())
        colours = torch.cat([colour_own.lerp(colour_outer, part), part, entropy[:, None]], dim=1)
        return self._density(both), colours

    def _absorbs(self, sigma: Tensor) -> Tensor:
        """Per world unit, as the ray marcher takes a density."""
        return F.softplus(sigma - 1) if self.clamp == "softplus" else F.relu(sigma)

    def _density(self, absorbed: Tensor) -> Tensor:
        """The inverse."""
        if self.clamp != "softplus":
            return absorbed
        safe = absorbed.clamp_min(1e-20)
        return 1 + safe + (-torch.expm1(-safe)).log()


@dataclass(frozen=True)
class Parts:
    """What a composite generator shows before super-resolution, and whose it is."""

    volume: VolumeOutput
    share: Float[Tensor, "n 1 r r"]
    """The second volume's share of the pixel, in [0, alpha]."""
    entropy: Float[Tensor, "n 1 r r"]
    """Of b^2 along the ray, weighted like colour."""


class CompositeGenerator(Generator):
    """A generator with a second volume; its own parameters keep their names, the second volume's begin with `outer_`
    and `decoder.outer`. Its planes are those of both, channel by channel."""

    def __init__(self, spec: GeneratorSpec, outer: OuterSpec) -> None:
        super().__init__(spec)
        self.outer = outer
        self.decoder = CompositeDecoder(spec.plane_channels, spec.decoder, spec.render.clamp_mode, outer)
        self.outer_planes = nn.Parameter(torch.zeros(3, outer.channels, outer.resolution, outer.resolution))

    def completed(self, image: Float[Tensor, "n i p p"]) -> Float[Tensor, "n j c p p"]:
        """Those of the generator, with the second volume's behind them, whatever the code."""
        own = super().completed(image)
        beside: Tensor = self.outer_planes
        if beside.shape[-1] != own.shape[-1]:
            beside = F.interpolate(beside, size=own.shape[-2:], mode="bilinear", align_corners=False)
        return torch.cat([own, beside.to(own).expand(len(own), -1, -1, -1, -1)], dim=2)

    def parts(self, planes: Float[Tensor, "b 3 c p p"], camera: Camera, neural_resolution: int | None = None) -> Parts:
        """The picture before super-resolution, and how much of each pixel is the second volume's."""
        return self._apart(super().volume(planes, camera, neural_resolution))

    def volume(
        self,
        planes: Float[Tensor, "b 3 c p p"],
        camera: Camera,
        neural_resolution: int | None = None,
        jitter: Jitter | torch.Generator | None = None,
        depth_samples: int | None = None,
        importance_samples: int | None = None,
        cut: float = 0.0,
        look: FirstLook | None = None,
    ) -> VolumeOutput:
        """As `Generator.volume`, of both volumes."""
        whole = super().volume(planes, camera, neural_resolution, jitter, depth_samples, importance_samples, cut, look)
        return self._apart(whole).volume

    def query(
        self, planes: Float[Tensor, "b 3 c p p"], xyz: Float[Tensor, "n m 3"], chunk: int = 2**20
    ) -> tuple[Float[Tensor, "n m 1"], Float[Tensor, "n m f"]]:
        """As `Generator.query`, of both volumes."""
        sigma, features = super().query(planes, xyz, chunk)
        return sigma, features[..., :-EXTRA]

    def own(self) -> Generator:
        """The generator without the second volume; parameters are shared."""
        alone = Generator(self.spec)
        alone.load_state_dict({name: self.state_dict()[name] for name in alone.state_dict()}, assign=True)
        return alone.train(self.training).requires_grad_(False)

    def _apart(self, whole: VolumeOutput) -> Parts:
        shown, extra = whole.features[:, :-EXTRA], (whole.features[:, -EXTRA:] + 1) / 2
        if self.spec.render.white_background:
            extra = extra - (1 - whole.alpha)
        return Parts(VolumeOutput(shown, whole.depth, whole.alpha), extra[:, :1], extra[:, 1:])


def compose(generator: Generator, outer: OuterSpec, rng: torch.Generator | None = None) -> CompositeGenerator:
    """A copy of the generator with a second volume: next to empty and random with `rng`, all zeros without."""
    both = CompositeGenerator(generator.spec, outer)
    both.load_state_dict({**both.state_dict(), **generator.state_dict()})
    with torch.no_grad():
        for name, value in outer_parameters(both).items():
            if rng is None or name.endswith("bias"):
                value.zero_()
            else:
                value.copy_(torch.randn(value.shape, generator=rng))
        if rng is not None:
            both.outer_planes.mul_(START_PLANES)
            bias = dict(both.named_parameters())["decoder.outer.net.2.bias"]
            bias[0], bias[-1] = START_DENSITY, START_SHARE
    return both.to(generator.w_avg.device).train(generator.training).requires_grad_(False)


def outer_parameters(generator: Generator) -> dict[str, nn.Parameter]:
    """Those of the second volume, by name; none where there is none."""
    return {name: p for name, p in generator.named_parameters() if name.startswith((PLANES, DECODER))}
