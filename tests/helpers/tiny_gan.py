"""A GAN of a few thousand weights with random pictures to learn from; as a script, one rank of two that train it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

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
from headlift.eg3d.training.ranks import Ranks, join, leave
from headlift.eg3d.training.step import AdversarialConfig, AdversarialTrainer, Reals

CONFIG = AdversarialConfig(
    batch=4, density_every=2, r1_every=3, density_points=50, blur_sigma=1.0, blur_fade_kimg=0.16, ema_kimg=0.1
)
SPEC = GeneratorSpec(
    mapping=MappingSpec(z_dim=8, w_dim=8, zero_label=True),
    backbone=BackboneSpec(resolution=8, channels=(8, 8)),
    decoder=DecoderSpec(hidden=8, features=4),
    render=RenderSpec(ray_start="auto", ray_end="auto", depth_samples=4, importance_samples=4, white_background=True),
    superres=SuperresSpec(kind="4X", input_resolution=16, channels=(4, 4), conv_clamp=None),
    plane_channels=4,
    plane_layout="zy",
    image_resolution=32,
    neural_resolution=8,
)


def trainer(
    config: AdversarialConfig,
    seed: int = 0,
    group: int = 2,
    channels: int = 6,
    conditioned: bool = False,
    ranks: Ranks | None = None,
    label_noise: float = 0.0,
) -> AdversarialTrainer:
    """A fresh one; `group` images share a minibatch standard deviation."""
    torch.manual_seed(seed)
    spec = replace(SPEC, mapping=replace(SPEC.mapping, zero_label=not conditioned))
    judge = DiscriminatorSpec(
        32,
        (8, 8, 4, 4),
        image_channels=channels,
        mapping=MappingSpec(z_dim=0, w_dim=8, layers=2),
        group_size=group,
        label_noise=label_noise,
    )
    return AdversarialTrainer(Generator(spec), Discriminator(judge), config, ranks)


def reals(run: AdversarialTrainer) -> list[Reals]:
    """The real pictures of the coming step: functions of the step and their place in the batch."""
    random = torch.Generator().manual_seed(run.step)
    n = run.config.batch
    image = torch.rand(n, 3, 32, 32, generator=random) * 2 - 1
    alpha = torch.rand(n, 1, 32, 32, generator=random)
    label, *fakes = (orbit(torch.randn(n, generator=random) * 0.5, 0.1).label for _ in range(3))
    labels = torch.stack(fakes)
    return [Reals(image[p], alpha[p], label[p], labels[:, p]) for p in run.places]


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two states are equal bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def main() -> None:
    torch.set_num_threads(1)
    ranks = join(cuda=False)
    # Another start on each rank: the first one's must win.
    run = trainer(replace(CONFIG, augment="ada", augment_p=0.3), seed=ranks.rank, ranks=ranks)
    logs = [run.take_step(reals(run)) for _ in range(2)]
    names = ("generator", "discriminator", "ema")
    torch.save(
        {name: getattr(run, name).state_dict() for name in names} | {"log": logs[-1]},
        sys.argv[1] + f"/rank{ranks.rank}.pt",
    )
    leave()


if __name__ == "__main__":
    main()
