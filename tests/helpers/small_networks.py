"""Networks that are small enough to be rendered in milliseconds and have every part of the large ones."""

from __future__ import annotations

import torch

from headlift.eg3d.camera import orbit
from headlift.eg3d.discriminator import Discriminator
from headlift.eg3d.generator import Generator
from headlift.eg3d.spec import (
    BackboneSpec,
    DecoderSpec,
    DiscriminatorSpec,
    GeneratorSpec,
    MappingSpec,
    RenderSpec,
    SuperresSpec,
)

SPEC = GeneratorSpec(
    mapping=MappingSpec(z_dim=8, w_dim=8, layer_features=8, embed_features=8),
    backbone=BackboneSpec(resolution=16, channels=(6, 4, 4)),
    decoder=DecoderSpec(hidden=8, features=4),
    render=RenderSpec(depth_samples=6, importance_samples=6),
    superres=SuperresSpec(kind="2X", input_resolution=16, channels=(4, 4)),
    plane_channels=2,
    image_resolution=32,
    neural_resolution=8,
)
DISCRIMINATOR = DiscriminatorSpec(
    image_resolution=32,
    channels=(4, 4, 4, 4),
    mapping=MappingSpec(z_dim=0, w_dim=4, layers=8, layer_features=4, embed_features=4),
)


def random_generator(spec: GeneratorSpec = SPEC, seed: int = 0) -> Generator:
    """A generator whose every number is random: biases, strengths, the mean of w too."""
    random = torch.Generator().manual_seed(seed)
    generator = Generator(spec).eval()
    for name, tensor in generator.state_dict().items():
        if not name.endswith("resample_filter"):
            tensor.add_(torch.randn(tensor.shape, generator=random) * 0.3)
    return generator


def random_discriminator(seed: int = 1) -> Discriminator:
    random = torch.Generator().manual_seed(seed)
    discriminator = Discriminator(DISCRIMINATOR).eval()
    for name, tensor in discriminator.state_dict().items():
        if not name.endswith("resample_filter"):
            tensor.add_(torch.randn(tensor.shape, generator=random) * 0.3)
    return discriminator


def picture(generator: Generator) -> torch.Tensor:
    with torch.no_grad():
        z = torch.randn(2, 8, generator=torch.Generator().manual_seed(5))
        ws = generator.mapping(z, truncation_psi=0.7)
        return generator.render(
            generator.planes(ws), ws, orbit(torch.tensor([0.3, -0.2]), torch.tensor([0.1, 0.0]))
        ).image


def solid_generator(
    white: bool = True, noise: bool = False, neural_resolution: int = 12, importance_samples: int = 0
) -> Generator:
    """A random generator with something solid in its middle."""
    torch.manual_seed(0)
    spec = GeneratorSpec(
        mapping=MappingSpec(z_dim=8, w_dim=8),
        backbone=BackboneSpec(resolution=8, channels=(12, 12)),
        decoder=DecoderSpec(hidden=8, features=4),
        render=RenderSpec(
            ray_start="auto",
            ray_end="auto",
            depth_samples=8,
            importance_samples=importance_samples,
            white_background=white,
        ),
        superres=SuperresSpec(kind="2X", input_resolution=16, channels=(4, 4)),
        plane_channels=4,
        plane_layout="zy",
        image_resolution=32,
        neural_resolution=neural_resolution,
    )
    generator = Generator(spec).eval().requires_grad_(False)
    for name, parameter in generator.named_parameters():
        if name == "decoder.net.2.bias":
            parameter[0] += 6.0
        if noise and name.startswith("backbone") and name.endswith("noise_strength"):
            parameter.fill_(0.1)
    return generator
