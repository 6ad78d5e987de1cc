"""How long a head will take on this machine: measured on a few steps beforehand, then on the steps so far."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from headlift.config import TUNING_STEPS, ReconstructConfig
from headlift.values import Step

PROBE_STEPS = 4
"""Steps of each stage that a measurement takes; the first, which prepares the stage, is counted apart. Of the others as
many look at a side view as of all steps of `best`."""
RECENT = 30
"""Steps from which the pace of a running stage is taken."""


@dataclass(frozen=True)
class Pace:
    """What the parts of a reconstruction take here, seconds."""

    before: float
    """Until the first step is done."""
    step: Mapping[str, float]
    """One step, by stage."""
    after: float
    """From the last step to the head's mesh."""
    more: Mapping[str, float] = field(default_factory=dict)
    """What the first step of each stage but the first one takes more than its others."""

    def total(self, config: ReconstructConfig) -> float:
        """Seconds of a whole run."""
        return self.before + self.after + sum(self.stage(name, count) for name, count in stages(config).items())

    def stage(self, name: str, count: int) -> float:
        """Seconds of a stage of so many steps; 0 for one that was not measured."""
        return count * self.step.get(name, 0.0) + self.more.get(name, 0.0)


def stages(config: ReconstructConfig) -> dict[str, int]:
    """Steps of each stage that a method goes through, in order."""
    now = config.inversion
    found = {"latent": now.latent.steps}
    if now.method not in ("w", "w+"):
        found["tuning"] = now.tuning.steps
    if now.tuning.finish_steps:
        found["finish"] = now.tuning.finish_steps
    if now.method == "hfgi3d":
        found["views"] = now.hfgi3d.steps
    if now.method == "in-n-out":
        found["superres"] = now.in_n_out.steps
    return found


def shortened(config: ReconstructConfig) -> ReconstructConfig:
    """The same settings with as few steps as a measurement needs, and no pictures."""
    now = config.inversion
    inversion = replace(
        now,
        latent=replace(now.latent, steps=min(now.latent.steps, PROBE_STEPS)),
        tuning=replace(now.tuning, **{name: min(getattr(now.tuning, name), PROBE_STEPS) for name in TUNING_STEPS}),
        hfgi3d=replace(now.hfgi3d, steps=min(now.hfgi3d.steps, PROBE_STEPS)),
        in_n_out=replace(now.in_n_out, steps=min(now.in_n_out.steps, PROBE_STEPS)),
        preview_every=0,
    )
    return replace(config, inversion=inversion)


def kind(config: ReconstructConfig) -> ReconstructConfig:
    """Settings that take equally long a step, and for the mesh, are equal in this form."""
    usual = ReconstructConfig()
    mesh = replace(usual.mesh, resolution=config.mesh.resolution)
    return replace(shortened(config), preset=usual.preset, pose=usual.pose, mesh=mesh, video=usual.video)


def measure(config: ReconstructConfig, run: Callable[[ReconstructConfig, Callable[[Step], None]], None]) -> Pace:
    """Time a shortened run; `run` is a reconstruction of some photo, told where to report its steps."""
    began = time.perf_counter()
    stamps: list[tuple[str, float]] = []
    run(shortened(config), lambda step: stamps.append((step.stage, time.perf_counter())))
    return pace_of(began, stamps, time.perf_counter())


def pace_of(began: float, stamps: Sequence[tuple[str, float]], ended: float) -> Pace:
    """The pace of a run from when it began, when each step was done and when it ended, all in seconds."""
    if not stamps:
        return Pace(ended - began, {}, 0.0)
    steps: dict[str, float] = {}
    more: dict[str, float] = {}
    last = None
    for stage in dict.fromkeys(name for name, _ in stamps):
        times = [at for name, at in stamps if name == stage]
        if len(times) > 1:
            steps[stage] = (times[-1] - times[0]) / (len(times) - 1)
            if last is not None:
                more[stage] = max(0.0, times[0] - last - steps[stage])
        last = times[-1]
    return Pace(stamps[0][1] - began, steps, ended - stamps[-1][1], more)


def time_left(
    steps: Sequence[Step], stamps: Sequence[float], now: float, config: ReconstructConfig, pace: Pace | None
) -> float | None:
    """Seconds left of a run: this stage by its own recent steps, later ones by the pace measured beforehand.

    When this machine is slower or faster now than it was then, the later stages are taken to be so too. None when
    nothing has been measured yet.
    """
    plan = stages(config)
    if not steps:
        return None if pace is None else pace.total(config)
    stage = steps[-1].stage
    times = [at for step, at in zip(steps, stamps, strict=False) if step.stage == stage][-RECENT:]
    known = 0.0 if pace is None else pace.step.get(stage, 0.0)
    each = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else known
    if not each:
        return None
    left = max(0.0, (steps[-1].total - steps[-1].index) * each - (now - times[-1]))
    slower = each / known if known else 1.0
    later = list(plan)[list(plan).index(stage) + 1 :] if stage in plan else []
    for name in later:
        left += pace.stage(name, plan[name]) * slower if pace and name in pace.step else plan[name] * each
    return left + (pace.after * slower if pace else 0.0)


class Paces:
    """Paces measured so far, by kind of settings. Safe to use from several threads."""

    def __init__(self) -> None:
        self._known: dict[ReconstructConfig, Pace] = {}
        self._lock = threading.Lock()

    def get(self, config: ReconstructConfig) -> Pace | None:
        """The pace of such settings, if it has been measured."""
        with self._lock:
            return self._known.get(kind(config))

    def put(self, config: ReconstructConfig, pace: Pace) -> None:
        """Remember a pace."""
        with self._lock:
            self._known[kind(config)] = pace
