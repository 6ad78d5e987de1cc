"""A folder of tiny heads: coloured balls with a darker front, with parameters of the right form."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headlift.eg3d.camera import orbit

RADIUS = 0.25


def parameters(rng: np.random.Generator) -> dict[str, Any]:
    """Parameters as the sampler of heads draws them, few of them random."""
    return {
        "gender": float(rng.random()),
        "age": float(rng.uniform(6, 85)),
        "race": rng.dirichlet([1, 1, 1]).tolist(),
        "muscle": 0.5,
        "weight": 0.5,
        "axes": {"nose/nose-hump-decr|incr": float(rng.normal()), "ears/l-ear-a": 0.1, "ears/r-ear-a": 0.2},
        "shape": ["head/head-oval", 0.2],
        "expr": {"mouth-open": float(rng.random())},
        "gaze": rng.normal(size=2).tolist(),
        "skin": ["young_asian_male", "old_african_male2"],
        "skinmix": 0.6,
        "tone": rng.normal(size=3).tolist(),
        "freckles": 0.0,
        "oil": 0.3,
        "haircol": rng.uniform(0.05, 0.9, 3).tolist(),
        "hair": "bald",
        "groom": None,
        "hairjit": [0.5, 0, 0, 0],
        "stubble": 0.0,
        "beard": 0.0,
        "beardstyle": [0, 0, 0],
        "brow": "eyebrow004",
        "makeup": 0.0,
        "lip": [0.4, 0.1, 0.1],
        "eye": "brown",
        "cloth": {"col": [0.1, 0.1, 0.1], "neck": 0.0, "v": 0.0, "pat": 0.0, "thick": 0.1},
        "lipgap": 0.0,
    }


def write_heads(folder: Path, count: int, views: int = 4, side: int = 256) -> None:
    """`heads-00.zip` with `count` heads; a head's colour is its `haircol`."""
    from PIL import Image

    rng = np.random.default_rng(0)
    labels = []
    line = ((torch.arange(side) + 0.5) / side - 0.5) / 3.1
    y, x = torch.meshgrid(line, line, indexing="ij")
    outside = (torch.hypot(x, y).arctan().sin() > RADIUS / 2.7).numpy()
    with zipfile.ZipFile(folder / "heads-00.zip", "w") as archive:
        for head in range(count):
            params = parameters(rng)
            for view in range(views):
                yaw = 2 * np.pi * view / views
                camera = orbit(yaw, 0.0, pivot=(0.0, 0.0, 0.0), focal=3.1)
                picture = np.zeros((side, side, 4), np.uint8)
                shade = 0.6 + 0.4 * np.sin(yaw + 4 * np.linspace(-1, 1, side))
                picture[..., :3] = 255 * np.array(params["haircol"]) * shade[None, :, None]
                picture[..., 3] = 255
                picture[outside] = 0
                name = f"00000/img{head * views + view:08d}.webp"
                with io.BytesIO() as stream:
                    Image.fromarray(picture).save(stream, "WEBP", lossless=True)
                    archive.writestr(name, stream.getvalue())
                labels.append([name, camera.label[0].tolist()])
            archive.writestr(f"params/head{head:06d}.json", json.dumps(params))
        archive.writestr("dataset.json", json.dumps({"labels": labels}))
