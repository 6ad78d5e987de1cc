"""What workers do in the tests of batches: quick stand-ins for a reconstruction, found by fresh processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from headlift.batch import Task
from headlift.errors import FaceError


def by_name(
    task: Task, should_stop: Callable[[], bool], notice: Callable[[str], None]
) -> tuple[float | None, str] | None:
    """Behave as the photo's name says; note the process and its threads in the folder."""
    name = task.photo.stem
    if (task.out / "result").exists() and not task.overwrite:
        return None
    if "noface" in name:
        raise FaceError(f"{task.photo.name}: no face was found; try another photo.")
    if "bug" in name:
        raise ZeroDivisionError("a bug")
    if "killer" in name:
        os._exit(9)
    if "stuck" in name:  # hears of nothing for a minute
        task.out.mkdir(parents=True)
        (task.out / "began").touch()
        time.sleep(60)
    while "slow" in name and not should_stop():
        time.sleep(0.02)
    if "dark" in name:
        notice("the photo is dark")
    task.out.mkdir(parents=True, exist_ok=True)
    (task.out / "result").write_text(f"{os.getpid()} {os.environ['OMP_NUM_THREADS']}")
    return 25.0 + len(name), "look here" if "odd" in name else ""
