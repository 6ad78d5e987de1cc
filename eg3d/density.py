"""Density on a regular grid, without a look-up in three dimensions.

Bilinear sampling and the decoder's first layer are both linear, so on a grid the three planes can be resampled once in
two dimensions and taken through that layer there: at point (x, y, z) the hidden layer's input is then a sum of three
terms, one for each plane, and a voxel costs one broadcast sum, one softplus and one dot product. In the official
layout two planes see the same coordinates and two terms are left.

With exp taken of the terms beforehand the sum becomes a product, and softplus(a + b + c) = log(1 + e^a e^b e^c): a
multiplication or two, an addition and a logarithm, done block by block in a buffer that stays in the cache.

The grid is exact: point i of R along each axis lies at (-0.5 + i / (R - 1)) * box_warp in world units. Densities are
those before any activation, float32, indexed [x, y, z].
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from headlift.eg3d.generator import Generator
from headlift.eg3d.triplane import PLANE_AXES, merge_planes
from headlift.errors import ConfigError

Block = tuple[slice, slice, slice]

BLOCK = (8, 8, 32)
"""Points of a block along x, y and z: the innermost run long, the hidden values half a megabyte."""
MARGIN = 3
"""Points around a block that must be on the same side of the level before the block is skipped: one keeps the
vertices of marching cubes, three the density's gradient at them too."""
MAX_EXPONENT = 80.0
"""Beyond this sum of terms exp leaves float32's range, and the terms are added before the softplus instead."""


def density_grid(
    generator: Generator,
    planes: Float[Tensor, "1 3 c p p"],
    resolution: int,
    level: float | None = None,
    block: tuple[int, int, int] = BLOCK,
    margin: int = MARGIN,
) -> Float[Tensor, "r r r"]:
    """The density at all points of the grid; equal to `density_grid_reference` up to rounding.

    With a `level`, blocks that provably lie on one side of it are filled with a bound on that side instead: marching
    cubes at that level gives the same vertices. Differentiable in planes and decoder where gradients are wanted.
    Raises ConfigError for a resolution below 2.
    """
    sigma = torch.empty((resolution,) * 3, device=planes.device)
    differentiable = torch.is_grad_enabled() and (planes.requires_grad or generator.decoder.net[0].weight.requires_grad)
    for where, values in density_blocks(generator, planes, resolution, block, level, margin, fill=True):
        if differentiable:
            sigma = sigma.index_put(_indices(where, sigma.device), values)
        else:
            sigma[where] = values
    return sigma


def density_grid_reference(
    generator: Generator, planes: Float[Tensor, "1 3 c p p"], resolution: int, chunk: int = 2**20
) -> Float[Tensor, "r r r"]:
    """The same grid the plain way: three look-ups at each point, the full decoder, chunks of points."""
    axis = grid_axis(resolution, generator.spec.render.box_warp, planes.device)
    index = torch.arange(resolution**3, device=planes.device)
    found = []
    for part in torch.split(index, chunk):
        xyz = torch.stack([axis[part // resolution**2], axis[part // resolution % resolution], axis[part % resolution]])
        found.append(generator.query(planes, xyz.T[None], chunk)[0].reshape(-1))
    return torch.cat(found).reshape(resolution, resolution, resolution)


def grid_axis(resolution: int, box_warp: float, device: torch.device | None = None) -> Float[Tensor, " r"]:
    """Coordinates of the grid's points along one axis, world units. Raises ConfigError for a resolution below 2."""
    if resolution < 2:
        raise ConfigError(f"a grid needs at least 2 points along each side, not {resolution}")
    steps = torch.arange(resolution, dtype=torch.float64, device=device) / (resolution - 1)
    return ((steps - 0.5) * box_warp).float()


def density_blocks(
    generator: Generator,
    planes: Float[Tensor, "1 3 c p p"],
    resolution: int,
    block: tuple[int, int, int] = BLOCK,
    level: float | None = None,
    margin: int = MARGIN,
    fill: bool = False,
) -> Iterator[tuple[Block, Float[Tensor, "a b c"]]]:
    """The grid in blocks, each with its place, as they are made; memory is bounded by the two-dimensional terms.

    With a `level`, blocks that provably lie on one side of it together with `margin` points around them are left out,
    or, with `fill`, come as a bound on that side. Raises ConfigError for a resolution below 2.
    """
    with torch.autocast(planes.device.type, enabled=False):
        terms = _terms(generator, planes, resolution)
        decided = None if level is None else _decided(terms, resolution, block, level, margin)
        steps = [[slice(f, min(f + size, resolution)) for f in range(0, resolution, size)] for size in block]
        work = _Work(terms, block)
        with _workers(0 if work.plain or planes.is_cuda else torch.get_num_threads()) as run:
            for i, x in enumerate(steps[0]):
                places, values = [], []
                for (j, y), (k, z) in itertools.product(enumerate(steps[1]), enumerate(steps[2])):
                    value = math.nan if decided is None else decided[i][j][k]
                    if fill or math.isnan(value):
                        places.append((x, y, z))
                        values.append(value)
                yield from zip(places, run(work, places, values), strict=True)


@contextmanager
def _workers(count: int) -> Iterator[Callable[..., Iterable[Tensor]]]:
    """`map` by so many threads of this process, each with single-threaded operators; by the caller itself for 0.

    Operators on blocks are too short to be split between threads: those would wait for each other most of the time.
    """
    if not count:
        yield map
        return
    before = torch.get_num_threads()
    started = threading.Barrier(count + 1)

    def start() -> None:
        torch.set_num_threads(1)  # of this thread, and of those that are started later: hence the line below
        started.wait()

    with ThreadPoolExecutor(count) as pool:
        ready = [pool.submit(start) for _ in range(count)]
        started.wait()
        torch.set_num_threads(before)
        for future in ready:
            future.result()
        yield pool.map


@dataclass(frozen=True)
class _Terms:
    """What each plane adds to the hidden layer's input on the grid, and the rest of the way to the density."""

    values: tuple[Float[Tensor, "h a b"], ...]
    """For each plane, indexed by its two world axes in rising order; the bias is in the first."""
    axes: tuple[tuple[int, int], ...]
    """These axes."""
    row: Float[Tensor, " h"]
    """The decoder's second layer, its row for the density."""
    bias: Float[Tensor, ""]
    """And that row's bias."""

    @property
    def in_range(self) -> bool:
        """Whether exp of every term and of every sum of terms stays finite."""
        top = torch.stack([term.amax(dim=(1, 2)) for term in self.values])
        return bool((top.clamp_min(0).sum(dim=0) < MAX_EXPONENT).all())


def _terms(generator: Generator, planes: Float[Tensor, "1 3 c p p"], resolution: int) -> _Terms:
    unit = grid_axis(resolution, 2.0, planes.device)
    merged, axes = merge_planes(planes.float(), generator.spec.plane_layout)
    w1, b1, w2, b2 = generator.decoder.layers()
    height, width = torch.meshgrid(unit, unit, indexing="ij")
    points = torch.stack([width, height], dim=-1)[None]
    values, sorted_axes = [], []
    for i, (across, down) in enumerate(axes):
        sampled = F.grid_sample(merged[:, i], points, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
        term = torch.einsum("hc,cab->hab", w1 / len(PLANE_AXES[generator.spec.plane_layout]), sampled)
        if i == 0:
            term = term + b1[:, None, None]
        # The look-up's rows run along its second axis; here the lower axis comes first.
        values.append(term.contiguous() if down < across else term.mT.contiguous())
        sorted_axes.append((min(across, down), max(across, down)))
    return _Terms(tuple(values), tuple(sorted_axes), w2[0], b2[0])


class _Work:
    """The densities of a block, made in buffers of each thread's own."""

    def __init__(self, terms: _Terms, block: tuple[int, int, int]) -> None:
        self.terms = terms
        self.plain = torch.is_grad_enabled() and any(v.requires_grad for v in (*terms.values, terms.row))
        self.product = not self.plain and terms.in_range
        self.factors = tuple(v.exp() for v in terms.values) if self.product else terms.values
        self.size = len(terms.row) * math.prod(block)
        self.buffers = threading.local()

    def __call__(self, place: Block, value: float) -> Float[Tensor, "a b c"]:
        """The block at `place`, filled with `value` unless that is NaN."""
        shape = [s.stop - s.start for s in place]
        row, bias = self.terms.row, self.terms.bias
        if not math.isnan(value):
            return torch.full((), value, device=row.device).expand(shape)
        parts = [_part(v, axes, place) for v, axes in zip(self.factors, self.terms.axes, strict=True)]
        if self.plain:
            return torch.einsum("h,habc->abc", row, F.softplus(sum(parts[1:], start=parts[0]))) + bias
        with torch.no_grad():
            hidden = self._buffer("hidden", shape)
            combine = torch.mul if self.product else torch.add
            combine(parts[0], parts[1], out=hidden)
            for part in parts[2:]:
                combine(hidden, part, out=hidden)
            if self.product:
                hidden.add_(1).log_()
            else:
                # softplus(p) = max(p, 0) + log(1 + exp(-|p|)), whatever the size of p
                spare = torch.abs(hidden, out=self._buffer("spare", shape))
                hidden.clamp_min_(0).add_(spare.neg_().exp_().add_(1).log_())
            return (row[None] @ hidden.flatten(1)).add_(bias).view(shape)

    def _buffer(self, name: str, shape: list[int]) -> Float[Tensor, "h a b c"]:
        if not hasattr(self.buffers, name):
            setattr(self.buffers, name, torch.empty(self.size, device=self.terms.row.device))
        buffer: Tensor = getattr(self.buffers, name)
        return buffer[: len(self.terms.row) * math.prod(shape)].view(-1, *shape)


def _part(term: Float[Tensor, "h a b"], axes: tuple[int, int], place: Block) -> Tensor:
    """The piece of a term that a block needs, with an axis of length one where it is constant."""
    piece = term[:, place[axes[0]], place[axes[1]]]
    return piece.unsqueeze(1 + ({0, 1, 2} - set(axes)).pop())


def _decided(
    terms: _Terms, resolution: int, block: tuple[int, int, int], level: float, margin: int
) -> list[list[list[float]]]:
    """For each block a bound on the side of the level where all of it lies, or NaN where that is not certain."""
    with torch.no_grad():
        upper, lower, slack = density_bounds(terms, block, margin)
        value = torch.full_like(upper, math.nan)
        value = torch.where(upper + slack < level, upper + slack, value)
        value = torch.where(lower - slack > level, lower - slack, value)
        found: list[list[list[float]]] = value.tolist()
        return found


def density_bounds(
    terms: _Terms, block: tuple[int, int, int], margin: int
) -> tuple[Float[Tensor, "i j k"], Float[Tensor, "i j k"], Float[Tensor, "i j k"]]:
    """Above, below, and slack for rounding: bounds on the density over each block and `margin` points around it.

    Softplus is monotonous and convex. Extremes of each plane's term over a block give an interval for the input of each
    hidden unit; over it softplus lies below its chord and above a tangent. With those in its place (the chord where a
    weight lifts the bound, the tangent where it lowers it) the density becomes linear in the terms, so that each
    plane's share can be bounded with its channels together (as in CROWN, Zhang et al., NeurIPS 2018); plain interval
    arithmetic loses how the channels hang together, and bounds almost nothing.
    """
    windows = [
        _windows(term, (block[a], block[b]), margin) for term, (a, b) in zip(terms.values, terms.axes, strict=True)
    ]
    low = _sum_of_terms([w.amin(dim=(-2, -1)) for w in windows], terms.axes)
    high = _sum_of_terms([w.amax(dim=(-2, -1)) for w in windows], terms.axes)
    width = (high - low).clamp_min(1e-6)
    chord = (F.softplus(high) - F.softplus(low)) / width
    chord_offset = F.softplus(low) - chord * low
    middle = (low + high) / 2
    tangent = torch.sigmoid(middle)
    tangent_offset = F.softplus(middle) - tangent * middle
    row = terms.row[:, None, None, None]
    bounds = []
    for sign in (1.0, -1.0):
        lifts = row * sign > 0
        slope = row * sign * torch.where(lifts, chord, tangent)
        linear = (row * sign * torch.where(lifts, chord_offset, tangent_offset)).sum(dim=0)
        for window, axes in zip(windows, terms.axes, strict=True):
            linear = linear + _greatest(slope, window, axes)
        interval = (row * sign * F.softplus(torch.where(lifts, high, low))).sum(dim=0)
        bounds.append(torch.minimum(linear, interval) * sign + terms.bias)
    slack = 1e-4 * (1 + (row.abs() * (F.softplus(high) + width)).sum(dim=0))
    return bounds[0], bounds[1], slack


def _windows(term: Float[Tensor, "h a b"], block: tuple[int, int], margin: int) -> Float[Tensor, "h a2 b2 p q"]:
    """A term over each block of points and `margin` points around it; what sticks out repeats the border."""
    over = [(-side) % size for side, size in zip(term.shape[1:], block, strict=True)]
    padded = F.pad(term[None], (margin, margin + over[1], margin, margin + over[0]), mode="replicate")[0]
    return padded.unfold(1, block[0] + 2 * margin, block[0]).unfold(2, block[1] + 2 * margin, block[1])


def _sum_of_terms(values: list[Tensor], axes: tuple[tuple[int, int], ...]) -> Float[Tensor, "h i j k"]:
    spread = [v.unsqueeze(1 + ({0, 1, 2} - set(pair)).pop()) for v, pair in zip(values, axes, strict=True)]
    return sum(spread[1:], start=spread[0])


def _greatest(
    slope: Float[Tensor, "h i j k"], windows: Float[Tensor, "h a b p q"], axes: tuple[int, int]
) -> Float[Tensor, "i j k"]:
    """For each block the largest product of its slopes with a term's channels, over the points of its window."""
    rest = ({0, 1, 2} - set(axes)).pop()
    slopes = slope.permute(1 + axes[0], 1 + axes[1], 1 + rest, 0)
    found = []
    for i in range(windows.shape[1]):
        points = windows[:, i].transpose(0, 1).flatten(2)
        found.append((slopes[i] @ points).amax(dim=-1))
    order = [0, 0, 0]
    for position, axis in enumerate((*axes, rest)):
        order[axis] = position
    return torch.stack(found).permute(order)


def _indices(where: Block, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    axes = [torch.arange(s.start, s.stop, device=device) for s in where]
    return axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None, :]


def published_grid(resolution: int, side: float) -> tuple[Float[Tensor, "1 m 3"], Float[np.ndarray, " xyz"], float]:
    """The published code's grid of points (world units), its corner and its spacing; z runs fastest.

    Its x and y indices are not rounded down, so that the grid is sheared by up to one voxel and x overshoots the cube.
    Only for comparisons with published meshes; `density_grid` has the exact grid.
    """
    spacing = side / (resolution - 1)
    index = torch.arange(resolution**3)
    z = (index % resolution).float()
    y = (index.float() / resolution) % resolution
    x = (index.float() / resolution / resolution) % resolution
    corner = np.zeros(3) - side / 2
    return (torch.stack([x, y, z], dim=-1) * spacing + corner[0])[None], corner, spacing
