"""Compare the generator with reference numbers: python benchmarks/parity.py FOLDER [FOLDER ...]

A folder holds G_ema.safetensors, D.safetensors, settings.json and reference.npz, and may hold param_grad_norms.json;
cameras.npz (with cameras_meta.json) is checked where it lies in a folder or beside it. For each array the largest
error over the largest reference value is printed, and the same in the L2 norm; the exit status is 1 when one of them
exceeds 1e-4, or when an array is not understood. Arrays that were inputs are marked so; those that cannot be computed
because an input was left out are named.

Everything runs in float32, on two threads whatever the machine has: sums over whole pictures are split among threads,
and the reference arrays were made on two. Volumes with fine detail amplify the rounding of a matrix product, up to some
1e-3 in single pixels, and gradients that nearly cancel do it too; so sums are taken in the order of the reference
(`eg3d.rounding`), and MKL is asked for the code path that rounds alike on all processors, whose exponential is also
the reference's. Most arrays are then equal bit for bit. That holds on processors with AVX-512: without it, oneDNN
convolves in another order, which alone moves rays and gradients by up to 4e-4.
"""

from __future__ import annotations

import os

os.environ.setdefault("MKL_CBWR", "COMPATIBLE")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # two threads may share one processor

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from headlift.eg3d.camera import intrinsics, published_focal, published_look_at
from headlift.eg3d.density import published_grid
from headlift.eg3d.discriminator import Discriminator
from headlift.eg3d.generator import Generator
from headlift.eg3d.published import discriminator_spec_from_published, spec_from_published
from headlift.eg3d.rays import Jitter, pixel_rays
from headlift.values import Camera, RenderOutput

TOLERANCE = 1e-4
THREADS = 2
"""As the reference arrays were made with."""
FULL_SIZE = 256
"""Larger pictures are brought down to this side before the loss is taken."""


@dataclass
class Comparison:
    """What was found out about one array."""

    key: str
    maximum: float = 0.0
    l2: float = 0.0
    note: str = ""
    failed: bool = field(default=False)


def compare(key: str, ours: Tensor, reference: np.ndarray) -> Comparison:
    """Errors relative to the largest value and to the norm of the reference (absolute where those are 0)."""
    b = torch.as_tensor(np.asarray(reference)).double()
    a = ours.detach().double()
    if a.shape != b.shape:
        return Comparison(key, math.inf, math.inf, f"shape {tuple(a.shape)} instead of {tuple(b.shape)}", True)
    maximum = float((a - b).abs().max()) / (float(b.abs().max()) or 1.0)
    l2 = float((a - b).norm()) / (float(b.norm()) or 1.0)
    return Comparison(key, maximum, l2, failed=not (maximum <= TOLERANCE and l2 <= TOLERANCE))


class Missing(Exception):
    """An input that this array needs was left out of the folder."""


class Unknown(Exception):
    """Nothing is known about an array of this name."""


class Reference:
    """One folder: its networks, its inputs, and how each of its arrays is computed."""

    def __init__(self, folder: Path) -> None:
        settings = json.loads((folder / "settings.json").read_text())
        init = settings.get("init_kwargs", settings)
        self.strides: Mapping[str, int] = settings.get("strides", {})
        self.arrays = dict(np.load(folder / "reference.npz"))
        norms = folder / "param_grad_norms.json"
        self.grad_norms: Mapping[str, float | None] = json.loads(norms.read_text()) if norms.exists() else {}
        weights = load_file(folder / "G_ema.safetensors")
        self.generator = Generator(spec_from_published(init, weights, published_faults=True))
        self.generator.load_state_dict(weights)
        self.generator.eval().requires_grad_(False)
        weights = load_file(folder / "D.safetensors") if (folder / "D.safetensors").exists() else {}
        self.discriminator = Discriminator(discriminator_spec_from_published(init, weights)) if weights else None
        if self.discriminator is not None:
            self.discriminator.load_state_dict(weights)
            self.discriminator.eval().requires_grad_(False)
        self._renders: dict[str, tuple[RenderOutput, Jitter]] = {}

    # inputs

    def given(self, key: str) -> Tensor:
        if key not in self.arrays:
            raise Missing(key)
        return torch.as_tensor(self.arrays[key])

    @cached_property
    def camera(self) -> Camera:
        return Camera.from_label(self.given("c_render"))

    @cached_property
    def ws(self) -> Tensor:
        return self.generator.mapping(self.given("z"), self.given("c_cond"))

    @cached_property
    def planes(self) -> Tensor:
        return self.generator.planes(self.ws)

    def side(self, mode: str) -> int:
        named = re.search(r"_nrr(\d+)$", mode)
        return int(named[1]) if named else self.generator.spec.neural_resolution

    def jitter(self, mode: str) -> Jitter:
        """The uniform numbers of a mode (fixtures' README, section 3)."""
        spec = self.generator.spec.render
        n, m = len(self.camera), self.side(mode) ** 2
        s, f = spec.depth_samples, spec.importance_samples
        if f"{mode}/u_coarse" in self.arrays:
            coarse = self.given(f"{mode}/u_coarse")[..., 0]
            return Jitter(coarse, self.given(f"{mode}/u_fine").reshape(n, m, f) if f else None)
        if mode in ("mid", "trainmode_mid") or mode.startswith("mid_nrr"):
            return Jitter.centres(n, m, s, f, torch.device("cpu"))
        if mode.startswith("zero_det"):
            return Jitter(torch.zeros(n, m, s), torch.linspace(0, 1, f).expand(n, m, f) if f else None)
        if mode.startswith("recorded_nrr"):
            seed = 5000 + self.side(mode)
        elif mode.startswith("recorded"):
            seed = 4321
        elif mode.startswith("torchseed"):
            seed = int(mode.removeprefix("torchseed").split("_")[0])
        else:
            raise Unknown(mode)
        generator = torch.Generator().manual_seed(seed)
        if spec.ray_start == "auto":
            # Like a uniform tensor that takes over the layout of depths made sample by sample.
            coarse = torch.rand(s, n, m, generator=generator).permute(1, 2, 0)
        else:
            coarse = torch.rand(n, m, s, generator=generator)
        return Jitter(coarse, torch.rand(n, m, f, generator=generator) if f else None)

    def render(self, mode: str) -> RenderOutput:
        """Both samples from their cameras, in one batch."""
        if mode not in self._renders:
            jitter = self.jitter(mode)
            self.generator.train(mode == "trainmode_mid")
            planes = self.generator.planes(self.ws) if mode == "trainmode_mid" else self.planes
            output = self.generator.render(planes, self.ws, self.camera, self.side(mode), jitter)
            self.generator.eval()
            self._renders[mode] = output, jitter
        return self._renders[mode][0]

    # arrays

    def compute(self, key: str) -> Tensor | None:
        """Our value for an array, in full; None for an input. Raises Missing or Unknown."""
        if key in self.simple:
            return self.simple[key]()
        if key in (
            "z",
            "c_cond",
            "c_render",
            "points",
            "dirs",
            "grad/target",
            "grad/nrr",
            "D/rand_image",
            "D/rand_image_raw",
        ):
            return None
        if key.startswith("ws_psi"):
            return self.codes(key)
        if key.startswith("grad/param/"):
            return self.gradients[key.removeprefix("grad/param/")]
        mode, _, name = key.rpartition("/")
        if name in ("u_coarse", "u_fine"):
            return None
        if name in self.rendered:
            return self.rendered[name](mode)
        raise Unknown(key)

    @property
    def simple(self) -> Mapping[str, Callable[[], Tensor]]:
        return {
            "planes": lambda: self.planes.flatten(1, 2),
            "sample_mixed/sigma": lambda: self.query(1.0)[0],
            "sample_mixed/rgb": lambda: self.query(1.0)[1],
            "sample_psi07_cut14/sigma": lambda: self.query(0.7)[0],
            "sample_psi07_cut14/rgb": lambda: self.query(0.7)[1],
            "sr_const_from_mid": self.superres_with_noise,
            "D/logits_b1": lambda: self.judge(1),
            "D/logits_b2": lambda: self.judge(2),
            "D/logits_b4": lambda: self.judge(4),
            "D/logits_rand_b2": lambda: self.logits(
                self.given("D/rand_image"), self.given("D/rand_image_raw"), self.camera.label
            ),
            "D/r1_penalty": lambda: sum(g.square().sum(dim=(1, 2, 3)) for g in self.image_gradients),  # type: ignore
            "D/grad_image": lambda: self.image_gradients[0],
            "D/grad_image_raw": lambda: self.image_gradients[1],
            "grad/ws_loss": lambda: self.gradients["loss"],
            "grad/ws": lambda: self.gradients["ws"],
        }

    @property
    def rendered(self) -> Mapping[str, Callable[[str], Tensor]]:
        return {
            "image": lambda mode: self.render(mode).image,
            "image_raw": lambda mode: self.render(mode).raw,
            "image_depth": lambda mode: self.render(mode).depth,
            "feature_samples": lambda mode: self.render(mode).features.flatten(2).mT,
            "depth_samples": lambda mode: self.render(mode).depth.flatten(2).mT,
            "weights_sum": lambda mode: self.render(mode).alpha.flatten(2).mT,
            "ray_origins": lambda mode: pixel_rays(self.camera, self.side(mode))[0],
            "ray_dirs": lambda mode: pixel_rays(self.camera, self.side(mode))[1],
        }

    def codes(self, key: str) -> Tensor:
        """ws_psi<10 times psi, or 1>[_cut<n>][_nocut][_c_render]."""
        parts = re.fullmatch(r"ws_psi(\d+)(?:_cut(\d+)|_nocut)?(_c_render)?", key)
        if parts is None:
            raise Unknown(key)
        psi = 1.0 if parts[1] == "1" else float(f"0.{parts[1].removeprefix('0')}")
        label = self.given("c_render" if parts[3] else "c_cond")
        return self.generator.mapping(self.given("z"), label, psi, int(parts[2]) if parts[2] else None)

    def query(self, psi: float) -> tuple[Tensor, Tensor]:
        ws = self.generator.mapping(self.given("z"), self.given("c_cond"), psi, 14)
        return self.generator.query(self.generator.planes(ws), self.given("points"))

    def superres_with_noise(self) -> Tensor:
        image, _ = self.generator.superresolution(self.render("mid").features, self.ws, "const")
        return image  # type: ignore[no-any-return]

    def logits(self, image: Tensor, raw: Tensor, label: Tensor) -> Tensor:
        if self.discriminator is None:
            raise Missing("D.safetensors")
        return self.discriminator(image, raw, label)  # type: ignore[no-any-return]

    def judge(self, count: int) -> Tensor:
        """Logits of the recorded pictures, and for four of the mirrored `mid` ones too."""
        first = self.render("recorded")
        image, raw, label = first.image, first.raw, self.camera.label
        if count == 4:
            mid = self.render("mid")
            image, raw = torch.cat([image, mid.image.flip(3)]), torch.cat([raw, mid.raw.flip(3)])
            label = torch.cat([label, label.flip(0)])
        return self.logits(image[:count], raw[:count], label[:count])

    @cached_property
    def image_gradients(self) -> tuple[Tensor, Tensor]:
        """Of the summed logits of the two recorded pictures (R1, Mescheder et al. 2018)."""
        output = self.render("recorded")
        with torch.enable_grad():
            image, raw = (x.detach().requires_grad_() for x in (output.image, output.raw))
            first, second = torch.autograd.grad(self.logits(image, raw, self.camera.label).sum(), [image, raw])
        return first, second

    @cached_property
    def gradients(self) -> Mapping[str, Tensor]:
        """Of the mean squared difference between the first sample, from the second camera, and the target."""
        side, target = int(self.given("grad/nrr")), self.given("grad/target")
        network = self.generator.requires_grad_(True)
        ws = self.ws[:1].detach().requires_grad_()
        with torch.enable_grad():
            image = network.render(network.planes(ws), ws, self.camera[1:2], side).image
            if image.shape[-1] > FULL_SIZE:
                image = F.interpolate(image, size=(FULL_SIZE, FULL_SIZE), mode="area")
            loss = (image - target).square().mean()
            names = [name for name, _ in network.named_parameters()]
            found = torch.autograd.grad(loss, [ws, *network.parameters()], allow_unused=True)
        network.requires_grad_(False)
        parameters = {
            name: torch.zeros_like(p) if g is None else g
            for (name, p), g in zip(network.named_parameters(), found[1:], strict=True)
        }
        assert names == list(parameters)
        return {"loss": loss.detach(), "ws": found[0], **parameters}

    def thin(self, key: str, value: Tensor) -> Tensor:
        step = int(self.strides.get(key, 1))
        return value[..., ::step, ::step] if step > 1 else value

    def comparisons(self) -> list[Comparison]:
        found = []
        for key, reference in self.arrays.items():
            try:
                ours = self.compute(key)
            except Missing as missing:
                found.append(Comparison(key, note=f"cannot be computed: {missing} was left out"))
                continue
            except (Unknown, KeyError):
                found.append(Comparison(key, math.nan, math.nan, "unknown key", failed=True))
                continue
            if ours is None:
                found.append(Comparison(key, note="input"))
            else:
                found.append(compare(key, self.thin(key, ours), reference))
        for name, norm in self.grad_norms.items():
            key = f"param_grad_norms.json: {name}"
            parameter = name.removeprefix("grad/param/")
            if parameter in self.gradients and (norm is None or isinstance(norm, (int, float))):
                found.append(compare(key, self.gradients[parameter].norm(), np.asarray(norm or 0.0)))
            else:
                found.append(Comparison(key, math.nan, math.nan, "unknown key", failed=True))
        return found


def camera_comparisons(path: Path) -> list[Comparison]:
    """The look-at sampler, intrinsics and density grid of cameras.npz."""
    arrays = dict(np.load(path))
    settings = json.loads(path.with_name("cameras_meta.json").read_text())
    poses = {m["i"]: m for m in settings if "i" in m}
    fovs = {m["intr"]: m["fov"] for m in settings if "intr" in m}
    found = []
    for key, reference in arrays.items():
        family, _, rest = key.partition("/")
        try:
            if family == "lookat":
                m = poses[int(rest)]
                ours = published_look_at(m["horizontal_mean"], m["vertical_mean"], m["pivot"], m["radius"])
            elif family == "intr":
                ours = intrinsics(published_focal(fovs[int(rest)]))[0]
            elif family == "gaussian":  # settings not written down: recovered from the poses themselves
                pivot = (0.0, 0.0, 0.0) if rest == "0" else (0.0, 0.0, 0.2)
                ours = published_look_at(*gaussian_angles(rest), pivot, 2.7)
            elif family == "create_samples":
                ours = grid_values(*rest.split("/"))
            else:
                raise KeyError(key)
        except (KeyError, ValueError):
            found.append(Comparison(key, math.nan, math.nan, "unknown key", failed=True))
            continue
        found.append(compare(key, ours, reference))
    return found


def gaussian_angles(name: str) -> tuple[Tensor, Tensor]:
    if name == "0":
        return torch.tensor(math.pi / 2 + 0.3), torch.tensor(math.pi / 2 - 0.1)
    seed = re.fullmatch(r"seed(\d+)_std", name)
    if seed is None:
        raise KeyError(name)
    generator = torch.Generator().manual_seed(int(seed[1]))
    h, v = (torch.randn(4, generator=generator) for _ in range(2))
    return h * 0.3 + math.pi / 2, v * 0.155 + math.pi / 2


def grid_values(name: str, what: str = "points") -> Tensor:
    side, cube = name.split("_")
    points, origin, voxel = published_grid(int(side), float(cube))
    return {"points": points, "origin": torch.as_tensor(origin), "voxel_size": torch.tensor(voxel)}[what]


def report(title: str, comparisons: list[Comparison]) -> bool:
    """Print a table; whether everything in it is fine."""
    print(f"{title}\n{'array':<72} {'max':>9} {'L2':>9}")
    for c in comparisons:
        numbers = f"{c.maximum:9.1e} {c.l2:9.1e}" if not c.note or c.failed else f"{'':>19}"
        print(f"{c.key:<72} {numbers} {c.note}{' FAILED' if c.failed else ''}")
    failed = sum(c.failed for c in comparisons)
    checked = [c for c in comparisons if not c.note]
    worst = max(checked, key=lambda c: c.maximum, default=None)
    print(
        f"{len(checked)} arrays compared, {failed} failed"
        + (f"; worst {worst.key} {worst.maximum:.1e}" if worst else "")
    )
    print()
    return failed == 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare the generator with reference numbers.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    folders = parser.parse_args().folders
    torch.set_num_threads(THREADS)
    fine = True
    cameras = {p.resolve() for f in folders for p in (f / "cameras.npz", f.parent / "cameras.npz") if p.exists()}
    for path in sorted(cameras):
        fine &= report(path.name, camera_comparisons(path))
    with torch.no_grad():
        for folder in folders:
            if not (folder / "reference.npz").exists():
                print(f"{folder}: no reference.npz there")
                fine = False
                continue
            fine &= report(folder.name, Reference(folder).comparisons())
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
