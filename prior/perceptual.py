"""Train the network behind the `builtin` perceptual distance on synthetic heads.

    python -m headlift.prior.perceptual HEADS --out prior/data/perceptual.safetensors

Three tasks shape the features (batch normalisation is folded into the convolutions at the end):
- dense contrast: a place seen through two photometric augmentations (blur, noise, JPEG, colour, other background) must
  be told from all other places of all pictures (InfoNCE, van den Oord et al. 2018, at 1/4, 1/8 and 1/16 of the side);
- identity contrast: two views of one head must be told from views of other heads;
- regression of the head's own parameters (age, gender, skin, shape axes).

HEADS holds `heads-*.zip` as the head generator writes them; heads 2800 to 2999 are left out.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from headlift.eg3d.training.precision import autocast
from headlift.errors import PhotoError
from headlift.invert.perceptual import STAGES, FeatureNet
from headlift.prior.command import at_least, run_command
from headlift.prior.fit import save_net
from headlift.prior.heads import HELD_OUT, decoded, read_index

log = logging.getLogger(__name__)
Parameters = dict[int, Float[np.ndarray, " p"]]


def read_small(folder: Path, side: int) -> tuple[UInt8[Tensor, "n 4 s s"], list[int], Parameters]:
    """RGBA pictures at `side` pixels, the head each shows, and the parameters of each head; none of `HELD_OUT`.

    Raises PhotoError when there is nothing to read, or when an archive is damaged.
    """
    index = read_index(folder)
    rows = np.flatnonzero(~np.isin(index.head, HELD_OUT))
    if not len(rows):
        raise PhotoError(f"{folder} has no heads but those that nothing may learn from ({HELD_OUT}).")
    pictures = decoded([index.names[row] for row in rows])
    small = [np.asarray(Image.fromarray(p).resize((side, side), Image.Resampling.BOX)) for p in pictures]
    parameters = {}
    for head, found in index.params.items():
        if head not in HELD_OUT:
            axes = [found["axes"][key] for key in sorted(found["axes"])]
            parameters[head] = np.array([found["gender"], found["age"] / 40, *found["race"], found["weight"], *axes])
    return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).contiguous(), index.head[rows].tolist(), parameters


def uniform(n: int, low: float, high: float, rng: torch.Generator) -> Float[Tensor, "n 1 1 1"]:
    return torch.rand(n, 1, 1, 1, generator=rng) * (high - low) + low


def backgrounds(n: int, side: int, rng: torch.Generator) -> Float[Tensor, "n 3 s s"]:
    """Smooth random pictures in [0, 1]: noise at a few scales, some of them flat."""
    out = torch.rand(n, 3, 1, 1, generator=rng).expand(n, 3, side, side).clone()
    for cells in (2, 5, 16, 48):
        strength = uniform(n, 0.0, 0.35, rng) * (uniform(n, 0.0, 1.0, rng) < 0.6)
        noise = torch.randn(n, 3, cells, cells, generator=rng) * strength
        out = out + F.interpolate(noise, size=(side, side), mode="bilinear", align_corners=False)
    return out.clamp(0, 1)


def place(pixels: Float[Tensor, "n 4 s s"], side: int, rng: torch.Generator) -> Float[Tensor, "n 4 r r"]:
    """A random zoom, turn, shift and mirror image of each picture, premultiplied."""
    n = len(pixels)
    angle = (torch.rand(n, generator=rng) - 0.5) * 0.5
    zoom = torch.exp(torch.rand(n, generator=rng) * 0.9 - 0.75)
    flip = torch.where(torch.rand(n, generator=rng) < 0.5, -1.0, 1.0)
    shift = (torch.rand(n, 2, generator=rng) - 0.5) * 0.5
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    theta = torch.stack(
        [torch.stack([cos * flip, -sin, shift[:, 0]], 1), torch.stack([sin * flip, cos, shift[:, 1]], 1)], 1
    )
    pixels = torch.cat([pixels[:, :3] * pixels[:, 3:], pixels[:, 3:]], 1)
    grid = F.affine_grid(theta, [n, 4, side, side], align_corners=False)
    return F.grid_sample(pixels, grid, align_corners=False)


def blur(images: Float[Tensor, "n 3 s s"], sigma: Float[Tensor, "n 1 1 1"]) -> Float[Tensor, "n 3 s s"]:
    """Gaussian blur with a width of its own for each picture."""
    taps = torch.arange(-5, 6, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (taps / sigma.reshape(-1, 1).clamp_min(0.05)) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)
    n, _, height, width = images.shape
    flat = F.pad(images.reshape(1, n * 3, height, width), (5, 5, 5, 5), mode="replicate")
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=n * 3)
    return F.conv2d(flat, kernel[:, None, :, None], groups=n * 3).reshape_as(images)


def dct_matrix() -> Float[Tensor, "8 8"]:
    k = torch.arange(8.0)
    matrix = torch.cos(math.pi / 8 * (k[None] + 0.5) * k[:, None]) * 0.5
    matrix[0] /= math.sqrt(2)
    return matrix


def jpeg(images: Float[Tensor, "n 3 s s"], step: Float[Tensor, "n 1 1 1"]) -> Float[Tensor, "n 3 s s"]:
    """Block artefacts: 8x8 cosine coefficients rounded to steps that grow with frequency."""
    matrix = dct_matrix()
    n, c, h, w = images.shape
    blocks = images.reshape(n, c, h // 8, 8, w // 8, 8).permute(0, 1, 2, 4, 3, 5)
    coefficients = matrix @ blocks @ matrix.T
    k = torch.arange(8.0)
    steps = step[..., None, None] * (1 + k[:, None] + k[None])
    coefficients = torch.round(coefficients / steps) * steps
    return (matrix.T @ coefficients @ matrix).permute(0, 1, 2, 4, 3, 5).reshape(n, c, h, w)


def photograph(placed: Float[Tensor, "n 4 s s"], rng: torch.Generator) -> Float[Tensor, "n 3 s s"]:
    """One photometric augmentation: background, light, colour, blur, noise, compression. In [-1, 1]."""
    n, _, side, _ = placed.shape
    x = placed[:, :3] + (1 - placed[:, 3:]) * backgrounds(n, side, rng)
    light = F.interpolate(torch.randn(n, 1, 3, 3, generator=rng) * 0.2, size=(side, side), mode="bicubic")
    gains = torch.exp(torch.randn(n, 3, 1, 1, generator=rng) * 0.12)
    x = (x.clamp(1e-3, 1) ** torch.exp(torch.randn(n, 1, 1, 1, generator=rng) * 0.25)) * gains * torch.exp(light)
    x = (x - 0.5) * uniform(n, 0.7, 1.25, rng) + 0.5 + torch.randn(n, 1, 1, 1, generator=rng) * 0.06
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * uniform(n, 0.3, 1.3, rng)
    x = blur(x, uniform(n, 0.0, 1.6, rng) * (uniform(n, 0.0, 1.0, rng) < 0.6))
    x = x + torch.randn(x.shape, generator=rng) * uniform(n, 0.0, 0.08, rng)
    compressed = jpeg(x, uniform(n, 0.01, 0.06, rng))
    x = torch.where(uniform(n, 0.0, 1.0, rng) < 0.5, compressed, x)
    return x.clamp(0, 1) * 2 - 1


class Trainer(nn.Module):
    """The network with batch normalisation and the heads of the three tasks."""

    def __init__(self, parameters: int) -> None:
        super().__init__()
        self.net = FeatureNet()
        self.norms = nn.ModuleList(nn.BatchNorm2d(conv.out_channels) for conv in self.net.convs)  # type: ignore[arg-type]
        self.dense = nn.ModuleList(nn.Conv2d(width, 48, 1) for width in STAGES[1:])
        self.identity = nn.Sequential(nn.Linear(2 * STAGES[-1], 256), nn.ReLU(), nn.Linear(256, 64))
        self.parameters_head = nn.Sequential(nn.Linear(2 * STAGES[-1], 256), nn.ReLU(), nn.Linear(256, parameters))

    def features(self, image: Float[Tensor, "n 3 h w"]) -> list[Tensor]:
        x, out = image, []
        for index, (conv, norm) in enumerate(zip(self.net.convs, self.norms, strict=True)):
            if index and index % 2 == 0:
                x = F.avg_pool2d(x, 2)
            x = F.leaky_relu(norm(conv(x)), 0.2)
            if index % 2:
                out.append(x)
        return out

    def folded(self) -> FeatureNet:
        """The bare network: each normalisation merged into the convolution before it."""
        plain = FeatureNet()
        with torch.no_grad():
            for conv, source, norm in zip(plain.convs, self.net.convs, self.norms, strict=True):
                scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)  # type: ignore[arg-type, operator]
                conv.weight.copy_(source.weight * scale[:, None, None, None])  # type: ignore[operator]
                conv.bias.copy_((source.bias - norm.running_mean) * scale + norm.bias)  # type: ignore[operator]
        return plain


def info_nce(a: Float[Tensor, "n d"], b: Float[Tensor, "n d"], temperature: float) -> Float[Tensor, ""]:
    """Symmetric InfoNCE between matching rows."""
    logits = F.normalize(a.float(), dim=1) @ F.normalize(b.float(), dim=1).T / temperature
    target = torch.arange(len(a))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def train(
    pixels: UInt8[Tensor, "n 4 s s"],
    owners: list[int],
    parameters: dict[int, Float[np.ndarray, " p"]],
    minutes: float,
    heads: int = 28,
    side: int = 128,
    lr: float = 2e-3,
    seed: int = 0,
) -> FeatureNet:
    """Train for so many minutes and give back the folded network."""
    rng = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    names = sorted(parameters)
    table = torch.from_numpy(np.stack([parameters[name] for name in names])).float()
    table = (table - table.mean(0)) / table.std(0).clamp_min(1e-3)
    views: dict[int, list[int]] = {}
    for index, owner in enumerate(owners):
        views.setdefault(owner, []).append(index)
    model = Trainer(table.shape[1]).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-2)
    begin = time.monotonic()
    step = 0
    while (share := (time.monotonic() - begin) / (60 * minutes)) < 1:
        for group in optimiser.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * share))
        picked = torch.randperm(len(names), generator=rng)[:heads].tolist()
        pairs = [torch.randperm(len(views[names[i]]), generator=rng)[:2].tolist() for i in picked]
        one = torch.stack([pixels[views[names[i]][p[0]]] for i, p in zip(picked, pairs, strict=True)]).float() / 255
        two = torch.stack([pixels[views[names[i]][p[1]]] for i, p in zip(picked, pairs, strict=True)]).float() / 255
        placed = place(one, side, rng)
        batch = torch.cat([photograph(placed, rng), photograph(placed, rng), photograph(place(two, side, rng), rng)])
        with autocast("cpu"):
            maps = model.features(batch.to(memory_format=torch.channels_last))
            pooled = torch.cat([maps[-1].mean((2, 3)), maps[-1].amax((2, 3))], 1)
            codes = model.identity(pooled)
            guess = model.parameters_head(pooled)
            dense = torch.zeros(())
            for stage, project in zip(maps[1:], model.dense, strict=True):
                code = project(stage[: 2 * heads]).flatten(2)
                seen = F.interpolate(placed[:, 3:], size=stage.shape[2:], mode="area").flatten(1) + 0.15
                spots = torch.multinomial(seen, 20, generator=rng)[:, None].expand(-1, code.shape[1], -1)
                first, second = (half.gather(2, spots).transpose(1, 2).flatten(0, 1) for half in code.split(heads))
                dense = dense + info_nce(first, second, 0.1)
        known = table[picked].repeat(3, 1)
        regression = F.smooth_l1_loss(guess.float(), known)
        identity = info_nce(codes[:heads], codes[2 * heads :], 0.15)
        loss = dense / 3 + 0.5 * identity + regression
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        if step % 25 == 0:
            log.info(
                "%5.0f s  step %d  dense %.3f  identity %.3f  regression %.3f",
                time.monotonic() - begin, step, float(dense) / 3, float(identity), float(regression),
            )  # fmt: skip
        step += 1
    return model.folded().eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("heads", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data" / "perceptual.safetensors")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--threads", type=at_least(1), default=1)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    pixels, owners, parameters = read_small(arguments.heads, 160)
    log.info("%d pictures of %d heads", len(pixels), len(parameters))
    net = train(pixels, owners, parameters, arguments.minutes)
    what = "features of headlift's builtin perceptual distance"
    save_net(net, arguments.out, what, "headlift/prior/perceptual.py", stages=STAGES)


if __name__ == "__main__":
    run_command(main)
