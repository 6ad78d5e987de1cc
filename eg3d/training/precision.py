"""bfloat16 where it is arithmetic: GPUs, and processors that multiply it. Others emulate it, many times slower."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


def working_type(device: torch.device | str) -> torch.dtype:
    """What training's convolutions and products are fastest in: bfloat16 on GPUs that multiply it (NVIDIA's from Ampere
    on; the current one is asked) and on processors with AVX512-BF16, AMX or ARM's BF16; float32 on all others.

    A processor with AVX2 alone takes about ten times as long in bfloat16 as in float32.
    """
    if torch.device(device).type != "cpu":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    told = getattr(torch.cpu, "get_capabilities", None)  # not in every version from 2.6 on
    if told is None:
        has = torch.cpu._is_avx512_bf16_supported()
    else:
        has = any("bf16" in name and found for name, found in told().items())
    return torch.bfloat16 if has else torch.float32


def autocast(device: torch.device | str, wanted: bool = True) -> AbstractContextManager[None]:
    """Convolutions and products in bfloat16, where that is `wanted` and the device's `working_type`."""
    enabled = wanted and working_type(device) == torch.bfloat16
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=enabled)
