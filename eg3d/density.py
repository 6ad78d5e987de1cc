"""Density on a regular grid, without a look-up in three dimensions.

Bilinear sampling and the decoder's first layer are both linear, so on a grid the three planes can be resampled once in
two dimensions and taken through that layer there: at point (x, y, z) the hidden layer's input is then a sum of three
terms, one for each plane, and a voxel costs one broadcast sum, one softplus and one dot product. In the official layout
two planes see the same coordinates and two terms are left. A plane of x and y that counts as far as a photo sees
(`eg3d.own_planes`) is in the first term of blocks in which it counts fully; where it fades, that term is made voxel by
voxel.

With exp taken of the terms beforehand the sum becomes a product, and softplus(a + b + c) = log(1 + e^a e^b e^c): a
multiplication or two, an addition and a logarithm, done block by block in a buffer that stays in the cache.

The grid is exact: point i of R along each axis lies at (-0.5 + i / (R - 1)) * box_warp in world units. Densities are
those before any activation, float32, indexed [x, y, z].
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from headlift.eg3d.generator import Generator
from headlift.eg3d.triplane import FADE, merge_planes
from headlift.errors import ConfigError

Block = tuple[slice, slice, slice]

BLOCK = (8, 8, 32)
"""Points of a block along x, y and z, the innermost run long: what is decided as a whole."""
BATCH = 2**14
"""Points whose hidden values are made at once: small enough to stay near the processor, large enough that calling
the operators costs little beside them,"""
BATCH_ON_GPU = 2**20
"""and on a GPU, where calling them costs more and there is no such cache."""
AHEAD = 64
"""Batches that may be made before the first is taken, which bounds the memory of those that wait."""
MARGIN = 3
"""Points around a block that must be on the same side of the level before the block is skipped: one keeps the
vertices of marching cubes, three the density's gradient at them too."""
BEHIND, BEFORE, BETWEEN = 0, 1, 2
"""How a block lies to a plane's reach: where the plane does not count, where it counts fully, or neither."""
MAX_EXPONENT = 80.0
"""Larger exponents leave float32's range."""
MAX_SHIFT = 30.0
"""With a larger one single factors would vanish where their product does not."""


def density_grid(
    generator: Generator,
    planes: Float[Tensor, "1 j c p p"],
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
    with torch.autocast(planes.device.type, enabled=False):
        terms = _terms(generator, planes, resolution)
        decided = _decided(terms, block, level, margin)
        blocks = decided.flatten()[:, None, None, None].expand(-1, *block).contiguous()
        for index, values in _evaluate(terms, block, decided):
            if values.requires_grad:
                blocks = blocks.index_copy(0, index, values)
            else:
                blocks[index] = values
    i, j, k = decided.shape
    a, b, c = block
    grid = blocks.view(i, j, k, a, b, c).permute(0, 3, 1, 4, 2, 5).reshape(i * a, j * b, k * c)
    return grid[:resolution, :resolution, :resolution].contiguous()


def density_grid_reference(
    generator: Generator, planes: Float[Tensor, "1 j c p p"], resolution: int, chunk: int = 2**20
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
    planes: Float[Tensor, "1 j c p p"],
    resolution: int,
    block: tuple[int, int, int] = BLOCK,
    level: float | None = None,
    margin: int = MARGIN,
) -> Iterator[tuple[Block, Float[Tensor, "a b c"]]]:
    """The grid in blocks, each with its place, as they are made; memory is bounded by the two-dimensional terms.

    With a `level`, blocks that provably lie on one side of it together with `margin` points around them are left out.
    Raises ConfigError for a resolution below 2.
    """
    with torch.autocast(planes.device.type, enabled=False):
        terms = _terms(generator, planes, resolution)
        decided = _decided(terms, block, level, margin)
        for index, values in _evaluate(terms, block, decided):
            for corner, piece in zip(
                np.stack(np.unravel_index(index.cpu(), decided.shape), axis=1), values, strict=True
            ):
                x, y, z = (
                    slice(i * n, min(i * n + n, resolution)) for i, n in zip(corner.tolist(), block, strict=True)
                )
                yield (x, y, z), piece[: x.stop - x.start, : y.stop - y.start, : z.stop - z.start]


def _evaluate(
    terms: _Terms, block: tuple[int, int, int], decided: Float[Tensor, "i j k"]
) -> Iterator[tuple[Int[Tensor, " m"], Float[Tensor, "m a b c"]]]:
    """The blocks that are not decided, some at a time: their numbers, z fastest, and their densities."""
    work = _Work(terms, block)
    open_blocks = decided.isnan().flatten().nonzero()[:, 0]
    count = _blocks_at_once(block, len(open_blocks), open_blocks.device)
    kinds, full = work.kinds[open_blocks], torch.arange(count, device=open_blocks.device)
    asked = [batch for kind in kinds.unique() for batch in open_blocks[kinds == kind].split(len(full))]

    def densities(index: Int[Tensor, " m"]) -> Float[Tensor, "m a b c"]:
        # Always of so many blocks: the rounding of products goes by their size.
        return work(index[full.clamp_max(len(index) - 1)])[: len(index)]

    with _workers(0 if work.plain or terms.row.is_cuda else torch.get_num_threads()) as run:
        for first in range(0, len(asked), AHEAD):
            some = asked[first : first + AHEAD]
            yield from zip(some, run(densities, some), strict=True)


def _blocks_at_once(block: tuple[int, int, int], asked: int, device: torch.device) -> int:
    if device.type == "cuda":
        return max(1, min(BATCH_ON_GPU // math.prod(block), asked))  # batches are filled up: no more than there are
    return max(1, BATCH // math.prod(block))


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
    part: Part | None
    """What is added to the first one in a part of space."""

    @property
    def firsts(self) -> tuple[Float[Tensor, "h r r"], ...]:
        """The first plane's values `BEHIND` that part's reach and, if there is a part, `BEFORE` it."""
        return self.values[:1] if self.part is None else (self.values[0], self.values[0] + self.part.values)

    def kinds(self, block: tuple[int, int, int], margin: int) -> Int[Tensor, "i j k"]:
        """Of each block, with `margin` points around it: `BEHIND`, `BEFORE` or `BETWEEN`."""
        if self.part is None:
            return torch.full(_counts(self, block), BEHIND, device=self.row.device, dtype=torch.int32)
        along = _along(self.part.slope, block[2], margin)
        across = _windows(self.part.offset[None], block[:2], margin)[0].flatten(2)
        lowest = across.amin(dim=2)[..., None] + along.amin(dim=1)
        highest = across.amax(dim=2)[..., None] + along.amax(dim=1)
        return torch.where(highest <= 0, BEHIND, torch.where(lowest >= 1, BEFORE, BETWEEN)).int()


@dataclass(frozen=True)
class Part:
    """A plane of x and y that counts as far as its reach."""

    values: Float[Tensor, "h r r"]
    """What it adds to the hidden layer's input where it counts fully."""
    slope: Float[Tensor, " r"]
    """How much it counts is the sum of this along z,"""
    offset: Float[Tensor, "r r"]
    """and this over x and y, from 0 to 1."""


def _terms(generator: Generator, planes: Float[Tensor, "1 j c p p"], resolution: int) -> _Terms:
    unit = grid_axis(resolution, 2.0, planes.device)
    merged, spanned = merge_planes(planes.float(), generator.spanned)
    w1, b1, w2, b2 = generator.decoder.layers()
    height, width = torch.meshgrid(unit, unit, indexing="ij")
    points = torch.stack([width, height], dim=-1)[None]
    values: list[Tensor] = []
    axes: list[tuple[int, int]] = []
    part: Part | None = None
    for i, plane in enumerate(spanned):
        across, down = plane.axes
        sampled = F.grid_sample(merged[:, i], points, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
        term = torch.einsum("hc,cab->hab", w1 / 3, sampled)
        if i == 0:
            term = term + b1[:, None, None]
        # The look-up's rows run along its second axis; here the lower axis comes first.
        term = term.contiguous() if down < across else term.mT.contiguous()
        if plane.reach is not None:
            part = Part(term, unit / FADE, plane.offset(points[0]).T.contiguous())
        else:
            values.append(term)
            axes.append((min(across, down), max(across, down)))
    return _Terms(tuple(values), tuple(axes), w2[0], b2[0], part)


class _Work:
    """The densities of some blocks, made in buffers of each thread's own."""

    def __init__(self, terms: _Terms, block: tuple[int, int, int]) -> None:
        self.terms, self.block = terms, block
        self.plain = torch.is_grad_enabled() and any(v.requires_grad for v in (*terms.values, terms.row))
        self.counts = _counts(terms, block)
        self.buffers = threading.local()
        self.kinds = terms.kinds(block, 0).flatten()
        firsts = terms.firsts
        self.multiplied, order = 0, torch.arange(len(terms.row), device=terms.row.device)
        if not self.plain:
            # Most channels are multiplied: softplus(a + b + c) = m + log(e^-m + e^(a + b + c - m)), with a shift m that
            # keeps the largest product finite, and each factor scaled to its share of it. Those come first; the terms
            # of the others are added.
            tops = torch.stack([term.amax(dim=(1, 2)) for term in terms.values])
            tops[0] = torch.stack([term.amax(dim=(1, 2)) for term in firsts]).amax(dim=0)
            shift = (tops.sum(dim=0) - MAX_EXPONENT).clamp_min(0)
            order = shift.argsort()
            self.multiplied = int((shift <= MAX_SHIFT).sum())
        self.firsts = [self._in_blocks(term[order], (0, 1)) for term in firsts]
        self.others = [
            self._in_blocks(term[order], pair) for term, pair in zip(terms.values[1:], terms.axes[1:], strict=True)
        ]
        if terms.part:
            # What the first term is made of between.
            self.base = self._in_blocks(terms.values[0][order], (0, 1))
            self.added = self._in_blocks(terms.part.values[order], (0, 1))
            self.slope = _along(terms.part.slope, block[2], 0)
            self.offset = self._in_blocks(terms.part.offset[None], (0, 1))[0]
        if self.plain:
            return
        self.row, tops, shift = terms.row[order][None], tops[:, order], shift[order]
        scales = ((tops.sum(dim=0) - shift) / len(tops) - tops)[:, : self.multiplied, None, None, None]
        self.scale = scales[0].unsqueeze(-1)
        for first in self.firsts:
            first[: self.multiplied].add_(scales[0]).exp_()
        for other, scale in zip(self.others, scales[1:], strict=True):
            other[: self.multiplied].add_(scale).exp_()
        self.one = (-shift[: self.multiplied]).exp().view(-1, 1, 1, 1, 1)
        self.bias = terms.bias + self.row[0, : self.multiplied] @ shift[: self.multiplied]

    def __call__(self, index: Int[Tensor, " m"]) -> Float[Tensor, "m a b c"]:
        """The blocks with these numbers, all of one kind."""
        parts = self._of_planes(index)
        if self.plain:
            summed = F.softplus(sum(parts[1:], start=parts[0]))
            return torch.einsum("h,hmabc->mabc", self.terms.row, summed) + self.terms.bias
        with torch.no_grad():
            hidden = self._buffer("hidden", len(index))
            product, added = hidden[: self.multiplied], hidden[self.multiplied :]
            _combine(torch.mul, [part[: self.multiplied] for part in parts], product)
            product.add_(self.one).log_()
            if len(added):
                # softplus(p) = max(p, 0) + log(1 + exp(-|p|)), whatever the size of p
                _combine(torch.add, [part[self.multiplied :] for part in parts], added)
                spare = torch.abs(added, out=self._buffer("spare", len(index))[self.multiplied :])
                added.clamp_min_(0).add_(spare.neg_().exp_().add_(1).log_())
            return (self.row @ hidden.flatten(1)).add_(self.bias).view(len(index), *self.block)

    def _in_blocks(self, values: Float[Tensor, "h r r"], axes: tuple[int, int]) -> Float[Tensor, "h n p q"]:
        """A plane's values cut into the blocks' shares of it, row after row."""
        p, q = (self.block[axis] for axis in axes)
        rows, columns = (self.counts[axis] for axis in axes)
        over = (0, columns * q - values.shape[2], 0, rows * p - values.shape[1])
        values = F.pad(values[None], over, mode="replicate")[0]
        return values.view(-1, rows, p, columns, q).transpose(2, 3).reshape(-1, rows * columns, p, q)

    def _of_planes(self, index: Int[Tensor, " m"]) -> list[Tensor]:
        """What each plane gives to the blocks, [h, m, a, b, c] with one axis of length one where it is constant."""
        _, j, k = self.counts
        place = (index // (j * k), index // k % j, index % k)

        def part(factor: Tensor, a: int, b: int) -> Tensor:
            return factor.index_select(1, place[a] * self.counts[b] + place[b]).unsqueeze(
                2 + ({0, 1, 2} - {a, b}).pop()
            )

        kind = int(self.kinds[index[0]])
        if kind != BETWEEN:
            first = part(self.firsts[kind], 0, 1)
        else:
            share = self.slope[place[2]][:, None, None] + self.offset[place[0] * j + place[1]][..., None]
            first = part(self.base, 0, 1) + share.clamp(0, 1) * part(self.added, 0, 1)
            if not self.plain:
                first[: self.multiplied].add_(self.scale).exp_()
        return [first, *(part(factor, a, b) for factor, (a, b) in zip(self.others, self.terms.axes[1:], strict=True))]

    def _buffer(self, name: str, blocks: int) -> Float[Tensor, "h m a b c"]:
        size = len(self.terms.row) * blocks * math.prod(self.block)
        if not hasattr(self.buffers, name) or len(getattr(self.buffers, name)) < size:
            setattr(self.buffers, name, torch.empty(size, device=self.terms.row.device))
        buffer: Tensor = getattr(self.buffers, name)
        return buffer[:size].view(-1, blocks, *self.block)


def _counts(terms: _Terms, block: tuple[int, int, int]) -> tuple[int, ...]:
    """How many blocks lie along each axis."""
    return tuple(-(-terms.values[0].shape[1] // size) for size in block)


def _along(values: Float[Tensor, " r"], size: int, margin: int) -> Float[Tensor, "k w"]:
    """Values along z over each block and `margin` points around it; what sticks out repeats the border."""
    over = -len(values) % size
    return F.pad(values[None], (margin, margin + over), mode="replicate")[0].unfold(0, size + 2 * margin, size)


def _combine(operation: Callable[..., Tensor], parts: list[Tensor], out: Tensor) -> None:
    operation(parts[0], parts[1], out=out)
    for part in parts[2:]:
        operation(out, part, out=out)


def _decided(terms: _Terms, block: tuple[int, int, int], level: float | None, margin: int) -> Float[Tensor, "i j k"]:
    """For each block a bound on the side of the level where all of it lies, or NaN where that is not certain."""
    if level is None:
        return torch.full(_counts(terms, block), math.nan, device=terms.row.device)
    with torch.no_grad():
        upper, lower, slack = density_bounds(terms, block, margin)
        value = torch.full_like(upper, math.nan)
        value = torch.where(upper + slack < level, upper + slack, value)
        return torch.where(lower - slack > level, lower - slack, value)


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
    firsts = [_windows(first, block[:2], margin) for first in terms.firsts]
    others = [
        (_windows(term, (block[pair[0]], block[pair[1]]), margin), pair)
        for term, pair in zip(terms.values[1:], terms.axes[1:], strict=True)
    ]
    kinds = terms.kinds(block, margin)

    def of_both(extreme: Callable[[Tensor, Tensor], Tensor], found: list[Tensor]) -> Tensor:
        """What holds behind the reach, before it, or the extreme of both, which bounds all that lies between them."""
        if len(found) == 1:
            return found[0]
        behind, before = found
        return torch.where(kinds == BEHIND, behind, torch.where(kinds == BEFORE, before, extreme(behind, before)))

    def reached(extreme: Callable[..., Tensor], among: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Each hidden unit's least or greatest input over each block."""
        first = [extreme(window, dim=(-2, -1)).unsqueeze(3) for window in firsts]
        rest = [extreme(w, dim=(-2, -1)).unsqueeze(1 + ({0, 1, 2} - set(pair)).pop()) for w, pair in others]
        return sum(rest, start=of_both(among, first))

    low, high = reached(torch.amin, torch.minimum), reached(torch.amax, torch.maximum)
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
        linear = linear + of_both(torch.maximum, [_greatest(slope, window, (0, 1)) for window in firsts])
        linear = sum((_greatest(slope, window, pair) for window, pair in others), start=linear)
        interval = (row * sign * F.softplus(torch.where(lifts, high, low))).sum(dim=0)
        bounds.append(torch.minimum(linear, interval) * sign + terms.bias)
    slack = 1e-4 * (1 + (row.abs() * (F.softplus(high) + width)).sum(dim=0))
    return bounds[0], bounds[1], slack


def _windows(term: Float[Tensor, "h a b"], block: tuple[int, int], margin: int) -> Float[Tensor, "h a2 b2 p q"]:
    """A term over each block of points and `margin` points around it; what sticks out repeats the border."""
    over = [(-side) % size for side, size in zip(term.shape[1:], block, strict=True)]
    padded = F.pad(term[None], (margin, margin + over[1], margin, margin + over[0]), mode="replicate")[0]
    return padded.unfold(1, block[0] + 2 * margin, block[0]).unfold(2, block[1] + 2 * margin, block[1])


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
