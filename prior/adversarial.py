"""The adversarial stage of the prior's training: EG3D's, from the generator that the supervised stage left.

Real pictures are the heads on white with their cameras, mirrored half of the time; codes are Gaussian; cameras of the
generator's pictures are drawn from the data. The discriminator is new and sees the opacity beside both pictures, so
that nothing white can hide in front of white.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from headlift.eg3d.camera import mirror
from headlift.eg3d.checkpoint import load_checkpoint, load_discriminator, read_metadata, read_spec, save_checkpoint
from headlift.eg3d.discriminator import Discriminator
from headlift.eg3d.generator import Generator
from headlift.eg3d.spec import DiscriminatorSpec, GeneratorSpec, MappingSpec, stylegan_channels
from headlift.eg3d.training.ranks import Ranks
from headlift.eg3d.training.step import AdversarialConfig, AdversarialTrainer, Reals, seed_of
from headlift.errors import ConfigError
from headlift.prior.budget import ABOUT, Budget, load_state, record, save_state
from headlift.prior.dataset import known_codes, read_depths, shuffled
from headlift.prior.heads import read_heads
from headlift.prior.measure import FIGURES, Known, Measure, MeasureConfig, known_of, whitened
from headlift.prior.sheets import sheet, views
from headlift.values import Camera

PRIOR = AdversarialConfig(
    mapping_share=0.01,  # the supervised stage's mapping has no multiplier of its own
    noise_mode="none",  # nor does it use the layers' noise
    blur_fade_kimg=40.0,  # a GPU's half hour is some hundred kimg
    blur_fake_raw=True,
    ema_rampup=None,
    hold_kimg=4.0,
    augment="ada",
)
"""Where the prior's settings differ from those published for FFHQ."""
DISCRIMINATOR = "discriminator.safetensors"
"""File of a run."""
KEPT = ("judge_base", "judge_most", "judge_group", "masks", "condition", "mirrored")
"""Settings of the stage that a run keeps."""


@dataclass(frozen=True)
class StageConfig:
    """What the prior's stage is beside `AdversarialConfig`."""

    judge_base: int = 8192
    """Width of the discriminator at side r is this over r ..."""
    judge_most: int = 256
    """... and at most this."""
    judge_group: int = 4
    """Images whose spread the discriminator compares."""
    masks: bool = True
    """The discriminator sees the opacity of the raw picture as a seventh channel."""
    condition: bool = False
    """The generator is conditioned on cameras, which the supervised stage leaves out (`zero_label`)."""
    mirrored: bool = True
    """Half of the pictures are mirrored, with their cameras."""
    kimg: float = 25_000.0
    """Thousand images of the whole run."""
    log_every: int = 20
    """Steps between two lines of the log."""
    snap_kimg: float = 20.0
    """Thousand images between sample sheets and figures (which also end each call)."""
    sheet_heads: int = 24
    """Heads on the sample sheet, besides two from all round."""


@dataclass(frozen=True)
class Pool:
    """Pictures to learn from and to be measured on."""

    known: Known
    labels: Float[np.ndarray, "2 n 25"]
    """Camera labels as they are, and mirrored."""


def read_pool(folder: Path, cache: Path | None, seed: int = 0, depths: Path | None = None) -> Pool:
    """The usable pictures of a folder of heads.

    `seed` is that of the supervised stage, which breaks ties of codes; `depths` as in `dataset.load_data`.

    Raises:
        PhotoError: there is nothing to read.
        DataError: the depths are of other pictures.
    """
    heads = read_heads(folder, None if cache is None else cache / "images.npy", os.cpu_count() or 1)
    known = known_of(heads, *known_codes(heads, seed), None if depths is None else read_depths(depths, heads))
    flipped = mirror(Camera.from_label(torch.from_numpy(heads.labels))).label.numpy()
    return Pool(known, np.stack([heads.labels, flipped]))


@dataclass(frozen=True)
class Loaded:
    """A chunk as it lies in memory, before it becomes `Reals`."""

    rgba: UInt8[Tensor, "n s s 4"]
    flipped: Int[Tensor, " n"]
    """1 where picture and camera are mirrored."""
    label: Float[Tensor, "n 25"]
    fake_labels: Float[Tensor, "2 n 25"]


class Feed:
    """Real pictures for each step: a function of seed and step alone. `workers` threads read ahead."""

    def __init__(
        self, pool: Pool, config: AdversarialConfig, mirrored: bool, device: torch.device, workers: int = 0
    ) -> None:
        self.pool, self.config, self.mirrored, self.device = pool, config, mirrored, device
        self.threads = ThreadPoolExecutor(workers) if workers else None
        self.workers = workers
        self.ahead: dict[tuple[int, int], Future[Loaded]] = {}

    def take(self, step: int, places: Sequence[slice], side: int) -> list[Reals]:
        """The chunks at these places of a step's batch, `side` pixels wide, on the device."""
        if self.threads is None:
            return [reals(self.load(step, place), side, self.device) for place in places]
        steps = max(2, -(-2 * self.workers // len(places)))
        for ahead in range(step, step + steps):
            for place in places:
                if (ahead, place.start) not in self.ahead:
                    self.ahead[ahead, place.start] = self.threads.submit(self.load, ahead, place)
        return [reals(self.ahead.pop((step, place.start)).result(), side, self.device) for place in places]

    def load(self, step: int, place: slice) -> Loaded:
        """A chunk in page-locked memory where there is a GPU to copy it to."""
        pool, batch, seed = self.pool, self.config.batch, self.config.seed
        learned = pool.known.learned
        numbers = range(step * batch, (step + 1) * batch)[place]
        rows, *fakes = (learned[[shuffled(len(learned), seed_of(seed, use), n) for n in numbers]] for use in range(3))
        random = np.random.default_rng((seed, step)).random((3, batch))[:, place]
        flipped, *fake_flips = (random < 0.5).astype(int) if self.mirrored else np.zeros_like(random, int)
        fake_labels = np.stack([pool.labels[flips, r] for flips, r in zip(fake_flips, fakes, strict=True)])
        loaded = (pool.known.images[rows], flipped, pool.labels[flipped, rows], fake_labels)
        tensors = [torch.from_numpy(np.ascontiguousarray(x)) for x in loaded]
        if self.device.type == "cuda":
            tensors = [x.pin_memory() for x in tensors]
        return Loaded(*tensors)


def reals(loaded: Loaded, side: int, device: torch.device) -> Reals:
    """Pictures on white at the generator's size, mirrored where they should be."""
    rgba, flipped, label, fake_labels = (
        x.to(device, non_blocking=True) for x in (loaded.rgba, loaded.flipped, loaded.label, loaded.fake_labels)
    )
    values = whitened(rgba, side)
    values = torch.where(flipped[:, None, None, None] > 0, values.flip(3), values)
    return Reals(values[:, :3] * 2 - 1, values[:, 3:], label, fake_labels)


def judge_spec(generator: GeneratorSpec, stage: StageConfig) -> DiscriminatorSpec:
    """The discriminator that judges a generator's pictures."""
    return DiscriminatorSpec(
        image_resolution=generator.image_resolution,
        channels=stylegan_channels(generator.image_resolution, stage.judge_base, stage.judge_most),
        image_channels=7 if stage.masks else 6,
        mapping=MappingSpec(z_dim=0, w_dim=stage.judge_most, layers=8),
        group_size=stage.judge_group,
    )


def begin(
    start_from: Path, config: AdversarialConfig, stage: StageConfig, device: torch.device, ranks: Ranks
) -> AdversarialTrainer:
    """A trainer with the generator of a run (a folder with `ema.safetensors`, or such a file).

    If a discriminator of the same kind lies beside it, as in the parts of an adversarial run, it is taken over and the
    schedules go on where it was; else it is new, and they begin. Says so where there is one of another kind.
    """
    file = start_from / "ema.safetensors" if start_from.is_dir() else start_from
    generator = load_checkpoint(file)
    if stage.condition:
        generator = conditioned(generator)
    spec, stored = judge_spec(generator.spec, stage), file.with_name(DISCRIMINATOR)
    known = stored.exists() and read_spec(stored) == spec
    if stored.exists() and not known and ranks.first:
        print(f"{stored} is of another kind than the settings ask for: a new one begins, and the schedules", flush=True)
    torch.manual_seed(config.seed)  # initial weights only; steps draw from generators of their own
    discriminator = load_discriminator(stored) if known else Discriminator(spec)
    trainer = AdversarialTrainer(generator.to(device), discriminator.to(device), config, ranks)
    if known:
        metadata = read_metadata(stored)
        trainer.step, trainer.images = int(metadata["step"]), int(metadata["images"])
        if config.augment == metadata.get("augment", "ada") == "ada":
            trainer.augment_p = float(metadata.get("augment_p", trainer.augment_p))
        if config.neural_initial is None:
            trainer.neural_initial = int(metadata.get("neural_initial", trainer.neural_initial))
    return trainer


@torch.no_grad()
def conditioned(generator: Generator) -> Generator:
    """The same generator with pose conditioning (EG3D section 4.4): its mapping looks at the camera, which changes
    nothing at first."""
    spec = generator.spec
    if not spec.mapping.zero_label:
        return generator
    changed = Generator(replace(spec, mapping=replace(spec.mapping, zero_label=False)))
    changed.load_state_dict(generator.state_dict())
    changed.get_parameter("backbone.mapping.fc0.weight")[:, spec.mapping.z_dim :] = 0
    return changed.eval()


def resume(
    out: Path, config: AdversarialConfig, stage: StageConfig, device: torch.device, ranks: Ranks
) -> AdversarialTrainer:
    """A trainer that goes on from what a run left. Raises ConfigError for settings that make it another run."""
    state = load_state(out / "state.pt")
    begun, now = state.get("stage", {}), asdict(stage)  # an older state has none
    for name in KEPT:
        if begun.get(name, now[name]) != now[name]:
            raise ConfigError(
                f"the run was begun with {_flag(name, begun[name])}, not {_flag(name, now[name])}: go on with that, or "
                "begin another run in another folder"
            )
    generator, discriminator = load_checkpoint(out / "ema.safetensors"), load_discriminator(out / DISCRIMINATOR)
    trainer = AdversarialTrainer(generator.to(device), discriminator.to(device), config, ranks)
    trainer.load(state)
    return trainer


def _flag(name: str, value: Any) -> str:
    """A setting as the command line takes it."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {value}"


def run(
    pool: Pool,
    out: Path,
    config: AdversarialConfig,
    stage: StageConfig,
    minutes: float,
    start_from: Path | None = None,
    device: str = "cpu",
    workers: int = 0,
    ranks: Ranks | None = None,
    save_every: float = 4.0,
    figures: MeasureConfig = FIGURES,
) -> AdversarialTrainer:
    """Train until the images or the minutes are over, or until it is told to stop (SIGTERM).

    Resumes what `out` holds, or starts from the run in `start_from`. Leaves `state.pt`, `ema.safetensors`,
    `discriminator.safetensors`, `log.jsonl` and `samples.png`; saves every `save_every` minutes. What is measured
    and drawn at the end comes on top of the minutes. Raises ConfigError without anything to start from, or to go on
    with settings that make it another run.
    """
    budget, saved, where, ranks = Budget(minutes), 0.0, torch.device(device), ranks or Ranks()
    if (out / "state.pt").exists():
        trainer = resume(out, config, stage, where, ranks)
    elif start_from is not None:
        trainer = begin(start_from, config, stage, where, ranks)
    else:
        raise ConfigError(
            f"{out} holds no run to go on with: give --start-from, the folder of a run of the supervised stage"
        )
    out.mkdir(parents=True, exist_ok=True)
    if ranks.first:
        print(f"{len(pool.known.learned)} pictures, starting at step {trainer.step}", flush=True)
    side = trainer.generator.spec.image_resolution
    measure = Measure(pool.known, figures, side, where) if ranks.first else None
    feed = Feed(pool, config, stage.mirrored, where, workers)
    means: dict[str, float] = {}
    snapped = trainer.images
    while trainer.images < stage.kimg * 1000 and not _agreed(budget.over, ranks, where):
        began = time.monotonic()
        found = trainer.take_step(feed.take(trainer.step, trainer.places, side))
        found["seconds"] = time.monotonic() - began
        for k, v in found.items():
            means[k] = means.get(k, v) * 0.9 + v * 0.1
        if not ranks.first:
            continue
        if trainer.step % stage.log_every == 0 or trainer.step == 1:
            record(out, {"step": trainer.step, "kimg": trainer.images / 1000, **means})
        if trainer.images - snapped >= stage.snap_kimg * 1000:
            _snap(trainer, out, stage, measure)
            snapped = trainer.images
        if budget.used - saved > save_every:
            save(trainer, out, stage)
            saved = budget.used
    if ranks.first:
        save(trainer, out, stage)
        _snap(trainer, out, stage, measure)
    ranks.wait()
    return trainer


def save(trainer: AdversarialTrainer, out: Path, stage: StageConfig) -> None:
    """Write the state, the generator to use and the discriminator."""
    course: dict[str, Any] = {"step": trainer.step, "images": trainer.images, "neural_initial": trainer.neural_initial}
    course |= {"augment": trainer.config.augment, "augment_p": trainer.augment_p}
    metadata = ABOUT | {name: str(value) for name, value in course.items()}
    save_checkpoint(out / "ema.safetensors", trainer.ema, metadata)
    save_checkpoint(out / DISCRIMINATOR, trainer.discriminator, metadata)
    save_state(out / "state.pt", trainer.state() | {"stage": asdict(stage)})


def samples(generator: Generator, heads: int, side: int = 128) -> UInt8[np.ndarray, "h w 3"]:
    """Random heads from the front, eight a row, then two of them from all round."""
    fronts = [views(generator, seed, [0.0], 1.0, wide=False)[0] for seed in range(-(-heads // 8) * 8)]
    rows = [fronts[i : i + 8] for i in range(0, len(fronts), 8)]
    yaws = [0.0, 45.0, 90.0, 135.0, 180.0, -135.0, -90.0, -45.0]
    return sheet(rows + [views(generator, seed, yaws, 1.0, wide=True) for seed in range(2)], side)


def _snap(trainer: AdversarialTrainer, out: Path, stage: StageConfig, measure: Measure | None) -> None:
    from PIL import Image

    Image.fromarray(samples(trainer.ema, stage.sheet_heads)).save(out / "samples.png")
    found = measure(trainer.ema) if measure is not None else {}
    if found:
        record(out, {"step": trainer.step, "kimg": trainer.images / 1000, **found})


def _agreed(stop: bool, ranks: Ranks, device: torch.device) -> bool:
    """Whether any rank wants to stop: all leave the loop at the same step."""
    if ranks.count == 1:
        return stop
    return bool(ranks.sum_(torch.tensor(float(stop), device=device)) > 0)
