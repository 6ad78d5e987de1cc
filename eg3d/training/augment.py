"""Adaptive discriminator augmentation (ADA; Karras et al. 2020, "Training GANs with Limited Data").

Everything the discriminator sees is changed at random with probability p, real and generated pictures alike, so that
few real pictures are not learned by heart; p follows how sure the discriminator is of the real ones. The families and
their strengths are the paper's (appendix B): geometry and colour, and, off by default, noise and cutout. Picture and
raw picture of a pair are changed alike, each at its own resolution; a fourth channel (opacity) takes part in the
geometry alone.

An `Augmentation` is drawn once for a batch from a `torch.Generator` and can then be indexed, so that what happens to
an image does not depend on how a batch is divided.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class AugmentConfig:
    """Which families take part; each number multiplies p for its family, 0 switches it off."""

    flip: float = 0.0
    """Left to right. Off: the discriminator knows the camera, and a flipped head was seen from the other side."""
    quarter_turns: float = 1.0
    """Turns by multiples of 90 degrees."""
    shift: float = 1.0
    """Shifts by whole pixels, up to an eighth of the side."""
    scale: float = 1.0
    """Zoom, log2-normal with deviation 0.2."""
    rotation: float = 1.0
    """Any turn."""
    stretch: float = 1.0
    """Zoom along one direction, log2-normal with deviation 0.2."""
    fine_shift: float = 1.0
    """Shifts by fractions of pixels, normal with a deviation of an eighth of the side."""
    brightness: float = 1.0
    """Added to all colours, normal with deviation 0.2."""
    contrast: float = 1.0
    """Multiplies all colours, log2-normal with deviation 0.5."""
    luma_flip: float = 1.0
    """Light and dark exchanged, hue kept."""
    hue: float = 1.0
    """Any turn of the colours around the grey axis."""
    saturation: float = 1.0
    """Multiplies what differs from grey, log2-normal with deviation 1."""
    noise: float = 0.0
    """Gaussian noise on the pixels of the picture; its deviation is |N(0, 0.1)|."""
    cutout: float = 0.0
    """A square of half the side turns grey."""


@dataclass(frozen=True)
class Augmentation:
    """What happens to n pairs of pictures."""

    geometry: Float[Tensor, "n 3 3"]
    """From places in the new picture to places in the old one, both [-1, 1] from edge to edge."""
    colour: Float[Tensor, "n 4 4"]
    """Of (r, g, b, 1), colours in [-1, 1]."""
    noise: Float[Tensor, "n 3 s s"] | None
    """Added to the picture; the raw one gets it resized. None when the family is off."""
    hole: Float[Tensor, "n 4"]
    """Left, top, right, bottom of the cutout in [-1, 1]; empty where nothing is cut."""

    def __getitem__(self, chosen: slice) -> Augmentation:
        noise = None if self.noise is None else self.noise[chosen]
        return Augmentation(self.geometry[chosen], self.colour[chosen], noise, self.hole[chosen])

    def apply(self, image: Float[Tensor, "n c h h"]) -> Float[Tensor, "n c h h"]:
        """The pictures changed: RGB in [-1, 1], and further channels that colours leave alone. Differentiable, twice
        in the picture."""
        image = warp(image, self.geometry)
        rgb = torch.einsum("nij,njhw->nihw", self.colour[:, :3, :3], image[:, :3]) + self.colour[:, :3, 3, None, None]
        if self.noise is not None:
            rgb = rgb + _resized(self.noise, image.shape[-1])
        line = (torch.arange(image.shape[-1], device=image.device) + 0.5) / image.shape[-1] * 2 - 1
        left, top, right, bottom = self.hole[:, :, None].unbind(1)
        inside = ((line > top) & (line < bottom))[:, :, None] & ((line > left) & (line < right))[:, None]
        rgb = torch.where(inside[:, None], torch.zeros_like(rgb), rgb)
        return torch.cat([rgb, image[:, 3:]], dim=1)


def draw_augmentation(
    config: AugmentConfig, count: int, side: int, p: float, generator: torch.Generator
) -> Augmentation:
    """What happens to `count` pictures of `side` pixels, each family with probability p; on the generator's device."""
    device = generator.device

    def uniform() -> Tensor:
        return torch.rand(count, generator=generator, device=device)

    def normal() -> Tensor:
        return torch.randn(count, generator=generator, device=device)

    def chosen(multiplier: float, value: Tensor, otherwise: float) -> Tensor:
        """The value with probability p times the family's multiplier. Always draws, so that p moves no other number."""
        return torch.where(uniform() < p * multiplier, value, torch.full_like(value, otherwise))

    zero, one = torch.zeros(count, device=device), torch.ones(count, device=device)
    # The matrices take the new picture's places to the old one's, so each is the inverse of what happens.
    moves = [
        _scaling(chosen(config.flip, 1 - 2 * (uniform() * 2).floor(), 1.0), one),
        _turning(chosen(config.quarter_turns, (uniform() * 4).floor() * (math.pi / 2), 0.0)),
    ]
    shift = [((uniform() * 2 - 1) * side / 8).round() * (2 / side) for _ in range(2)]
    picked = uniform() < p * config.shift
    moves.append(_shifting(*(torch.where(picked, s, zero) for s in shift)))
    zoom = chosen(config.scale, torch.exp2(normal() * 0.2), 1.0)
    moves.append(_scaling(1 / zoom, 1 / zoom))
    # Two turns, before and after the stretch, that together happen with the probability of one.
    either = 1 - math.sqrt(max(0.0, 1 - p * config.rotation))
    turn = torch.where(uniform() < either, (uniform() * 2 - 1) * math.pi, zero)
    moves.append(_turning(turn))
    stretch = chosen(config.stretch, torch.exp2(normal() * 0.2), 1.0)
    moves.append(_scaling(1 / stretch, stretch))
    turn = torch.where(uniform() < either, (uniform() * 2 - 1) * math.pi, zero)
    moves.append(_turning(turn))
    shift = [normal() * (2 / 8) for _ in range(2)]
    picked = uniform() < p * config.fine_shift
    moves.append(_shifting(*(torch.where(picked, s, zero) for s in shift)))
    geometry = _product(moves)

    grey = torch.full((3,), 1 / math.sqrt(3), device=device)
    along = torch.outer(grey, grey).expand(count, 3, 3)
    eye = torch.eye(3, device=device).expand(count, 3, 3)
    offset = chosen(config.brightness, normal() * 0.2, 0.0)
    contrast = chosen(config.contrast, torch.exp2(normal() * 0.5), 1.0)
    flipped = chosen(config.luma_flip, (uniform() * 2).floor(), 0.0)
    angle = chosen(config.hue, (uniform() * 2 - 1) * math.pi, 0.0)
    saturation = chosen(config.saturation, torch.exp2(normal()), 1.0)
    linear = contrast[:, None, None] * eye
    linear = (eye - 2 * along * flipped[:, None, None]) @ linear
    linear = _around_grey(angle) @ linear
    linear = (along + (eye - along) * saturation[:, None, None]) @ linear
    # Brightness comes before contrast: (x + offset) contrast ...
    constant = (linear @ torch.ones(3, 1, device=device))[..., 0] * offset[:, None]
    colour = torch.eye(4, device=device).repeat(count, 1, 1)
    colour[:, :3, :3], colour[:, :3, 3] = linear, constant

    noise = None
    if config.noise > 0:
        strength = chosen(config.noise, normal().abs() * 0.1, 0.0)
        noise = torch.randn(count, 3, side, side, generator=generator, device=device) * strength[:, None, None, None]
    middle = [uniform() * 2 - 1 for _ in range(2)]
    half = chosen(config.cutout, torch.full((count,), 0.5, device=device), 0.0)
    hole = torch.stack([middle[0] - half, middle[1] - half, middle[0] + half, middle[1] + half], dim=1)
    return Augmentation(geometry, colour, noise, hole)


def adapt(p: float, sign: float, target: float, images: int, span: float) -> float:
    """The next p: up while the real logits' mean sign is above the target, down below it; within [0, 1].

    `images` were seen since the last change; over `span` images p can go from 0 to 1 (ADA section 3, r_t).
    """
    step = math.copysign(images / span, sign - target) if sign != target else 0.0
    return min(1.0, max(0.0, p + step))


def warp(image: Float[Tensor, "n c h h"], geometry: Float[Tensor, "n 3 3"]) -> Float[Tensor, "n c h h"]:
    """Pictures looked at through an affine map of places; reflected at the border, each pixel the mean of four
    bilinear samples. Pictures whose map is the identity come back as they are."""
    n, c, side = image.shape[:3]
    grid = F.affine_grid(geometry[:, :2].to(image), [n, c, 2 * side, 2 * side], align_corners=False)
    moved = F.avg_pool2d(_Sample.apply(image, grid), 2)
    same = (geometry == torch.eye(3, device=geometry.device)).flatten(1).all(1)
    return torch.where(same[:, None, None, None], image, moved)


class _Sample(torch.autograd.Function):
    """`F.grid_sample` in the picture alone, which is linear in it: PyTorch's own cannot be differentiated twice."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.shape = image.shape
        return _look_up(image, grid)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grid,) = ctx.saved_tensors
        return _Spread.apply(grads[0], grid, ctx.shape), None


class _Spread(torch.autograd.Function):
    """The transpose of `_Sample`; its own derivative is `_Sample` again."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, grid: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        with torch.enable_grad():
            image = torch.zeros(shape, dtype=grad.dtype, device=grad.device, requires_grad=True)
            (spread,) = torch.autograd.grad(_look_up(image, grid), image, grad)
        return spread

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grid,) = ctx.saved_tensors
        return _Sample.apply(grads[0], grid), None, None


def _look_up(image: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _resized(image: Float[Tensor, "n c h h"], side: int) -> Float[Tensor, "n c s s"]:
    if image.shape[-1] == side:
        return image
    return F.interpolate(image, size=(side, side), mode="bilinear", align_corners=False, antialias=True)


def _product(matrices: list[Float[Tensor, "n 3 3"]]) -> Float[Tensor, "n 3 3"]:
    product = matrices[0]
    for matrix in matrices[1:]:
        product = product @ matrix
    return product


def _matrix(rows: list[list[Tensor]]) -> Float[Tensor, "n 3 3"]:
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def _scaling(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> Float[Tensor, "n 3 3"]:
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return _matrix([[x, zero, zero], [zero, y, zero], [zero, zero, one]])


def _shifting(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> Float[Tensor, "n 3 3"]:
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return _matrix([[one, zero, x], [zero, one, y], [zero, zero, one]])


def _turning(angle: Float[Tensor, " n"]) -> Float[Tensor, "n 3 3"]:
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    c, s = angle.cos(), angle.sin()
    return _matrix([[c, -s, zero], [s, c, zero], [zero, zero, one]])


def _around_grey(angle: Float[Tensor, " n"]) -> Float[Tensor, "n 3 3"]:
    """Rotations about the axis (1, 1, 1) (Rodrigues' formula)."""
    k = 1 / math.sqrt(3)
    cross = torch.tensor([[0.0, -k, k], [k, 0.0, -k], [-k, k, 0.0]], device=angle.device)
    angle = angle[:, None, None]
    return torch.eye(3, device=angle.device) + angle.sin() * cross + (1 - angle.cos()) * (cross @ cross)
