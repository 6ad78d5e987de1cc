"""Compare candidates for the builtin perceptual distance.

    python benchmarks/perceptual.py HEADS [--photos FOLDER]

HEADS holds the synthetic heads' archives: eval.zip and the held-out heads 2800 to 2999 of heads-05.zip are used, beside
scikit-image's astronaut and any aligned crops in FOLDER. Columns, all in per cent except the last:

- light:    a picture in other light, recompressed, is nearer than the most similar other head from the same camera
- shift:    a picture shifted by 1.5 pixels and turned by half a degree is nearer than one blurred (sigma 2.5)
- cast:     a picture with a colour cast is nearer than one blurred (sigma 2)
- order:    Spearman correlation of the distance with the strength of blur, noise, shift and compression
- heads:    Spearman correlation, over pairs of heads from one camera, with the distance of their parameters
- ms:       milliseconds for a forward and a backward pass of one 256-pixel picture on one core
"""

from __future__ import annotations

import argparse
import io
import json
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

from headlift.invert.perceptual import Builtin, FeatureNet, laplacian_pyramid, load_builtin, load_feature_net, unit
from headlift.prior.perceptual import blur, jpeg

HEADS = 24
"""Heads of eval.zip that are used."""
Candidate = Callable[[Tensor, Tensor], Tensor]


def on_white(data: bytes) -> Tensor:
    rgba = (
        torch.from_numpy(np.asarray(Image.open(io.BytesIO(data)).convert("RGBA")).copy()).permute(2, 0, 1).float() / 255
    )
    return (rgba[:3] * rgba[3:] + 1 - rgba[3:]) * 2 - 1


def eval_heads(folder: Path) -> tuple[dict[int, list[Tensor]], Tensor]:
    """Pictures of the first heads by view, and their standardised parameters."""
    views: dict[int, list[Tensor]] = {0: [], 1: [], 4: []}
    vectors = []
    with zipfile.ZipFile(folder / "eval.zip") as bundle:
        names = [name for name, _ in json.loads(bundle.read("dataset.json"))["labels"]]
        for head in range(HEADS):
            for view, pictures in views.items():
                pictures.append(on_white(bundle.read(names[head * 10 + view])))
        for name in sorted(n for n in bundle.namelist() if n.startswith("params/"))[:HEADS]:
            p = json.loads(bundle.read(name))
            vectors.append([p["gender"] * 3, p["age"] / 20, *[r * 3 for r in p["race"]], p["weight"]])
    table = torch.tensor(vectors)
    return views, (table - table.mean(0)) / table.std(0).clamp_min(1e-3)


def held_out(folder: Path, count: int) -> list[Tensor]:
    with zipfile.ZipFile(folder / "heads-05.zip") as bundle:
        names = [n for n, _ in json.loads(bundle.read("dataset.json"))["labels"] if int(Path(n).stem[3:]) // 4 >= 2800]
        return [on_white(bundle.read(n)) for n in names[:: max(1, len(names) // count)]]


def real_faces(photos: Path | None) -> list[Tensor]:
    from skimage.data import astronaut

    pictures = [Image.fromarray(astronaut()[0:210, 120:330])]
    pictures += [Image.open(p).convert("RGB") for p in sorted(photos.glob("*.png"))] if photos else []
    out = [np.asarray(p.resize((256, 256), Image.Resampling.BICUBIC)).copy() for p in pictures]
    return [torch.from_numpy(p).permute(2, 0, 1).float() / 127.5 - 1 for p in out]


def blurred(x: Tensor, sigma: float) -> Tensor:
    return blur(x, torch.full((len(x), 1, 1, 1), sigma))


def compressed(x: Tensor, step: float) -> Tensor:
    return jpeg(x / 2, torch.full((len(x), 1, 1, 1), step)) * 2


def shifted(x: Tensor, pixels: float, degrees: float = 0.0) -> Tensor:
    a = np.deg2rad(degrees)
    s = 2 * pixels / x.shape[-1]
    theta = torch.tensor([[np.cos(a), -np.sin(a), s], [np.sin(a), np.cos(a), s * 0.6]]).float()
    grid = F.affine_grid(theta.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def relit(x: Tensor, rng: torch.Generator) -> Tensor:
    n = len(x)
    light = F.interpolate(torch.randn(n, 1, 3, 3, generator=rng) * 0.35, size=x.shape[2:], mode="bicubic")
    gains = torch.exp(torch.randn(n, 3, 1, 1, generator=rng) * 0.12)
    y = ((x + 1) / 2).clamp(1e-3, 1) ** torch.exp(torch.randn(n, 1, 1, 1, generator=rng) * 0.15) * gains * light.exp()
    y = blurred(y * 2 - 1, 0.7) + torch.randn(x.shape, generator=rng) * 0.03
    return compressed(y, 0.02).clamp(-1, 1)


def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    total = torch.zeros(len(a))
    for _ in range(4):
        mean_a, mean_b = F.avg_pool2d(a, 7, 1), F.avg_pool2d(b, 7, 1)
        va, vb = F.avg_pool2d(a * a, 7, 1) - mean_a**2, F.avg_pool2d(b * b, 7, 1) - mean_b**2
        cov = F.avg_pool2d(a * b, 7, 1) - mean_a * mean_b
        ssim = (2 * mean_a * mean_b + 4e-4) * (2 * cov + 3.6e-3) / ((mean_a**2 + mean_b**2 + 4e-4) * (va + vb + 3.6e-3))
        total = total + (1 - ssim).mean((1, 2, 3)) / 4
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return total


def pyramid(a: Tensor, b: Tensor) -> Tensor:
    levels = zip(laplacian_pyramid(a), laplacian_pyramid(b), strict=True)
    return torch.stack([(x - y).abs().mean((1, 2, 3)) for x, y in levels]).sum(0)


def mtcnn_features(kind: str, side: int) -> Candidate:
    """LPIPS-like distance on the convolutions of MTCNN's R-Net or O-Net, pictures brought to `side` pixels."""
    from facenet_pytorch.models.mtcnn import ONet, RNet

    net = (ONet if kind == "onet" else RNet)().eval().requires_grad_(False)
    layers = [m for name, m in net.named_children() if name.startswith(("conv", "prelu", "pool"))]
    layers = layers[: 11 if kind == "onet" else 8]

    def features(x: Tensor) -> list[Tensor]:
        x = F.interpolate(x, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
        out = []
        for layer in layers:
            x = layer(x)
            if isinstance(layer, nn.PReLU):
                out.append(unit(x))
        return out

    return lambda a, b: sum(
        ((x - y).square().sum(1).mean((1, 2)) for x, y in zip(features(a), features(b), strict=True)),
        torch.zeros(len(a)),
    )


def of(distance: Builtin) -> Candidate:
    return lambda a, b: distance(distance.prepare(a), b)


def with_pyramid(candidate: Candidate, weight: float) -> Candidate:
    return lambda a, b: candidate(a, b) + weight * pyramid(a, b)


def win(d: Candidate, reference: Tensor, near: Tensor, far: Tensor) -> float:
    return float((d(reference, near) < d(reference, far)).float().mean() * 100)


def order(d: Candidate, x: Tensor, rng: torch.Generator) -> float:
    noise = torch.randn(x.shape, generator=rng)
    ladders = [
        [blurred(x, s) for s in (0.5, 1.0, 2.0)],
        [(x + noise * s).clamp(-1, 1) for s in (0.03, 0.1, 0.3)],
        [shifted(x, s) for s in (0.7, 2, 6)],
        [compressed(x, s) for s in (0.01, 0.03, 0.1)],
    ]
    scores = []
    for ladder in ladders:
        table = torch.stack([d(x, step) for step in ladder]).numpy()
        scores += [spearmanr(table[:, i], range(len(ladder))).statistic for i in range(len(x))]
    return 100 * float(np.mean(scores))


def speed(d: Candidate) -> float:
    a = torch.rand(1, 3, 256, 256) * 2 - 1
    b = (torch.rand(1, 3, 256, 256) * 2 - 1).requires_grad_()
    d(a, b).sum().backward()
    begin = time.perf_counter()
    for _ in range(4):
        d(a, b).sum().backward()
    return (time.perf_counter() - begin) / 4 * 1000


@torch.no_grad()
def row(d: Candidate, views: dict[int, list[Tensor]], vectors: Tensor, others: Tensor) -> list[float]:
    rng = torch.Generator().manual_seed(0)
    light, heads = [], []
    for pictures in views.values():
        x = torch.stack(pictures)
        pixels = F.avg_pool2d(x, 8).flatten(1)
        gaps = torch.cdist(pixels, pixels).fill_diagonal_(torch.inf)
        light.append(win(d, x, relit(x, rng), x[gaps.argmin(1)]))
        i, j = torch.triu_indices(len(x), len(x), 1)
        pick = torch.randperm(len(i), generator=rng)[:100]
        i, j = i[pick], j[pick]
        heads.append(100 * spearmanr(d(x[i], x[j]).numpy(), (vectors[i] - vectors[j]).norm(dim=1).numpy()).statistic)
    shift = win(d, others, shifted(others, 1.5, 0.5), blurred(others, 2.5))
    gains = torch.tensor([0.12, -0.02, -0.12]).reshape(1, 3, 1, 1)
    cast = win(d, others, (others + gains).clamp(-1, 1), blurred(others, 2.0))
    return [float(np.mean(light)), shift, cast, order(d, others[::3], rng), float(np.mean(heads))]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("heads", type=Path)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--net", type=Path, help="another file for the network's weights")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    views, vectors = eval_heads(arguments.heads)
    others = torch.stack([*held_out(arguments.heads, 12), *real_faces(arguments.photos)])
    from safetensors.torch import load

    net = load_feature_net(load(arguments.net.read_bytes())) if arguments.net else load_builtin().net
    bare = of(Builtin(net, (0.25,) * 4, 0.0))
    onet = mtcnn_features("onet", 128)
    candidates: dict[str, Candidate] = {
        "squared error": lambda a, b: (a - b).square().mean((1, 2, 3)),
        "MS-SSIM": ms_ssim,
        "Laplacian pyramid": pyramid,
        "R-Net (96)": mtcnn_features("rnet", 96),
        "O-Net (128)": onet,
        "O-Net (192)": mtcnn_features("onet", 192),
        "O-Net (128) + 0.25 pyramid": with_pyramid(onet, 0.25),
        "random network": of(Builtin(FeatureNet().requires_grad_(False), (0.25,) * 4, 0.0)),
        "trained network": bare,
        "trained, stages 1-2": of(Builtin(net, (0.5, 0.5, 0, 0), 0.0)),
        "trained, stages 2-4": of(Builtin(net, (0, 0.33, 0.33, 0.33), 0.0)),
        "trained + 0.1 pyramid": with_pyramid(bare, 0.1),
        "trained + 0.25 pyramid": with_pyramid(bare, 0.25),
        "trained + 0.5 pyramid": with_pyramid(bare, 0.5),
        "trained + O-Net": lambda a, b: bare(a, b) + 0.3 * onet(a, b),
    }
    print(f"{'candidate':28s} light shift  cast order heads    ms")
    for name, candidate in candidates.items():
        figures = row(candidate, views, vectors, others)
        print(f"{name:28s}" + "".join(f"{f:6.1f}" for f in figures) + f"{speed(candidate):6.0f}", flush=True)


if __name__ == "__main__":
    main()
