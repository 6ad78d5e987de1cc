"""The supervised stage of the prior's training.

Every head has a code, known from its parameters (`headlift.prior.codes`), that goes through the mapping; backbone,
decoder and super-resolution learn to show its views. One step takes a few heads, one picture of each as a square patch
(which super-resolution sees as well) and single rays of its other pictures. The light, which changes between pictures,
is absorbed by a small network that does not ship.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load
from torch import Tensor, nn

from headlift.eg3d.checkpoint import load_checkpoint, save_checkpoint
from headlift.eg3d.generator import Generator
from headlift.eg3d.layers import FullyConnected
from headlift.eg3d.spec import BackboneSpec, DecoderSpec, GeneratorSpec, MappingSpec, RenderSpec, SuperresSpec
from headlift.eg3d.training import losses
from headlift.eg3d.training.fast import planes_table, superres
from headlift.eg3d.training.lookup import lookup
from headlift.eg3d.training.precision import working_type
from headlift.eg3d.training.rays import Rays, camera_rays, density, hidden, hull_limits, render_rays
from headlift.errors import ConfigError
from headlift.invert.optimiser import AdamAndMuon, Group
from headlift.invert.perceptual import FeatureNet, load_feature_net
from headlift.prior.budget import ABOUT, Budget, load_state, record, save_state
from headlift.prior.dataset import DEPTH_UNIT, Data, block_depth, on_white, shuffled
from headlift.prior.measure import FIGURES, Measure, MeasureConfig, known_of
from headlift.values import Camera


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run; those up to `seed` shape it and must stay when it is taken up again."""

    start: int = 4
    """Side of the backbone's learned constant, texels; above 4 it starts as waves of all directions, so that places
    can be told apart from the first step."""
    waves: float = 4.0
    """Standard deviation of their frequencies, cycles a side."""
    widths: str = "192,192,192,128,64,32"
    """Widths of the backbone at `start`, 2 `start` ... texels; their number gives the planes' resolution."""
    plane_channels: int = 24
    """Channels of a plane."""
    w_dim: int = 256
    """Length of w."""
    hidden: int = 64
    """Width of the decoder's hidden layer."""
    features: int = 32
    """Features that are rendered."""
    superres: str = "32,32"
    """Widths of the super-resolution's blocks."""
    box: float = 1.0
    """Side of the cube, world units."""
    hull: int = 64
    """Cells along each side of the grid that says where heads are."""
    light: int = 6
    """Numbers that describe the light of a picture (they do not ship)."""
    muon: float = 0.0
    """Above 0, mapping and backbone take Muon's steps, so many times as long as the learning rate says; 0: Adam's."""
    seed: int = 0
    """Seed of everything random."""
    neural: int = 64
    """Side of the rendered feature map, pixels; super-resolution makes four times as much of it."""
    heads: int = 8
    """Heads in a step."""
    patch: int = 32
    """Side of the patch that is rendered of one picture a head, in neural pixels."""
    rays: int = 96
    """Single rays in each of the other pictures."""
    others: int = 3
    """Other pictures of each head."""
    coarse: int = 16
    """Samples of a ray without gradients."""
    fine: int = 12
    """Samples of a ray with gradients."""
    lr: float = 1e-2
    """Learning rate of Adam. Weights have unit variance (equalised learning rate), so this is 1 % of them a step."""
    warmup: int = 100
    """Steps over which the learning rate rises."""
    steps: int = 10_000
    """Steps of the whole run; the learning rate falls to a twentieth over the last `cooldown` of them."""
    cooldown: float = 0.3
    """Share of the steps over which the learning rate falls."""
    ema: float = 0.998
    """Decay of the running mean of the weights that is shipped."""
    alpha: float = 0.2
    """Weight of the opacity's cross-entropy."""
    pyramid: float = 1.0
    """Weight of the Laplacian pyramid at full resolution."""
    perceptual: float = 0.0
    """Weight of the distance between features of the network behind the builtin perceptual distance."""
    empty: float = 0.02
    """Weight of empty space being empty."""
    empty_points: int = 256
    """Random points a head outside the hull, where no ray of the training ever looks."""
    solid: float = 0.05
    """Weight of the inside being solid."""
    depth: float = 3.0
    """Weight of the absolute error of depth, where it is known (world units)."""
    surface: float = 0.1
    """Weight of space being empty before the surface and solid behind it, where depth is known."""
    surface_points: int = 192
    """Rays a head on which that is looked at, at one place before the surface and one behind it."""
    white: float = 1.0
    """Weight of super-resolution leaving white white, for random codes and as far beyond them as edits lead."""
    light_weight: float = 0.01
    """Weight of the squared light code."""
    dark: float = 0.3
    """Share of heads that are shown without a light code."""


def spec_of(config: TrainConfig, z_dim: int) -> GeneratorSpec:
    """The generator that a configuration describes."""
    widths = tuple(int(w) for w in config.widths.split(","))
    first, second = (int(w) for w in config.superres.split(","))
    return GeneratorSpec(
        mapping=MappingSpec(z_dim=z_dim, w_dim=config.w_dim, zero_label=True, lr_multiplier=1.0),
        backbone=BackboneSpec(resolution=config.start * 2 ** (len(widths) - 1), channels=widths),
        decoder=DecoderSpec(hidden=config.hidden, features=config.features),
        render=RenderSpec(
            ray_start="auto",
            ray_end="auto",
            box_warp=config.box,
            within_box=True,
            depth_samples=24,
            importance_samples=24,
            white_background=True,
        ),
        superres=SuperresSpec(kind="4X", input_resolution=2 * config.neural, channels=(first, second), conv_clamp=None),
        plane_channels=config.plane_channels,
        plane_layout="zy",
        image_resolution=4 * config.neural,
        neural_resolution=config.neural,
    )


class LightNet(nn.Module):
    """Guesses the light of a picture from its thumbnail and camera, as a code that shifts the colours of the volume.

    The shift of a sample is code * basis * hidden: a change of shading that depends on what the hidden layer knows
    about the place. Code 0 is the mean light, which ships.
    """

    def __init__(self, codes: int, hidden_width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16 * 16 * 4 + 25, 128), nn.SiLU(), nn.Linear(128, codes))
        self.basis = nn.Parameter(torch.randn(codes, 3, hidden_width) * 0.02)

    def forward(self, thumbnail: Float[Tensor, "n 16 16 4"], label: Float[Tensor, "n 25"]) -> Float[Tensor, "n l"]:
        return self.net(torch.cat([thumbnail.flatten(1), label], dim=1))


@dataclass(frozen=True)
class Batch:
    """One step's data. Rays of a head: first the patch row by row, then the single ones."""

    z: Float[Tensor, "n z"]
    labels: Float[Tensor, "n v 25"]
    """Cameras of the patch and of the other pictures."""
    thumbnails: Float[Tensor, "n v 16 16 4"]
    uv: tuple[Float[Tensor, "n p 2"], Float[Tensor, "n u r 2"]]
    """Picture fractions of the patch's rays and of the single rays in the u other pictures."""
    patch: Float[Tensor, "n 4 s s"]
    """The patch at full resolution: RGB on white, alpha, in [0, 1]."""
    single: Float[Tensor, "n u r 4"]
    """RGB on white and alpha of the single rays."""
    depth: Float[Tensor, "n m"]
    """Distance to the surface along each ray, world units; 0 where it is not known."""

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        a, b = self.uv
        z, labels, thumbnails = (x.to(device) for x in (self.z, self.labels, self.thumbnails))
        uv = (a.to(device), b.to(device))
        return Batch(z, labels, thumbnails, uv, self.patch.to(device), self.single.to(device), self.depth.to(device))


def draw_batch(data: Data, config: TrainConfig, step: int, held_out: bool = False) -> Batch:
    """The batch of a step: a function of configuration and step alone, so that a resumed run sees the same."""
    rng = np.random.default_rng((config.seed, step, int(held_out)))
    numbers = data.held_out if held_out else data.numbers
    n = config.heads
    chosen = [numbers[shuffled(len(numbers), config.seed, step * n + i)] for i in range(n)]
    everyone = sorted(data.heads.params)
    rank = {h: i for i, h in enumerate(everyone)}
    z = data.density.encode(data.table[[rank[h] for h in chosen]], None if held_out else rng)
    side = data.heads.images.shape[1]
    factor = side // config.neural
    p = config.patch
    labels, thumbnails, patches, singles, patch_uv, single_uv, depths = [], [], [], [], [], [], []
    for head in chosen:
        rows = rng.permutation(data.views[head])
        # The patch comes from a crop of the face more often than from a picture from all round.
        if data.heads.wide[rows[0]] and rng.random() < 0.3:
            rows = np.concatenate([rows[~data.heads.wide[rows]], rows[data.heads.wide[rows]]])
        rows = np.concatenate([rows[:1], np.resize(rows[1:] if len(rows) > 1 else rows, config.others)])
        y, x = rng.integers(0, config.neural - p + 1, 2)
        crop = data.heads.images[rows[0], y * factor : (y + p) * factor, x * factor : (x + p) * factor]
        patches.append(on_white(crop))
        grid = np.stack(np.meshgrid(np.arange(x, x + p), np.arange(y, y + p)), axis=-1)
        patch_uv.append((grid.reshape(-1, 2) + 0.5) / config.neural)
        pixels = rng.integers(0, side // 2, (config.others, config.rays, 2))
        four = [
            on_white(data.heads.images[rows[1:, None], pixels[..., 1] * 2 + dy, pixels[..., 0] * 2 + dx])
            for dy in range(2)
            for dx in range(2)
        ]
        singles.append(np.mean(four, axis=0))
        single_uv.append((pixels + 0.5) / (side // 2))
        if data.depth is None:
            depths.append(np.zeros(p * p + config.others * config.rays))
        else:
            seen = block_depth(data.depth[rows[0]], config.neural)[y : y + p, x : x + p]
            few = data.depth[rows[1:, None], *(pixels * data.depth.shape[1] // (side // 2)).transpose(2, 0, 1)[::-1]]
            depths.append(np.concatenate([seen.ravel(), few.ravel()]) * DEPTH_UNIT)
        labels.append(data.heads.labels[rows])
        thumbnails.append(data.thumbnails[rows])

    def tensor(arrays: list[Any]) -> Tensor:
        return torch.from_numpy(np.stack(arrays).astype(np.float32))

    return Batch(
        torch.from_numpy(z.astype(np.float32)),
        tensor(labels),
        tensor(thumbnails) / 255,
        (tensor(patch_uv), tensor(single_uv)),
        tensor(patches).permute(0, 3, 1, 2),
        tensor(singles),
        tensor(depths),
    )


@dataclass(frozen=True)
class Seen:
    """What the networks show for a batch, with its losses."""

    image: Float[Tensor, "n 3 s s"]
    raw: Float[Tensor, "n 3 p p"]
    terms: dict[str, Tensor]


def show(
    generator: Generator,
    light: LightNet,
    data: Data,
    batch: Batch,
    config: TrainConfig,
    random: torch.Generator,
    dtype: torch.dtype | None = None,
) -> Seen:
    """Render a batch and compare it with its pictures, in `dtype` or what is fastest on the device."""
    spec = generator.spec
    weights = dict(generator.named_parameters())
    n, views = batch.labels.shape[:2]
    device = batch.z.device
    dtype = dtype or working_type(device)
    w = generator.backbone.mapping(batch.z, torch.zeros(n, 25, device=device))
    ws = w[:, None].expand(-1, generator.num_ws, -1)
    table = planes_table(weights, spec, ws, dtype)

    code = light(batch.thumbnails.flatten(0, 1), batch.labels.flatten(0, 1)).reshape(n, views, -1)
    # Only what differs between the pictures of a head is light: the colour of skin and hair must come from its code.
    code = code - code.mean(1, keepdim=True)
    lit = (torch.rand(n, 1, 1, generator=random, device=device) >= config.dark).float()
    code = code * lit
    patch_uv, single_uv = batch.uv
    camera = Camera.from_label(batch.labels.flatten(0, 1))
    p2, r = patch_uv.shape[1], single_uv.shape[2]
    origin, direction, codes = [], [], []
    for v in range(views):
        uv = patch_uv if v == 0 else single_uv[:, v - 1]
        o, d = camera_rays(camera[torch.arange(n) * views + v], uv)
        origin.append(o)
        direction.append(d)
        codes.append(code[:, v : v + 1].expand(-1, uv.shape[1], -1))
    origin_, direction_, codes_ = (torch.cat(x, dim=1) for x in (origin, direction, codes))
    near, far = hull_limits(origin_, direction_, data.hull, spec.render.box_warp)
    # Rays that miss the hull see white: only the others are rendered.
    hit = far > near
    order = (~hit).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(hit.sum(1).max())]
    rays = Rays(_rows(origin_, order), _rows(direction_, order), near.gather(1, order), far.gather(1, order))
    seen = render_rays(
        weights, spec, table, rays, config.coarse, config.fine, spec.decoder.features, random, dtype,
        (_rows(codes_, order), light.basis),
    )  # fmt: skip
    colour = torch.zeros(n, p2 + r * (views - 1), spec.decoder.features, device=device).scatter(
        1, order[..., None].expand(-1, -1, spec.decoder.features), seen.colour
    )
    alpha = torch.zeros(n, colour.shape[1], device=device).scatter(1, order, seen.alpha)
    wanted = batch.depth.gather(1, order)
    features = colour + (1 - alpha)[..., None]

    side = config.patch
    maps = (features[:, :p2] * 2 - 1).transpose(1, 2).reshape(n, -1, side, side)
    image = superres(weights, _patch_spec(spec, side), maps, w, dtype)
    truth = batch.patch[:, :3] * 2 - 1
    small = F.avg_pool2d(batch.patch, batch.patch.shape[-1] // side)
    raw = maps[:, :3]
    margin = 4
    inner = (slice(None), slice(None), slice(margin, -margin), slice(margin, -margin))
    target_alpha = torch.cat([small[:, 3].flatten(1), batch.single[..., 3].flatten(1)], dim=1)
    counted = (target_alpha < 0.5) | ((far - near) > 0.05)
    single = batch.single[..., :3].flatten(1, 2) * 2 - 1
    shown = features[:, p2:, :3] * 2 - 1
    weight = counted[:, p2:, None]
    terms = {
        "raw": (raw - (small[:, :3] * 2 - 1)).abs().mean(),
        "single": ((shown - single).abs() * weight).mean(),
        "image": (image - truth)[inner].abs().mean(),
        "pyramid": losses.pyramid_loss(image[inner], truth[inner]),
        "alpha": losses.opacity_loss(alpha, target_alpha, counted),
        "light": code.square().mean(),
        "depth": losses.weighted_mean((seen.depth - wanted).abs().clamp(max=FARTHEST), (wanted > 0).float()),
    }
    if config.perceptual > 0:
        terms["perceptual"] = feature_distance(image[inner], truth[inner], dtype)
    if config.white > 0:
        anyone = torch.randn(batch.z.shape, generator=random, device=device)
        other_w = generator.backbone.mapping(anyone, torch.zeros(n, 25, device=device))
        other_w = other_w.mean(0) + BEYOND * (other_w - other_w.mean(0))
        blank = torch.ones_like(maps[..., ::2, ::2])
        shown_blank = superres(weights, _patch_spec(spec, side // 2), blank, other_w, dtype)
        terms["white"] = (shown_blank[inner] - 1).abs().mean()
    places = ((data.outside, config.empty_points), (data.core, 256))
    known = [_within(x, n, spec.render.box_warp / config.hull, random, k) for x, k in places]
    known.append(
        torch.full((n, 1, 3), spec.render.box_warp, device=device)
    )  # beyond the planes, which give zeros there
    before, behind, told = beside_surface(rays, wanted, config.surface_points, random)
    known += [before, behind]
    found = lookup(table, torch.cat(known, dim=1) / (spec.render.box_warp / 2), spec.plane_layout)
    sizes = [x.shape[1] for x in known]
    empty, solid, border, open_, closed = density(weights, hidden(weights, found, dtype)).split(sizes, dim=1)
    terms |= {
        "surface": losses.empty_loss(open_, weight=told) + losses.solid_loss(closed, weight=told),
        "empty": losses.empty_loss(empty),
        "solid": losses.solid_loss(solid),
        "border": losses.empty_loss(border),
    }
    return Seen(image, raw, terms)


BEYOND = 1.5
"""So much farther from the mean than random codes lie those for which white stays white."""
FARTHEST = 0.1
"""Errors of depth beyond this teach nothing more: hair before a face is one or the other, world units."""


def beside_surface(
    rays: Rays, depth: Float[Tensor, "n r"], count: int, random: torch.Generator
) -> tuple[Float[Tensor, "n k 3"], Float[Tensor, "n k 3"], Float[Tensor, "n k"]]:
    """Random points that lie before and just behind the surface on random rays, world units, and which of them hold.

    The first lie anywhere between the hull's beginning and `MARGIN` before the surface, the second up to `SKIN` behind
    it.
    """
    n, r = depth.shape
    picked = torch.randint(r, (n, count), generator=random, device=depth.device)
    u, v = torch.rand(2, n, count, generator=random, device=depth.device)
    near, surface = rays.near.gather(1, picked), depth.gather(1, picked)
    last = surface - MARGIN
    told = ((surface > 0) & (last > near)).float()
    origin, direction = _rows(rays.origin, picked), _rows(rays.direction, picked)
    before = origin + direction * (near + u * (last - near))[..., None]
    behind = origin + direction * (surface + SKIN * v)[..., None]
    return before, behind, told


MARGIN, SKIN = 0.01, 0.03
"""How far before a surface space is surely empty, and how far behind it surely solid, world units."""


@cache
def _feature_net(device: torch.device, dtype: torch.dtype) -> FeatureNet:
    stored = files("headlift.prior.data") / "perceptual.safetensors"
    net = load_feature_net(load(stored.read_bytes())).to(device, dtype)
    return net.to(memory_format=torch.channels_last)


def feature_distance(
    image: Float[Tensor, "n 3 h w"], target: Float[Tensor, "n 3 h w"], dtype: torch.dtype
) -> Float[Tensor, ""]:
    """Mean squared distance of unit-normalised features (Zhang et al. 2018, eq. 1), mean over the stages."""
    net = _feature_net(image.device, dtype)

    def look(x: Tensor) -> list[Tensor]:
        return [F.normalize(f.float(), dim=1) for f in net(x.to(dtype).contiguous(memory_format=torch.channels_last))]

    with torch.no_grad():
        wanted = look(target)
    pairs = zip(look(image), wanted, strict=True)
    return torch.stack([(a - b).square().sum(1).mean() for a, b in pairs]).mean()


def total(terms: Mapping[str, Tensor], config: TrainConfig) -> Tensor:
    """The weighted sum of the losses."""
    return (
        terms["raw"]
        + terms["single"]
        + terms["image"]
        + config.pyramid * terms["pyramid"]
        + config.alpha * terms["alpha"]
        + config.perceptual * terms.get("perceptual", torch.zeros(()))
        + config.white * terms.get("white", torch.zeros(()))
        + config.light_weight * terms["light"]
        + config.empty * (terms["empty"] + terms["border"])
        + config.solid * terms["solid"]
        + config.depth * terms["depth"]
        + config.surface * terms["surface"]
    )


def _rows(x: Float[Tensor, "n r c"], order: Tensor) -> Float[Tensor, "n m c"]:
    return x.gather(1, order[..., None].expand(-1, -1, x.shape[-1]))


def _patch_spec(spec: GeneratorSpec, side: int) -> GeneratorSpec:
    """The super-resolution of a patch: everything smaller in the same proportion."""
    scale = spec.neural_resolution // side
    return replace(
        spec,
        superres=replace(spec.superres, input_resolution=spec.superres.input_resolution // scale),
        image_resolution=spec.image_resolution // scale,
    )


def _within(
    centres: Float[Tensor, "k 3"], heads: int, cell: float, random: torch.Generator, count: int
) -> Float[Tensor, "n m 3"]:
    """Random points of the cells with these centres and this side, world units."""
    device = centres.device
    points = centres[torch.randint(len(centres), (heads, count), generator=random, device=device)]
    return points + (torch.rand(points.shape, generator=random, device=device) - 0.5) * cell


class Trainer:
    """Networks, optimiser and running mean of a run."""

    def __init__(self, data: Data, config: TrainConfig, device: torch.device | str = "cpu", workers: int = 0) -> None:
        """`workers` threads prepare the batches of the next steps; what a step sees does not depend on them."""
        self.config, self.device = config, torch.device(device)
        self.data = replace(data, **{k: getattr(data, k).to(device) for k in ("hull", "core", "outside")})
        self.pool = ThreadPoolExecutor(workers) if workers else None
        self.workers = workers
        self.ahead: dict[int, Future[Batch]] = {}
        torch.manual_seed(config.seed)  # initial weights only; steps draw from generators of their own
        self.generator = Generator(spec_of(config, data.table.shape[1]))
        self.light = LightNet(config.light, config.hidden)
        with torch.no_grad():
            # At the start all heads look nearly alike, so that the mean head is learned first and fast.
            for name, parameter in self.generator.named_parameters():
                if name.endswith("affine.weight"):
                    parameter.mul_(0.25)
            if config.start > 4:
                constant = self.generator.get_parameter(f"backbone.synthesis.b{config.start}.const")
                constant.copy_(waves(constant.shape[0], constant.shape[1], config.waves))
            last = self.generator.decoder.net[2]
            assert isinstance(last, FullyConnected)
            last.weight[0] *= 3
            last.bias[0] = 1.5  # half transparent at the start: neither empty nor solid space is a trap
        self.generator.to(self.device)
        self.light.to(self.device)
        self.ema = Generator(self.generator.spec).requires_grad_(False).to(self.device)
        self.ema.load_state_dict(self.generator.state_dict())
        named = {k: p for k, p in self.generator.named_parameters() if not _frozen(k)}
        self.trained = list(named.values())
        matrices = {k for k in named if config.muon and _MATRICES.fullmatch(k)}
        self.optimiser = AdamAndMuon(
            [
                Group([p for k, p in named.items() if k in matrices], muon=config.muon),
                Group([p for k, p in named.items() if k not in matrices]),
                Group(list(self.light.parameters()), gain=0.1),
            ]
        )
        self.step = 0

    def start_from(self, file: Path) -> None:
        """Take over a finished generator's weights, as a new run's first ones.

        Raises:
            CheckpointError: the file cannot be read.
            ConfigError: its networks have another shape than the settings say.
        """
        weights = load_checkpoint(file).state_dict()
        mine = self.generator.state_dict()
        for name in mine | weights:
            seen, wanted = (list(x[name].shape) if name in x else None for x in (weights, mine))
            if seen != wanted:
                raise ConfigError(f"{file} does not fit the settings: its {name} is {seen}, and {wanted} is wanted")
        for network in (self.generator, self.ema):
            network.load_state_dict(weights)

    def lr(self) -> float:
        """Learning rate of the next step."""
        c = self.config
        start = c.steps * (1 - c.cooldown)
        fall = min(1.0, max(0.0, (self.step - start) / max(1.0, c.steps - start)))
        return c.lr * min(1.0, (self.step + 1) / c.warmup) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * fall)))

    def take_step(self) -> dict[str, float]:
        """One step of the optimiser; returns the losses."""
        random = torch.Generator(self.device).manual_seed(self.config.seed * 1_000_003 + self.step)
        batch = self.next_batch().to(self.device)
        seen = show(self.generator, self.light, self.data, batch, self.config, random)
        loss = total(seen.terms, self.config)
        for group in self.optimiser.groups:
            group.rate = self.lr() * group.gain
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*self.trained, *self.light.parameters()], 10.0, foreach=True)
        self.optimiser.step()
        self.step += 1
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.generator.parameters()), 1 - decay)
        return {"loss": float(loss.detach()), **{k: float(v.detach()) for k, v in seen.terms.items()}}

    def next_batch(self) -> Batch:
        """The batch of the coming step."""
        if self.pool is None:
            return draw_batch(self.data, self.config, self.step)
        for step in range(self.step, self.step + 2 * self.workers):
            if step not in self.ahead:
                self.ahead[step] = self.pool.submit(draw_batch, self.data, self.config, step)
        return self.ahead.pop(self.step).result()

    @torch.no_grad()
    def held_out(self, batches: int = 3) -> dict[str, float]:
        """PSNR over patches of heads that nothing learned from, shown by the codes of their parameters."""
        if not self.data.held_out:
            return {}
        raw, image = [], []
        for i in range(batches):
            batch = draw_batch(self.data, self.config, i, held_out=True).to(self.device)
            random = torch.Generator(self.device).manual_seed(i)
            seen = show(self.ema, self.light, self.data, batch, self.config, random)
            small = F.avg_pool2d(batch.patch[:, :3], batch.patch.shape[-1] // self.config.patch) * 2 - 1
            raw.append(float(losses.psnr(seen.raw, small)))
            image.append(float(losses.psnr(seen.image, batch.patch[:, :3] * 2 - 1)))
        return {"held_out_raw": float(np.mean(raw)), "held_out_image": float(np.mean(image))}

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {
            "config": asdict(self.config),
            "step": self.step,
            "generator": self.generator.state_dict(),
            "light": self.light.state_dict(),
            "ema": self.ema.state_dict(),
            "optimiser": self.optimiser.tensors(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state. Raises ConfigError when it is of a run of another shape."""
        now, names = asdict(self.config), list(asdict(self.config))
        for name in names[: names.index("seed") + 1]:
            if state["config"].get(name, now[name]) != now[name]:
                raise ConfigError(
                    f"the run was begun with --{name.replace('_', '-')} {state['config'][name]}, not {now[name]}: go "
                    "on with that, or begin another run in another folder"
                )
        if "param_groups" in state["optimiser"]:
            raise ConfigError(
                "the run was begun by an earlier headlift: begin another one that starts from its ema.safetensors "
                "(--start-from)"
            )
        self.generator.load_state_dict(state["generator"])
        self.light.load_state_dict(state["light"])
        self.ema.load_state_dict(state["ema"])
        self.optimiser.restore(state["optimiser"])
        self.step = state["step"]

    @torch.no_grad()
    def mean_w(self, network: Generator, samples: int = 4096) -> Float[Tensor, "1 w"]:
        """The mean of w over the density of codes."""
        z = torch.randn(samples, network.spec.mapping.z_dim, generator=torch.Generator().manual_seed(0))
        w = network.backbone.mapping(z.to(self.device), torch.zeros(samples, 25, device=self.device))
        return w.mean(0, keepdim=True)

    @torch.no_grad()
    def shipped(self) -> Generator:
        """The running mean as a generator to use, with the mean of w over the density of codes."""
        self.ema.backbone.mapping.w_avg.copy_(self.mean_w(self.ema)[0])
        return self.ema


def waves(channels: int, side: int, spread: float) -> Float[Tensor, "channels side side"]:
    """Plane waves of random direction, frequency and phase, of unit variance (random Fourier features)."""
    frequency, phase = torch.randn(channels, 2, 1, 1) * spread, torch.rand(channels, 1, 1)
    line = (torch.arange(side) + 0.5) / side
    turns = frequency[:, 0] * line + frequency[:, 1] * line[:, None] + phase
    return 2**0.5 * torch.cos(2 * torch.pi * turns)


_MATRICES = re.compile(r"backbone\..*(conv\d|affine|fc\d)\.weight")
"""The parameters to take Muon's steps."""


def _frozen(name: str) -> bool:
    return name.endswith("noise_strength") or ".mapping.embed." in name


MEASURED_EVERY = 500
"""Steps between two measurements."""


def run(
    data: Data,
    config: TrainConfig,
    out: Path,
    minutes: float,
    start_from: Path | None = None,
    device: str = "cpu",
    workers: int = 0,
    save_every: float = 4.0,
    figures: MeasureConfig = FIGURES,
) -> Trainer:
    """Train until the steps or the minutes are over, or until it is told to stop (SIGTERM).

    Resumes what `out` holds, or starts from the weights of the file `start_from`, or from random ones. Saves every
    `save_every` minutes. Raises ConfigError to go on with settings that make it another run.
    """
    budget, saved = Budget(minutes), 0.0
    out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(data, config, device, workers)
    if (out / "state.pt").exists():
        # To the processor first: Adam's step counters stay where they are loaded, and a GPU would be waited for.
        trainer.load(load_state(out / "state.pt"))
        print(f"going on at step {trainer.step}", flush=True)
    elif start_from is not None:
        trainer.start_from(start_from)
    known = known_of(data.heads, data.density, data.table, data.depth)
    measure = Measure(known, figures, trainer.ema.spec.image_resolution, trainer.device)
    means: dict[str, float] = {}
    while trainer.step < config.steps and not budget.over:
        began = time.monotonic()
        found = trainer.take_step()
        found["seconds"] = time.monotonic() - began
        for k, v in found.items():
            means[k] = means.get(k, v) * 0.95 + v * 0.05
        if trainer.step % 50 == 0 or trainer.step == 1:
            entry = {"step": trainer.step, "lr": trainer.lr(), **means}
            if trainer.step % MEASURED_EVERY == 0:
                entry |= trainer.held_out() | measure(trainer.ema)
            record(out, entry)
        if budget.used - saved > save_every:
            save(trainer, out)
            saved = budget.used
    save(trainer, out)
    return trainer


def save(trainer: Trainer, out: Path) -> None:
    """Write the state and the generator to use."""
    save_state(out / "state.pt", trainer.state())
    save_checkpoint(out / "ema.safetensors", trainer.shipped(), ABOUT | {"step": str(trainer.step)})
