"""Tri-plane look-ups for training: the mean of three bilinear samples, with a fast backward pass on the CPU.

PyTorch's backward passes of `grid_sample` and of indexed sums take several times as long as everything else in a
training step on the CPU. `lookup` therefore compiles a few lines of C with the machine's own compiler at first use;
where there is none, or on another device, `lookup_reference` does the same with PyTorch alone.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from headlift.eg3d.spec import PlaneLayout
from headlift.eg3d.triplane import PLANES

FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")
"""Not -ffast-math: a library that is linked with it turns the small numbers of the whole process to zero."""

SOURCE = r"""
#include <math.h>
#include <string.h>
#define TAPS                                                                                                   \
    const float px = (xyz[3 * i + ax[2 * p]] + 1.f) * .5f * size - .5f;                                        \
    const float py = (xyz[3 * i + ax[2 * p + 1]] + 1.f) * .5f * size - .5f;                                    \
    const float fx = floorf(px), fy = floorf(py);                                                              \
    const int x = (int)fx, y = (int)fy;                                                                        \
    const float u = px - fx, v = py - fy;                                                                      \
    const float wt[4] = {(1 - u) * (1 - v) / 3, u * (1 - v) / 3, (1 - u) * v / 3, u * v / 3};

static inline __attribute__((always_inline)) void
forward_(const float *tab, const float *xyz, float *out, long b, long m, int size, int c, const int *ax) {
    for (long i = b * m; i < (b + 1) * m; i++) {
        float *o = out + i * c;
        for (int k = 0; k < c; k++) o[k] = 0;
        for (int p = 0; p < 3; p++) {
            TAPS
            for (int t = 0; t < 4; t++) {
                const int xx = x + (t & 1), yy = y + (t >> 1);
                if (xx < 0 || yy < 0 || xx >= size || yy >= size) continue;
                const float *row = tab + (((b * size + yy) * size + xx) * 3 + p) * c;
                const float w = wt[t];
                for (int k = 0; k < c; k++) o[k] += w * row[k];
            }
        }
    }
}
static inline __attribute__((always_inline)) void
backward_(float *tab, const float *xyz, const float *grad, long b, int p, long m, int size, int c, const int *ax) {
    for (long i = b * m; i < (b + 1) * m; i++) {
        const float *g = grad + i * c;
        TAPS
        for (int t = 0; t < 4; t++) {
            const int xx = x + (t & 1), yy = y + (t >> 1);
            if (xx < 0 || yy < 0 || xx >= size || yy >= size) continue;
            float *row = tab + (((b * size + yy) * size + xx) * 3 + p) * c;
            const float w = wt[t];
            for (int k = 0; k < c; k++) row[k] += w * g[k];
        }
    }
}
void lookup_forward(const float *tab, const float *xyz, float *out, long n, long m, int size, int c, const int *ax) {
#pragma omp parallel for schedule(dynamic)
    for (long b = 0; b < n; b++) {
        if (c == 16) forward_(tab, xyz, out, b, m, size, 16, ax);
        else if (c == 32) forward_(tab, xyz, out, b, m, size, 32, ax);
        else forward_(tab, xyz, out, b, m, size, c, ax);
    }
}
void lookup_backward(float *tab, const float *xyz, const float *grad, long n, long m, int size, int c, const int *ax) {
#pragma omp parallel for schedule(dynamic)
    for (long j = 0; j < 3 * n; j++) {
        const long b = j / 3; const int p = (int)(j % 3);
        if (c == 16) backward_(tab, xyz, grad, b, p, m, size, 16, ax);
        else if (c == 32) backward_(tab, xyz, grad, b, p, m, size, 32, ax);
        else backward_(tab, xyz, grad, b, p, m, size, c, ax);
    }
}
"""


def lookup(
    table: Float[Tensor, "n size size 3 c"], xyz: Float[Tensor, "n m 3"], layout: PlaneLayout
) -> Float[Tensor, "n m c"]:
    """Features of points in [-1, 1]^3 (box coordinates): mean of the three planes, bilinear, zeros outside.

    `table` holds the planes with their channels last. Gradients flow to the table only.
    """
    if table.device.type == "cpu" and table.dtype == torch.float32 and _library() is not None:
        return _Lookup.apply(table, xyz, _axes(layout))  # type: ignore[no-any-return]
    return lookup_reference(table, xyz, layout)


def lookup_reference(
    table: Float[Tensor, "n size size 3 c"], xyz: Float[Tensor, "n m 3"], layout: PlaneLayout
) -> Float[Tensor, "n m c"]:
    """The same as `lookup`, by `grid_sample`."""
    n, size, _, _, c = table.shape
    planes = table.permute(0, 3, 4, 1, 2).reshape(3 * n, c, size, size)
    grid = torch.stack([xyz[..., list(axes)] for axes in _axes(layout)], dim=1).reshape(3 * n, 1, -1, 2)
    found = F.grid_sample(planes, grid.to(planes.dtype), mode="bilinear", padding_mode="zeros", align_corners=False)
    return found.reshape(n, 3, c, -1).mean(1).transpose(1, 2)


def _axes(layout: PlaneLayout) -> tuple[tuple[int, int], ...]:
    return tuple(plane.axes for plane in PLANES[layout])


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, xyz: Tensor, axes: tuple[tuple[int, int], ...]) -> Tensor:
        table, xyz = table.contiguous(), xyz.float().contiguous()
        ctx.save_for_backward(xyz)
        ctx.shape, ctx.axes = table.shape, axes
        n, size, _, _, c = table.shape
        out = torch.empty(n, xyz.shape[1], c)
        _call("lookup_forward", table, xyz, out, n, xyz.shape[1], size, c, axes)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (xyz,) = ctx.saved_tensors
        grad = grads[0].float().contiguous()
        table = torch.zeros(ctx.shape)
        n, size, _, _, c = ctx.shape
        _call("lookup_backward", table, xyz, grad, n, xyz.shape[1], size, c, ctx.axes)
        return table, None, None


def _call(
    name: str, a: Tensor, b: Tensor, d: Tensor, n: int, m: int, size: int, c: int, axes: tuple[tuple[int, int], ...]
) -> None:
    library = _library()
    assert library is not None
    flat = (ctypes.c_int * 6)(*(i for pair in axes for i in pair))
    pointers = (ctypes.c_void_p(x.data_ptr()) for x in (a, b, d))
    getattr(library, name)(*pointers, ctypes.c_long(n), ctypes.c_long(m), ctypes.c_int(size), ctypes.c_int(c), flat)


@cache
def _library() -> ctypes.CDLL | None:
    """The compiled C, kept for the next time in the user's cache folder; None without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or os.environ.get("HEADLIFT_NATIVE") == "0":
        return None
    try:
        path = _cache_folder() / _file_name(compiler)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as work:
                source, built = Path(work) / "lookup.c", Path(work) / "lookup.so"
                source.write_text(SOURCE)
                subprocess.run([compiler, *FLAGS, "-o", built, source, "-lm"], check=True, capture_output=True)
                built.replace(path)
        return ctypes.CDLL(str(path))
    except (OSError, RuntimeError, subprocess.CalledProcessError):
        return None


def _cache_folder() -> Path:
    """HEADLIFT_CACHE, as for weights, else the user's cache folder; a relative path would be another one wherever
    headlift is started, and counts as none. Raises RuntimeError where the user has no home."""
    chosen, caches = (Path(os.environ.get(name, "")).expanduser() for name in ("HEADLIFT_CACHE", "XDG_CACHE_HOME"))
    if chosen.is_absolute():
        return chosen
    return (caches if caches.is_absolute() else Path.home() / ".cache") / "headlift"


def _file_name(compiler: str) -> str:
    """A name for each outcome: what is compiled for this very processor would be killed on another that shares the
    folder."""
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True).stdout.decode(errors="replace")
    digest = hashlib.sha256("\n".join((*FLAGS, SOURCE, version, *_processor())).encode()).hexdigest()
    return f"lookup-{digest[:16]}.so"


def _processor() -> tuple[str, ...]:
    """The kind of processor and, where Linux tells them, the instructions that it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    told = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return platform.machine(), " ".join(sorted(next(told, "").split()))
