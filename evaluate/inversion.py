"""One benchmark for every inversion method: the same images, the same figures, what each costs.

Methods times images, each a part of its own that is kept as soon as it is done (`kept`), in as many processes as there
are cores. What an image is, and what is known of it, is told by `subjects`; the figures by `figures`; how sure the
means are, by `statistics`; `inversion_page` shows it all. Photos, heads known from several sides and the prior's own
samples are hard in different degrees: means and comparisons are of one kind.
"""

from __future__ import annotations

import json
import math
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import UInt8

from headlift import __version__
from headlift.config import TUNING_STEPS, EvaluateInversionConfig, InversionConfig, Method, PoseConfig, from_table
from headlift.device import find_device
from headlift.eg3d.camera import FFHQ_FOCAL
from headlift.eg3d.generator import Generator
from headlift.errors import ConfigError, DataError, FaceError, InversionError, PhotoError
from headlift.evaluate.cost import costing, device_name
from headlift.evaluate.crew import Stopped
from headlift.evaluate.distribution import fid, inception, kid
from headlift.evaluate.figures import Figures, Sight, find_judges, judge_files, measure
from headlift.evaluate.kept import check_workers, generator_of, keep, kept, key_of, work_through
from headlift.evaluate.multiview import FOCAL_TOLERANCE
from headlift.evaluate.statistics import SIGNIFICANT, Interval, holm, interval, paired
from headlift.evaluate.subjects import Kind, Source, Subject, Truth, find_sources, known_crop, turned_off
from headlift.export.files import atomic_path, write_bytes, write_text
from headlift.export.images import grid, jpeg_bytes, shrink, to_uint8
from headlift.invert.follow import follow
from headlift.invert.invert import SEVERAL, invert
from headlift.values import Crop, Step
from headlift.weights import INCEPTION, file_sha256, find_measure, load_generator, looks_ahead

OWN_CAMERA = frozenset({"pose"})
"""Methods that move the camera even where it is known: that is what they are."""
OF_ONE_IMAGE = (PhotoError, FaceError, DataError, InversionError)
"""What may go wrong with one image and leave the others as they are."""
ROWS, SUMMARY = "rows.json", "summary.json"
PICTURE_SIDE = 192
"""Side of the pictures on the page, pixels."""
FURTHER_YAW = 45.0
"""A method for several photos is given, beside the photo, a head's face crops up to so far to the side, degrees."""
BETTER: Mapping[str, bool] = {
    "psnr": True, "psnr_30": True, "psnr_60": True, "perceptual": False, "perceptual_30": False, "perceptual_60": False,
    "identity": True, "identity_over_yaw": True, "depth": False, "camera_error": False,
}  # fmt: skip
"""Figures in which methods are held against each other, and whether more is better."""


@dataclass(frozen=True)
class Row:
    """One method on one image."""

    method: str
    image: str
    kind: Kind
    key: str
    figures: Figures = field(default_factory=dict)
    """By name; `figures.measure` and `figures.compare` say what each is. With seconds, memory (GiB) and steps."""
    reason: str = ""
    """Why it ended."""
    device: str = ""
    error: str = ""
    """Why there are no figures."""


@dataclass(frozen=True)
class Verdict:
    """Two methods in a figure, on the images that all methods with the figure have."""

    figure: str
    best: str
    """The one with the better mean."""
    other: str
    gain: Interval
    """Of the best over the other, counted so that more is better."""
    p: float
    """As `Paired.p`, corrected (Holm) for all pairs of methods in this figure: the data choose which is the best."""

    @property
    def shown(self) -> bool:
        """Whether it can be said that the one is better."""
        return self.p < SIGNIFICANT


@dataclass(frozen=True)
class Sets:
    """A method's new views (or, without truth, its views over the yaw) against true pictures, as sets."""

    fid: float
    kid: float
    n: int
    """Pictures on the method's side."""
    true: int
    """Pictures on the other."""


@dataclass(frozen=True)
class Group:
    """What was measured on the images of one kind."""

    kind: Kind
    rows: tuple[Row, ...]
    sets: Mapping[str, Sets]
    """By method, where the Inception network is there."""

    def values(self, method: str, figure: str) -> dict[str, float]:
        """A figure by image, where there is one."""
        found = {row.image: row.figures.get(figure) for row in self.rows if row.method == method}
        return {image: value for image, value in found.items() if value is not None and math.isfinite(value)}

    @property
    def images(self) -> list[str]:
        return list(dict.fromkeys(row.image for row in self.rows))

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(row.method for row in self.rows))


@dataclass(frozen=True)
class Comparison:
    """All that was measured."""

    groups: tuple[Group, ...]
    methods: tuple[str, ...]
    config: EvaluateInversionConfig
    weights_sha256: str
    seconds: float
    """Wall-clock time of this call."""
    complete: bool

    @property
    def rows(self) -> list[Row]:
        return [row for group in self.groups for row in group.rows]

    @property
    def figures(self) -> list[str]:
        """Names of all figures that some row has, in the order of the rows."""
        names = dict.fromkeys(name for row in self.rows for name in row.figures)
        return [name for name in names if any(row.figures.get(name) is not None for row in self.rows)]


@dataclass(frozen=True)
class MethodTask:
    """One method on one image."""

    source: Source
    method: str
    inversion: InversionConfig
    config: EvaluateInversionConfig
    out: Path
    key: str

    @property
    def pose(self) -> PoseConfig:
        """How faces are looked for: in the generator's idea of straight ahead."""
        return replace(self.config.pose, frame=looks_ahead(self.config.weights, self.config.pose.frame))

    @property
    def stem(self) -> str:
        return f"{self.source.name}--{self.method}"

    @property
    def row_path(self) -> Path:
        return self.out / "rows" / f"{self.stem}.json"

    @property
    def picture_path(self) -> Path:
        return self.out / "pictures" / f"{self.stem}.jpg"

    @property
    def truth_path(self) -> Path:
        """What the pictures should show; each method on the image writes the same."""
        return self.out / "pictures" / f"{self.source.name}.jpg"

    @property
    def features_path(self) -> Path:
        """Inception features, where the network is there."""
        return self.out / "features" / f"{self.stem}.npz"


def evaluate_inversion(
    folder: Path | None,
    out: Path,
    methods: Sequence[str],
    config: EvaluateInversionConfig,
    workers: int | None = None,
    overwrite: bool = False,
    on_step: Callable[[Step], None] = lambda step: None,
    should_stop: Callable[[], bool] = lambda: False,
    on_result: Callable[[Comparison], None] = lambda comparison: None,
) -> Comparison | None:
    """Measure methods on the images of a folder and on samples of the prior; goes on where an earlier call stopped.

    None when it was stopped: what is done is kept. An image on which no face is found, or a method that goes astray on
    one, has rows that say so.

    Args:
        folder: as `subjects.find_sources` reads it; None with samples alone.
        methods: names from `invert.invert.METHODS`; NAME@SETTING=VALUE changes a setting of the method.
        workers: processes at a time, with one thread each.
        overwrite: measure anew what `out` holds already.
        on_step: is told of inversions as they are done, and with one worker of the steps of each.
        on_result: is handed what there is, at most once a minute, at the end, and when it was stopped.

    Raises:
        DataError, PhotoError: there is nothing to measure on, or the folder is not of its form.
        ConfigError: a setting or a method is unknown or out of range.
        WeightsError, CheckpointError, DeviceError: no such weights or device.
        OutputError: `out` holds results of other settings, or cannot be written.
    """
    began = time.monotonic()
    _check(config, methods, workers)
    sources = find_sources(folder, config.samples, config.images, config.photo_yaw, config.truncation)
    device = find_device(config.device)
    _, sha256 = load_generator(config.weights, device)
    tasks = plan(sources, methods, config, sha256, out)

    def results(there: Sequence[MethodTask]) -> Comparison:
        seconds = time.monotonic() - began
        found = collect(there, methods, config, sha256, seconds, complete=len(there) == len(tasks))
        write_text(out / ROWS, to_json(found))
        write_text(out / SUMMARY, summary(found))
        on_result(found)
        return found

    whole = work_through(run_task, tasks, workers, device, overwrite, "inversions", on_step, should_stop, results)
    return results(tasks) if whole else None


def plan(
    sources: Sequence[Source], methods: Sequence[str], config: EvaluateInversionConfig, sha256: str, out: Path
) -> list[MethodTask]:
    """What has to be done: one image with all methods after the other."""
    tasks = []
    measures = {"camera_off": config.camera_off, "seed": config.seed, "headlift": __version__, "weights": sha256}
    measures |= {name: file_sha256(file) for name, file in judge_files().items()}
    for source in sources:
        digest = source.digest()
        for method in methods:
            inversion = settings_of(method, config, source.known)
            key = key_of({**measures, "data": digest, "inversion": asdict(inversion)} | found_by(source, config))
            tasks.append(MethodTask(source, method, inversion, config, out, key))
    return tasks


def found_by(source: Source, config: EvaluateInversionConfig) -> dict[str, Any]:
    """What tells how a source's cameras are found, where they are not known."""
    return {} if source.known else {"pose": asdict(config.pose)}


def settings_of(label: str, config: EvaluateInversionConfig, known: bool) -> InversionConfig:
    """The settings that a method is measured with: the preset's, with what the label changes.

    A known camera stays, unless it was turned off the truth or the method is about it; then it moves as the method has
    it.

    Raises:
        ConfigError: the label is no method, or names no setting of one.
    """
    name, *changes = label.split("@")
    try:
        table = tomllib.loads("\n".join(f"inversion.{change}" for change in changes))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the method {label!r} is not of the form NAME@SETTING=VALUE ({error}).") from None
    if name not in get_args(Method):
        raise ConfigError(f"unknown method {name!r}; there are {', '.join(get_args(Method))}")
    table["inversion"] = {**table.get("inversion", {}), "method": name}
    table["preset"] = config.preset
    inversion = from_table(table).inversion
    inversion = replace(inversion, perceptual=config.perceptual, preview_every=0, keep_every=0)
    if known and not config.camera_off and name not in OWN_CAMERA:
        inversion = replace(inversion, camera=replace(inversion.camera, enabled=False))
    return inversion if config.steps is None else at_most(inversion, config.steps)


def at_most(inversion: InversionConfig, steps: int) -> InversionConfig:
    """The same settings with no more than so many steps in any stage."""
    capped: dict[str, Any] = {}
    for name, part in inversion.__dict__.items():
        counts = {key: min(steps, getattr(part, key)) for key in TUNING_STEPS if hasattr(part, key)}
        if counts:
            capped[name] = replace(part, **counts)
    return replace(inversion, **capped)


# One method on one image


def run_task(task: MethodTask, on_step: Callable[[Step], None], should_stop: Callable[[], bool]) -> MethodTask:
    """Do one, keep its figures and pictures, and say that it is done. Raises Stopped when it was asked to stop."""
    generator, _ = generator_of(task.config.weights, task.config.device)
    try:
        subject = task.source.load(generator, task.pose)
        subject = replace(subject, crop=turned_off(subject.crop, task.config.camera_off, task.source.name))
        row, shown = evaluate_one(generator, subject, task, on_step, should_stop)
    except OF_ONE_IMAGE as error:
        nothing = np.full((PICTURE_SIDE, PICTURE_SIDE, 3), 255, np.uint8)
        row = Row(task.method, task.source.name, task.source.kind, task.key, error=str(error))
        keep(task, asdict(row), nothing)
        return task
    write_bytes(task.truth_path, jpeg_bytes(truth_strip(subject, shown)))
    keep(task, asdict(row), result_strip(subject, shown, row.figures))
    return task


def evaluate_one(
    generator: Generator,
    subject: Subject,
    task: MethodTask,
    on_step: Callable[[Step], None] = lambda step: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[Row, list[Sight]]:
    """Invert and measure; the row, and the renders that it is of. Raises Stopped when it was asked to stop."""
    device = next(generator.parameters()).device
    crops = [subject.crop]
    if task.inversion.method in SEVERAL:
        further, rest = further_photos(subject, task.config.camera_off, task.source.name)
        crops, subject = [*crops, *further], replace(subject, others=rest)
    with costing(device) as cost:
        inversion = follow(invert(generator, crops, task.inversion, task.config.seed, should_stop), on_step)
    if should_stop():
        raise Stopped
    figures, shown = measure(subject, inversion, find_judges(task.pose.frame))
    figures |= {"seconds": cost.seconds, "memory": cost.memory, "steps": float(len(inversion.history))}
    keep_features(task, subject, shown)
    row = Row(task.method, task.source.name, task.source.kind, task.key, figures, inversion.reason, device_name(device))
    return row, shown


def further_photos(subject: Subject, camera_off: float, name: str) -> tuple[list[Crop], tuple[Truth, ...]]:
    """Further photos of a head for a method that takes several, and the views that are then left as new ones.

    Cameras start so many degrees off, each to its own side.
    """
    given = [
        truth
        for truth in subject.others
        if abs(truth.yaw) <= FURTHER_YAW and abs(float(truth.camera.intrinsics[0, 0, 0]) - FFHQ_FOCAL) < FOCAL_TOLERANCE
    ]
    rest = tuple(truth for truth in subject.others if not any(truth is other for other in given))
    crops = [known_crop(truth.picture, truth.camera) for truth in given]
    return [turned_off(crop, camera_off, f"{name} {number}") for number, crop in enumerate(crops)], rest


def truth_strip(subject: Subject, shown: Sequence[Sight]) -> UInt8[np.ndarray, "h w 3"]:
    """What goes in, then the true new views; white where nothing is known."""
    pictures = [_tile(to_uint8(truth.picture.over(1.0))) for truth in (subject.photo, *subject.others)]
    pictures += [np.full_like(pictures[0], 255)] * (len(shown) - len(pictures))
    labels = ["photo", *(f"{truth.yaw:+d}\N{DEGREE SIGN}" for truth in subject.others)]
    return grid(pictures, labels + [""] * (len(pictures) - len(labels)), columns=len(pictures))


def result_strip(subject: Subject, shown: Sequence[Sight], figures: Figures) -> UInt8[np.ndarray, "h w 3"]:
    """The renders, with their figures."""
    labels = [f"{figures['psnr']:.1f} dB"]
    for sight in shown[1:]:
        value = figures.get(f"psnr_{abs(sight.yaw)}") if subject.others else None
        labels.append(f"{sight.yaw:+d}\N{DEGREE SIGN}" + ("" if value is None else f"  {value:.1f} dB"))
    return grid([_tile(sight.pixels) for sight in shown], labels, columns=len(shown))


def _tile(pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "_ _ 3"]:
    from PIL import Image

    if pixels.shape[0] < PICTURE_SIDE:
        return np.asarray(Image.fromarray(pixels).resize((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.NEAREST))
    return shrink(pixels, PICTURE_SIDE)


def keep_features(task: MethodTask, subject: Subject, shown: Sequence[Sight]) -> None:
    """Where the Inception network is there: features of the new views, and of what is known to be true."""
    file = find_measure(INCEPTION)
    if file is None:
        return
    network = inception(file)
    truths = subject.others or (subject.photo,)
    with atomic_path(task.features_path) as temporary, temporary.open("wb") as stream:
        np.savez(
            stream,
            true=network([truth.picture.over(1.0) for truth in truths]),
            found=network([sight.image for sight in shown[1:]]),
        )


# All of them


def collect(
    tasks: Sequence[MethodTask],
    methods: Sequence[str],
    config: EvaluateInversionConfig,
    sha256: str,
    seconds: float,
    complete: bool = True,
) -> Comparison:
    """The figures of finished tasks."""
    groups = []
    for kind in dict.fromkeys(task.source.kind for task in tasks):
        done = [(task, Row(**kept(task))) for task in tasks if task.source.kind == kind]
        sets = {}
        for method in methods:
            files = [task.features_path for task, row in done if row.method == method and not row.error]
            apart = sets_of([file for file in files if file.exists()])
            if apart is not None:
                sets[method] = apart
        groups.append(Group(kind, tuple(row for _, row in done), sets))
    return Comparison(tuple(groups), tuple(methods), config, sha256, seconds, complete)


def sets_of(files: Iterable[Path]) -> Sets | None:
    """How far found and true pictures are apart by the features in files; None for fewer than two of either."""
    found, true = [], []
    for file in files:
        with np.load(file) as stored:
            found.append(stored["found"])
            true.append(stored["true"])
    if sum(map(len, found)) < 2 or sum(map(len, true)) < 2:
        return None
    a, b = np.concatenate(found), np.concatenate(true)
    return Sets(fid(a, b), kid(a, b), len(a), len(b))


def means(group: Group, figure: str) -> dict[str, Interval]:
    """A figure's mean for each method that has it, over the images on which it has it."""
    found = {method: list(group.values(method, figure).values()) for method in group.methods}
    return {method: interval(values) for method, values in found.items() if values}


def verdicts(group: Group, figure: str) -> list[Verdict]:
    """Every two of the methods that have a figure, on the images on which all of them have it; the best one's first."""
    found = {method: values for method in group.methods if (values := group.values(method, figure))}
    shared = [image for image in group.images if all(image in values for values in found.values())]
    if not any(values[image] for values in found.values() for image in shared):
        return []
    sign = 1.0 if BETTER[figure] else -1.0
    scores = {method: [sign * values[image] for image in shared] for method, values in found.items()}
    pairs = list(combinations(sorted(scores, key=lambda method: -np.mean(scores[method])), 2))
    tests = [paired(scores[best], scores[other]) for best, other in pairs]
    corrected = holm([test.p for test in tests])
    return [
        Verdict(figure, best, other, test.difference, p)
        for (best, other), test, p in zip(pairs, tests, corrected, strict=True)
    ]


def flat(row: Row) -> dict[str, Any]:
    """A row as it stands in the JSON and the CSV: `method`, `image`, then the figures by name."""
    first = {"method": row.method, "image": row.image, "kind": row.kind}
    return {**first, **row.figures, "reason": row.reason, "device": row.device, "error": row.error}


def to_json(comparison: Comparison) -> str:
    """The list of rows."""
    return json.dumps([flat(row) for row in comparison.rows], indent=1)


def to_csv(comparison: Comparison) -> str:
    """The same, a line for each; empty where there is no figure."""
    import csv
    import io

    names = dict.fromkeys(name for row in comparison.rows for name in flat(row))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat(row) for row in comparison.rows)
    return stream.getvalue()


def summary(comparison: Comparison) -> str:
    """Means with intervals and comparisons by kind of image, and the settings, as JSON."""
    config = comparison.config
    table = {
        "kind": "headlift evaluate inversion",
        "means": {
            group.kind: {
                name: {method: asdict(found) for method, found in means(group, name).items()}
                for name in comparison.figures
            }
            for group in comparison.groups
        },
        "comparisons": {
            group.kind: [asdict(v) | {"shown": v.shown} for name in BETTER for v in verdicts(group, name)]
            for group in comparison.groups
        },
        "sets": {group.kind: {m: asdict(found) for m, found in group.sets.items()} for group in comparison.groups},
        "complete": comparison.complete,
        "seconds": comparison.seconds,
        "weights": {"name": config.weights, "sha256": comparison.weights_sha256},
        "device": sorted({row.device for row in comparison.rows if row.device}),
        "headlift": __version__,
        "settings": asdict(config),
        "methods": {method: asdict(settings_of(method, config, known=True)) for method in comparison.methods},
    }
    return json.dumps(table, indent=1)


def _check(config: EvaluateInversionConfig, methods: Sequence[str], workers: int | None) -> None:
    check_workers(workers)
    for name, value, least in (
        ("images", config.images, 1),
        ("samples", config.samples, 0),
        ("steps", config.steps, 0),
    ):
        if value is not None and value < least:
            raise ConfigError(f"--{name} must be at least {least}, not {value}.")
    if config.camera_off < 0:
        raise ConfigError(f"--camera-off must not be negative, but is {config.camera_off}.")
    if not methods:
        raise ConfigError("no methods: give --methods NAME,NAME...")
    if len(set(methods)) < len(methods):
        raise ConfigError(f"a method is named twice: {', '.join(methods)}")
    if any("/" in method for method in methods):
        raise ConfigError(f"a method's name must not hold a slash: {', '.join(methods)}")
    for method in methods:
        settings_of(method, config, known=True)
