"""What a piece of work costs: seconds, and the most memory it held at once."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Cost:
    """Filled in when the work is done."""

    seconds: float = 0.0
    memory: float = 0.0
    """Largest memory while it ran, GiB: of the process or, where the work is on a GPU, of that GPU."""


@contextlib.contextmanager
def costing(device: torch.device) -> Iterator[Cost]:
    """Measure the block. Linux can forget a process's earlier peak; elsewhere the process's own so far is given."""
    cost = Cost()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            CLEAR.write_text("5")
    began = time.perf_counter()
    try:
        yield cost
    finally:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        cost.seconds = time.perf_counter() - began
        on_gpu = device.type == "cuda"
        cost.memory = torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else peak_memory()


def peak_memory() -> float:
    """Largest resident memory of this process, GiB: since it was last forgotten (Linux), else since its start.

    NaN where the system does not tell (Windows).
    """
    with contextlib.suppress(OSError, StopIteration):
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**20
    try:
        import resource
    except ImportError:
        return math.nan
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**30 if sys.platform == "darwin" else 2**20)


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        return f"{name}, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
    return f"{device.type}, {torch.get_num_threads()} threads"
