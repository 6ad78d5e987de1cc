"""How good a prior is: one view of each head goes in as the photo, and all its others are compared with the truth.

Heads and cameras are known (`multiview`), so nothing has to be detected: the picture on white by its own alpha is the
crop, its label the camera. `invert` finds the code and tunes the generator as for any photo; the head's planes are then
computed once and rendered from every camera. Random heads are held against the folder's as well, by the sliced
Wasserstein distance. Results are kept head by head, so that an interrupted evaluation goes on where it stopped.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from headlift import __version__
from headlift.config import EvaluatePriorConfig, InversionConfig, LatentConfig
from headlift.device import find_device
from headlift.eg3d.generator import Generator
from headlift.eg3d.training.metrics import sliced_wasserstein
from headlift.errors import ConfigError, DataError
from headlift.evaluate.crew import Stopped
from headlift.evaluate.kept import check_workers, generator_of, keep, kept, key_of, work_through
from headlift.evaluate.metrics import ALPHA_SIDE, depth_error, pair, score
from headlift.evaluate.multiview import HeadViews, read_depth, read_folder, read_picture
from headlift.evaluate.subjects import known_crop
from headlift.export.files import write_text
from headlift.export.images import grid, shrink, to_uint8
from headlift.invert.follow import follow
from headlift.invert.invert import invert
from headlift.invert.losses import COMPARE_AT, resize
from headlift.invert.perceptual import load_builtin
from headlift.values import Step
from headlift.weights import load_generator

Start = Literal["search", "mean"]
"""Where tuning starts: at the code that was searched for, or at the mean head's."""

KIND = "headlift evaluate prior"
"""What the JSON says it is."""
RESULT = "evaluation.json"
AIMS: Mapping[str, float] = {"0": 28.0, "30": 22.0, "60": 18.5}
"""PSNR by absolute yaw that the embedded prior is meant to reach, dB; yaw 0 is the view that went in."""
AIM_GAIN = 2.0
"""How much better than from the mean head it is meant to be at 30 and 60 degrees, dB."""
AIM_DEPTH = 0.02
"""Median depth error at the input view that it is meant to stay below, world units."""
PICTURE_SIDE = 192
"""Side of the pictures on the page, pixels."""
PROJECTIONS = 512
DRAWS = 5
"""Draws of halves and projections over which the sliced Wasserstein distance is averaged."""
SHOWN = 16
"""Random heads on the page."""


@dataclass(frozen=True)
class ViewRow:
    """One view's figures."""

    yaw: int
    """Degrees, signed, to the nearest whole one; 0 for the view that went in, and perhaps for others."""
    psnr: float
    ssim: float
    perceptual: float


@dataclass(frozen=True)
class HeadRow:
    """One head's figures."""

    head: str
    start: Start
    key: str
    """What the figures depend on (settings, weights, pictures), hashed."""
    views: tuple[ViewRow, ...]
    """The input view first."""
    depth: float | None
    """Median depth error at the input view after the best shift, world units; None without depth."""
    depth_moved: float
    """How far tuning moved the surface (median), world units."""
    reason: str
    """Why the tuning ended."""
    seconds: Mapping[str, float]
    """Wall-clock time of inversion and measuring."""
    device: str


@dataclass(frozen=True)
class Distribution:
    """Sliced Wasserstein distances times 1000, by the side of the Laplacian pyramid's level in pixels."""

    key: str
    samples: Mapping[str, float]
    """Of random heads to as many pictures of the folder."""
    halves: Mapping[str, float]
    """Of one half of the folder's heads to the other."""
    pictures: int
    """On each side."""
    seconds: float

    @property
    def ratio(self) -> float:
        """How many times as far apart samples and pictures are as two halves of the pictures (means of the levels)."""
        return self.mean("samples") / max(self.mean("halves"), 1e-12)

    def mean(self, which: Literal["samples", "halves"]) -> float:
        """The mean of the levels."""
        levels: Mapping[str, float] = getattr(self, which)
        return float(np.mean(list(levels.values())))


@dataclass(frozen=True)
class Evaluation:
    """All that was measured."""

    rows: tuple[HeadRow, ...]
    """Started from the searched code."""
    baseline: tuple[HeadRow, ...]
    """Started from the mean head."""
    distribution: Distribution | None
    weights_sha256: str
    config: EvaluatePriorConfig
    seconds: float
    """Wall-clock time of this call."""
    complete: bool
    """Whether everything that was asked for is in it."""


@dataclass(frozen=True)
class HeadTask:
    """One head to reconstruct, from one start."""

    head: HeadViews
    start: Start
    config: EvaluatePriorConfig
    out: Path
    key: str

    @property
    def row_path(self) -> Path:
        return self.out / "heads" / f"{self.head.name}-{self.start}.json"

    @property
    def picture_path(self) -> Path:
        return self.out / "pictures" / f"{self.head.name}-{self.start}.jpg"


@dataclass(frozen=True)
class DistributionTask:
    """Random heads to hold against all pictures of the folder."""

    heads: tuple[HeadViews, ...]
    config: EvaluatePriorConfig
    out: Path
    key: str

    @property
    def row_path(self) -> Path:
        return self.out / "distribution.json"

    @property
    def picture_path(self) -> Path:
        return self.out / "pictures" / "samples.jpg"


Task = HeadTask | DistributionTask


def evaluate_prior(
    folder: Path,
    out: Path,
    config: EvaluatePriorConfig,
    workers: int | None = None,
    overwrite: bool = False,
    on_step: Callable[[Step], None] = lambda step: None,
    should_stop: Callable[[], bool] = lambda: False,
    on_result: Callable[[Evaluation], None] = lambda evaluation: None,
) -> Evaluation | None:
    """Measure a prior on a folder of heads; goes on where an earlier call with the same settings stopped.

    Figures are kept in `out/heads`, pictures in `out/pictures`. They do not depend on `workers`: each works with one
    thread. None when it was stopped: what is done is kept.

    Args:
        workers: processes at a time; without it as many as there are cores, 8 at most, and one with a GPU.
        overwrite: measure anew what `out` holds already.
        on_step: is told of heads as they are done, and with one worker of the steps of each.
        on_result: is handed what there is, at most once a minute and at the end.

    Raises:
        DataError: the folder is not of the form that `multiview` reads, or too small.
        ConfigError: a setting is out of range, or the generator draws backgrounds.
        WeightsError, CheckpointError, DeviceError: no such weights or device.
        OutputError: `out` holds results of other settings, or cannot be written.
    """
    began = time.monotonic()
    _check(config, workers)
    heads = read_folder(folder)
    device = find_device(config.device)
    generator, sha256 = load_generator(config.weights, device)
    if not generator.spec.render.white_background:
        raise ConfigError(
            f"the generator {config.weights!r} draws backgrounds; `evaluate prior` measures heads on white, such as "
            "the embedded prior's."
        )
    del generator
    tasks = plan(heads, config, sha256, out)

    def results(there: Sequence[Task]) -> Evaluation:
        seconds = time.monotonic() - began
        evaluation = collect(there, sha256, config, seconds, complete=len(there) == len(tasks))
        write_text(out / RESULT, to_json(evaluation))
        on_result(evaluation)
        return evaluation

    whole = work_through(run_task, tasks, workers, device, overwrite, "heads", on_step, should_stop, results)
    return results(tasks) if whole else None


def plan(heads: Sequence[HeadViews], config: EvaluatePriorConfig, sha256: str, out: Path) -> list[Task]:
    """What has to be done: heads first, in the order of their names."""
    common = {"headlift": __version__, "weights": sha256, "seed": config.seed, "projections": PROJECTIONS}
    tasks: list[Task] = []
    chosen = heads[: config.heads]
    starts: tuple[tuple[Start, int], ...] = (("search", len(chosen)), ("mean", config.baseline))
    for start, count in starts:
        inversion = asdict(inversion_from(config.inversion, start))
        for head in chosen[:count]:
            key = key_of({**common, "data": head.digest(), "inversion": inversion})
            tasks.append(HeadTask(head, start, config, out, key))
    if config.distribution:
        key = key_of({**common, "data": [head.digest() for head in heads]})
        tasks.append(DistributionTask(tuple(heads), config, out, key))
    return tasks


def run_task(task: Task, on_step: Callable[[Step], None], should_stop: Callable[[], bool]) -> Task:
    """Do one task, keep its figures and picture, and say that it is done. Raises Stopped when it was asked to stop."""
    generator, _ = generator_of(task.config.weights, task.config.device)
    row: HeadRow | Distribution
    if isinstance(task, HeadTask):
        row, picture = evaluate_head(generator, task.head, task.config, task.start, task.key, on_step, should_stop)
    else:
        row, picture = compare_distributions(generator, task.heads, task.config.seed, task.key, on_step, should_stop)
    keep(task, asdict(row), picture)
    return task


# One head


def evaluate_head(
    generator: Generator,
    head: HeadViews,
    config: EvaluatePriorConfig,
    start: Start = "search",
    key: str = "",
    on_step: Callable[[Step], None] = lambda step: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[HeadRow, UInt8[np.ndarray, "h w 3"]]:
    """Reconstruct a head from its frontal view and compare all views; figures, and truth above result as a picture.

    Raises:
        Stopped: `should_stop` became true on the way.
        DataError: a picture cannot be decoded.
    """
    began = time.monotonic()
    device = next(generator.parameters()).device
    truths = [read_picture(view) for view in head.views]
    inverted = follow(
        invert(
            generator,
            known_crop(truths[0], head.photo.camera),
            inversion_from(config.inversion, start),
            config.seed,
            should_stop,
        ),
        on_step,
    )
    if should_stop():
        raise Stopped
    middle = time.monotonic()
    distance = load_builtin()
    rows, shown = [], []
    depth: float | None = None
    with torch.no_grad():
        planes = inverted.generator.planes(inverted.ws)
        for index, (view, truth) in enumerate(zip(head.views, truths, strict=True)):
            camera = (inverted.camera if index == 0 else view.camera).to(device)
            output = inverted.generator.render(planes, inverted.ws, camera)
            fine = inverted.generator.volume(planes, camera, max(ALPHA_SIDE, output.alpha.shape[-1]))
            views = pair(truth, output.image.cpu(), fine.alpha.cpu())
            figures = score(views, distance)
            yaw = 0 if index == 0 else round(view.yaw)
            rows.append(ViewRow(yaw, figures.psnr, figures.ssim, figures.perceptual))
            shown.append((views.truth, views.render))
            if index == 0 and view.depth is not None:
                depth = depth_error(output.depth.cpu(), output.alpha.cpu(), read_depth(view.depth))
    seconds = {"inversion": middle - began, "measuring": time.monotonic() - middle}
    row = HeadRow(
        head.name,
        start,
        key,
        tuple(rows),
        depth,
        inverted.metrics["depth_moved"],
        inverted.reason,
        seconds,
        device.type,
    )
    return row, _truth_above_result(rows, shown)


def inversion_from(config: InversionConfig, start: Start) -> InversionConfig:
    """The settings of an inversion without previews; from the mean head, without its search."""
    config = replace(config, preview_every=0, keep_every=0)
    if start == "search":
        return config
    stay = LatentConfig(steps=0, w_stats_samples=config.latent.w_stats_samples, w_stats_seed=config.latent.w_stats_seed)
    return replace(config, latent=stay)


def _truth_above_result(rows: Sequence[ViewRow], shown: Sequence[tuple[Tensor, Tensor]]) -> UInt8[np.ndarray, "h w 3"]:
    labels = ["photo", *(f"{row.yaw:+d}\N{DEGREE SIGN}" for row in rows[1:])]
    labels += [f"{row.psnr:.1f} dB" for row in rows]
    pictures = [shrink(to_uint8(views[which]), PICTURE_SIDE) for which in (0, 1) for views in shown]
    return grid(pictures, labels, columns=len(rows))


# Random heads


@torch.no_grad()
def compare_distributions(
    generator: Generator,
    heads: Sequence[HeadViews],
    seed: int,
    key: str = "",
    on_step: Callable[[Step], None] = lambda step: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[Distribution, UInt8[np.ndarray, "h w 3"]]:
    """How far random heads are from the folder's, beside how far one half of these is from the other.

    As many random heads as the folder has, each seen by the cameras of one of its heads. In each draw the folder's
    heads are halved at random, and as many random heads taken as there are in a half: all three sets have the same
    numbers of heads and of pictures, on white. Means over the draws; each has projections of its own.

    Raises:
        Stopped: `should_stop` became true on the way.
        DataError: fewer than two heads.
    """
    began = time.monotonic()
    if len(heads) < 2:
        raise DataError("two heads are needed at least to compare random heads with; leave it out: --no-distribution.")
    device = next(generator.parameters()).device
    side = min(COMPARE_AT, generator.spec.image_resolution)
    true: list[UInt8[Tensor, "v 3 s s"]] = []
    made: list[UInt8[Tensor, "v 3 s s"]] = []
    rng = torch.Generator().manual_seed(seed)
    for index, head in enumerate(heads):
        if should_stop():
            raise Stopped
        true.append(torch.cat([_bytes(resize(read_picture(view).over(1.0), side)) for view in head.views]))
        z = torch.randn(1, generator.spec.mapping.z_dim, generator=rng).to(device)
        ws = generator.mapping(z)
        planes = generator.planes(ws)
        renders = (generator.render(planes, ws, view.camera.to(device)).image.cpu() for view in head.views)
        made.append(torch.cat([_bytes(resize(image, side)) for image in renders]))
        on_step(Step("samples", index + 1, len(heads)))
    samples, halves = [], []
    half = len(heads) // 2
    for _ in range(DRAWS):
        order = torch.randperm(len(heads), generator=rng).tolist()
        other = torch.randperm(len(heads), generator=rng).tolist()
        first, second, random = (
            [true[i] for i in order[:half]],
            [true[i] for i in order[half : 2 * half]],
            [made[i] for i in other[:half]],
        )
        samples.append(_distance(random, first, rng))
        halves.append(_distance(second, first, rng))
    row = Distribution(
        key,
        {level: float(np.mean([found[level] for found in samples])) for level in samples[0]},
        {level: float(np.mean([found[level] for found in halves])) for level in halves[0]},
        sum(len(views) for views in true[:half]),
        time.monotonic() - began,
    )
    fronts = [to_uint8(_floats(views[:1])) for views in (*made[:SHOWN], *true[:SHOWN])]
    return row, grid([shrink(picture, PICTURE_SIDE) for picture in fronts], columns=min(8, len(made)))


def _distance(a: Sequence[Tensor], b: Sequence[Tensor], rng: torch.Generator) -> dict[str, float]:
    first, second = torch.cat(list(a)), torch.cat(list(b))
    count = min(len(first), len(second))
    levels = sliced_wasserstein(_floats(first[:count]), _floats(second[:count]), rng, PROJECTIONS, draws=1)
    return {str(side): value for side, value in levels.items()}


def _bytes(image: Tensor) -> UInt8[Tensor, "n 3 s s"]:
    return ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def _floats(pixels: UInt8[Tensor, "n 3 s s"]) -> Tensor:
    return pixels.float() / 127.5 - 1


# All heads


def collect(
    tasks: Iterable[Task], sha256: str, config: EvaluatePriorConfig, seconds: float, complete: bool = True
) -> Evaluation:
    """The figures of finished tasks."""
    rows: dict[Start, list[HeadRow]] = {"search": [], "mean": []}
    distribution = None
    for task in tasks:
        table = kept(task)
        if isinstance(task, HeadTask):
            views = tuple(ViewRow(**view) for view in table.pop("views"))
            rows[task.start].append(HeadRow(**table, views=views))
        else:
            distribution = Distribution(**table)
    return Evaluation(tuple(rows["search"]), tuple(rows["mean"]), distribution, sha256, config, seconds, complete)


def by_yaw(rows: Iterable[HeadRow], name: Literal["psnr", "ssim", "perceptual"]) -> dict[str, float]:
    """The mean of a figure over all pictures at each absolute yaw, whole degrees as text in rising order.

    "0" is the view that went in; others from the front, where there are any, are "front".
    """
    found: dict[tuple[int, str], list[float]] = {}
    for row in rows:
        for index, view in enumerate(row.views):
            yaw = abs(view.yaw)
            label = "front" if index and not yaw else str(yaw)
            found.setdefault((yaw, label), []).append(getattr(view, name))
    return {label: float(np.mean(found[yaw, label])) for yaw, label in sorted(found)}


def gain(evaluation: Evaluation) -> dict[str, float]:
    """PSNR from the searched code less that from the mean head, by absolute yaw, over the heads that have both; dB."""
    both = {row.head for row in evaluation.baseline}
    searched = by_yaw((row for row in evaluation.rows if row.head in both), "psnr")
    mean = by_yaw(evaluation.baseline, "psnr")
    return {yaw: searched[yaw] - mean[yaw] for yaw in mean if yaw in searched}


def depth_median(rows: Iterable[HeadRow]) -> float | None:
    """The mean over the heads of their median depth error, world units; None where there is no depth."""
    found = [row.depth for row in rows if row.depth is not None and math.isfinite(row.depth)]
    return float(np.mean(found)) if found else None


def seconds_a_head(rows: Sequence[HeadRow]) -> float:
    """Mean wall-clock time of a head; 0 where there is none yet."""
    return sum(sum(row.seconds.values()) for row in rows) / max(1, len(rows))


def summary(rows: Sequence[HeadRow]) -> dict[str, Any]:
    """The means of some heads, as they stand in the JSON."""
    return {
        "psnr": by_yaw(rows, "psnr"),
        "ssim": by_yaw(rows, "ssim"),
        "perceptual": by_yaw(rows, "perceptual"),
        "depth_median": depth_median(rows),
        "heads": len(rows),
    }


def to_json(evaluation: Evaluation) -> str:
    """All figures, their means by absolute yaw first."""
    config, distribution = evaluation.config, evaluation.distribution
    table: dict[str, Any] = {"kind": KIND, **summary(evaluation.rows), "complete": evaluation.complete}
    if evaluation.baseline:
        table["baseline"] = summary(evaluation.baseline)
        table["gain"] = gain(evaluation)
    if distribution is not None:
        table["swd"] = {
            "samples": distribution.mean("samples"),
            "halves": distribution.mean("halves"),
            "ratio": distribution.ratio,
            "samples_by_level": dict(distribution.samples),
            "halves_by_level": dict(distribution.halves),
            "pictures": distribution.pictures,
        }
    rows = (*evaluation.rows, *evaluation.baseline)
    table |= {
        "aims": {"psnr": dict(AIMS), "gain": AIM_GAIN, "depth_median": AIM_DEPTH},
        "weights": {"name": config.weights, "sha256": evaluation.weights_sha256},
        "preset": config.preset,
        "seed": config.seed,
        "device": sorted({row.device for row in rows}),
        "seconds": evaluation.seconds,
        "seconds_a_head": seconds_a_head(evaluation.rows),
        "headlift": __version__,
        "settings": asdict(config.inversion),
        "rows": [asdict(row) for row in rows],
    }
    return json.dumps(table, indent=1)


def _check(config: EvaluatePriorConfig, workers: int | None) -> None:
    check_workers(workers)
    if config.heads is not None and config.heads < 1:
        raise ConfigError(f"--heads must be at least 1, not {config.heads}.")
    if config.baseline < 0:
        raise ConfigError(f"--baseline must not be negative, but is {config.baseline}.")
