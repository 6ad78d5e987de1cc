"""StyleGAN2's building blocks (Karras et al., CVPR 2020), as EG3D uses them.

Weights are stored with unit variance and scaled when used (equalised learning rate). Every layer takes images as
[n, c, h, w] in either memory format. Under autocast convolutions run in the lower precision; fully connected layers,
styles and demodulation stay in float32.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from headlift.eg3d import winograd
from headlift.eg3d.convolution import convolution, doubling
from headlift.eg3d.rounding import laned_product, published_convolution, published_doubling
from headlift.eg3d.spec import NoiseMode

LRELU_SLOPE = 0.2
LRELU_GAIN = math.sqrt(2)
"""Keeps the variance of what passes a leaky ReLU."""
LINEAR = 30.0
"""Softplus is the identity from here on, in float32."""


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), in float32 inside.

    PyTorch's own takes nearly half of a render's time on a processor, most of it in log1p. This one takes a third of
    that, and differs by less than 1e-6.
    """
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16):
        return F.softplus(x)
    if x.requires_grad and torch.is_grad_enabled():
        return _Softplus.apply(x)  # type: ignore[no-any-return]
    return _softplus(x)


def _softplus(x: Tensor) -> Tensor:
    out = x.float().clamp(max=LINEAR).exp_().add_(1).log_()
    return torch.maximum(out, x, out=out).to(x.dtype)


class _Softplus(torch.autograd.Function):
    """Keeps the input alone; its gradient can be differentiated again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _softplus(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        share: Tensor = ctx.saved_tensors[0].sigmoid()
        return grads[0] * share


class FullyConnected(nn.Module):
    """x A^T + b with equalised learning rate, then a leaky ReLU (times sqrt 2) if `activate`. Always in float32."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        activate: bool = False,
        lr_multiplier: float = 1.0,
        bias_init: float = 0.0,
        published: bool = False,
    ) -> None:
        """`published` sums the terms of few rows in the published order (slower)."""
        super().__init__()
        self.published = published
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((outputs,), float(bias_init)))
        self.activate = activate
        self.weight_gain = lr_multiplier / math.sqrt(inputs)
        self.bias_gain = lr_multiplier

    def effective(self) -> tuple[Float[Tensor, "o i"], Float[Tensor, " o"]]:
        """The matrix and the bias as they act on the input."""
        return self.weight.float() * self.weight_gain, self.bias.float() * self.bias_gain

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.effective()
            x = laned_product(x.float(), weight) + bias if self.published else F.linear(x.float(), weight, bias)
        return F.leaky_relu(x, LRELU_SLOPE) * LRELU_GAIN if self.activate else x


def resample_filter() -> Float[Tensor, "4 4"]:
    """The low-pass filter of all changes of resolution: the outer product of (1, 3, 3, 1) / 8 with itself."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    return torch.outer(taps, taps)


def filter_image(
    x: Float[Tensor, "n c h w"], kernel: Float[Tensor, "a b"], padding: int, stride: int = 1, gain: float = 1.0
) -> Float[Tensor, "n c h2 w2"]:
    """Each channel convolved with `kernel` times `gain`, zeros outside, every `stride`-th pixel kept."""
    weight = _depthwise(kernel.flip(0, 1) * gain, x)
    return F.conv2d(x, weight, padding=padding, stride=stride, groups=x.shape[1])


def upsample(
    x: Float[Tensor, "n c h w"], kernel: Float[Tensor, "4 4"], published: bool = False
) -> Float[Tensor, "n c h2 w2"]:
    """Twice the resolution: zeros between the pixels, then the filter with gain 4.

    `published` really puts the zeros there, so that sums are rounded in the published order; else they are skipped.
    """
    if not published:
        return F.conv_transpose2d(x, _depthwise(kernel * 4, x), stride=2, padding=1, groups=x.shape[1])
    n, c, h, w = x.shape
    spread = F.pad(x.reshape(n, c, h, 1, w, 1), (0, 1, 0, 0, 0, 1)).reshape(n, c, 2 * h, 2 * w)
    return filter_image(F.pad(spread, (2, 1, 2, 1)), kernel, padding=0, gain=4.0)


def _depthwise(kernel: Tensor, x: Tensor) -> Tensor:
    return kernel.to(x.dtype).expand(x.shape[1], 1, *kernel.shape)


def convolve(
    x: Float[Tensor, "n i h w"],
    weight: Float[Tensor, "o i k k"],
    kernel: Float[Tensor, "4 4"] | None,
    up: int = 1,
    down: int = 1,
    published: bool = False,
) -> Float[Tensor, "n o h2 w2"]:
    """Convolution with resampling: filtered after doubling the resolution, before halving it (up or down by 1 or 2).

    `published` rounds as the published numbers are (slower).
    """
    size = weight.shape[-1]
    if up == 1 and down == 1:
        if not published and winograd.pays(x, weight):
            return winograd.convolve(x, weight)
        return (published_convolution if published else convolution)(x, weight, padding=size // 2)
    assert kernel is not None, "changing the resolution needs the filter"
    if up == 2:
        double = published_doubling if published else doubling
        return filter_image(double(x, weight.transpose(0, 1)), kernel, padding=1, gain=4.0)
    if size == 1:
        return F.conv2d(filter_image(x, kernel, padding=1, stride=2), weight)
    return convolution(filter_image(x, kernel, padding=2), weight, stride=2)


def modulated_convolution(
    x: Float[Tensor, "n i h w"],
    weight: Float[Tensor, "o i k k"],
    styles: Float[Tensor, "s i"],
    kernel: Float[Tensor, "4 4"] | None,
    *,
    demodulate: bool = True,
    up: int = 1,
    gain: float = 1.0,
    fused: bool = False,
    published: bool = False,
) -> Float[Tensor, "n o h2 w2"]:
    """Convolution whose input channels are scaled by `styles` (one row, or one for each image).

    Demodulation divides each output channel by the norm of its scaled weights (Karras et al. 2020, eq. 1 and 3,
    epsilon 1e-8). `gain` multiplies the result. `fused` scales the weights instead of the images, which is cheaper
    with one row of styles and equal up to rounding; with more rows it is a convolution in groups.
    """
    if fused:
        return _fused_convolution(x, weight, styles, kernel, demodulate, up, gain, published)
    with torch.autocast(x.device.type, enabled=False):
        weight, styles = weight.float(), styles.float()
        scale: Tensor | None = None
        if demodulate:
            power = weight.square().sum(dim=(2, 3))
            scale = torch.rsqrt(styles.square() @ power.T + 1e-8) * gain
        elif gain != 1.0:
            weight = weight * gain
    y = convolve(x * styles.to(x.dtype)[:, :, None, None], weight.to(x.dtype), kernel, up=up, published=published)
    return y if scale is None else y * scale.to(y.dtype)[:, :, None, None]


def _fused_convolution(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    kernel: Tensor | None,
    demodulate: bool,
    up: int,
    gain: float,
    published: bool,
) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        scaled = weight.float()[None] * styles.float()[:, None, :, None, None]
        if demodulate:
            norm = torch.rsqrt(scaled.square().sum(dim=(2, 3, 4)) + 1e-8)
            scaled = scaled * (norm * gain if gain != 1.0 else norm)[:, :, None, None, None]
        elif gain != 1.0:
            scaled = scaled * gain
    scaled = scaled.to(x.dtype)
    rows, outputs, inputs, size = scaled.shape[:4]
    if rows == 1:
        return convolve(x, scaled[0], kernel, up=up, published=published)
    grouped = x.reshape(1, -1, *x.shape[2:])
    if up == 2:
        assert kernel is not None, "changing the resolution needs the filter"
        stacked = scaled.transpose(1, 2).reshape(rows * inputs, outputs, size, size)
        y = F.conv_transpose2d(grouped, stacked, stride=2, groups=rows)
        y = filter_image(y, kernel, padding=1, gain=4.0)
    else:
        multiply = published_convolution if published else F.conv2d
        y = multiply(grouped, scaled.flatten(0, 1), padding=size // 2, groups=rows)
    return y.reshape(rows, outputs, *y.shape[2:])


def bias_activation(
    x: Float[Tensor, "n c h w"], offset: Tensor, gain: float = 1.0, clamp: float | None = None
) -> Float[Tensor, "n c h w"]:
    """Leaky ReLU of x + offset, times sqrt 2 and `gain`, clamped to +-`clamp` times `gain`.

    The gains are expected to be in x already (a leaky ReLU commutes with positive factors); `offset` gets them here.
    """
    x = F.leaky_relu(x + (offset * (LRELU_GAIN * gain)).to(x.dtype), LRELU_SLOPE)
    return x if clamp is None else x.clamp(-clamp * gain, clamp * gain)


class SynthesisLayer(nn.Module):
    """A modulated 3 x 3 convolution with noise, bias and leaky ReLU; `up` 2 doubles the resolution."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        w_dim: int,
        resolution: int,
        up: int = 1,
        clamp: float | None = None,
        published: bool = False,
    ) -> None:
        """`published` rounds in the published order: gains, noise and bias one after the other."""
        super().__init__()
        self.published = published
        self.affine = FullyConnected(w_dim, inputs, bias_init=1.0, published=published)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.register_buffer("noise_const", torch.randn(resolution, resolution))
        self.register_buffer("resample_filter", resample_filter())
        self.noise_const: Tensor
        self.resample_filter: Tensor
        self.resolution = resolution
        self.up = up
        self.clamp = clamp

    def forward(
        self,
        x: Float[Tensor, "n i h w"],
        w: Float[Tensor, "s d"],
        noise_mode: NoiseMode = "const",
        generator: torch.Generator | None = None,
        fused: bool | None = None,
    ) -> Float[Tensor, "n o h2 w2"]:
        """`w` is one row for all images or one for each. Random noise is drawn from `generator` for each image; mode
        "random" needs one."""
        x = modulated_convolution(
            x,
            self.weight,
            self.affine(w),
            self.resample_filter,
            up=self.up,
            gain=1.0 if self.published else LRELU_GAIN,
            fused=_fuse(self, w, self.published) if fused is None else fused,
            published=self.published,
        )
        noise = self._noise(x, noise_mode, generator)
        if self.published:
            x = x if noise is None else x + noise
            x = F.leaky_relu(x + self.bias[:, None, None], LRELU_SLOPE) * LRELU_GAIN
            return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)
        offset: Tensor = self.bias[:, None, None]
        return bias_activation(x, offset if noise is None else offset + noise, clamp=self.clamp)

    def _noise(self, x: Tensor, mode: NoiseMode, generator: torch.Generator | None) -> Tensor | None:
        if mode == "none":
            return None
        if mode == "const":
            return self.noise_const * self.noise_strength
        assert generator is not None, "random noise needs a generator (`noise_source`)"
        shape = (x.shape[0], 1, self.resolution, self.resolution)
        drawn = torch.randn(shape, generator=generator, device=generator.device)
        return drawn.to(x.device) * self.noise_strength


def noise_source(mode: NoiseMode, generator: torch.Generator | None, device: torch.device) -> torch.Generator | None:
    """What a network draws its layers' noise from: `generator`, or in mode "random" without one a new one that always
    gives the same, so that no picture depends on what was drawn before it."""
    if mode == "random" and generator is None:
        return torch.Generator(device).manual_seed(0)
    return generator


class ToRGB(nn.Module):
    """A modulated 1 x 1 convolution to picture channels, without demodulation, noise or activation."""

    def __init__(
        self, inputs: int, outputs: int, w_dim: int, clamp: float | None = None, published: bool = False
    ) -> None:
        super().__init__()
        self.published = published
        self.affine = FullyConnected(w_dim, inputs, bias_init=1.0, published=published)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.weight_gain = 1 / math.sqrt(inputs)
        self.clamp = clamp

    def forward(
        self, x: Float[Tensor, "n i h w"], w: Float[Tensor, "s d"], fused: bool | None = None
    ) -> Float[Tensor, "n o h w"]:
        """Picture channels in float32, whatever the precision of `x`."""
        styles = self.affine(w) * self.weight_gain
        fuse = _fuse(self, w, self.published) if fused is None else fused
        y = modulated_convolution(x, self.weight, styles, None, demodulate=False, fused=fuse, published=self.published)
        y = y.float() + self.bias[:, None, None]
        return y if self.clamp is None else y.clamp(-self.clamp, self.clamp)


class Convolution(nn.Module):
    """The discriminator's plain convolution with equalised learning rate; `down` 2 halves the resolution."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        bias: bool = True,
        activate: bool = True,
        down: int = 1,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.register_buffer("resample_filter", resample_filter())
        self.resample_filter: Tensor
        self.weight_gain = 1 / math.sqrt(inputs * size * size)
        self.activate = activate
        self.down = down
        self.clamp = clamp

    def forward(self, x: Float[Tensor, "n i h w"], gain: float = 1.0) -> Float[Tensor, "n o h2 w2"]:
        """`gain` multiplies the result and the clamp."""
        slope_gain = LRELU_GAIN if self.activate else 1.0
        weight = self.weight * (self.weight_gain * gain * slope_gain)
        x = convolve(x, weight.to(x.dtype), self.resample_filter, down=self.down)
        offset = self.bias[:, None, None] if self.bias is not None else torch.zeros((), device=x.device)
        if self.activate:
            return bias_activation(x, offset, gain=gain, clamp=self.clamp)
        x = x + (offset * gain).to(x.dtype)
        return x if self.clamp is None else x.clamp(-self.clamp * gain, self.clamp * gain)


class SynthesisBlock(nn.Module):
    """Two synthesis layers and a ToRGB that adds to the picture so far (StyleGAN2's skip architecture).

    The first layer doubles the resolution if `up` is 2, and so is the picture so far. A block without inputs starts
    from a learned constant and has one layer only.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        w_dim: int,
        resolution: int,
        image_channels: int,
        up: int = 2,
        clamp: float | None = None,
        published: bool = False,
    ) -> None:
        """`published` rounds in the published order (for comparisons with its numbers; slower)."""
        super().__init__()
        self.register_buffer("resample_filter", resample_filter())
        self.resample_filter: Tensor
        self.up = up
        self.published = published
        self.num_convs = 1
        if inputs == 0:
            self.const = nn.Parameter(torch.randn(outputs, resolution, resolution))
        else:
            self.conv0 = SynthesisLayer(inputs, outputs, w_dim, resolution, up, clamp, published)
            self.num_convs = 2
        self.conv1 = SynthesisLayer(outputs, outputs, w_dim, resolution, 1, clamp, published)
        self.torgb = ToRGB(outputs, image_channels, w_dim, clamp, published)

    def forward(
        self,
        x: Float[Tensor, "n i h w"] | None,
        image: Float[Tensor, "n c h w"] | None,
        ws: Float[Tensor, "s k d"],
        noise_mode: NoiseMode = "const",
        generator: torch.Generator | None = None,
        fused: bool | None = None,
    ) -> tuple[Float[Tensor, "n o h2 w2"], Float[Tensor, "n c h2 w2"]]:
        """Features and picture after this block; `ws` holds a code for each layer and one for the ToRGB."""
        rows = list(ws.unbind(dim=1))
        if x is not None and not self.published:
            x = x.contiguous(memory_format=torch.channels_last)
        if x is None:
            x = self.const.expand(ws.shape[0], -1, -1, -1)
        else:
            x = self.conv0(x, rows.pop(0), noise_mode, generator, fused)
        x = self.conv1(x, rows.pop(0), noise_mode, generator, fused)
        y = self.torgb(x, rows.pop(0), fused)
        if image is not None:
            y = (upsample(image, self.resample_filter, self.published) if self.up == 2 else image) + y
        return x, y


def _fuse(module: nn.Module, w: Tensor, published: bool) -> bool:
    """Whether to scale weights: always outside training in the published code, here where it pays."""
    return not module.training and (published or w.shape[0] == 1)
