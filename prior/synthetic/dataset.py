"""The dataset tool: pictures of many heads in EG3D's form, resumable, in several processes.

A dataset is a folder or a zip (stored, not compressed) with

- `NNNNN/imgNNNNNNNN.webp`: picture n shows head n // views; RGBA with straight alpha (`jpg`: on a background);
- `dataset.json`: `labels: [[name, 25 numbers], ...]`, EG3D's camera labels;
- `params/headNNNNNN.json`: the parameters of a head, written when all its pictures are;
- `depth/NNNNN/imgNNNNNNNN.png`, on demand: 16 bits, distance along the ray / 1e-4 units, 0 outside;
- `settings.json`: what it was made with.

Head i depends on the seed and i alone: the work can be split over processes and machines with `--first`, and whatever
is interrupted goes on where it was.
"""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from headlift.errors import ConfigError, DataError, OutputError
from headlift.export.files import atomic_path, write_bytes, write_text
from headlift.prior.dataset import DEPTH_UNIT
from headlift.prior.synthetic.body import Body
from headlift.prior.synthetic.bundle import Bundle, load_bundle
from headlift.prior.synthetic.cameras import ray_lengths
from headlift.prior.synthetic.plan import HeadPlan, Shot, plan_head
from headlift.prior.synthetic.processes import spread
from headlift.prior.synthetic.sampling import RECIPES

FORMATS = ("webp", "png", "jpg")
A_FOLDER = 1000
"""Pictures in a folder."""


@dataclass(frozen=True)
class Settings:
    """What decides how the pictures of a head look."""

    seed: int = 0
    recipe: int = 2
    views: int = 4
    orbit: int = 0
    """How many of the views, the last ones, are from all round with the wider lens."""
    res: int = 256
    """Pixels along a side."""
    ss: int = 2
    """Supersampling: pixels along the side of each."""
    fmt: str = "webp"
    quality: int = 90
    """Of WebP and JPEG, 1 to 100."""
    depth: bool = False

    def check(self) -> None:
        """Raises ConfigError for what cannot be."""
        wrong = {
            "--views": self.views < 1,
            "--orbit": not 0 <= self.orbit <= self.views,
            "--res": self.res < 8,
            "--ss": self.ss < 1,
            "--quality": not 1 <= self.quality <= 100,
            "--seed": self.seed < 0,
            f"--fmt (one of {', '.join(FORMATS)})": self.fmt not in FORMATS,
            f"--recipe (one of {', '.join(map(str, RECIPES))})": self.recipe not in RECIPES,
        }
        bad = [name for name, is_wrong in wrong.items() if is_wrong]
        if bad:
            raise ConfigError(f"Out of range: {', '.join(bad)}. Seen: {self}.")


@dataclass(frozen=True)
class Drawn:
    """A finished picture."""

    shot: Shot
    rgba: Float[np.ndarray, "s s 4"]
    """sRGB in [0, 1], premultiplied."""
    depth: Float[np.ndarray, "s s"]
    """Distance along the ray, world units, 0 outside."""


class Studio:
    """What one process needs to draw heads: body, skins, renderer."""

    def __init__(self, bundle: Bundle, res: int, ss: int) -> None:
        from headlift.prior.synthetic.render import Renderer
        from headlift.prior.synthetic.skin import SkinPainter

        self.body = Body(bundle)
        self._painter = SkinPainter(self.body)
        self.renderer = Renderer(bundle, res, ss)

    def draw(self, plan: HeadPlan) -> tuple[dict[str, Any], Iterator[Drawn]]:
        """A head's parameters as they are written (with the gap between the lips), and its pictures in order."""
        head = self.body.build(plan.params)

        def pictures() -> Iterator[Drawn]:
            lit = None
            with self.renderer.scene(head, plan.params, self._painter.paint(plan.params)) as scene:
                for shot in plan.shots:
                    if shot.light is not lit:
                        scene.light(shot.light)
                        lit = shot.light
                    label = shot.view.label
                    rgba, depth = scene.view(label)
                    yield Drawn(shot, rgba, (depth * ray_lengths(len(depth), label[16])).astype("f4"))

        return {**plan.params.to_json(), "lipgap": head.lip_gap}, pictures()

    def close(self) -> None:
        """Gives the renderer's context back."""
        self.renderer.close()


def write_dataset(
    bundle: Path,
    out: Path,
    heads: range,
    settings: Settings,
    procs: int = 1,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Draw the heads that `out` (a folder, or a file that ends in `.zip`) does not have yet; returns how many.

    `progress` is called with the number of heads done and of all. Raises ConfigError for settings that cannot be,
    DataError without a bundle, OutputError when `out` holds something else and not `overwrite`, DeviceError without
    OpenGL.
    """
    settings.check()
    if len(heads) == 0 or heads.start < 0 or procs < 1:
        raise ConfigError(f"--heads and --procs must be at least 1, --first at least 0: seen {heads} and {procs}.")
    load_bundle(bundle)
    packed = out.suffix == ".zip"
    folder = out.with_name(f"{out.name}.parts") if packed else out
    if overwrite:
        _clear(out, folder)
    if packed and out.exists():
        _refuse_other_zip(out, heads, settings)
        return 0
    _claim(folder, settings)
    missing = [i for i in heads if not _params_path(folder, i).exists()]
    make, work = partial(_studio, bundle, settings), partial(_draw_head, folder, settings)
    with closing(spread(make, work, missing, procs)) as drawn:
        for done, _ in enumerate(drawn, start=len(heads) - len(missing) + 1):
            if progress:
                progress(done, len(heads))
    wanted = list(heads) if packed else sorted(int(p.stem[4:]) for p in (folder / "params").glob("head*.json"))
    body = Body(load_bundle(bundle))
    labels = [
        [_name(settings, i * settings.views + k), shot.view.label.tolist()]
        for i in wanted
        for k, shot in enumerate(_plan(body, settings, i).shots)
    ]
    write_text(folder / "dataset.json", json.dumps({"labels": labels}))
    if packed:
        _pack(folder, out, [name for name, _ in labels], wanted)
        shutil.rmtree(folder)
    return len(missing)


def save_picture(path: Path, drawn: Drawn, fmt: str, quality: int, background: np.ndarray | None = None) -> None:
    """Write RGBA with straight alpha, or for jpg RGB on the background, under a name that appears when it is whole."""
    from PIL import Image

    rgba = drawn.rgba
    stream = io.BytesIO()
    if fmt == "jpg":
        assert background is not None
        side = (len(rgba), len(rgba))
        small = Image.fromarray((background * 255).astype("u1"))
        behind = np.asarray(small.resize(side, Image.Resampling.BICUBIC), "f4") / 255
        rgb = np.clip(rgba[..., :3] + (1 - rgba[..., 3:]) * behind, 0, 1)
        Image.fromarray((rgb * 255 + 0.5).astype("u1")).save(stream, "JPEG", quality=quality)
    else:
        straight = np.dstack([rgba[..., :3] / np.maximum(rgba[..., 3:], 1 / 255), rgba[..., 3:]])
        picture = Image.fromarray((np.clip(straight, 0, 1) * 255 + 0.5).astype("u1"), "RGBA")
        if fmt == "webp":
            picture.save(stream, "WEBP", quality=quality, method=4)
        else:
            picture.save(stream, "PNG", compress_level=4)
    write_bytes(path, stream.getvalue())


def save_depth(path: Path, depth: Float[np.ndarray, "s s"]) -> None:
    """Write depth as a PNG of 16 bits, one step `DEPTH_UNIT`."""
    from PIL import Image

    stream = io.BytesIO()
    steps = np.clip(depth / DEPTH_UNIT + 0.5, 0, 65535).astype("u2")
    Image.fromarray(steps).save(stream, "PNG")
    write_bytes(path, stream.getvalue())


def over(rgba: Float[np.ndarray, "s s 4"], background: np.ndarray | float) -> Float[np.ndarray, "s s 3"]:
    """A premultiplied picture on a background, in [0, 1]."""
    return np.clip(rgba[..., :3] + (1 - rgba[..., 3:]) * background, 0, 1).astype("f4")


def _plan(body: Body, settings: Settings, index: int) -> HeadPlan:
    return plan_head(body, settings.seed, index, settings.views, settings.orbit, settings.recipe)


def _studio(bundle: Path, settings: Settings) -> Studio:
    return Studio(load_bundle(bundle), settings.res, settings.ss)


def _draw_head(folder: Path, settings: Settings, studio: Studio, index: int) -> None:
    """All pictures of a head, then its parameters: they say that it is done."""
    plan = _plan(studio.body, settings, index)
    params, pictures = studio.draw(plan)
    for k, drawn in enumerate(pictures):
        name = _name(settings, index * settings.views + k)
        save_picture(folder / name, drawn, settings.fmt, settings.quality, plan.background)
        if settings.depth:
            save_depth((folder / "depth" / name).with_suffix(".png"), drawn.depth)
    write_text(_params_path(folder, index), json.dumps(params))


def _claim(folder: Path, settings: Settings) -> None:
    """Make the folder ours, or see that it is ours with the same settings."""
    path = folder / "settings.json"
    wanted = asdict(settings)
    if path.exists():
        try:
            found = json.loads(path.read_bytes())
        except ValueError as error:
            raise DataError(f"{path} is damaged ({error}). Take another folder or give --overwrite.") from error
        differing = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
        if differing:
            raise OutputError(
                f"{folder} was begun with other settings: "
                + ", ".join(f"{k} {found.get(k)} instead of {wanted.get(k)}" for k in differing)
                + ". Give the same ones to go on, take another folder, or give --overwrite."
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise OutputError(f"{folder} holds something else, which even --overwrite leaves alone. Take another folder.")
    write_text(path, json.dumps(wanted))


def _clear(out: Path, folder: Path) -> None:
    """Deletes an earlier dataset; folders of another kind are left to `_claim`'s refusal."""
    for path in {out, folder}:
        if path.is_dir() and (path / "settings.json").exists():
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()


def _refuse_other_zip(out: Path, heads: range, settings: Settings) -> None:
    """Raises OutputError unless the zip holds exactly these heads with these settings."""
    try:
        with zipfile.ZipFile(out) as archive:
            found = json.loads(archive.read("settings.json"))
            names = {n for n in archive.namelist() if n.startswith("params/")}
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise OutputError(f"{out} is in the way and is no such dataset ({error}). Give --overwrite.") from error
    if found != asdict(settings) or names != {f"params/head{i:06d}.json" for i in heads}:
        raise OutputError(f"{out} holds other heads or was made with other settings. Give another name or --overwrite.")


def _pack(folder: Path, out: Path, pictures: Sequence[str], heads: Sequence[int]) -> None:
    """A zip of the same bytes each time: stored, sorted, without dates."""
    names = [*pictures, *(f"params/head{i:06d}.json" for i in heads), "dataset.json", "settings.json"]
    names += [
        n for n in ((Path("depth") / p).with_suffix(".png").as_posix() for p in pictures) if (folder / n).exists()
    ]
    with atomic_path(out) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name in sorted(names):
            archive.writestr(zipfile.ZipInfo(name), (folder / name).read_bytes())


def _name(settings: Settings, picture: int) -> str:
    return f"{picture // A_FOLDER:05d}/img{picture:08d}.{settings.fmt}"


def _params_path(folder: Path, index: int) -> Path:
    return folder / "params" / f"head{index:06d}.json"
