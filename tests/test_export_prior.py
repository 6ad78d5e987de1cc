"""Meshes of the embedded prior's heads: they agree with its cameras, and they are one whole piece."""

import math

import numpy as np
import pytest
import torch
from embedded_head import embedded_head
from torch import Tensor

from headlift.config import MeshConfig
from headlift.eg3d.generator import Generator
from headlift.export.color import linear_to_srgb
from headlift.export.head_mesh import extract_mesh
from headlift.export.mesh import Mesh
from headlift.export.raster import rasterise, silhouette_iou
from headlift.export.splats import draw_splats, splats_of
from headlift.export.views import orbit_cameras, render_views
from headlift.values import Camera, RenderOutput

Scene = tuple[Mesh, list[RenderOutput], Camera]
Head = tuple[Generator, Tensor, Tensor]


@pytest.fixture(scope="module")
def head() -> Head:
    """A random head: the generator, tri-planes, codes."""
    return embedded_head(5)


@pytest.fixture(scope="module")
def scene(head: Head) -> Scene:
    """The head's mesh, and nine views all round from changing heights."""
    generator, planes, ws = head
    heights = torch.tensor([0.0, 0.2, -0.2, 0.0, 0.2, 0.0, -0.2, 0.0, 0.2])
    cameras = orbit_cameras(torch.arange(9) * (2 * math.pi / 9), heights)
    mesh = extract_mesh(generator, planes, ws, MeshConfig(resolution=128, texture=False))
    return mesh, list(render_views(generator, planes, ws, cameras)), cameras


def test_silhouettes_agree_with_the_renders(scene: Scene) -> None:
    mesh, views, cameras = scene
    scores = silhouette_iou(mesh.vertices, mesh.faces, views, cameras)
    assert scores.mean() >= 0.95
    assert scores.min() >= 0.9


def test_colours_agree_with_the_renders(scene: Scene) -> None:
    """Drawn without any light, the mesh looks like the render, away from the rim."""
    mesh, views, cameras = scene
    assert mesh.colors is not None
    for i in (0, 2, 4):
        seen = rasterise(mesh.vertices, mesh.faces, cameras[i : i + 1], views[i].image.shape[-1])
        drawn = linear_to_srgb(seen.interpolate(mesh.faces, mesh.colors))
        alpha = torch.nn.functional.interpolate(views[i].alpha, size=drawn.shape[0], mode="bilinear")
        solid = (seen.face >= 0) & (alpha[0, 0] > 0.98).numpy()
        shown = ((views[i].image[0].clamp(-1, 1) + 1) / 2).permute(1, 2, 0).numpy()
        psnr = -10 * np.log10(((drawn - shown)[solid] ** 2).mean())
        assert psnr > 20


def test_splats_look_like_the_renders_soft_rims_included(head: Head, scene: Scene) -> None:
    """Over the whole picture; discs on the surface alone come to 21 to 25 dB, for want of the rim."""
    mesh, views, cameras = scene
    splats = splats_of(*head[:2], mesh)
    for i in (0, 2, 4, 7):
        shown = ((views[i].image[0].clamp(-1, 1) + 1) / 2).permute(1, 2, 0).numpy()
        drawn = draw_splats(splats, cameras[i : i + 1], shown.shape[0])
        assert -10 * np.log10(((drawn - shown) ** 2).mean()) > 27


def test_head_is_whole_and_of_human_size(scene: Scene) -> None:
    mesh = scene[0]
    top = mesh.vertices[:, 1].max() * 0.396
    head = mesh.vertices[mesh.vertices[:, 1] > 0.0]
    width, depth = np.ptp(head[:, 0]) * 0.396, np.ptp(head[:, 2]) * 0.396
    assert 0.08 < top < 0.2  # metres above the middle of the head
    assert 0.12 < width < 0.35
    assert 0.15 < depth < 0.35
