"""The generator's backbone and super-resolution once more, arranged for fast training on processors with bfloat16.

Same weights, same result up to rounding: modulation scales the activations instead of one kernel a sample, doubling
the size is one 3x3 convolution to four phases (the upsampling filter folded into the kernel), activations are
channels-last. `tests/test_prior_fast.py` compares it with `headlift.eg3d.generator.Generator`. The noise of the
layers is left out: its strength is zero and stays so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from headlift.eg3d.spec import GeneratorSpec
from headlift.errors import ConfigError

Weights = Mapping[str, Tensor]
"""Parameters by their published names, as `Generator.named_parameters()` gives them."""

GAIN = 2**0.5


def planes_table(
    weights: Weights, spec: GeneratorSpec, ws: Float[Tensor, "n l w"], dtype: torch.dtype = torch.bfloat16
) -> Float[Tensor, "n size size 3 c"]:
    """The tri-planes with their channels last, as `headlift.eg3d.training.lookup.lookup` takes them."""
    x: Tensor | None = None
    image: Tensor | None = None
    for i, side in enumerate(spec.backbone.sides):
        name = f"backbone.synthesis.b{side}"
        if x is None:
            const = weights[f"{name}.const"].to(dtype)
            x = const[None].expand(len(ws), -1, -1, -1).contiguous(memory_format=torch.channels_last)
            x = layer(weights, f"{name}.conv1", x, ws[:, 0], up=False, clamp=spec.backbone.conv_clamp)
        else:
            x = layer(weights, f"{name}.conv0", x, ws[:, 2 * i - 1], up=True, clamp=spec.backbone.conv_clamp)
            x = layer(weights, f"{name}.conv1", x, ws[:, 2 * i], up=False, clamp=spec.backbone.conv_clamp)
        rgb = to_rgb(weights, f"{name}.torgb", x, ws[:, 2 * i + 1], clamp=spec.backbone.conv_clamp)
        rgb = rgb.permute(0, 2, 3, 1)
        image = rgb if image is None else double(image) + rgb
    assert image is not None
    return image.float().reshape(*image.shape[:3], 3, -1)


def superres(
    weights: Weights,
    spec: GeneratorSpec,
    features: Float[Tensor, "n f r r"],
    w_last: Float[Tensor, "n w"],
    dtype: torch.dtype = torch.bfloat16,
) -> Float[Tensor, "n 3 s s"]:
    """The picture from a rendered feature map in [-1, 1]. The first block is as large as its input, the second doubles
    it (the 4X module). Raises ConfigError for the other modules."""
    if spec.superres.kind != "4X":
        raise ConfigError(
            f"the fast super-resolution is that of the module 4X, not {spec.superres.kind}: take Generator.render"
        )
    side = spec.superres.input_resolution
    x, rgb = features, features[:, :3]
    if features.shape[-1] != side:
        x = F.interpolate(x, (side, side), mode="bilinear", align_corners=False, antialias=spec.superres.antialias)
        rgb = F.interpolate(rgb, (side, side), mode="bilinear", align_corners=False, antialias=spec.superres.antialias)
    x = x.to(dtype).contiguous(memory_format=torch.channels_last)
    for block, up in (("superresolution.block0", False), ("superresolution.block1", True)):
        x = layer(weights, f"{block}.conv0", x, w_last, up=up, clamp=spec.superres.conv_clamp)
        x = layer(weights, f"{block}.conv1", x, w_last, up=False, clamp=spec.superres.conv_clamp)
        rgb = double(rgb.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if up else rgb
        rgb = rgb + to_rgb(weights, f"{block}.torgb", x, w_last, clamp=spec.superres.conv_clamp).float()
    return rgb


def layer(
    weights: Weights, name: str, x: Float[Tensor, "n i h w"], w: Float[Tensor, "n d"], up: bool, clamp: float | None
) -> Float[Tensor, "n o hh ww"]:
    """A modulated, demodulated 3x3 convolution with bias and leaky ReLU (Karras et al. 2020, section 2.2)."""
    style = affine(weights, f"{name}.affine", w)
    kernel = weights[f"{name}.weight"]
    kernel = kernel / (kernel.shape[1] * kernel.shape[2] * kernel.shape[3]) ** 0.5
    demodulation = (style.square() @ kernel.square().sum((2, 3)).T + 1e-8).rsqrt()
    x = x * style.to(x.dtype)[:, :, None, None]
    y = convolve_double(x, kernel) if up else convolve(x, kernel)
    # The gain of the activation goes into its input: a leaky ReLU commutes with positive factors.
    bias = (weights[f"{name}.bias"] * GAIN).to(y.dtype)[None, :, None, None]
    y = F.leaky_relu(torch.addcmul(bias, y, (demodulation * GAIN).to(y.dtype)[:, :, None, None]), 0.2)
    return y if clamp is None else y.clamp(-clamp, clamp)


def to_rgb(
    weights: Weights, name: str, x: Float[Tensor, "n i h w"], w: Float[Tensor, "n d"], clamp: float | None
) -> Float[Tensor, "n o h w"]:
    """A modulated 1x1 convolution without demodulation."""
    kernel = weights[f"{name}.weight"]
    style = affine(weights, f"{name}.affine", w) / kernel.shape[1] ** 0.5
    y = convolve(x * style.to(x.dtype)[:, :, None, None], kernel)
    y = y + weights[f"{name}.bias"].to(y.dtype)[:, None, None]
    return y if clamp is None else y.clamp(-clamp, clamp)


def affine(weights: Weights, name: str, w: Float[Tensor, "n d"]) -> Float[Tensor, "n o"]:
    """The style of a layer: a fully connected layer with the runtime gain 1 / sqrt(fan in)."""
    return torch.addmm(weights[f"{name}.bias"], w, weights[f"{name}.weight"].T, alpha=w.shape[1] ** -0.5)


TAPS = torch.tensor(
    [
        [[0.75, 0.25, 0.0], [0.25, 0.75, 0.75], [0.0, 0.0, 0.25]],
        [[0.25, 0.0, 0.0], [0.75, 0.75, 0.25], [0.0, 0.25, 0.75]],
    ]
)
"""[phase, tap on the small grid, tap on the large grid]: doubling by the filter [1, 3, 3, 1] / 4 followed by a
three-tap kernel, read off the small grid."""


def convolve_double(x: Float[Tensor, "n i h w"], kernel: Float[Tensor, "o i 3 3"]) -> Float[Tensor, "n o hh ww"]:
    """Upsampling by two with the filter [1, 3, 3, 1] and a 3x3 convolution, in one convolution at the small size.

    The kernel of an upsampling layer is applied flipped, as in the published weights.
    """
    kernel = kernel.to(x.dtype)
    taps = TAPS.to(kernel)
    # One matrix takes the nine numbers of a kernel to the nine of each of the four phases.
    matrix = torch.einsum("pay,qbx->yxpqab", taps, taps).flip((0, 1)).reshape(9, 36)
    o, i = kernel.shape[:2]
    phases = (kernel.reshape(o * i, 9) @ matrix).reshape(o, i, 4, 9).transpose(1, 2)
    return F.pixel_shuffle(convolve(x, phases.reshape(4 * o, i, 3, 3)), 2)


def double(x: Float[Tensor, "n h w c"]) -> Float[Tensor, "n hh ww c"]:
    """Upsampling by two with the filter [1, 3, 3, 1], zeros beyond the border, as two products of matrices."""
    n, h, w, c = x.shape
    rows = (_doubling(h, x) @ x.reshape(n, h, w * c)).reshape(n * 2 * h, w, c)
    return (_doubling(w, x) @ rows).reshape(n, 2 * h, 2 * w, c)


def _doubling(size: int, like: Tensor) -> Float[Tensor, "two_size size"]:
    """Row o says what pixel o of the doubled line takes from the line."""
    matrix = torch.zeros(2 * size, size, dtype=like.dtype, device=like.device)
    i = torch.arange(size, device=like.device)
    matrix[2 * i, i], matrix[2 * i + 1, i] = 0.75, 0.75
    matrix[2 * i[1:], i[:-1]], matrix[2 * i[:-1] + 1, i[1:]] = 0.25, 0.25
    return matrix


def convolve(x: Float[Tensor, "n i h w"], kernel: Float[Tensor, "o i k k"]) -> Float[Tensor, "n o h w"]:
    """A convolution that keeps the size, in the precision of `x`."""
    kernel = kernel.to(x.dtype).contiguous(memory_format=torch.channels_last)
    if x.device.type == "cpu" and x.dtype == torch.bfloat16:
        return _Convolution.apply(x, kernel)  # type: ignore[no-any-return]
    return F.conv2d(x, kernel, padding=kernel.shape[-1] // 2)


class _Convolution(torch.autograd.Function):
    """`F.conv2d`, with gradients that use the processor's matrix units: oneDNN's gradient of the kernel does not in
    many shapes, and takes 10 to 50 times as long as one product of matrices for each tap does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor) -> Tensor:
        ctx.save_for_backward(x, kernel)
        return F.conv2d(x, kernel, padding=kernel.shape[-1] // 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor]:
        x, kernel = ctx.saved_tensors
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        size = kernel.shape[-1]
        back = kernel.transpose(0, 1).flip(2, 3).contiguous(memory_format=torch.channels_last)
        grad_x = F.conv2d(grad, back, padding=size // 2) if ctx.needs_input_grad[0] else None
        n, channels, h, w = x.shape
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, size // 2, size // 2, size // 2, size // 2))
        rows = grad.permute(0, 2, 3, 1).reshape(n, h * w, -1).transpose(1, 2)
        # Small pictures make one product a tap, large ones a product a picture: each where it is faster.
        flat = rows.transpose(0, 1).reshape(rows.shape[1], -1) if h * w <= 1024 else None
        taps = []
        for dy in range(size):
            for dx in range(size):
                shifted = padded[:, dy : dy + h, dx : dx + w].reshape(n, h * w, channels)
                if flat is not None:
                    taps.append(flat @ shifted.reshape(-1, channels))
                else:
                    taps.append((rows @ shifted).float().sum(0))
        return grad_x, torch.stack(taps, dim=-1).reshape(kernel.shape).to(kernel.dtype)
