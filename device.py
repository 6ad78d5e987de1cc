"""Where networks run."""

from __future__ import annotations

import torch

from headlift.errors import DeviceError


def find_device(name: str) -> torch.device:
    """The device of a name such as `auto`, `cpu`, `cuda` or `cuda:1`. Calls `forbid_tf32`.

    Raises:
        DeviceError: the name is unknown or that device is not here.
    """
    forbid_tf32()
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"device {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"device {name!r} is not here ({torch.cuda.device_count()} CUDA devices found); use --device cpu, or see "
            "`headlift doctor`"
        )
    return device


def forbid_tf32() -> None:
    """Full float32 in the convolutions of this process, as on processors and in the published code: PyTorch would let
    those on a GPU round to TF32."""
    torch.backends.cudnn.allow_tf32 = False
