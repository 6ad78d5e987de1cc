"""A step of EG3D's adversarial training (Chan et al., CVPR 2022, section 4.3 and supplement 3).

Four phases, each with a step of its optimiser: the generator against the discriminator, every 4 steps the smoothness of
its density, the discriminator, every 16 steps its gradient penalty (R1). A step's batch goes through in chunks:
gradients are summed over them and over the ranks, while the discriminator's groups (minibatch standard deviation) and
the swap of conditioning cameras stay inside a chunk. All random numbers are functions of (seed, step, phase) and of an
image's place in the batch. So a step is the same however its chunks are spread over processes, and a resumed run is the
uninterrupted one bit for bit (on GPUs up to the order in which their sums are made).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headlift.eg3d.discriminator import Discriminator, resize
from headlift.eg3d.generator import Generator
from headlift.eg3d.rays import Jitter
from headlift.eg3d.spec import NoiseMode
from headlift.eg3d.training import schedules
from headlift.eg3d.training.adversarial import blur, discriminator_loss, generator_loss, r1_loss
from headlift.eg3d.training.augment import Augmentation, AugmentConfig, adapt, draw_augmentation
from headlift.eg3d.training.losses import smooth_density_loss
from headlift.eg3d.training.precision import autocast
from headlift.eg3d.training.ranks import Ranks, gather_gradients
from headlift.errors import ConfigError
from headlift.values import Camera

GENERATOR, SMOOTHNESS, DISCRIMINATOR, PENALTY = range(4)
"""The phases of a step, in order; they key the random numbers."""
KEPT = ("batch", "noise_mode", "seed")
"""Settings that a run keeps, and the chunk in force: with another one it would go on as part of no run."""


@dataclass(frozen=True)
class AdversarialConfig:
    """Settings of adversarial training; the defaults are those published for FFHQ. kimg is a thousand real images."""

    batch: int = 32
    """Images of a step, over all ranks."""
    chunk: int | None = None
    """Images that go through at once on a device; None for all of a rank's. Images of a chunk are compared and swap
    cameras, so a run keeps its chunk: give it to go on with a run on another number of processes."""
    generator_lr: float = 0.0025
    """Adam's learning rate for the generator."""
    discriminator_lr: float = 0.002
    """And for the discriminator."""
    mapping_share: float = 1.0
    """Learning rate of the generator's mapping over that of the rest, beside the multiplier in its spec."""
    betas: tuple[float, float] = (0.0, 0.99)
    """Adam's decays."""
    epsilon: float = 1e-8
    """Adam's epsilon."""
    gamma: float = 1.0
    """Weight of R1; its loss is gamma / 2 times the squared gradients. 0 for none."""
    r1_every: int = 16
    """Steps from one R1 phase to the next; its loss is multiplied by as much."""
    density_weight: float = 0.25
    """Weight of the density's smoothness. 0 for none."""
    density_every: int = 4
    """Steps from one smoothness phase to the next; its loss is multiplied by as much."""
    density_points: int = 1000
    """Points a head whose density is compared with that close by."""
    density_extent: float = 1.0
    """They are uniform in the cube from -extent to extent, world units."""
    density_distance: float = 0.004
    """Deviation of the normal steps to the points close by, world units."""
    style_mixing: float = 0.0
    """Share of heads made of two codes, one for the first layers and one for the others."""
    noise_mode: NoiseMode = "random"
    """Noise of the backbone's layers."""
    swap: float = 0.5
    """How often a head is conditioned on its neighbour's camera in the end; without meaning where the spec has
    `zero_label`."""
    swap_fade_kimg: float = 1000.0
    """Images, in thousands, over which this falls from 1."""
    blur_sigma: float = 10.0
    """Blur on what the discriminator sees at the start, pixels."""
    blur_fade_kimg: float = 200.0
    """Images, in thousands, over which it fades with a batch of 32; in proportion to the batch."""
    blur_fake_raw: bool = False
    """Blur the generator's raw pictures as well; published is a blur of the real ones alone, which asks a generator
    that is sharp already to lose its detail."""
    neural_initial: int | None = None
    """Side of the rendered feature map at the start, pixels; None for the spec's."""
    neural_final: int | None = None
    """And in the end; None for no change."""
    neural_fade_kimg: float = 1000.0
    """Images, in thousands, from the one to the other."""
    ema_kimg: float = 10.0
    """Half-life of the generator's running mean with a batch of 32, in thousand images; in proportion to the batch."""
    ema_rampup: float | None = 0.05
    """It is at most this share of the images seen; None for no such limit (when a trained network is taken up)."""
    hold_kimg: float = 0.0
    """Images, in thousands, over which the discriminator learns alone (when only the generator is trained already)."""
    augment: Literal["none", "ada", "fixed"] = "none"
    """Augment what the discriminator sees: never, adaptively, or with a fixed probability."""
    augment_p: float | None = None
    """Probability of each family at the start (with `fixed`: always); None for the published 0, or 0.2 if `fixed`."""
    ada_target: float = 0.6
    """Mean sign of the real logits that the probability is adapted to."""
    ada_every: int = 4
    """Steps between adaptations."""
    ada_kimg: float = 500.0
    """Images, in thousands, over which the probability can go from 0 to 1."""
    families: AugmentConfig = AugmentConfig()
    """Families of augmentation."""
    bf16: bool = True
    """Convolutions in bfloat16, where the device has it (`precision.working_type`)."""
    seed: int = 0
    """Seed of everything random."""


@dataclass(frozen=True)
class Reals:
    """A chunk of real pictures, on the device of the networks."""

    image: Float[Tensor, "n 3 s s"]
    """RGB in [-1, 1], as large as the generator's pictures."""
    alpha: Float[Tensor, "n 1 s s"] | None
    """Opacity in [0, 1]; needed by a discriminator of 7 channels alone."""
    label: Float[Tensor, "n 25"]
    """Their cameras."""
    fake_labels: Float[Tensor, "2 n 25"]
    """Cameras for the generator's pictures, in its own phases and in the discriminator's."""


@dataclass(frozen=True)
class Course:
    """Where the schedules stand."""

    sigma: float
    """Blur, pixels."""
    neural: int
    """Side of the rendered feature map, pixels."""
    swap: float
    """Probability of another conditioning camera."""


class Draws:
    """Random numbers for some of a step's images: each image gets the same wherever it is computed."""

    def __init__(self, key: tuple[int, ...], total: int, chosen: slice, device: torch.device) -> None:
        """`key` seeds them; `chosen` of the `total` images are wanted."""
        self.total, self.chosen, self.device = total, chosen, device
        self.generator = torch.Generator(device).manual_seed(seed_of(*key))

    def uniform(self, *shape: int) -> Float[Tensor, "n ..."]:
        """In [0, 1)."""
        return torch.rand(self.total, *shape, generator=self.generator, device=self.device)[self.chosen]

    def normal(self, *shape: int) -> Float[Tensor, "n ..."]:
        """Of mean 0 and deviation 1."""
        return torch.randn(self.total, *shape, generator=self.generator, device=self.device)[self.chosen]


def seed_of(*key: int) -> int:
    """A seed for each key of whole numbers, well mixed."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


@dataclass(frozen=True)
class _Chunk:
    """What a phase knows about a chunk beside its real images."""

    course: Course
    draws: Draws
    inner: torch.Generator
    """For what is drawn inside the networks (noise); its numbers belong to the chunk."""


class _Means:
    """Sums of what is logged, on the device until the step is over."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, **values: Tensor) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()
            self.counts[name] = self.counts.get(name, 0) + 1

    def reduce(self, ranks: Ranks) -> dict[str, Tensor]:
        """Means over all chunks of all ranks; numbers on the processor, `w` where it is."""
        found = {name: value / (self.counts[name] * ranks.count) for name, value in self.sums.items()}
        w = ranks.sum_(found.pop("w"))
        flat = ranks.sum_(torch.stack(list(found.values()))).cpu()
        return dict(zip(found, flat, strict=True)) | {"w": w}


class AdversarialTrainer:
    """Generator, discriminator, their optimisers and the generator's running mean, which renders at the side that
    training has reached.

    The networks' device is the trainer's. With `bf16` the convolutions of backbone, super-resolution and discriminator
    run in bfloat16; mappings, styles, the volume, the discriminator's last layers, losses and optimisers stay in
    float32. Raises ConfigError when the batch cannot be divided into chunks and ranks, a chunk of one image is too
    small for what images do to each other, or the discriminator does not fit the generator.
    """

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        config: AdversarialConfig,
        ranks: Ranks | None = None,
    ) -> None:
        self.generator, self.discriminator, self.config = generator.train(), discriminator.train(), config
        self.ranks = ranks or Ranks()
        self.chunk = config.chunk or config.batch // self.ranks.count
        if self.chunk < 1 or config.batch % (self.chunk * self.ranks.count):
            raise ConfigError(
                f"a batch of {config.batch} images cannot be divided into chunks of {self.chunk} over"
                f" {self.ranks.count} processes: choose a multiple of {self.chunk * self.ranks.count or 1}"
            )
        if self.chunk == 1 and discriminator.spec.label_noise > 0:
            raise ConfigError(
                "the noise on the discriminator's labels goes by their spread in a chunk, and the chunk is of one"
                " image: take at least two"
            )
        swaps = config.swap > 0 or config.swap_fade_kimg > 0
        if self.chunk == 1 and swaps and not generator.spec.mapping.zero_label:
            raise ConfigError(
                "heads swap their cameras inside a chunk, and the chunk is of one image: take at least two, or set"
                " swap and swap_fade_kimg to 0"
            )
        seen = discriminator.spec.image_channels
        if discriminator.spec.image_resolution != generator.spec.image_resolution or seen not in (6, 7):
            raise ConfigError(
                f"the discriminator sees {seen} channels of {discriminator.spec.image_resolution} pixels, but the"
                f" generator's pictures have {generator.spec.image_resolution} pixels and 6 channels, or 7 with opacity"
            )
        self.masks = seen == 7
        self.device = generator.w_avg.device
        discriminator.to(memory_format=torch.channels_last)
        for network in (generator, discriminator):
            self.ranks.share_(network)
        self.ema = deepcopy(generator).eval().requires_grad_(False)
        generator.requires_grad_(False)  # phases open what they train
        fixed: tuple[str, ...] = (".noise_strength",) if config.noise_mode == "none" else ()
        if generator.spec.mapping.zero_label:
            # Without a label its embedding is the bias alone, brought to unit length: from zero, where the supervised
            # stage leaves it, one step of any size would turn the codes of all heads.
            fixed += (".mapping.embed.weight", ".mapping.embed.bias")
        named = [(k, p) for k, p in generator.named_parameters() if not k.endswith(fixed)]
        self.generator_parameters = [p for _, p in named]
        self.discriminator_parameters = list(discriminator.parameters())
        lazy = config.density_every if config.density_weight > 0 else None
        lr, betas = schedules.lazy_adam(config.generator_lr, config.betas, lazy)
        groups: list[dict[str, Any]] = [
            {"params": [p for k, p in named if ".mapping." not in k]},
            {"params": [p for k, p in named if ".mapping." in k], "lr": lr * config.mapping_share},
        ]
        self.generator_optimiser = torch.optim.Adam(groups, lr=lr, betas=betas, eps=config.epsilon)
        lr, betas = schedules.lazy_adam(
            config.discriminator_lr, config.betas, config.r1_every if config.gamma > 0 else None
        )
        self.discriminator_optimiser = torch.optim.Adam(
            self.discriminator_parameters, lr=lr, betas=betas, eps=config.epsilon
        )
        self.step = 0
        self.images = 0
        """Real images seen so far, over all ranks."""
        self.neural_initial = config.neural_initial or generator.spec.neural_resolution
        """Side of the feature map that training began with, pixels."""
        published = {"none": 0.0, "ada": 0.0, "fixed": 0.2}[config.augment]
        self.augment_p = published if config.augment_p is None or config.augment == "none" else config.augment_p
        self.signs, self.counted = 0.0, 0

    @property
    def course(self) -> Course:
        """Where the schedules stand before the coming step."""
        c = self.config
        return Course(
            schedules.blur_sigma(self.images, c.blur_sigma, c.blur_fade_kimg * 1000 * c.batch / 32),
            schedules.neural_resolution(self.images, self.neural_initial, c.neural_final, c.neural_fade_kimg * 1000),
            schedules.swap_probability(self.images, c.swap, c.swap_fade_kimg * 1000),
        )

    @property
    def places(self) -> list[slice]:
        """This rank's chunks as places in a step's batch: what `take_step` wants the real images for, in order."""
        every = range(0, self.config.batch, self.chunk)
        return [slice(first, first + self.chunk) for first in every[self.ranks.rank :: self.ranks.count]]

    def take_step(self, reals: Sequence[Reals]) -> dict[str, float]:
        """One step from this rank's chunks of real images; returns means over the batch for the log."""
        config, stats = self.config, _Means(self.device)
        learns = self.images >= config.hold_kimg * 1000
        if learns:
            self._phase(GENERATOR, reals, self._generator_phase, stats)
        if learns and config.density_weight > 0 and self.step % config.density_every == 0:
            self._phase(SMOOTHNESS, reals, self._smoothness_phase, stats)
        self._phase(DISCRIMINATOR, reals, self._discriminator_phase, stats)
        if config.gamma > 0 and self.step % config.r1_every == 0:
            self._phase(PENALTY, reals, self._penalty_phase, stats)
        found = stats.reduce(self.ranks)
        self.generator.backbone.mapping.update_average(found.pop("w")[None])
        if learns:
            self._follow()
        values = {name: float(value) for name, value in found.items()}
        self._adapt(values["sign"])
        course = self.course
        self.step += 1
        self.images += self.config.batch
        self._render_as_trained()
        return values | {"p": self.augment_p, "sigma": course.sigma, "neural": course.neural, "swap": course.swap}

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {
            "config": asdict(self.config),
            "chunk": self.chunk,
            "step": self.step,
            "images": self.images,
            "neural_initial": self.neural_initial,
            "augment": [self.augment_p, self.signs, self.counted],
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "ema": self.ema.state_dict(),
            "generator_optimiser": self.generator_optimiser.state_dict(),
            "discriminator_optimiser": self.discriminator_optimiser.state_dict(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Rates, weights of losses and schedules are the configuration's, so that a run can be taken up with others; what
        adaptive augmentation has learned is the state's where both runs are adaptive. Raises ConfigError when the
        chunk or a setting of `KEPT` is another than the run was begun with.
        """
        begun: Mapping[str, Any] = state["config"]
        kept = {name: (begun[name], getattr(self.config, name)) for name in KEPT}
        kept["chunk"] = (state.get("chunk", begun["chunk"] or self.chunk), self.chunk)
        for name, (was, now) in kept.items():
            if was != now:
                raise ConfigError(
                    f"the run was begun with --{name.replace('_', '-')} {was}, not {now}: go on with that, or begin "
                    "another run in another folder"
                )
        self.step, self.images = state["step"], state["images"]
        if begun["augment"] == self.config.augment == "ada":
            self.augment_p, self.signs, self.counted = state["augment"]
        if self.config.neural_initial is None:
            self.neural_initial = state.get("neural_initial", self.neural_initial)
        self.generator.load_state_dict(state["generator"])
        self.discriminator.load_state_dict(state["discriminator"])
        self.ema.load_state_dict(state["ema"])
        for optimiser, name in (
            (self.generator_optimiser, "generator_optimiser"),
            (self.discriminator_optimiser, "discriminator_optimiser"),
        ):
            settings = [{k: group[k] for k in ("lr", "betas", "eps")} for group in optimiser.param_groups]
            optimiser.load_state_dict(state[name])
            for group, ours in zip(optimiser.param_groups, settings, strict=True):
                group.update(ours)
        self._render_as_trained()

    def _phase(
        self,
        phase: int,
        reals: Sequence[Reals],
        loss_of: Callable[[Reals, _Chunk, _Means], Tensor],
        stats: _Means,
    ) -> None:
        """Sum the gradients of a phase over all chunks and ranks, and let its optimiser take a step."""
        ours = phase in (GENERATOR, SMOOTHNESS)
        for parameters, wanted in ((self.generator_parameters, ours), (self.discriminator_parameters, not ours)):
            for parameter in parameters:
                parameter.requires_grad_(wanted)
        parameters = self.generator_parameters if ours else self.discriminator_parameters
        optimiser = self.generator_optimiser if ours else self.discriminator_optimiser
        optimiser.zero_grad(set_to_none=True)
        share = self.chunk / self.config.batch
        for place, real in zip(self.places, reals, strict=True):
            (loss_of(real, self._chunk(phase, place), stats) * share).backward()
        gather_gradients(parameters, self.ranks)
        optimiser.step()

    def _chunk(self, phase: int, place: slice) -> _Chunk:
        key = (self.config.seed, self.step, phase)
        draws = Draws(key, self.config.batch, place, self.device)
        inner = torch.Generator(self.device).manual_seed(seed_of(*key, place.start + 1))
        return _Chunk(self.course, draws, inner)

    def _generator_phase(self, real: Reals, chunk: _Chunk, stats: _Means) -> Tensor:
        label = real.fake_labels[0]
        image, raw, _ = self._fake(label, chunk)
        logits = self._judge(image, raw, label, chunk)
        loss = generator_loss(logits)
        stats.add(loss_g=loss)
        return loss

    def _smoothness_phase(self, real: Reals, chunk: _Chunk, stats: _Means) -> Tensor:
        config = self.config
        ws, _ = self._codes(real.fake_labels[0], chunk)
        with self._precision():
            planes = self.generator.planes(ws, config.noise_mode, chunk.inner)
        points = (chunk.draws.uniform(config.density_points, 3) * 2 - 1) * config.density_extent
        moved = points + chunk.draws.normal(config.density_points, 3) * config.density_distance
        sigma, _ = self.generator.query(planes, torch.cat([points, moved], dim=1))
        loss = smooth_density_loss(*sigma.chunk(2, dim=1)) * config.density_weight
        stats.add(density=loss)
        return loss * config.density_every

    def _discriminator_phase(self, real: Reals, chunk: _Chunk, stats: _Means) -> Tensor:
        label = real.fake_labels[1]
        image, raw, w = self._fake(label, chunk)
        fake = self._judge(image.detach(), raw.detach(), label, chunk)
        image, raw = self._real_pair(real, chunk)
        true = self._judge(image, raw, real.label, chunk)
        loss = discriminator_loss(fake, true)
        stats.add(
            loss_d=loss, real=true.mean(), fake=fake.mean(), sign=true.detach().sign().mean(), w=w.detach().mean(0)
        )
        return loss

    def _penalty_phase(self, real: Reals, chunk: _Chunk, stats: _Means) -> Tensor:
        image, raw = (x.detach().requires_grad_() for x in self._real_pair(real, chunk))
        penalty = r1_loss(self._judge(image, raw, real.label, chunk), image, raw, self.config.gamma)
        stats.add(r1=penalty)
        return penalty * self.config.r1_every

    def _codes(
        self, label: Float[Tensor, "n 25"], chunk: _Chunk
    ) -> tuple[Float[Tensor, "n k w"], Float[Tensor, "n w"]]:
        """Codes of all layers, and those of the first one. Conditioned on the own or the neighbour's camera."""
        config, draws = self.config, chunk.draws
        mapping, count = self.generator.backbone.mapping, self.generator.num_ws
        z = draws.normal(self.generator.spec.mapping.z_dim)
        condition = torch.where(draws.uniform(1) < chunk.course.swap, label.roll(1, 0), label)
        w: Tensor = mapping(z, condition)
        ws = w[:, None].repeat(1, count, 1)
        if config.style_mixing > 0:
            second: Tensor = mapping(draws.normal(z.shape[1]), condition)
            cut = 1 + (draws.uniform(1) * (count - 1)).floor()
            mixed = (draws.uniform(1) < config.style_mixing) & (torch.arange(count, device=self.device) >= cut)
            ws = torch.where(mixed[..., None], second[:, None], ws)
        return ws, w

    def _fake(self, label: Float[Tensor, "n 25"], chunk: _Chunk) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures of random heads under these cameras, raw ones (with opacity if that is judged), and their w."""
        generator, render = self.generator, self.generator.spec.render
        ws, w = self._codes(label, chunk)
        rays = chunk.course.neural**2
        coarse = chunk.draws.uniform(rays, render.depth_samples)
        fine = chunk.draws.uniform(rays, render.importance_samples) if render.importance_samples else None
        with self._precision():
            planes = generator.planes(ws, self.config.noise_mode, chunk.inner)
            seen = generator.render(
                planes,
                ws,
                Camera.from_label(label),
                chunk.course.neural,
                Jitter(coarse, fine),
                generator=chunk.inner,
            )
        raw = torch.cat([seen.raw, seen.alpha * 2 - 1], dim=1) if self.masks else seen.raw
        if self.config.blur_fake_raw:
            raw = blur(raw, chunk.course.sigma)
        return seen.image.float(), raw.float(), w

    def _real_pair(self, real: Reals, chunk: _Chunk) -> tuple[Tensor, Tensor]:
        """The picture and its raw one: antialiased to the resolution that is rendered, and blurred as the schedule has
        it."""
        raw = real.image
        if self.masks:
            assert real.alpha is not None, "this discriminator sees opacity"
            raw = torch.cat([raw, real.alpha * 2 - 1], dim=1)
        return real.image, blur(resize(raw, chunk.course.neural), chunk.course.sigma)

    def _judge(self, image: Tensor, raw: Tensor, label: Tensor, chunk: _Chunk) -> Float[Tensor, "n 1"]:
        """Logits of pictures, blurred and augmented first."""
        image = blur(image, chunk.course.sigma)
        augmentation = self._augmentation(chunk)
        if augmentation is not None:
            image, raw = augmentation.apply(image), augmentation.apply(raw)
        image, raw = (x.contiguous(memory_format=torch.channels_last) for x in (image, raw))
        noise = chunk.inner if self.discriminator.spec.label_noise else None
        with self._precision():
            logits: Tensor = self.discriminator(image, raw, label, noise)
        return logits.float()

    def _augmentation(self, chunk: _Chunk) -> Augmentation | None:
        if self.config.augment == "none" or self.augment_p == 0:
            return None
        draws, side = chunk.draws, self.generator.spec.image_resolution
        every = draw_augmentation(self.config.families, draws.total, side, self.augment_p, draws.generator)
        return every[draws.chosen]

    def _precision(self) -> AbstractContextManager[None]:
        return autocast(self.device, self.config.bf16)

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the running mean of the generator; buffers (the mean of w among them) are taken as they are."""
        c = self.config
        decay = schedules.ema_decay(self.images, c.batch, c.ema_kimg * 1000 * c.batch / 32, c.ema_rampup)
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.generator.parameters()), 1 - decay)
        for mean, now in zip(self.ema.buffers(), self.generator.buffers(), strict=True):
            mean.copy_(now)

    def _render_as_trained(self) -> None:
        """Let the running mean render at the side that training has reached; it is what is shown and kept."""
        self.ema.spec = replace(self.ema.spec, neural_resolution=self.course.neural)

    def _adapt(self, sign: float) -> None:
        """Adapt the probability of augmentation to the real logits' mean sign since the last time."""
        c = self.config
        self.signs, self.counted = self.signs + sign, self.counted + 1
        if c.augment == "ada" and self.counted >= c.ada_every:
            self.augment_p = adapt(
                self.augment_p, self.signs / self.counted, c.ada_target, self.counted * c.batch, c.ada_kimg * 1000
            )
            self.signs, self.counted = 0.0, 0
