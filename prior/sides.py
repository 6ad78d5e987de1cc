"""Train the network that finishes the views beside a photo's (`headlift.invert.side_net`).

    python -m headlift.prior.sides HEADS --out prior/data/sides.safetensors

HEADS holds `heads-*.zip`. A sample is two pictures of a head: one taken with the lens of EG3D's crops, laid out in
space by the depth network, and another of its cameras, whose picture is to be told. Light changes between some of the
pictures: pairs that differ where the first one reaches are left out. Heads 2800 to 2999 are left out too, and measured
at the end.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from headlift.eg3d.training.precision import autocast
from headlift.invert.depth_net import load_depth_net
from headlift.invert.losses import resize
from headlift.invert.metrics import psnr
from headlift.invert.result import Target
from headlift.invert.side_net import CAMERAS, CHANNELS, SIDE, WIDTHS, SideNet, asked, load_side_net, mirrored
from headlift.invert.surface import photo_surface
from headlift.prior.budget import load_state, save_state
from headlift.prior.command import at_least, run_command
from headlift.prior.depth import roughen
from headlift.prior.fit import add_flags, fingerprint, fit, save_net
from headlift.prior.heads import HELD_OUT, Heads, read_heads, read_index
from headlift.prior.perceptual import photograph, uniform
from headlift.values import Camera

FACING = 0.9
"""Photos are taken from at most this far to the side, radians."""
SAME_LIGHT = 0.08
"""Pairs whose colours differ by more (root of the mean square, units of [-1, 1], at `BLOCKS` pixels) are of different
light."""
SEEN_WEIGHT = 0.1
"""What the photo's own pixels count beside the others."""
PHOTOS = 2
"""Photos of a head that are learned from."""
BLOCKS = 16
"""Side of the pictures by which light is told."""
KNOTS = 5
"""Of the curves that change a sample's colours."""
SQUARE, ALPHA = 2.0, 0.3
"""Weights of squared error and opacity beside L1."""
CHUNK = 200
"""Photos that are handed to the processes at a time."""
PICTURES = CHANNELS - CAMERAS
"""Channels of the network's input that differ from pixel to pixel."""


@dataclass(frozen=True)
class Samples:
    """Pairs of pictures, ready to learn from; rows belong together."""

    known: Float[Tensor, "n c s s"]
    """What the network is given (`asked`), but for what is the same in all pixels; half precision."""
    cameras: Float[Tensor, "n k"]
    """That."""
    truth: UInt8[Tensor, "n 4 s s"]
    """RGB on white, and alpha."""
    head: Int[Tensor, " n"]
    """Which head it is."""

    def __getitem__(self, rows: Tensor) -> Samples:
        return Samples(self.known[rows], self.cameras[rows], self.truth[rows], self.head[rows])


def partners(heads: Heads) -> list[tuple[int, list[int]]]:
    """Rows of photos, and with each the rows of the head's other pictures; `PHOTOS` a head."""
    position = heads.labels[:, [3, 7, 11]]
    photo = ~heads.wide & (np.abs(np.arctan2(position[:, 0], position[:, 2])) < FACING)
    found = []
    for rows in heads.views(sorted(heads.params)).values():
        found += [(int(row), [int(other) for other in rows if other != row]) for row in rows[photo[rows]][:PHOTOS]]
    return found


def small_picture(pixels: UInt8[np.ndarray, "s s 4"]) -> Float[Tensor, "1 4 r r"]:
    """RGB times alpha, and alpha, in [0, 1], at `SIDE` pixels."""
    straight = torch.from_numpy(np.array(pixels)).float().permute(2, 0, 1)[None] / 255
    return resize(torch.cat([straight[:, :3] * straight[:, 3:], straight[:, 3:]], 1), SIDE)


@torch.no_grad()
def prepare(heads: Heads, seed: int) -> Samples | None:
    """What the network is to learn of one head's photo, the first row: a sample for each other row in the same light.

    Depth comes from the photo as a bad camera would have taken it, with a mask as segmentation draws it (`roughen`),
    colours from the photo itself.
    """
    rng = torch.Generator().manual_seed(seed)
    photo = small_picture(heads.images[0])
    mask = roughen(photo[:, 3:], rng)
    surface = photo_surface(Target(photograph(photo, rng) * mask + (1 - mask), mask, True))
    straight = photo[:, :3] / photo[:, 3:].clamp_min(1e-3)
    target = Target((straight * 2 - 1) * mask + (1 - mask), mask, True)
    camera, *others = (Camera.from_label(label[None]) for label in torch.from_numpy(heads.labels))
    known, truth = [], []
    for other, image in zip(others, heads.images[1:], strict=True):
        view, rgba = asked(target, surface, camera, other), small_picture(image)
        wanted = torch.cat([rgba[:, :3] + 1 - rgba[:, 3:], rgba[:, 3:]], 1)
        if same_light(view, wanted):
            known.append(view)
            truth.append((wanted * 255).round().byte())
    if not known:
        return None
    every = torch.cat(known)
    head = torch.full((len(every),), int(heads.head[0]))
    return Samples(every[:, :PICTURES].half(), every[:, PICTURES:, 0, 0], torch.cat(truth), head)


def same_light(known: Float[Tensor, "1 c s s"], truth: Float[Tensor, "1 4 s s"]) -> bool:
    """Whether the photo, where it reaches, has the colours of the truth; where it hardly does, nobody can tell."""
    both = known[:, 3:4] * truth[:, 3:]
    carried, wanted, full = (
        F.avg_pool2d(x, SIDE // BLOCKS) for x in (known[:, :3] * both, (truth[:, :3] * 2 - 1) * both, both)
    )
    there = (full > 0.5).float()
    if float(there.mean()) < 0.02:
        return True
    apart = ((carried - wanted) / full.clamp_min(1e-3)).square()
    return float((apart * there).sum() / (3 * there.sum())) < SAME_LIGHT**2


def read_samples(folder: Path, cache: Path | None, procs: int) -> Samples:
    """All samples of a folder of heads; kept in the file `cache`, if one is named, for as long as the archives and the
    network that guesses depth stay as they are.

    Raises:
        PhotoError: there are no archives, or one is damaged.
        ConfigError: the cache is damaged.
        OutputError: the cache cannot be written.
    """
    of = f"{read_index(folder).digest} {fingerprint(*load_depth_net().state_dict().values())}"
    if cache is not None and cache.exists():
        kept = load_state(cache, mmap=True)
        if kept.pop("of", "") == of:
            return Samples(**kept)
    heads = read_heads(folder)
    rows = partners(heads)
    parts: list[Samples] = []
    with ProcessPoolExecutor(procs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for begin in range(0, len(rows), CHUNK):
            chosen = rows[begin : begin + CHUNK]
            pieces = [part_of(heads, [photo, *others]) for photo, others in chosen]
            seeds = [photo for photo, _ in chosen]
            parts += [found for found in pool.map(prepare, pieces, seeds, chunksize=8) if found is not None]
            print(f"{begin + len(chosen)} of {len(rows)} photos, {sum(len(p.head) for p in parts)} pairs", flush=True)
    fields = ("known", "cameras", "truth", "head")
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in fields}
    if cache is not None:
        save_state(cache, {**joined, "of": of})
    return Samples(**joined)


def part_of(heads: Heads, rows: Sequence[int]) -> Heads:
    """Nothing but these pictures, for another process."""
    return Heads(heads.images[rows], heads.labels[rows], heads.head[rows], {})


def inputs_of(samples: Samples) -> Float[Tensor, "n c s s"]:
    """What the network is given."""
    return torch.cat([samples.known.float(), samples.cameras[:, :, None, None].expand(-1, -1, SIDE, SIDE)], 1)


def batch_of(samples: Samples, rng: torch.Generator) -> tuple[Float[Tensor, "n c s s"], Float[Tensor, "n 4 s s"]]:
    """Inputs and truths (RGB on white in [-1, 1], alpha): mirrored and with other colours at random."""
    count = len(samples.head)
    known, truth = inputs_of(samples), samples.truth.float() / 255
    flipped = torch.rand(count, 1, 1, 1, generator=rng) < 0.5
    known = torch.where(flipped, mirrored(known), known)
    truth = torch.where(flipped, truth.flip(3), truth)
    curves = tone_curves(count, rng)
    alpha = truth[:, 3:]
    front = retouched(known[:, :3], curves) * known[:, 3:4]
    behind = retouched(known[:, 5:8], curves) * (known[:, 8:9] > 0)
    straight = (truth[:, :3] - (1 - alpha)) / alpha.clamp_min(1e-3)
    wanted = retouched(straight * 2 - 1, curves) * alpha + (1 - alpha)
    inputs = torch.cat([front, known[:, 3:5], behind, known[:, 8:]], 1)
    return inputs, torch.cat([wanted, alpha], 1)


def tone_curves(count: int, rng: torch.Generator) -> Float[Tensor, "n 3 k"]:
    """What random curves make of `KNOTS` evenly spaced values of [-1, 1] of each channel.

    All of them are other lights. Most have dark values lifted and all values moved one by one as well: hair becomes
    lighter than skin, or green. What is behind is to be told from the colours in front, not from what is common here.
    """
    even = torch.linspace(0, 1, KNOTS)
    gain = torch.exp(torch.randn(count, 3, 1, generator=rng) * 0.15) * uniform(count, 0.7, 1.15, rng)[..., 0]
    shift = torch.randn(count, 1, 1, generator=rng) * 0.05
    moved = uniform(count, 0.0, 0.8, rng)[..., 0] * (1 - even).square()
    for channels, spread in ((1, 0.2), (3, 0.1)):
        moved = moved + torch.randn(count, channels, KNOTS, generator=rng) * spread
    most = (torch.rand(count, 1, 1, generator=rng) < 0.7).float()
    return (even * gain + shift + most * moved).clamp(0, 1) * 2 - 1


def retouched(rgb: Float[Tensor, "n 3 h w"], curves: Float[Tensor, "n 3 k"]) -> Float[Tensor, "n 3 h w"]:
    """Colours (in [-1, 1]) by their curves, with straight lines between the knots."""
    knots = curves.shape[-1]
    place = (rgb.clamp(-1, 1) + 1) / 2 * (knots - 1)
    return sum(
        (curves[..., k, None, None] * (1 - (place - k).abs()).clamp_min(0) for k in range(knots)), torch.zeros_like(rgb)
    )


def error(
    picture: Float[Tensor, "n 3 s s"],
    odds: Float[Tensor, "n 1 s s"],
    truth: Float[Tensor, "n 4 s s"],
    seen: Float[Tensor, "n 1 s s"],
) -> Float[Tensor, ""]:
    """L1 and squared error of the picture and cross-entropy of opacity, the photo's own pixels at `SEEN_WEIGHT`."""
    weight = 1 - (1 - SEEN_WEIGHT) * seen
    apart = picture - truth[:, :3]
    entropy = F.binary_cross_entropy_with_logits(odds, truth[:, 3:], reduction="none")
    return (weight * (apart.abs() + SQUARE * apart.square())).mean() + ALPHA * (weight * entropy).mean()


@torch.no_grad()
def measure(net: SideNet, samples: Samples) -> dict[str, float]:
    """PSNR over mid-grey on the head of the truth, means over the samples: where the photo does not reach, where it
    does, and what the photo itself has there; and the mean of the silhouettes' intersection over union."""
    found = []
    for k in range(len(samples.head)):
        row = samples[torch.tensor([k])]
        known = inputs_of(row)
        truth = row.truth.float() / 255
        picture, odds = net(known)
        alpha, solid = truth[:, 3:], truth[:, 3:] > 0.5
        grey = truth[:, :3] * 2 - 1 - (1 - alpha)
        shown, seen = picture.clamp(-1, 1) - (1 - odds.sigmoid()), known[:, 3:4]
        shape = odds > 0
        overlap = float((shape & solid).sum() / (shape | solid).sum())
        hidden = solid * (1 - seen)
        reached = solid * seen
        found.append(
            [psnr(shown, grey, hidden), psnr(shown, grey, reached), psnr(known[:, :3], grey, reached), overlap]
        )
    means = np.ma.masked_invalid(np.asarray(found)).mean(axis=0).filled(np.nan)
    return dict(zip(("hidden", "reached", "photo", "overlap"), map(float, means), strict=True))


def train(
    samples: Samples,
    rows: Int[Tensor, " k"],
    steps: int,
    batch: int = 12,
    lr: float = 2e-3,
    seed: int = 0,
    start: SideNet | None = None,
    device: str = "cpu",
    keep: Path | None = None,
) -> SideNet:
    """Train on these rows, from random weights or from `start`; the running mean of the weights is given back.

    `keep` names the file that an interrupted call goes on from (`fit`).
    """
    torch.manual_seed(seed)
    net = SideNet() if start is None else copy.deepcopy(start).requires_grad_()
    if start is None:
        nn.init.zeros_(net.out.weight)
    net.to(device)

    def step(rng: torch.Generator) -> Float[Tensor, ""]:
        known, truth = batch_of(samples[rows[torch.randint(len(rows), (batch,), generator=rng)]], rng)
        known, truth = known.to(device, memory_format=torch.channels_last), truth.to(device)
        with autocast(known.device):
            picture, odds = net(known)
        return error(picture, odds, truth, known[:, 3:4])

    data = fingerprint(samples.known, samples.cameras, samples.truth, rows)
    of: dict[str, str | int] = {"program": "headlift.prior.sides", "batch": batch, "data": data}
    return fit(net, step, steps, lr, seed, keep, of).cpu()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("heads", type=Path)
    add_flags(parser, "sides.safetensors", "prepared pairs", 0.4)
    parser.add_argument("--batch", type=at_least(1), default=12)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--procs", type=at_least(1), default=2, help="processes that prepare pairs")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    samples = read_samples(arguments.heads, arguments.cache, arguments.procs)
    held_out = (samples.head >= HELD_OUT.start) & (samples.head < HELD_OUT.stop)
    print(f"{len(held_out)} pairs, {int(held_out.sum())} of them held out", flush=True)
    start = load_side_net() if arguments.go_on else None
    rows = held_out.logical_not().nonzero()[:, 0]
    settings = {name: getattr(arguments, name) for name in ("steps", "batch", "lr", "seed", "device", "keep")}
    net = train(samples, rows, **settings, start=start)
    save_net(net, arguments.out, "views beside a photo's own", "headlift/prior/sides.py", widths=WIDTHS)
    if arguments.keep:
        arguments.keep.unlink(missing_ok=True)
    found = measure(net, samples[held_out.nonzero()[:, 0]])
    print(
        f"held out: {found['hidden']:.2f} dB where the photo does not reach; where it does {found['reached']:.2f} dB, "
        f"the photo itself {found['photo']:.2f} dB; silhouettes {found['overlap']:.3f}"
    )


if __name__ == "__main__":
    run_command(main)
