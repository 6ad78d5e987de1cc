"""How headlift's small networks learn: AdamW, a short warm-up, then half a cosine; the running mean of the weights."""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from headlift.errors import ConfigError
from headlift.export.files import atomic_path
from headlift.prior.budget import load_state, save_state
from headlift.prior.command import at_least
from headlift.prior.heads import HELD_OUT

Net = TypeVar("Net", bound=nn.Module)
KEEP_EVERY = 250
"""Steps between two writings of the state."""


def fit(
    net: Net,
    loss: Callable[[torch.Generator], Float[Tensor, ""]],
    steps: int,
    lr: float,
    seed: int = 0,
    keep: Path | None = None,
    of: Mapping[str, str | int] | None = None,
) -> Net:
    """Take `steps` steps down the loss, which draws its own samples; gives the running mean of the weights back.

    With a file to `keep` its state in, an interrupted call goes on where that was written last, to the same weights.
    `of` says what else makes a call another one, beside steps, rate, seed and the weights that it starts from.

    Raises:
        ConfigError: the file is damaged, or of another call.
        OutputError: the file cannot be written.
    """
    net.to(memory_format=torch.channels_last)
    mean = copy.deepcopy(net).requires_grad_(False)
    optimiser = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=1e-2)
    rng = torch.Generator().manual_seed(seed)
    call = {"steps": steps, "lr": lr, "seed": seed, "start": fingerprint(*net.state_dict().values()), **(of or {})}
    done, shown = 0, 0.0
    if keep is not None and keep.exists():
        state = load_state(keep)
        before = state.get("call", {})
        other = [f"{k} {before.get(k)} instead of {v}" for k, v in call.items() if before.get(k) != v]
        if other:
            raise ConfigError(f"{keep} is of another call, with {', '.join(other)}: name another file, or remove it.")
        for part, kept in ((net, "net"), (mean, "mean"), (optimiser, "optimiser")):
            part.load_state_dict(state[kept])
        rng.set_state(state["rng"])
        done, shown = state["done"], state["shown"]
    began = time.monotonic()
    for step in range(done + 1, steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = lr * min(1.0, step / 50) * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))
        value = loss(rng)
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(mean.parameters()), list(net.parameters()), 1 - min(0.998, step / (step + 9)))
        shown = shown * 0.98 + float(value.detach()) * 0.02
        if step % 50 == 0:
            print(f"{time.monotonic() - began:5.0f} s  step {step}  loss {shown / (1 - 0.98**step):.3f}", flush=True)
        if keep is not None and (step % KEEP_EVERY == 0 or step == steps):
            parts = {"net": net.state_dict(), "mean": mean.state_dict(), "optimiser": optimiser.state_dict()}
            save_state(keep, {**parts, "rng": rng.get_state(), "done": step, "shown": shown, "call": call})
    return mean.eval()


def fingerprint(*tensors: Tensor) -> str:
    """A sha256 of tensors: of their shapes and, of each, up to about a thousand rows spread over it."""
    digest = hashlib.sha256()
    for tensor in map(torch.atleast_1d, tensors):
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor[:: max(1, len(tensor) // 512)].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def add_flags(parser: argparse.ArgumentParser, file: str, cache: str, seconds: float) -> None:
    """What the trainers of small networks ask for; `file` is the one that ships, a step takes `seconds` on a core."""
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data" / file)
    parser.add_argument("--cache", type=Path, help=f"file that keeps the {cache}")
    parser.add_argument("--keep", type=Path, help="file that keeps the state of an interrupted call, which goes on")
    parser.add_argument("--steps", type=at_least(1), default=8000, help=f"about {seconds:g} seconds each on one core")
    parser.add_argument("--go-on", action="store_true", help="start from the network that is shipped")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=at_least(1), default=1)


def save_net(net: nn.Module, out: Path, what: str, made_by: str, **shape: Sequence[int]) -> None:
    """Write a network in half precision, with where it comes from and its `shape` (for `headlift.invert.unet.load_net`:
    its `widths`). Raises OutputError when the place cannot be written."""
    about = {
        "what": what,
        "made_by": made_by,
        "trained_on": f"headlift's synthetic heads 0-{HELD_OUT.start - 1} (CC0 assets), nothing else",
        "licence": "Apache-2.0",
        **{name: json.dumps(numbers) for name, numbers in shape.items()},
    }
    with atomic_path(out) as part:
        save_file({key: value.half().contiguous() for key, value in net.state_dict().items()}, part, about)
