"""From crops and their cameras to a head, by a method of the user's choice. Read `invert`, then the method's file."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence

from headlift.config import InversionConfig
from headlift.eg3d.generator import Generator as Eg3d
from headlift.errors import ConfigError
from headlift.invert.best import best
from headlift.invert.codes import w, w_plus
from headlift.invert.hfgi3d import hfgi3d
from headlift.invert.in_n_out import in_n_out
from headlift.invert.multi import multi
from headlift.invert.pose import pose
from headlift.invert.pti import pti
from headlift.invert.result import Inversion, InversionState
from headlift.invert.spi import spi
from headlift.invert.task import Method, Task, make_view
from headlift.invert.task import make_target as make_target
from headlift.values import Crop, Step

METHODS: Mapping[str, Method] = {
    "best": best,
    "w": w,
    "w+": w_plus,
    "pti": pti,
    "pose": pose,
    "spi": spi,
    "hfgi3d": hfgi3d,
    "in-n-out": in_n_out,
    "multi": multi,
}
"""Every method by the name that it has in settings and at the command line."""
SEVERAL = frozenset({"multi"})
"""Those that take several photos of one person."""

OWN = ("geometry", "side_colour", "carving", "photo_gain", "finish_steps")
"""Settings of the tuning that are those of `best` alone."""


def never() -> bool:
    """Go on to the end."""
    return False


def ignore(state: InversionState) -> None:
    """Keep no states."""


def invert(
    generator: Eg3d,
    crop: Crop | Sequence[Crop],
    config: InversionConfig,
    seed: int = 0,
    should_stop: Callable[[], bool] = never,
    resume: InversionState | None = None,
    on_state: Callable[[InversionState], None] | None = None,
) -> Generator[Step, None, Inversion]:
    """Invert a crop by `config.method`; yields every step, returns the head.

    The same generator, crop, config and seed give the same head, bit for bit, on the processor of one machine with one
    thread count, whether or not the run was interrupted and resumed. A GPU adds gradients up in no fixed order: there
    heads are the same up to rounding.

    Args:
        generator: the prior; it is left as it is.
        crop: the photo; with a method for several, all of them, the one that the head's file shows first.
        should_stop: asked before each step; once true, what there is is kept and returned.
        resume: what `on_state` was handed by an earlier run of the same inputs.
        on_state: is handed a state every `keep_every` steps, and at the end of each stage.

    Raises:
        WeightsError: the perceptual distance needs weights that are not here.
        ConfigError: a setting is out of range, is not one of the method's, or the method takes one photo.
        InversionError: the losses are no numbers any more.
    """
    crops = (crop,) if isinstance(crop, Crop) else tuple(crop)
    check(config, len(crops))
    views = tuple(make_view(one, generator) for one in crops)
    task = Task(generator, views, config, seed, should_stop, resume, on_state or ignore)
    return (yield from METHODS[config.method](task))


def check(config: InversionConfig, photos: int) -> None:
    """Raises ConfigError when a setting is out of range or not the method's, or the method takes fewer photos."""
    if config.method not in METHODS:
        raise ConfigError(f"unknown method {config.method!r}; there are {', '.join(METHODS)}")
    if photos != 1 and config.method not in SEVERAL:
        raise ConfigError(
            f"the method {config.method!r} takes one photo, not {photos}; for several there is {', '.join(SEVERAL)}"
        )
    if not photos:
        raise ConfigError("there is no photo to invert")
    own = {f"tuning.{name}": getattr(config.tuning, name) for name in OWN} | {"latent.sides": config.latent.sides}
    if config.method != "best" and any(own.values()):
        told = ", ".join(f"{name} is {value:g}" for name, value in own.items() if value)
        raise ConfigError(
            f"{told}, but the method {config.method!r} does not know it: start from "
            f"headlift.config.published({config.method!r}), or take the method 'best'"
        )
    for name, value in (
        ("latent.steps", config.latent.steps),
        ("tuning.steps", config.tuning.steps),
        ("tuning.side_views", config.tuning.side_views),
        ("tuning.finish_steps", config.tuning.finish_steps),
        ("hfgi3d.steps", config.hfgi3d.steps),
        ("in_n_out.steps", config.in_n_out.steps),
    ):
        if value < 0:
            raise ConfigError(f"{name} is {value}, but must not be negative")
    for name, value in (
        ("latent.w_stats_samples", config.latent.w_stats_samples),
        ("latent.neural_resolution", config.latent.neural_resolution or 1),
        ("tuning.backbone_every", config.tuning.backbone_every),
        ("tuning.geometry_every", config.tuning.geometry_every),
        ("spi.every", config.spi.every),
        ("spi.neighbours", config.spi.neighbours),
        ("spi.region", config.spi.region),
        ("hfgi3d.views", config.hfgi3d.views),
        ("in_n_out.channels", config.in_n_out.channels),
        ("in_n_out.resolution", config.in_n_out.resolution),
        ("in_n_out.hidden", config.in_n_out.hidden),
    ):
        if value < 1:
            raise ConfigError(f"{name} is {value}, but must be at least 1")
    for name, share in (("latent.split", config.latent.split), ("camera.preheat", config.camera.preheat)):
        if not 0 <= share <= 1:
            raise ConfigError(f"{name} is {share}, but is a share between 0 and 1")
