"""How far a generator has come, while it trains, without any downloaded network.

The sliced Wasserstein distance of random heads to pictures of heads that are held out of training, and how such heads
come out when they are drawn by the codes of their parameters. The loops of training log it; of files it is told by

    python -m headlift.prior.measure HEADS FILE.safetensors ... --cache out/cache

which also says what distance real pictures have that show no more than 128 or 64 pixels do.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8, UInt16
from torch import Tensor
from torch.nn import functional as F

from headlift.device import find_device
from headlift.eg3d.checkpoint import load_checkpoint
from headlift.eg3d.generator import Generator
from headlift.eg3d.training.losses import psnr
from headlift.eg3d.training.metrics import sliced_wasserstein
from headlift.evaluate.distribution import fid, inception, kid
from headlift.prior.codes import Density
from headlift.prior.command import run_command
from headlift.prior.dataset import DEPTH_UNIT, block_depth, known_codes, read_depths
from headlift.prior.heads import HELD_OUT, Heads, read_heads
from headlift.values import Camera

AT_ONCE = 8
"""Pictures that are drawn at a time."""
SOLID = 0.5
"""Opacity from which on a pixel has a depth."""


@dataclass(frozen=True)
class MeasureConfig:
    """What is measured while training."""

    swd_images: int = 200
    """Pictures on both sides of the sliced Wasserstein distance; 0 for none."""
    swd_projections: int = 512
    """Its random directions."""
    swd_draws: int = 5
    """Draws of patches and directions whose mean it is."""
    known_images: int = 64
    """Pictures of held-out heads that are drawn by the codes of their parameters and held against the truth; 0 for
    none."""
    inception: str | None = None
    """File of torchvision's Inception v3 (`headlift weights fetch inception`), for FID and KID of the pictures of the
    distance; needs torchvision."""


FIGURES = MeasureConfig()


@dataclass(frozen=True)
class Known:
    """Pictures to be measured on, and what is known of the heads that they show."""

    images: UInt8[np.ndarray, "n s s 4"]
    """RGBA, straight alpha; possibly a memory map."""
    labels: Float[np.ndarray, "n 25"]
    """EG3D camera labels."""
    learned: Int[np.ndarray, " k"]
    """Rows that are learned from."""
    held_out: Int[np.ndarray, " h"]
    """Rows of other heads."""
    codes: Float[np.ndarray, "h z"]
    """Of the heads in `held_out`, from their parameters."""
    depth: UInt16[np.ndarray, "n d d"] | None
    """Distance along the ray in counts of `DEPTH_UNIT`, 0 where nothing is; None where it is not known."""


def known_of(
    heads: Heads, density: Density, table: Float[np.ndarray, "h f"], depth: UInt16[np.ndarray, "n d d"] | None
) -> Known:
    """The usable pictures of heads; `density` and `table` as `dataset.known_codes` gives them."""
    everyone = sorted(heads.params)
    views = heads.views(everyone)
    learned = [views[h] for h in everyone if h not in HELD_OUT]
    others = [(i, row) for i, h in enumerate(everyone) if h in HELD_OUT for row in views[h]]
    ranks, rows = np.array(others, dtype=int).reshape(-1, 2).T
    codes = density.encode(table, None)[ranks]
    return Known(heads.images, heads.labels, np.concatenate(learned), rows, codes, depth)


class Measure:
    """Figures of a generator whose pictures have `side` pixels, on `device`.

    Beside the sliced Wasserstein distance stands, as what could be reached, that of as many pictures of the heads that
    are learned from. Where no heads are held out, both sides come from these.
    """

    def __init__(self, known: Known, config: MeasureConfig, side: int, device: torch.device) -> None:
        random = np.random.default_rng(0)
        learned = random.permutation(known.learned)
        order = random.permutation(len(known.held_out))
        others = known.held_out[order] if len(order) else learned[len(learned) // 2 :]
        learned = learned if len(order) else learned[: len(learned) // 2]
        count = min(config.swd_images, len(learned), len(others))
        self.known, self.config, self.side, self.device = known, config, side, device
        self.learned, self.others, self.drawn = learned[:count], others[:count], order[: config.known_images]

    def __call__(self, generator: Generator) -> dict[str, float]:
        """The figures by name; nothing without pictures.

        `swd` and its levels by their sides in pixels, `swd_data` and its own; with Inception `fid`, `kid` and those of
        the data (`evaluate/distribution.py` says what they are worth); where the generator takes codes of this length,
        `known_psnr` in dB, the mean over whole pictures on white, and `known_depth`, the median absolute error in
        world units.
        """
        drawable = generator.spec.mapping.z_dim == self.known.codes.shape[1]
        return self._samples(generator) | (self._known(generator) if drawable else {})

    @cached_property
    def true(self) -> Float[Tensor, "k 3 side side"]:
        """What the distance is measured to."""
        return self.pictures(self.others)

    @cached_property
    def floor(self) -> dict[str, float]:
        """The distance of real pictures."""
        return self.distance("swd_data", self.pictures(self.learned))

    @torch.no_grad()
    def _samples(self, generator: Generator) -> dict[str, float]:
        if not len(self.others):
            return {}
        random = torch.Generator().manual_seed(0)
        shown = []
        for label in self._labels(self.others).split(AT_ONCE):
            z = torch.randn(len(label), generator.spec.mapping.z_dim, generator=random).to(self.device)
            ws = generator.mapping(z, label)
            image = generator.render(generator.planes(ws), ws, Camera.from_label(label)).image
            shown.append(image.clamp(-1, 1))
        pictures = torch.cat(shown)
        found = self.distance("swd", pictures) | self.floor
        if self.config.inception is None:
            return found
        features, true = self._features(pictures), self._features(self.true)
        data = self._features(self.pictures(self.learned))
        found |= {"fid": fid(features, true), "kid": kid(features, true)}
        return found | {"fid_data": fid(data, true), "kid_data": kid(data, true)}

    def _features(self, pictures: Float[Tensor, "n 3 s s"]) -> Float[np.ndarray, "n d"]:
        assert self.config.inception is not None
        return inception(Path(self.config.inception))(list(pictures.cpu().split(1)))

    @torch.no_grad()
    def _known(self, generator: Generator) -> dict[str, float]:
        figures, missed = [], []
        for some in np.array_split(self.drawn, -(-len(self.drawn) // AT_ONCE)) if len(self.drawn) else ():
            rows = self.known.held_out[some]
            label = self._labels(rows)
            z = torch.from_numpy(self.known.codes[some]).float().to(self.device)
            ws = generator.mapping(z, label)
            output = generator.render(generator.planes(ws), ws, Camera.from_label(label))
            truth = self.pictures(rows)
            figures += [float(psnr(a, b)) for a, b in zip(output.image.clamp(-1, 1), truth, strict=True)]
            if self.known.depth is not None:
                side = output.depth.shape[-1]
                blocks = np.stack([block_depth(self.known.depth[row], side) for row in rows]) * DEPTH_UNIT
                true = torch.from_numpy(blocks).to(output.depth)[:, None]
                missed.append((output.depth - true).abs()[(true > 0) & (output.alpha > SOLID)].cpu())
        found = {"known_psnr": float(np.mean(figures))} if figures else {}
        return found | ({"known_depth": float(torch.cat(missed).median())} if missed else {})

    def distance(self, name: str, pictures: Float[Tensor, "n 3 s s"]) -> dict[str, float]:
        """The sliced Wasserstein distance of as many pictures in [-1, 1], as `name`, and its levels by their sides."""
        random = torch.Generator(self.device).manual_seed(0)
        config = self.config
        levels = sliced_wasserstein(pictures, self.true, random, config.swd_projections, config.swd_draws)
        return {name: float(np.mean(list(levels.values()))), **{f"{name}_{side}": v for side, v in levels.items()}}

    def _labels(self, rows: Int[np.ndarray, " k"]) -> Float[Tensor, "k 25"]:
        return torch.from_numpy(self.known.labels[rows]).float().to(self.device)

    def pictures(self, rows: Int[np.ndarray, " k"]) -> Float[Tensor, "k 3 side side"]:
        """Pictures of the data on white, in [-1, 1]."""
        rgba = torch.from_numpy(np.ascontiguousarray(self.known.images[rows])).to(self.device)
        return whitened(rgba, self.side)[:, :3] * 2 - 1


def blurred(pictures: Float[Tensor, "n 3 s s"], side: int) -> Float[Tensor, "n 3 s s"]:
    """What `side` pixels show of pictures."""
    size = pictures.shape[-1]
    small = F.interpolate(pictures, size=(side, side), mode="bicubic", align_corners=False, antialias=True)
    return F.interpolate(small, size=(size, size), mode="bicubic", align_corners=False).clamp(-1, 1)


def whitened(rgba: UInt8[Tensor, "n s s 4"], side: int) -> Float[Tensor, "n 4 side side"]:
    """RGB on white and opacity in [0, 1], `side` pixels wide."""
    values = rgba.permute(0, 3, 1, 2).float() / 255
    alpha = values[:, 3:]
    values = torch.cat([values[:, :3] * alpha + 1 - alpha, alpha], dim=1)
    if values.shape[-1] == side:
        return values
    return F.interpolate(values, size=(side, side), mode="bilinear", align_corners=False, antialias=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("heads", type=Path, help="folder with heads-*.zip")
    parser.add_argument("files", type=Path, nargs="+", help="generators as training leaves them")
    parser.add_argument("--cache", type=Path, help="folder for decoded pictures (about 3 GB)")
    parser.add_argument("--depths", type=Path, help="file with the pictures' depth")
    parser.add_argument("--images", type=int, default=FIGURES.swd_images, help="pictures on both sides")
    parser.add_argument("--inception", help="file of torchvision's Inception v3, for FID and KID")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto: a GPU when there is one")
    options = parser.parse_args()
    device = find_device(options.device)
    heads = read_heads(options.heads, None if options.cache is None else options.cache / "images.npy")
    depth = None if options.depths is None else read_depths(options.depths, heads)
    known = known_of(heads, *known_codes(heads, seed=0), depth)
    config = replace(FIGURES, swd_images=options.images, inception=options.inception)
    for file in options.files:
        generator = load_checkpoint(file, device)
        measure = Measure(known, config, generator.spec.image_resolution, device)
        print(file, " ".join(f"{k} {v:.4g}" for k, v in measure(generator).items()), flush=True)
    for side in (128, 64):
        found = measure.distance(f"swd_data_of_{side}", blurred(measure.pictures(measure.learned), side))
        print(" ".join(f"{k} {v:.4g}" for k, v in found.items()), flush=True)


if __name__ == "__main__":
    run_command(main)
