"""What the loops of all stages share: a budget of minutes, a log, files that appear only when they are whole."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from headlift.config import FRAME
from headlift.errors import UNREADABLE, ConfigError
from headlift.export.files import atomic_path

ABOUT = {"licence": "Apache-2.0", FRAME: "embedded"}
"""What the metadata of every network trained on the synthetic heads says."""


class Budget:
    """Minutes that a call may take. SIGTERM ends them at once."""

    def __init__(self, minutes: float) -> None:
        self.start = time.monotonic()
        self.minutes = minutes
        self.stopped = threading.Event()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: self.stopped.set())

    @property
    def used(self) -> float:
        """Minutes since the start."""
        return (time.monotonic() - self.start) / 60

    @property
    def over(self) -> bool:
        """Whether to stop."""
        return self.stopped.is_set() or self.used >= self.minutes


def record(out: Path, entry: Mapping[str, float | int]) -> None:
    """Add a line to the run's `log.jsonl`, and show it."""
    with open(out / "log.jsonl", "a") as log:
        log.write(json.dumps({k: round(v, 5) for k, v in entry.items()}) + "\n")
    print(" ".join(f"{k} {v:.4g}" for k, v in entry.items()), flush=True)


def save_state(file: Path, state: Mapping[str, Any]) -> None:
    """Write what `load_state` reads; a reader never sees half of it. Raises OutputError when it cannot be written."""
    with atomic_path(file) as part:
        torch.save(dict(state), part)


def load_state(file: Path, mmap: bool = False) -> dict[str, Any]:
    """What `save_state` wrote, on the processor; with `mmap` its tensors are read when they are used.

    Raises ConfigError when the file is damaged or of another kind.
    """
    try:
        state = torch.load(file, map_location="cpu", mmap=mmap, weights_only=True)
    except UNREADABLE as error:
        told = str(error).partition("\n")[0]
        raise ConfigError(f"{file} is damaged or of another kind ({told}): name another file, or remove it.") from error
    if not isinstance(state, dict):
        raise ConfigError(f"{file} holds a {type(state).__name__} and no state: name another file, or remove it.")
    return state
