"""A head that is known everywhere: an ellipsoid of coloured mist."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from headlift.eg3d.camera import unproject
from headlift.values import Camera, RenderOutput

AXES = torch.tensor([0.18, 0.25, 0.21])
PLANES = torch.zeros(1, 3, 1, 1, 1)
WS = torch.zeros(1, 1, 1)


@dataclass
class Ellipsoid:
    """A stand-in for the generator: dense inside an ellipsoid, with colours that vary smoothly along x, y, z."""

    center: tuple[float, float, float] = (0.0, 0.02, 0.01)
    size: int = 40
    spec = SimpleNamespace(render=SimpleNamespace(box_warp=1.0))

    def query(self, planes: Tensor, xyz: Tensor) -> tuple[Tensor, Tensor]:
        radius = ((xyz - torch.tensor(self.center)) / AXES).norm(dim=-1, keepdim=True)
        sigma = (1 - radius) * 2000 + 20  # crosses 20 at the ellipsoid
        return sigma.clamp(-1000, 1000), (0.5 + 1.2 * xyz).clamp(0, 1)

    def render(self, planes: Tensor, ws: Tensor, camera: Camera) -> RenderOutput:
        n, s, k = len(camera), self.size, 80
        centres = (torch.arange(s) + 0.5) / s
        v, u = torch.meshgrid(centres, centres, indexing="ij")
        uv = torch.stack([u, v], dim=-1).reshape(1, -1, 2).expand(n, -1, -1)
        t = torch.linspace(2.3, 3.1, k)
        points = torch.stack([unproject(camera, uv, torch.full(uv.shape[:2], float(d))) for d in t], dim=2)
        sigma, features = self.query(planes, points.reshape(n, -1, 3))
        stopped = F.softplus(sigma - 1).reshape(n, s * s, k) * (t[1] - t[0])
        before = torch.cumsum(stopped, dim=-1) - stopped
        weights = torch.exp(-before) * (1 - torch.exp(-stopped))
        alpha = weights.sum(dim=-1)
        rgb = (weights[..., None] * features.reshape(n, s * s, k, 3)).sum(dim=2) + 1 - alpha[..., None]
        depth = (weights * t).sum(dim=-1) / alpha.clamp(min=1e-6)
        raw = (rgb * 2 - 1).transpose(1, 2).reshape(n, 3, s, s)
        one = (n, 1, s, s)
        return RenderOutput(F.interpolate(raw, scale_factor=2.0), raw, raw, depth.reshape(one), alpha.reshape(one))
