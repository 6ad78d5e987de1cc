"""`python -m headlift.prior.synthetic STEP`: bundle, heads, depths, evalset, sheet, check; each has its `--help`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from headlift.errors import HeadliftError
from headlift.prior.command import at_least

if TYPE_CHECKING:
    from collections.abc import Iterator


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one step; errors of the user are printed, not raised."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except HeadliftError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"Stopped.{options.resumed}", file=sys.stderr)
        return 130
    return 0


def _bundle(options: argparse.Namespace) -> None:
    from headlift.prior.synthetic import assets

    if options.where or options.release is None or options.bundle is None:
        print(assets.WHERE)
        return
    built = assets.build_bundle(options.release, options.bundle)
    print(f"{options.bundle}: {built.vertices} vertices, {built.targets} morph targets, {built.textures} textures")


def _heads(options: argparse.Namespace) -> None:
    from headlift.prior.synthetic.dataset import Settings, write_dataset

    settings = Settings(
        seed=options.seed,
        recipe=options.recipe,
        views=options.views,
        orbit=options.orbit,
        res=options.res,
        ss=options.ss,
        fmt=options.fmt,
        quality=options.quality,
        depth=options.depth,
    )
    heads = range(options.first, options.first + options.heads)
    with _progress(options.quiet, "heads") as progress:
        drawn = write_dataset(options.bundle, options.out, heads, settings, options.procs, options.overwrite, progress)
    print(f"{options.out}: {len(heads)} heads, {drawn} of them drawn now")


def _depths(options: argparse.Namespace) -> None:
    from headlift.prior.synthetic.depths import write_depths

    with _progress(options.quiet, "heads") as progress:
        pictures = write_depths(options.bundle, options.heads, options.out, options.procs, progress, options.last)
    print(f"{options.out}: depth of {pictures} pictures")


def _evalset(options: argparse.Namespace) -> None:
    from headlift.prior.synthetic.evalset import write_evalset

    with _progress(options.quiet, "heads") as progress:
        write_evalset(options.bundle, options.out, options.heads, options.seed, options.recipe, options.res, progress)
    print(f"{options.out}: {options.heads} heads, ten views each")


def _sheet(options: argparse.Namespace) -> None:
    from PIL import Image

    from headlift.export.files import atomic_path
    from headlift.prior.synthetic.sheet import contact_sheet

    picture = contact_sheet(
        options.bundle, options.first, options.heads, options.seed, options.recipe, options.res, options.look
    )
    with atomic_path(options.out) as part:
        Image.fromarray(picture).save(part)
    print(f"{options.out}: {picture.shape[1]} x {picture.shape[0]}")


def _check(options: argparse.Namespace) -> None:
    from headlift.prior.synthetic.check import check_heads

    print(check_heads(options.bundle, options.first, options.heads, options.seed, options.recipe).table())


@contextmanager
def _progress(quiet: bool, what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on the terminal, or nothing."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(what),
        BarColumn(bar_width=40),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m headlift.prior.synthetic", description=__doc__)
    steps = parser.add_subparsers(required=True, metavar="STEP")

    def step(
        name: str, run: Callable[[argparse.Namespace], None], text: str, resumed: str = ""
    ) -> argparse.ArgumentParser:
        sub = steps.add_parser(
            name, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        sub.set_defaults(run=run, resumed=resumed)
        return sub

    bundle = step("bundle", _bundle, "build the bundle of assets from MakeHuman's CC0 release")
    bundle.add_argument("release", type=Path, nargs="?", help="folder with what --where names")
    bundle.add_argument("bundle", type=Path, nargs="?", help="folder to write")
    bundle.add_argument("--where", action="store_true", help="say where the release is to be had")

    goes_on = " The same command goes on from here."
    text = "draw a dataset of heads"
    heads = step("heads", _heads, text, " The same command, without --overwrite, goes on from here.")
    heads.add_argument("bundle", type=Path, help="folder of assets")
    heads.add_argument("out", type=Path, help="folder, or a name that ends in .zip")
    _numbers(heads, first=(0, "number of the first head"), heads=(64, "how many heads"))
    _numbers(heads, views=(4, "pictures of a head"), orbit=(0, "how many of them, the last ones, from all round"))
    _numbers(heads, res=(256, "pixels along a side"), ss=(2, "supersampling"), procs=(1, "processes"), seed=(0, "seed"))
    _numbers(heads, recipe=(2, "1: as the first data set; 2: balanced, screened, some glasses"))
    _numbers(heads, quality=(90, "of WebP and JPEG"))
    heads.add_argument("--fmt", choices=("webp", "png", "jpg"), default="webp", help="jpg: on a background")
    heads.add_argument("--depth", action="store_true", help="write depth too: distance along the ray / 1e-4 units")
    heads.add_argument("--overwrite", action="store_true", help="delete what is in the way")
    heads.add_argument("--quiet", action="store_true", help="no progress bar")

    depths = step("depths", _depths, "draw the depth of the pictures of archives that are there already", goes_on)
    depths.add_argument("bundle", type=Path, help="folder of assets")
    depths.add_argument("heads", type=Path, help="folder with heads-*.zip")
    depths.add_argument("out", type=Path, help="file to write, .npy")
    _numbers(depths, procs=(1, "processes"))
    depths.add_argument("--last", action="store_true", help="of the last surface behind each pixel, not of the first")
    depths.add_argument("--quiet", action="store_true", help="no progress bar")

    evalset = step("evalset", _evalset, "draw an evaluation set: ten views a head, with depth", goes_on)
    evalset.add_argument("bundle", type=Path, help="folder of assets")
    evalset.add_argument("out", type=Path, help="folder")
    _numbers(evalset, heads=(48, "how many heads"), seed=(1, "seed"), recipe=(1, "see heads"), res=(256, "pixels"))
    evalset.add_argument("--quiet", action="store_true", help="no progress bar")

    sheet = step("sheet", _sheet, "draw a contact sheet")
    sheet.add_argument("bundle", type=Path, help="folder of assets")
    sheet.add_argument("out", type=Path, help="picture to write")
    _numbers(sheet, first=(0, "number of the first head"), heads=(24, "how many heads"), seed=(0, "seed"))
    _numbers(sheet, recipe=(2, "see heads"), res=(256, "pixels along the side of one picture"))
    sheet.add_argument("--look", choices=("front", "random", "turn"), default="front", help="from where")

    check = step("check", _check, "measure whether cameras, depth and masks agree with the meshes")
    check.add_argument("bundle", type=Path, help="folder of assets")
    _numbers(check, first=(0, "number of the first head"), heads=(3, "how many heads"), seed=(0, "seed"))
    _numbers(check, recipe=(2, "see heads"))
    return parser


LEAST = {"first": 0, "seed": 0, "orbit": 0, "res": 8}
"""The smallest values of the numbers that may be others than 1 and more."""


def _numbers(parser: argparse.ArgumentParser, **options: tuple[int, str]) -> None:
    for name, (default, text) in options.items():
        parser.add_argument(f"--{name}", type=at_least(LEAST.get(name, 1)), default=default, help=text)


if __name__ == "__main__":
    sys.exit(main())
