"""A texture for a mesh: charts by xatlas, and colours baked from rendered views and from the photo itself.

Weights live on the vertices and are interpolated over the texels; colours are looked up for each texel. A view weighs
by the fourth power of the cosine between normal and ray, by visibility (a depth test against the mesh, faded towards
what is hidden) and by how sharply it shows the surface (its pixels for one unit of length). Where the photo sees the
surface straight enough, inside its mask and away from silhouettes, its own pixels win; elsewhere the views' colours are
shifted by what the photo differed from them nearby, so that its border does not show.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from headlift.errors import ConfigError
from headlift.export.color import linear_to_srgb, srgb_to_linear
from headlift.export.mesh import Mesh, Texture, edges
from headlift.export.paint import faded
from headlift.export.raster import between, covered, rasterise
from headlift.values import Camera, RenderOutput

SIZES = (256, 4096)
_PADDING = 4
"""Texels between charts."""
_BLOCK = 320
"""Triangles that are cut into charts together: time grows faster than their number, and cores share blocks."""
_PORTION = 2**19
"""Texels that are coloured at a time."""
_FADING = 0.08
"""Beside the photo, its shift of the colours falls by a factor e over this distance, world units."""
_RIM = 0.012
"""The photo is not trusted so near to a contour or to its mask's edge, fractions of its side."""


@dataclass(frozen=True)
class Photo:
    """The photo that a head was made from, as its camera sees it."""

    image: Float[Tensor, "1 3 s s"]
    """RGB in [-1, 1], with its background."""
    mask: Float[Tensor, "1 1 m m"]
    """1 where the head is."""
    camera: Camera


def check_size(size: int) -> None:
    """Raises ConfigError for a texture's side outside 256 to 4096 pixels."""
    if not SIZES[0] <= size <= SIZES[1]:
        raise ConfigError(
            f"a texture has {SIZES[0]} to {SIZES[1]} pixels a side, not {size}; change --mesh.texture-size"
        )


def textured(
    mesh: Mesh,
    views: list[RenderOutput],
    cameras: Camera,
    below: Callable[[Float[np.ndarray, "v 3"], Float[np.ndarray, "v 3"]], Float[np.ndarray, "v 3"]],
    photo: Photo | None = None,
    size: int = 2048,
) -> Mesh:
    """The mesh with a baked texture of `size` pixels, and with the same colours on its vertices.

    `below` tells linear colours of points with normals that no view shows.

    Raises:
        ConfigError: a size outside 256 to 4096.
    """
    check_size(size)
    chart = unwrap(mesh, size)
    paint = _Paint.of(mesh, views, cameras, photo).filled(below)
    image = bake(mesh, chart, paint.colors, size)
    colors = paint.colors(*_own(len(mesh.vertices)))
    return replace(mesh, texture=replace(chart, image=image), colors=np.clip(colors, 0, 1).astype(np.float32))


def unwrap(mesh: Mesh, size: int) -> Texture:
    """Charts of a mesh on one square, with a black picture of one pixel (xatlas, after Sander et al. 2003).

    No chart reaches from one block of triangles into the next.
    """
    import xatlas

    atlas, blocks = xatlas.Atlas(), _blocks(mesh)
    used = []
    for block in blocks:
        vertices, faces = np.unique(mesh.faces[block], return_inverse=True)
        used.append(vertices)
        atlas.add_mesh(mesh.vertices[vertices], faces.reshape(-1, 3).astype(np.uint32), mesh.normals[vertices])
    packing = xatlas.PackOptions()
    packing.resolution, packing.padding, packing.blockAlign = size, _PADDING, True
    atlas.generate(xatlas.ChartOptions(), packing)
    sources, uvs, corners, count = [], [], np.empty_like(mesh.faces, dtype=np.int32), 0
    for index, block in enumerate(blocks):
        source, faces, uv = atlas[index]
        sources.append(used[index][source])
        uvs.append(uv)
        corners[block] = faces + count
        count += len(uv)
    blank = np.zeros((1, 1, 3), dtype=np.uint8)
    return Texture(np.concatenate(uvs).astype(np.float32), np.concatenate(sources).astype(np.int32), corners, blank)


def _blocks(mesh: Mesh) -> list[Int[np.ndarray, " _"]]:
    """The triangles in blocks of at most `_BLOCK` that lie side by side, halved across their longest side."""
    centres = mesh.vertices[mesh.faces].mean(axis=1)

    def halved(part: Int[np.ndarray, " _"]) -> list[Int[np.ndarray, " _"]]:
        if len(part) <= _BLOCK:
            return [part]
        axis = np.ptp(centres[part], axis=0).argmax()
        order = part[np.argsort(centres[part, axis], kind="stable")]
        return [block for half in np.array_split(order, 2) for block in halved(half)]

    return halved(np.arange(len(mesh.faces)))


def bake(
    mesh: Mesh,
    chart: Texture,
    colors: Callable[[Int[np.ndarray, "p 3"], Float[np.ndarray, "p 3"]], Float[np.ndarray, "p 3"]],
    size: int,
) -> UInt8[np.ndarray, "s s 3"]:
    """A picture of `size` pixels whose texels have the linear colours that `colors` tells for points of the mesh: three
    vertices and their weights. Around the charts the nearest texel's colour goes on, so that no seam shows."""
    from scipy.ndimage import distance_transform_edt

    image = np.zeros((size * size, 3), dtype=np.uint8)
    empty = np.ones(size * size, dtype=bool)
    for pixel, face, weights in covered(chart.uv[chart.faces].astype(np.float64) * size - 0.5, size):
        for start in range(0, len(pixel), _PORTION):
            part = slice(start, start + _PORTION)
            linear = colors(mesh.faces[face[part]], weights[part].astype(np.float32))
            image[pixel[part]] = np.rint(linear_to_srgb(linear) * 255).astype(np.uint8)
        empty[pixel] = False
    nearest = distance_transform_edt(empty.reshape(size, size), return_distances=False, return_indices=True)
    return image.reshape(size, size, 3)[nearest[0], nearest[1]]


@dataclass(frozen=True)
class _Paint:
    """Colours of a mesh's surface, looked up in pictures with weights that its vertices carry."""

    mesh: Mesh
    cameras: Camera
    images: list[Float[Tensor, "1 3 a a"]]
    """Linear."""
    solid: list[Float[Tensor, "1 1 b b"]]
    """Opacity, the faintest of the neighbours': colours at the rim are mixed with the background."""
    weights: Float[np.ndarray, "v n"]
    inside: Float[np.ndarray, "v 3"]
    """Colours for what no view shows, by vertex."""
    share: Float[np.ndarray, "v 1"]
    """How much these count."""
    photo: Photo | None = None
    photo_weight: Float[np.ndarray, "v 1"] | None = None
    shift: Float[np.ndarray, "v 3"] | None = None
    """What the photo's colours are above the views' nearby."""

    @classmethod
    def of(cls, mesh: Mesh, views: list[RenderOutput], cameras: Camera, photo: Photo | None) -> _Paint:
        cameras = cameras.to("cpu", torch.float32)
        images = [_linear(view.image.float().cpu()) for view in views]
        solid = [-F.max_pool2d(-view.alpha.float().cpu(), 3, stride=1, padding=1) for view in views]
        columns = []
        for i, view in enumerate(views):
            side = min(512, 2 * view.alpha.shape[-1])
            facing, clear = seen_from(mesh, cameras[i : i + 1], side)
            columns.append(facing**4 * clear * _sharpness(mesh, cameras[i : i + 1], view.image.shape[-1]))
        weights = np.stack(columns, axis=1).astype(np.float32)
        empty = np.zeros((len(mesh.vertices), 3), dtype=np.float32)
        paint = cls(mesh, cameras, images, solid, weights, empty, empty[:, :1])
        if photo is None:
            return paint
        ready, weight = _trusted(mesh, photo)
        return replace(paint, photo=ready, photo_weight=weight)

    def filled(
        self, below: Callable[[Float[np.ndarray, "v 3"], Float[np.ndarray, "v 3"]], Float[np.ndarray, "v 3"]]
    ) -> _Paint:
        """With colours for what no view looks at straight enough, and with the photo's shift around it."""
        own, alone = _own(len(self.mesh.vertices))
        total = self._views(own, alone)[1]
        scale = max(float(np.quantile(total, 0.9)), 1e-9)
        share = 0.02 * scale * np.clip(1 - total / (0.2 * scale), 0, 1)
        dim = share[:, 0] > 0
        inside = self.inside.copy()
        inside[dim] = below(self.mesh.vertices[dim], self.mesh.normals[dim])
        paint = replace(self, inside=inside, share=share.astype(np.float32))
        if self.photo is None:
            return paint
        rendered, shown, trust = paint._base(own, alone), *paint._photo(own, alone)
        known = np.where(trust > 0.7, trust, 0.0)
        return replace(paint, shift=_spread(self.mesh, shown - rendered, known))

    def colors(self, corners: Int[np.ndarray, "p 3"], weights: Float[np.ndarray, "p 3"]) -> Float[np.ndarray, "p 3"]:
        """Linear colours at points of the mesh: the photo's where it is trusted, and the views' shifted towards it."""
        base = self._base(corners, weights)
        if self.photo is None:
            return base
        assert self.shift is not None
        shown, trust = self._photo(corners, weights)
        return trust * shown + (1 - trust) * np.clip(base + between(self.shift, corners, weights), 0, 1)

    def _base(self, corners: Int[np.ndarray, "p 3"], weights: Float[np.ndarray, "p 3"]) -> Float[np.ndarray, "p 3"]:
        color, total = self._views(corners, weights)
        share = between(self.share, corners, weights)
        return (color + share * between(self.inside, corners, weights)) / np.maximum(total + share, 1e-12)

    def _views(
        self, corners: Int[np.ndarray, "p 3"], weights: Float[np.ndarray, "p 3"]
    ) -> tuple[Float[np.ndarray, "p 3"], Float[np.ndarray, "p 1"]]:
        """The sum of the views' colours by weight, and the sum of the weights."""
        color = np.zeros((len(corners), 3), dtype=np.float32)
        total = np.zeros((len(corners), 1), dtype=np.float32)
        points = between(self.mesh.vertices, corners, weights)
        trusts = between(self.weights, corners, weights)
        for i, image in enumerate(self.images):
            some = np.flatnonzero(trusts[:, i] > 1e-4)
            if len(some) == 0:
                continue
            uv = _project(points[some], self.cameras[i : i + 1])
            opacity = np.clip(_look_up(self.solid[i], uv, "zeros"), 0, 1)
            weight = trusts[some, i, None] * opacity**8
            color[some] += weight * _look_up(image, uv)
            total[some] += weight
        return color, total

    def _photo(
        self, corners: Int[np.ndarray, "p 3"], weights: Float[np.ndarray, "p 3"]
    ) -> tuple[Float[np.ndarray, "p 3"], Float[np.ndarray, "p 1"]]:
        """The photo's colours and how far they are to be trusted, 0 to 1."""
        assert self.photo is not None
        assert self.photo_weight is not None
        color = np.zeros((len(corners), 3), dtype=np.float32)
        trust = between(self.photo_weight, corners, weights)
        some = np.flatnonzero(trust[:, 0] > 1e-3)
        uv = _project(between(self.mesh.vertices, corners[some], weights[some]), self.photo.camera)
        color[some] = _look_up(self.photo.image, uv)
        trust[some] *= _look_up(self.photo.mask, uv, "zeros")
        return color, trust


def seen_from(mesh: Mesh, camera: Camera, side: int) -> tuple[Float[np.ndarray, " v"], Float[np.ndarray, " v"]]:
    """How straight a camera looks at each vertex (cosine, 0 from behind), and whether it sees it (1, fading towards
    what is hidden): a depth test against the mesh drawn in `side` pixels."""
    origin = camera.origin.reshape(3).double().cpu().numpy()
    rays = mesh.vertices - origin
    distance = np.linalg.norm(rays, axis=1)
    facing = np.clip(-(rays * mesh.normals).sum(axis=1) / distance, 0, 1)
    drawn = rasterise(mesh.vertices, mesh.faces, camera, side).depth
    pixel = np.floor(_project(mesh.vertices, camera) * side).astype(np.int64)
    within = ((pixel >= 0) & (pixel < side)).all(axis=1)
    x, y = np.clip(pixel, 0, side - 1).T
    focal = float(camera.intrinsics.reshape(3, 3)[0, 0])
    tolerance = 0.004 + 2 * distance / (side * focal) / np.maximum(facing, 0.2)
    seen = within & (distance <= drawn[y, x] + tolerance)
    return facing.astype(np.float32), faded(seen[:, None], mesh.faces)[:, 0].astype(np.float32)


def _trusted(mesh: Mesh, photo: Photo) -> tuple[Photo, Float[np.ndarray, "v 1"]]:
    """The photo made ready: its picture linear, its mask shrunk and freed of contours, the vertices' weights."""
    camera = photo.camera.to("cpu", torch.float32)
    side = photo.image.shape[-1]
    reach = max(1, round(_RIM * side))
    depth = torch.from_numpy(rasterise(mesh.vertices, mesh.faces, camera, side).depth).float()[None, None]
    depth = depth.nan_to_num(posinf=100.0)
    near = -F.max_pool2d(-depth, 3, stride=1, padding=1)
    contour = (F.max_pool2d(depth, 3, stride=1, padding=1) - near > 0.02).float()
    mask = F.interpolate(photo.mask.float().cpu(), size=(side, side), mode="bilinear", align_corners=False)
    good = torch.minimum((mask > 0.9).float(), 1 - contour) * (depth < 50).float()
    good = -F.max_pool2d(-good, 2 * reach + 1, stride=1, padding=reach)
    for _ in range(2):  # the blur stays inside what is good
        good = torch.minimum(F.avg_pool2d(good, reach | 1, stride=1, padding=(reach | 1) // 2), good)
    facing, clear = seen_from(mesh, camera, side)
    straight = np.clip((facing - 0.3) / 0.3, 0, 1)
    weight = (straight * straight * (3 - 2 * straight) * clear)[:, None].astype(np.float32)
    ready = Photo(_linear(photo.image.float().cpu()), good, camera)
    return ready, weight


def _spread(mesh: Mesh, values: Float[np.ndarray, "v 3"], known: Float[np.ndarray, "v 1"]) -> Float[np.ndarray, "v 3"]:
    """Values known on a part of the mesh, carried smoothly beyond it and fading with the distance.

    Minimises sum known (x - values)^2 + 100 sum over edges (x_i - x_j)^2 + s sum (1 - known) x^2, a screened Poisson
    equation. s is 100 (mean edge / _FADING)^2, so that the distance of the fading does not depend on the triangles.
    """
    from scipy.sparse import coo_matrix, csr_matrix, diags
    from scipy.sparse.linalg import cg

    count = len(mesh.vertices)
    if not known.any():
        return np.zeros((count, 3), dtype=np.float32)
    ends = edges(mesh.faces)
    beside = coo_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count)).tocsr()
    beside = csr_matrix((beside + beside.T) > 0, dtype=np.float64)
    laplacian = diags(np.asarray(beside.sum(axis=1)).ravel()) - beside
    weight = known[:, 0].astype(np.float64)
    edge = np.linalg.norm(mesh.vertices[ends[:, 0]] - mesh.vertices[ends[:, 1]], axis=1).mean()
    screen = 100 * (edge / _FADING) ** 2
    system = (100 * laplacian + diags(weight + screen * (1 - weight))).tocsr()
    scale = diags(1 / system.diagonal())
    spread = [cg(system, weight * values[:, i], rtol=1e-4, maxiter=2000, M=scale)[0] for i in range(3)]
    return np.stack(spread, axis=1).astype(np.float32)


def _sharpness(mesh: Mesh, camera: Camera, side: int) -> Float[np.ndarray, " v"]:
    """Pixels of a picture of `side` for one world unit across the view, at each vertex, in thousands, squared."""
    origin = camera.origin.reshape(3).double().cpu().numpy()
    distance = np.linalg.norm(mesh.vertices - origin, axis=1)
    sharp: Float[np.ndarray, " v"] = (side * float(camera.intrinsics.reshape(3, 3)[0, 0]) / distance / 1000) ** 2
    return sharp


def _own(count: int) -> tuple[Int[np.ndarray, "v 3"], Float[np.ndarray, "v 3"]]:
    """The vertices themselves as points of the mesh."""
    return np.repeat(np.arange(count)[:, None], 3, axis=1), np.tile(np.array([1, 0, 0], dtype=np.float32), (count, 1))


def _project(points: Float[np.ndarray, "p 3"], camera: Camera) -> Float[np.ndarray, "p 2"]:
    """World points to fractions of the picture's side."""
    pose = camera.cam2world.reshape(4, 4).float().cpu().numpy()
    k = camera.intrinsics.reshape(3, 3).float().cpu().numpy()
    local = (points - pose[:3, 3]) @ pose[:3, :3]
    flat = local / np.maximum(local[:, 2:], 1e-6)
    uv: Float[np.ndarray, "p 2"] = (flat @ k.T)[:, :2].astype(np.float32)
    return uv


def _look_up(image: Float[Tensor, "1 c a a"], uv: Float[np.ndarray, "p 2"], outside: str = "border") -> np.ndarray:
    """Bilinear values of a picture at fractions of its side: [p, c]."""
    grid = torch.from_numpy(uv * 2 - 1)[None, None]
    found: np.ndarray = F.grid_sample(image, grid, padding_mode=outside, align_corners=False)[0, :, 0].T.numpy()
    return found


def _linear(image: Float[Tensor, "1 3 a a"]) -> Float[Tensor, "1 3 a a"]:
    """A network's picture in [-1, 1] as linear light."""
    return torch.from_numpy(srgb_to_linear(((image + 1) / 2).numpy()))
