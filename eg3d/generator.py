"""EG3D's generator (Chan et al., CVPR 2022): codes to planes once, planes to pictures for any number of cameras."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headlift.eg3d import rays
from headlift.eg3d.active import CUT, FirstLook, density_along, march_active
from headlift.eg3d.backbone import Backbone
from headlift.eg3d.camera import orbit
from headlift.eg3d.decoder import Decoder
from headlift.eg3d.mapping import truncate
from headlift.eg3d.marching import composite, interval_weights, sample_weights
from headlift.eg3d.rays import Jitter
from headlift.eg3d.rounding import blend_middles
from headlift.eg3d.shared_look import spread_weights
from headlift.eg3d.spec import GeneratorSpec, NoiseMode
from headlift.eg3d.superres import Superresolution
from headlift.eg3d.triplane import PLANES, Plane, in_rows, look_up, merge_planes, sample_planes
from headlift.values import Camera, RenderOutput

EVERYWHERE = -2.0
"""A photo's reach behind all that there is."""
POINTS_PER_CHUNK = 2**16
"""Points that are decoded at once when no gradient is wanted: what stays in the cache,"""
POINTS_PER_CHUNK_ON_GPU = 2**22
"""and on a GPU, which small chunks leave idle: some gigabytes of it with the published widths."""


@dataclass(frozen=True)
class VolumeOutput:
    """What the volume alone shows to n cameras, before super-resolution."""

    features: Float[Tensor, "n f r r"]
    """Composited features in about [-1, 1]; the first three are RGB."""
    depth: Float[Tensor, "n 1 r r"]
    """Expected distance along the ray (not z-depth), world units."""
    alpha: Float[Tensor, "n 1 r r"]
    """Accumulated opacity in [0, 1]."""


class Generator(nn.Module):
    """z and camera to picture, in steps that can be used one by one. Parameters carry the published names."""

    photo_reach: Float[Tensor, "p p"]
    """How far back a photo sees in each texel's column, z in halves of the box; for heads with planes of their own for
    photo or back."""

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__()
        self.spec = spec
        channels = spec.plane_channels
        self.backbone = Backbone(spec.mapping, spec.backbone, 3 * channels, spec.published_faults)
        self.superresolution = Superresolution(
            spec.superres, spec.decoder.features, spec.mapping.w_dim, spec.published_faults
        )
        self.decoder = Decoder(channels, spec.decoder, spec.published_faults)
        plane = (channels, spec.backbone.resolution, spec.backbone.resolution)
        if spec.photo_plane:
            self.photo_plane = nn.Parameter(torch.zeros(plane))
        if spec.side_planes:
            self.side_planes = nn.Parameter(torch.zeros(2, *plane))
        if spec.back_plane:
            self.back_plane = nn.Parameter(torch.zeros(plane))
        if spec.has_reach:
            self.register_buffer("photo_reach", torch.full(plane[1:], EVERYWHERE))

    @property
    def num_ws(self) -> int:
        """Codes that a head has."""
        return self.spec.num_ws

    @property
    def spanned(self) -> tuple[Plane, ...]:
        """What each of a head's feature planes spans."""
        each = PLANES[self.spec.plane_layout]
        return (*each, Plane((0, 1), self.photo_reach)) if self.spec.has_reach else each

    @property
    def w_avg(self) -> Float[Tensor, " w"]:
        """The mean of w."""
        return self.backbone.mapping.w_avg

    def frontal_camera(self) -> Camera:
        """The camera in front of the face, as the spec places it (one)."""
        r = self.spec.render
        camera = orbit(0.0, 0.0, r.camera_radius, r.camera_pivot, r.camera_focal)
        return camera.to(self.w_avg.device)

    def mapping(
        self,
        z: Float[Tensor, "n z"],
        label: Float[Tensor, "n 25"] | Camera | None = None,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
    ) -> Float[Tensor, "n k w"]:
        """Codes of heads: one w for each row of z, repeated for all layers, drawn towards the mean by truncation.

        `label` conditions w on a camera: 25 numbers, a Camera, or None for the frontal one.
        """
        if label is None:
            label = self.frontal_camera()
        if isinstance(label, Camera):
            label = label.label
        w = self.backbone.mapping(z, label.expand(len(z), -1))
        return truncate(w[:, None].repeat(1, self.num_ws, 1), self.w_avg, truncation_psi, truncation_cutoff)

    def planes(
        self,
        ws: Float[Tensor, "n k w"],
        noise_mode: NoiseMode = "const",
        generator: torch.Generator | None = None,
        fused: bool | None = None,
    ) -> Float[Tensor, "n j c p p"]:
        """The feature planes of heads, in float32: three, and one more where a head has planes of its own (`spanned`).

        `generator` draws the noise of mode "random", which without one is always the same.
        """
        return self.completed(self.backbone.synthesis(ws, noise_mode, generator, fused))

    def completed(self, image: Float[Tensor, "n i p p"]) -> Float[Tensor, "n j c p p"]:
        """The feature planes that the backbone's picture is, with all that is the same whatever the code."""
        planes = image.reshape(len(image), 3, self.spec.plane_channels, *image.shape[2:])
        if self.spec.side_planes:
            planes = torch.cat([planes[:, :1], planes[:, 1:] + self.side_planes.to(planes)], dim=1)
        if not self.spec.has_reach:
            return planes
        # Before its reach the photo's plane counts, behind it that for the back: the latter everywhere, and before it
        # the difference.
        before = self.photo_plane.to(planes) if self.spec.photo_plane else torch.zeros_like(planes[0, 0])
        if self.spec.back_plane:
            behind = self.back_plane.to(planes)
            planes, before = torch.cat([planes[:, :1] + behind, planes[:, 1:]], dim=1), before - behind
        return torch.cat([planes, before.expand(len(planes), 1, -1, -1, -1)], dim=1)

    def render(
        self,
        planes: Float[Tensor, "b j c p p"],
        ws: Float[Tensor, "b2 k w"],
        camera: Camera,
        neural_resolution: int | None = None,
        jitter: Jitter | torch.Generator | None = None,
        depth_samples: int | None = None,
        importance_samples: int | None = None,
        noise_mode: NoiseMode | None = None,
        cut: float = 0.0,
        look: FirstLook | None = None,
        generator: torch.Generator | None = None,
    ) -> RenderOutput:
        """Pictures of heads from n cameras. One head (b = 1) can be seen by any number of cameras at once.

        The result is a function of its arguments: samples lie at the middle of their bins unless `jitter` gives a
        generator to draw from or the numbers themselves. `noise_mode` is the super-resolution's (the spec's if None);
        `generator` draws the noise of mode "random", which without one is always the same.
        With a `cut` above 0, samples of one head that contribute at most that much to their ray neither colour it nor
        take a gradient (`eg3d.active`): faster where gradients are wanted. With a `look` too, the first render notes in
        it where samples lie and how dense they are, and later ones of a head that hardly changed, seen by the same
        camera, go by that: faster still. Pictures of one head that are larger than the spec's `coarse_resolution` share
        a smaller one's look (`eg3d.shared_look`), with `active.CUT` as the least cut.
        Raises ConfigError when a handed-in jitter has other shapes than the render needs.
        """
        volume = self.volume(planes, camera, neural_resolution, jitter, depth_samples, importance_samples, cut, look)
        image, first = self.superresolution(volume.features, ws, noise_mode, generator)
        raw = volume.features[:, :3]
        overwritten = self.spec.superres.kind in ("2X", "4X") and raw.shape[-1] == first.shape[-1]
        if self.spec.published_faults and overwritten:
            raw = first
        return RenderOutput(image, raw, volume.features, volume.depth, volume.alpha)

    def volume(
        self,
        planes: Float[Tensor, "b j c p p"],
        camera: Camera,
        neural_resolution: int | None = None,
        jitter: Jitter | torch.Generator | None = None,
        depth_samples: int | None = None,
        importance_samples: int | None = None,
        cut: float = 0.0,
        look: FirstLook | None = None,
    ) -> VolumeOutput:
        """What the volume shows before super-resolution; arguments as in `render`."""
        spec = self.spec.render
        side = neural_resolution or self.spec.neural_resolution
        coarse = depth_samples or spec.depth_samples
        fine = spec.importance_samples if importance_samples is None else importance_samples
        origins, directions = rays.pixel_rays(camera, side)
        n, m = directions.shape[:2]
        if isinstance(jitter, torch.Generator):
            jitter = Jitter.draw(jitter, n, m, coarse, fine)
        elif jitter is None:
            jitter = Jitter.centres(n, m, coarse, fine, directions.device)
        jitter.check(n, m, coarse, fine)
        with torch.autocast(planes.device.type, enabled=False):
            planes, axes = planes.float(), None
            if not self.spec.published_faults:
                planes, axes = merge_planes(planes / 3, self.spanned)
                if len(planes) == 1 and planes.device.type == "cpu":
                    planes = in_rows(planes)
            start, end = self._limits(origins, directions, coarse)
            one = len(planes) == 1
            sharing = axes is not None and one and fine > 0 and (spec.coarse_resolution or side) < side
            looked = look is not None and look.found is not None
            shared = self._shared_look(planes, axes, camera, side, coarse) if axes and sharing and not looked else None
            at_once = max(1, _points_at_once(planes.device) // (n * max(coarse, fine)))
            count = m if torch.is_grad_enabled() or look else at_once
            parts = []
            for first in range(0, m, count):
                chosen = slice(first, first + count)
                bundle = (
                    origins[:, chosen],
                    directions[:, chosen],
                    start if isinstance(start, float) else start[:, chosen],
                    end if isinstance(end, float) else end[:, chosen],
                    jitter.rays(chosen, directions.device),
                )
                if axes and one and (cut > 0 or sharing):
                    nearby = None if shared is None else shared[:, chosen]
                    parts.append(march_active(planes, axes, self.decoder, spec, *bundle, cut or CUT, look, nearby))
                else:
                    parts.append(self._march(planes, axes, *bundle))
            features = torch.cat([part[0] for part in parts], dim=2)
            depth, alpha, near, far = (torch.cat([part[i] for part in parts], dim=1) for i in range(1, 5))
        if self.spec.published_faults:
            empty = torch.where(alpha > 0, depth, torch.full_like(depth, torch.inf))
            depth = empty.clamp(near.min(), far.max())
        if spec.white_background:
            features = features + 1 - alpha[:, None]
        return VolumeOutput(
            (features * 2 - 1).reshape(n, -1, side, side),
            depth.reshape(n, 1, side, side),
            alpha.reshape(n, 1, side, side),
        )

    def query(
        self, planes: Float[Tensor, "b j c p p"], xyz: Float[Tensor, "n m 3"], chunk: int = 2**20
    ) -> tuple[Float[Tensor, "n m 1"], Float[Tensor, "n m f"]]:
        """Density (before any activation) and colour features in about [0, 1] at points in world units.

        One head (b = 1) can be asked at n sets of points. Points go through in chunks of at most `chunk`.
        """
        planes = planes.expand(len(xyz), -1, -1, -1, -1)
        sigmas, features = [], []
        for part in torch.split(xyz, max(1, chunk), dim=1):
            looked_up = sample_planes(planes, self.spanned, part, self.spec.render.box_warp)
            sigma, feature = self.decoder.rows(looked_up)
            sigmas.append(sigma[..., None])
            features.append(feature.mT)
        return torch.cat(sigmas, dim=1), torch.cat(features, dim=1)

    def forward(self, z: Float[Tensor, "n z"], camera: Camera) -> RenderOutput:
        """Heads seen by the cameras that they are conditioned on."""
        ws = self.mapping(z, camera)
        return self.render(self.planes(ws), ws, camera)

    @torch.no_grad()
    def _shared_look(
        self, planes: Float[Tensor, "1 j c p p"], axes: tuple[Plane, ...], camera: Camera, side: int, samples: int
    ) -> Float[Tensor, "n m s1"]:
        """What a coarse picture's rays find, for the rays of one of `side` pixels."""
        spec = self.spec.render
        assert spec.coarse_resolution is not None
        origins, directions = rays.pixel_rays(camera, spec.coarse_resolution)
        n, m = directions.shape[:2]
        jitter = Jitter.centres(n, m, samples, 0, directions.device)
        limits = self._limits(origins, directions, samples)
        depths = rays.stratified_samples(*limits, jitter.coarse, spec.disparity_sampling)
        sigma = density_along(planes, axes, self.decoder, origins, directions, depths, 2 / spec.box_warp)
        return spread_weights(interval_weights(depths, sigma, spec.clamp_mode), side)

    def _limits(
        self, origins: Float[Tensor, "n m 3"], directions: Float[Tensor, "n m 3"], samples: int
    ) -> tuple[float | Float[Tensor, "n m"], float | Float[Tensor, "n m"]]:
        spec = self.spec.render
        if spec.ray_start == "auto" or spec.ray_end == "auto":
            start, end = rays.box_limits(origins, directions, spec.box_warp, self.spec.published_faults)
            return start, start + (end - start) * (1 - 1 / samples) if spec.within_box else end
        return spec.ray_start, spec.ray_end

    def _march(
        self,
        planes: Float[Tensor, "b j c p p"],
        axes: tuple[Plane, ...] | None,
        origins: Float[Tensor, "n m 3"],
        directions: Float[Tensor, "n m 3"],
        start: float | Float[Tensor, "n m"],
        end: float | Float[Tensor, "n m"],
        jitter: Jitter,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Features [n f m], depth, alpha, nearest and farthest sample [n m] of some rays."""
        mode, published = self.spec.render.clamp_mode, self.spec.published_faults
        depths = rays.stratified_samples(start, end, jitter.coarse, self.spec.render.disparity_sampling)
        sigma, colors = self._decode(planes, axes, origins, directions, depths)
        if jitter.fine is None:
            weights = interval_weights(depths, sigma, mode, published)
            depth, alpha = composite(depths, weights)
            if published:
                features = blend_middles(colors.permute(0, 2, 3, 1), weights)
            else:
                features = _blend(colors, sample_weights(weights))
            return features, depth, alpha, depths[..., 0], depths[..., -1]
        with torch.no_grad():
            coarse_weights = interval_weights(depths, sigma, mode, published)
        fine = rays.importance_samples(depths.detach(), coarse_weights, jitter.fine)
        fine_sigma, fine_colors = self._decode(planes, axes, origins, directions, fine)
        sorted_depths, order = torch.cat([depths, fine], dim=-1).sort(dim=-1)
        sorted_sigma = torch.cat([sigma, fine_sigma], dim=-1).gather(-1, order)
        weights = interval_weights(sorted_depths, sorted_sigma, mode, published)
        depth, alpha = composite(sorted_depths, weights)
        if published:
            both = torch.cat([colors, fine_colors], dim=3).permute(0, 2, 3, 1)
            features = blend_middles(both.gather(2, order[..., None].expand_as(both)), weights)
            return features, depth, alpha, sorted_depths[..., 0], sorted_depths[..., -1]
        # Colours stay where they are; their weights are brought back to the unsorted order instead.
        shares = torch.zeros_like(sorted_depths).scatter(-1, order, sample_weights(weights))
        coarse_shares, fine_shares = torch.split(shares, [depths.shape[-1], fine.shape[-1]], dim=-1)
        features = _blend(colors, coarse_shares) + _blend(fine_colors, fine_shares)
        return features, depth, alpha, sorted_depths[..., 0], sorted_depths[..., -1]

    def _decode(
        self,
        planes: Float[Tensor, "b j c p p"],
        axes: tuple[Plane, ...] | None,
        origins: Float[Tensor, "n m 3"],
        directions: Float[Tensor, "n m 3"],
        depths: Float[Tensor, "n m s"],
    ) -> tuple[Float[Tensor, "n m s"], Float[Tensor, "n f m s"]]:
        """Density and colours of samples. `axes` are those of merged planes; None for the plain look-up."""
        n, m, s = depths.shape
        points = origins[:, :, None] + depths[..., None] * directions[:, :, None]
        one = planes.shape[0] == 1
        points = points.reshape(1 if one else n, -1, 3)
        box = self.spec.render.box_warp
        if axes is None:
            sigma, colors = self.decoder.rows(sample_planes(planes, self.spanned, points, box))
        else:
            sigma, colors = self.decoder(look_up(planes, axes, points * (2 / box)))
        if one:
            return sigma.reshape(n, m, s), colors.reshape(-1, n, m, s).transpose(0, 1)
        return sigma.reshape(n, m, s), colors.reshape(n, -1, m, s)


def _points_at_once(device: torch.device) -> int:
    return POINTS_PER_CHUNK_ON_GPU if device.type == "cuda" else POINTS_PER_CHUNK


def _blend(colors: Float[Tensor, "n f m s"], shares: Float[Tensor, "n m s"]) -> Float[Tensor, "n f m"]:
    """Sum of each ray's colours with their shares."""
    return torch.einsum("nfms,nms->nfm", colors, shares)
