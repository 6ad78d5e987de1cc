"""Several processes that train one network together: torchrun's ranks, or one process that is all there is."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """The tensor, now holding the sum over all ranks."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.count > 1:
            dist.barrier()

    def share_(self, module: nn.Module) -> None:
        """Give all ranks the first one's parameters and buffers."""
        if self.count > 1:
            for tensor in module.state_dict().values():
                dense = tensor.contiguous()
                dist.broadcast(dense, 0)
                tensor.copy_(dense)


def join(cuda: bool) -> Ranks:
    """The ranks that torchrun started (its environment says so), over NCCL on GPUs and gloo on processors."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Ranks()
    if not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo")
    return Ranks(dist.get_rank(), dist.get_world_size())


def leave() -> None:
    """Part from the other ranks."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@torch.no_grad()
def gather_gradients(parameters: Iterable[nn.Parameter], ranks: Ranks, limit: float = 1e5) -> None:
    """Sum the gradients over the ranks; what is not a number becomes 0, infinity +-`limit`.

    Parameters without a gradient must be the same on all ranks; they stay without.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return
    flat = ranks.sum_(torch.cat([g.flatten() for g in gradients]))
    flat.nan_to_num_(nan=0.0, posinf=limit, neginf=-limit)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.reshape(gradient.shape))
