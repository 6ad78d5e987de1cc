"""An optimiser's state as named tensors, so that an interrupted run can be written down and go on exactly."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

PREFIX = "adam."


def adam_tensors(optimiser: torch.optim.Adam) -> dict[str, Tensor]:
    """Moments and step counts by name; learning rates are not kept, the loops set them."""
    stored = optimiser.state_dict()["state"]
    return {
        f"{PREFIX}{index}.{key}": value.detach().clone()
        for index, entries in stored.items()
        for key, value in entries.items()
    }


def restore_adam(optimiser: torch.optim.Adam, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `adam_tensors` gave; the parameters must be the same ones in the same order."""
    entries: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(PREFIX):
            index, _, key = name.removeprefix(PREFIX).partition(".")
            entries.setdefault(int(index), {})[key] = value.clone()
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": entries, "param_groups": groups})
