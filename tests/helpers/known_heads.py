"""Folders of heads whose truth is known, rendered by a generator itself: what `evaluate prior` reads."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from headlift.eg3d.camera import orbit
from headlift.eg3d.generator import Generator
from headlift.export.images import depth_to_uint16, write_png
from headlift.values import Camera

YAWS = (0, -30, 30, -90, 180)


def camera_at(yaw: int) -> Camera:
    """As the evaluation set has them: FFHQ's crop cameras in front, the wider lens at the sides and behind."""
    if abs(yaw) <= 60:
        return orbit(math.radians(yaw), 0.0)
    return orbit(math.radians(yaw), 0.0, pivot=(0.0, -0.02, 0.0), focal=3.1)


def code(generator: Generator, number: int) -> torch.Tensor:
    z = torch.randn(1, generator.spec.mapping.z_dim, generator=torch.Generator().manual_seed(number))
    return generator.mapping(z)


@torch.no_grad()
def write_known_heads(folder: Path, generator: Generator, heads: int = 2, side: int = 32) -> None:
    """`heads` random heads of a generator on white, with alpha, labels and the frontal view's depth."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = []
    for number in range(heads):
        ws = code(generator, number)
        planes = generator.planes(ws)
        for yaw in YAWS:
            camera = camera_at(yaw)
            output = generator.render(planes, ws, camera, neural_resolution=side)
            alpha = output.alpha.clamp_min(1e-3)
            straight = ((output.raw.clamp(-1, 1) - (1 - alpha)) / alpha).clamp(-1, 1)
            rgba = torch.cat([(straight + 1) / 2, output.alpha], 1)[0].permute(1, 2, 0)
            name = f"person{number}_{yaw:+04d}"
            Image.fromarray((rgba * 255).round().byte().numpy()).save(folder / f"{name}.png")
            if yaw == 0:
                write_png(folder / f"{name}_depth.png", depth_to_uint16(output.depth, output.alpha))
            labels.append([f"{name}.png", np.asarray(camera.label[0]).tolist()])
    (folder / "dataset.json").write_text(json.dumps({"labels": labels[::-1]}))
