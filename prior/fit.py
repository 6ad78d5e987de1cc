"""How headlift's small networks learn: AdamW, a short warm-up, then half a cosine; the running mean of the weights."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

Net = TypeVar("Net", bound=nn.Module)


def fit(net: Net, loss: Callable[[], Float[Tensor, ""]], steps: int, lr: float) -> Net:
    """Take `steps` steps down the loss, which draws its own samples; gives the running mean of the weights back."""
    net.to(memory_format=torch.channels_last)
    mean = copy.deepcopy(net).requires_grad_(False)
    optimiser = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=1e-2)
    began, shown = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = lr * min(1.0, step / 50) * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))
        value = loss()
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(mean.parameters()), list(net.parameters()), 1 - min(0.998, step / (step + 9)))
        shown = shown * 0.98 + float(value.detach()) * 0.02
        if step % 50 == 0:
            print(f"{time.monotonic() - began:5.0f} s  step {step}  loss {shown / (1 - 0.98**step):.3f}", flush=True)
    return mean.eval()


def save_net(net: nn.Module, out: Path, what: str, made_by: str, widths: Sequence[int]) -> None:
    """Write a network in half precision, with where it comes from; `headlift.invert.unet.load_net` reads it."""
    about = {
        "what": what,
        "made_by": made_by,
        "trained_on": "headlift's synthetic heads 0-2799 (CC0 assets), nothing else",
        "licence": "Apache-2.0",
        "widths": json.dumps(widths),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.half().contiguous() for key, value in net.state_dict().items()}, out, about)
