"""Work in parts whose figures are kept one by one, so that an interrupted evaluation goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8

from headlift.device import find_device
from headlift.eg3d.generator import Generator
from headlift.errors import ConfigError, OutputError
from headlift.evaluate.crew import Stopped, Work, run_tasks
from headlift.export.files import write_bytes, write_text
from headlift.export.images import jpeg_bytes
from headlift.values import Step
from headlift.weights import load_generator

REFRESH = 60.0
"""What there is is summed up at most once in so many seconds: that takes time from those who work."""


@runtime_checkable
class Part(Protocol):
    """A part of an evaluation: where its figures and its picture are kept, and what they depend on."""

    @property
    def key(self) -> str:
        """Settings, weights and pictures, hashed (`key_of`)."""

    @property
    def row_path(self) -> Path:
        """JSON with the figures and the key."""

    @property
    def picture_path(self) -> Path:
        """JPEG."""


AnyPart = TypeVar("AnyPart", bound=Part)


def key_of(parts: Mapping[str, Any]) -> str:
    """A sha256 of JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def finished(part: Part) -> bool:
    """Whether the figures of a part are there already.

    Raises:
        OutputError: there are figures of other settings, weights or pictures.
    """
    try:
        row = json.loads(part.row_path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (OSError, json.JSONDecodeError, UnicodeDecodeError):
        row = {}
    if not isinstance(row, dict) or row.get("key") != part.key:
        raise OutputError(
            f"{part.row_path} holds the figures of other settings, weights or pictures. Give another --out, or "
            "--overwrite to measure anew."
        )
    return part.picture_path.exists()


def keep(part: Part, row: Mapping[str, Any], picture: UInt8[np.ndarray, "h w 3"]) -> None:
    """Write a part's figures, which hold its key, and its picture. Raises OutputError when it cannot."""
    write_bytes(part.picture_path, jpeg_bytes(picture))
    write_text(part.row_path, json.dumps(row, indent=1))


def kept(part: Part) -> dict[str, Any]:
    """The figures that `keep` wrote."""
    row: dict[str, Any] = json.loads(part.row_path.read_text(encoding="utf-8"))
    return row


def check_workers(workers: int | None) -> None:
    """Raises ConfigError when there are to be none."""
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers must be at least 1, not {workers}.")


def work_through(
    work: Work[AnyPart, AnyPart],
    parts: Sequence[AnyPart],
    workers: int | None,
    device: torch.device,
    overwrite: bool,
    stage: str,
    on_step: Callable[[Step], None],
    should_stop: Callable[[], bool],
    on_more: Callable[[Sequence[AnyPart]], object],
) -> bool:
    """Do the parts that are not kept yet; returns whether all are there (it was not stopped before).

    Figures do not depend on `workers`: each works with one thread.

    Args:
        work: does a part, keeps it, and returns it; a function that a fresh process can import.
        workers: processes at a time; without it as many as there are cores, 8 at most, and one with a GPU.
        overwrite: do anew what is kept already.
        stage: what the steps that count the parts are called.
        on_step: is told of parts as they are done, and with one worker of the steps of each.
        on_more: is handed those that are there, at most every `REFRESH` seconds and when it was stopped.

    Raises:
        OutputError: a file holds figures of other settings, or cannot be written.
    """
    todo = [part for part in parts if overwrite or not finished(part)]
    missing = {part.row_path for part in todo}
    on_step(Step(stage, len(parts) - len(todo), len(parts)))
    workers = workers or (1 if device.type == "cuda" else min(8, os.cpu_count() or 1))
    shown = time.monotonic()

    def there() -> list[AnyPart]:
        return [part for part in parts if part.row_path not in missing]

    try:
        for part in run_tasks(work, todo, workers, on_step, should_stop):
            missing.remove(part.row_path)
            on_step(Step(stage, len(parts) - len(missing), len(parts)))
            if missing and time.monotonic() - shown >= REFRESH:
                on_more(there())
                shown = time.monotonic()
    except Stopped:
        if done := there():
            on_more(done)
        return False
    return True


@cache
def generator_of(weights: str, device: str) -> tuple[Generator, torch.device]:
    """A generator and where it is, loaded once in each process."""
    found = find_device(device)
    return load_generator(weights, found)[0], found
