"""Train the network that guesses a head's depth from one photo (`headlift.invert.depth_net`).

    python -m headlift.prior.synthetic depths BUNDLE HEADS DEPTHS.npy --procs 2
    python -m headlift.prior.synthetic depths BUNDLE HEADS LAST.npy --procs 2 --last
    python -m headlift.prior.depth HEADS DEPTHS.npy LAST.npy --out prior/data/depth.safetensors

HEADS holds `heads-*.zip`, DEPTHS.npy the depth of their pictures, LAST.npy that of the last surface behind each pixel.
Pictures taken with the lens of EG3D's crops are used, half of them mirrored, with random light, colour, blur, noise and
compression, and masks that are a little wrong, as those of photos are. Heads 2800 to 2999 are left out and measured at
the end.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from headlift.eg3d.training.precision import autocast
from headlift.invert.depth_net import SIDE, WIDTHS, DepthGuess, DepthNet, load_depth_net
from headlift.prior.command import run_command
from headlift.prior.dataset import DEPTH_UNIT, read_depths
from headlift.prior.fit import add_flags, fingerprint, fit, save_net
from headlift.prior.heads import HELD_OUT, read_heads
from headlift.prior.perceptual import photograph

GRADIENT = 0.5
"""Weight of the differences between neighbours, beside the depth itself."""
LAST = 0.5
"""Weight of the last surface beside the first."""
SCALES = 4
"""Spacings of those neighbours: 1, 2, 4 ... pixels."""


def read_pictures(
    heads: Path, depths: Path, last: Path, cache: Path | None
) -> tuple[UInt8[Tensor, "n 4 s s"], Float[Tensor, "n 2 s s"], Tensor]:
    """Pictures (RGBA, straight) with the depth of their first and last surface (world units, 0 outside), and which head
    each shows.

    Raises:
        PhotoError: there are no archives, or one is damaged.
        DataError: the depths are of other pictures, or first and last surface are mixed up.
    """
    found = read_heads(heads, cache)
    rows = np.flatnonzero(~found.wide)
    both = [read_depths(depths, found)[rows], read_depths(last, found, last=True)[rows]]
    depth = np.stack(both, 1) * np.float32(DEPTH_UNIT)
    pictures = np.empty((len(rows), 4, SIDE, SIDE), np.uint8)
    for k, row in enumerate(rows):
        pixels = found.images[row].astype(np.float32)
        factor = len(pixels) // SIDE
        blocks = np.dstack([pixels[..., :3] * pixels[..., 3:], pixels[..., 3:]])
        blocks = blocks.reshape(SIDE, factor, SIDE, factor, 4).mean((1, 3))
        blocks[..., :3] /= np.maximum(blocks[..., 3:], 1e-3)
        pictures[k] = (blocks + 0.5).clip(0, 255).astype(np.uint8).transpose(2, 0, 1)
    return torch.from_numpy(pictures), torch.from_numpy(depth), torch.from_numpy(found.head[rows].astype(np.int64))


def batch_of(
    pictures: UInt8[Tensor, "n 4 s s"], depth: Float[Tensor, "n 2 s s"], rng: torch.Generator
) -> tuple[Float[Tensor, "n 3 s s"], Float[Tensor, "n 1 s s"], Float[Tensor, "n 2 s s"]]:
    """Photos on white, their masks, and the depth to learn: mirrored and made to look like photos at random."""
    straight = pictures.float() / 255
    mirrored = torch.rand(len(pictures), 1, 1, 1, generator=rng) < 0.5
    straight = torch.where(mirrored, straight.flip(3), straight)
    depth = torch.where(mirrored, depth.flip(3), depth)
    photo = photograph(torch.cat([straight[:, :3] * straight[:, 3:], straight[:, 3:]], 1), rng)
    mask = roughen(straight[:, 3:], rng)
    grey = torch.rand(len(pictures), 1, 1, 1, generator=rng) < 0.1
    photo = torch.where(grey, photo.mean(1, keepdim=True), photo)
    return photo * mask + (1 - mask), mask, depth


def roughen(alpha: Float[Tensor, "n 1 s s"], rng: torch.Generator) -> Float[Tensor, "n 1 s s"]:
    """Half of the masks as a segmentation network draws them: moved in or out by up to two pixels, a little blurred."""
    wide = F.avg_pool2d(F.pad(alpha, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    threshold = torch.rand(len(alpha), 1, 1, 1, generator=rng) * 0.8 + 0.1
    moved = ((wide - threshold) * 4 + 0.5).clamp(0, 1)
    return torch.where(torch.rand(len(alpha), 1, 1, 1, generator=rng) < 0.5, moved, alpha)


def loss(guess: DepthGuess, truths: Float[Tensor, "n 2 s s"]) -> Float[Tensor, ""]:
    """Negative log-likelihoods of Laplace distributions, for the first surface and (times `LAST`) for the last, and L1
    on differences between neighbours of one first surface."""
    truth, last = truths[:, :1], truths[:, 1:]
    there = truth > 0
    total = likelihood(guess.depth, guess.spread, truth) + LAST * likelihood(guess.last, guess.last_spread, last)
    for k in range(SCALES):
        gap = 2**k
        for axis in (2, 3):
            near = there.narrow(axis, 0, SIDE - gap) & there.narrow(axis, gap, SIDE - gap)
            step = truth.narrow(axis, gap, SIDE - gap) - truth.narrow(axis, 0, SIDE - gap)
            seen = guess.depth.narrow(axis, gap, SIDE - gap) - guess.depth.narrow(axis, 0, SIDE - gap)
            same = near & (step.abs() < 0.03 * gap)
            total = total + GRADIENT * 100 / gap * ((seen - step).abs() * same).sum() / same.sum() / (2 * SCALES)
    return total


def likelihood(
    depth: Float[Tensor, "n 1 s s"], spread: Float[Tensor, "n 1 s s"], truth: Float[Tensor, "n 1 s s"]
) -> Float[Tensor, ""]:
    """The mean negative logarithm of a Laplace distribution's density, less log 2, where there is a truth."""
    there = truth > 0
    return (((depth - truth).abs() / spread + spread.log()) * there).sum() / there.sum()


@torch.no_grad()
def measure(net: nn.Module, pictures: UInt8[Tensor, "n 4 s s"], depth: Float[Tensor, "n 2 s s"]) -> dict[str, float]:
    """Median absolute error over the head, as it is and less the picture's median error, and that of the last surface;
    means over the pictures."""
    plain, shifted, behind = [], [], []
    for k in range(0, len(pictures), 50):
        straight = pictures[k : k + 50].float() / 255
        mask = straight[:, 3:]
        guess = net((straight[:, :3] * 2 - 1) * mask + (1 - mask), mask)
        for first, last, truth in zip(guess.depth, guess.last, depth[k : k + 50], strict=True):
            error = (first - truth[:1])[truth[:1] > 0]
            plain.append(float(error.abs().median()))
            shifted.append(float((error - error.median()).abs().median()))
            behind.append(float((last - truth[1:])[truth[1:] > 0].abs().median()))
    return {"error": float(np.mean(plain)), "after_shift": float(np.mean(shifted)), "last": float(np.mean(behind))}


def train(
    pictures: UInt8[Tensor, "n 4 s s"],
    depth: Float[Tensor, "n 2 s s"],
    steps: int,
    batch: int = 16,
    lr: float = 2e-3,
    seed: int = 0,
    start: DepthNet | None = None,
    keep: Path | None = None,
) -> DepthNet:
    """Train for so many steps, from random weights or from `start`; the running mean of the weights is given back.

    `keep` names the file that an interrupted call goes on from (`fit`).
    """
    torch.manual_seed(seed)
    net = DepthNet() if start is None else copy.deepcopy(start).requires_grad_()

    def step(rng: torch.Generator) -> Float[Tensor, ""]:
        picked = torch.randint(len(pictures), (batch,), generator=rng)
        photo, mask, truth = batch_of(pictures[picked], depth[picked], rng)
        with autocast("cpu"):
            guess = net(photo.to(memory_format=torch.channels_last), mask)
        return loss(guess, truth)

    of: dict[str, str | int] = {"program": "headlift.prior.depth", "batch": batch, "data": fingerprint(pictures, depth)}
    return fit(net, step, steps, lr, seed, keep, of)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("heads", type=Path)
    parser.add_argument("depths", type=Path)
    parser.add_argument("last", type=Path)
    add_flags(parser, "depth.safetensors", "decoded pictures", 0.3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pictures, depth, owner = read_pictures(arguments.heads, arguments.depths, arguments.last, arguments.cache)
    held_out = (owner >= HELD_OUT.start) & (owner < HELD_OUT.stop)
    print(f"{len(pictures)} pictures, {int(held_out.sum())} of them held out", flush=True)
    start = load_depth_net() if arguments.go_on else None
    learn = ~held_out
    settings = {name: getattr(arguments, name) for name in ("steps", "lr", "seed", "keep")}
    net = train(pictures[learn], depth[learn], **settings, start=start)
    save_net(net, arguments.out, "depth of a head from one photo", "headlift/prior/depth.py", widths=WIDTHS)
    if arguments.keep:
        arguments.keep.unlink(missing_ok=True)
    found = measure(net, pictures[held_out], depth[held_out])
    print(
        f"held out: {found['error']:.4f} units, {found['after_shift']:.4f} after the best shift; last surface "
        f"{found['last']:.4f}"
    )


if __name__ == "__main__":
    run_command(main)
