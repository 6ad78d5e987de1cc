"""Many photos, each reconstructed into a folder of its own by a few worker processes.

A folder that is done is skipped, an interrupted one goes on where it stopped, and a photo that fails (even one that
takes its process with it) fails alone. Results are rows of a table, in the photos' order.
"""

from __future__ import annotations

import csv
import io
import json
import math
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Literal

from headlift.config import ReconstructConfig
from headlift.errors import ConfigError, HeadliftError
from headlift.workers import asked_to_stop, begin_worker

Status = Literal["done", "skipped", "failed", "stopped"]
POLL = 0.2
"""Seconds between two looks at whether to stop."""


@dataclass(frozen=True)
class Row:
    """What became of one photo."""

    photo: str
    """Name of the file."""
    folder: str
    """Where its results are."""
    status: Status
    """done, skipped (it was done before), failed, or stopped (it can be resumed)."""
    message: str = ""
    """Why it failed or was stopped; what to look at closely when it is done."""
    seconds: float = 0.0
    """Wall-clock time."""
    psnr: float | None = None
    """Of the input view over the mask, dB."""
    memory_gib: float | None = None
    """Largest resident memory of its worker so far, GiB."""
    notices: tuple[str, ...] = ()
    """Warnings on the way."""
    trace: str = ""
    """Where a failure that is no fault of the photo's came from."""


@dataclass(frozen=True)
class Task:
    """One photo and where its results go."""

    photo: Path
    out: Path
    config: ReconstructConfig
    overwrite: bool


Work = Callable[[Task, Callable[[], bool], Callable[[str], None]], tuple[float | None, str] | None]
"""Reconstruct one photo: (task, should_stop, notice) -> (PSNR, what to look at closely), or None if it was done."""


def run_batch(
    folder: Path,
    out: Path,
    config: ReconstructConfig,
    workers: int = 1,
    overwrite: bool = False,
    on_row: Callable[[Row], None] = lambda row: None,
    should_stop: Callable[[], bool] = lambda: False,
    work: Work | None = None,
) -> tuple[Row, ...]:
    """Reconstruct every photo of a folder into `out`, one folder inside it for each photo.

    Args:
        workers: processes at a time; each takes its share of the cores.
        on_row: is told of each photo as it ends, in the order of ending.
        should_stop: once true, running photos keep what they have and no others are begun.
        work: what is done with a photo, if not `reconstruct_photo`; a function that a fresh process can import.

    Raises:
        PhotoError: the folder holds no photos.
        ConfigError: `workers` is not positive.
    """
    from headlift.poses import photos_in

    if workers < 1:
        raise ConfigError(f"--workers must be at least 1, not {workers}.")
    tasks = [Task(photo, target, config, overwrite) for photo, target in targets(photos_in(folder), out)]
    workers = min(workers, len(tasks))
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    others = set(multiprocessing.active_children())
    crew = [_Worker(context, threads, stop) for _ in range(workers)]
    rows: dict[Path, Row] = {}
    waiting = list(reversed(tasks))
    running: dict[Future[Row], tuple[_Worker, Task]] = {}
    try:
        idle = list(crew)
        while waiting or running:
            if should_stop():
                stop.set()
                waiting.clear()
            while waiting and idle:
                worker, task = idle.pop(), waiting.pop()
                running[worker.submit(work or reconstruct_photo, task)] = worker, task
            for future in wait(running, POLL, FIRST_COMPLETED).done:
                worker, task = running.pop(future)
                row = worker.result(future, task)
                idle.append(worker)
                rows[task.photo] = row
                on_row(row)
    except KeyboardInterrupt:  # the second ctrl-C: not even what is under way is waited for
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        raise
    except BaseException:
        stop.set()
        raise
    finally:
        for worker in crew:
            worker.close()
    return tuple(rows.get(task.photo, Row(task.photo.name, str(task.out), "stopped", "not begun")) for task in tasks)


def targets(photos: Sequence[Path], out: Path) -> list[tuple[Path, Path]]:
    """A folder for each photo: its name without the suffix, or with it where two would share one."""
    stems = [photo.stem for photo in photos]
    return [(p, out / (p.stem if stems.count(p.stem) == 1 else p.name)) for p in photos]


def reconstruct_photo(
    task: Task, should_stop: Callable[[], bool], notice: Callable[[str], None]
) -> tuple[float | None, str] | None:
    """What a worker does with a photo. Raises HeadliftError: whatever is wrong with it, or with the settings."""
    from headlift.run_folder import reconstruct_into

    result = reconstruct_into(task.photo, task.config, task.out, task.overwrite, should_stop=should_stop, notice=notice)
    if result is None:
        return None
    return float(result.check.psnr), "; ".join(result.check.complaints)


def table(rows: Iterable[Row]) -> list[list[str]]:
    """The rows as text for people: photo, status, seconds, PSNR, message; the first line is the head."""
    lines = [["photo", "status", "seconds", "PSNR", "message"]]
    for row in rows:
        psnr = "" if row.psnr is None else f"{row.psnr:.1f}"
        message = row.message or "; ".join(row.notices)
        lines.append([row.photo, row.status, f"{row.seconds:.0f}" if row.seconds else "", psnr, message])
    return lines


def to_csv(rows: Sequence[Row]) -> str:
    """All that is known of each photo, as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(
        text, [name for name in asdict(Row("", "", "done")) if name != "trace"], extrasaction="ignore"
    )
    writer.writeheader()
    for row in rows:
        writer.writerow({**asdict(row), "notices": "; ".join(row.notices)})
    return text.getvalue()


def to_json(rows: Sequence[Row]) -> str:
    """All that is known of each photo, as JSON."""
    return json.dumps([asdict(row) for row in rows], indent=1)


class _Worker:
    """One process that works on one photo at a time; when it dies, a new one takes its place."""

    def __init__(self, context: multiprocessing.context.SpawnContext, threads: int, stop: Event) -> None:
        self.context, self.threads, self.stop = context, threads, stop
        self.pool: ProcessPoolExecutor | None = None
        self.begun = 0.0

    def submit(self, work: Work, task: Task) -> Future[Row]:
        if self.pool is None:
            self.pool = ProcessPoolExecutor(
                1, self.context, initializer=begin_worker, initargs=(self.threads, self.stop)
            )
        self.begun = time.monotonic()
        return self.pool.submit(_run, work, task)

    def result(self, future: Future[Row], task: Task) -> Row:
        try:
            return future.result()
        except BrokenProcessPool:
            self.close()
            message = "its process died, probably for lack of memory; try fewer workers"
        except Exception as error:  # e.g. a result that cannot be sent back
            message = f"{type(error).__name__}: {error}"
        return Row(task.photo.name, str(task.out), "failed", message, time.monotonic() - self.begun)

    def close(self) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)
            self.pool = None


# Inside a worker


def _run(work: Work, task: Task) -> Row:
    """One photo, whatever happens to it, as a row."""
    from headlift.evaluate.cost import peak_memory

    notices: list[str] = []
    begun = time.monotonic()

    def row(status: Status, message: str = "", psnr: float | None = None, trace: str = "") -> Row:
        seconds = time.monotonic() - begun
        name, out = task.photo.name, str(task.out)
        memory = None if math.isnan(used := peak_memory()) else used
        return Row(name, out, status, message, seconds, psnr, memory, tuple(notices), trace)

    try:
        result = work(task, asked_to_stop, notices.append)
    except HeadliftError as error:
        return row("failed", str(error))
    except Exception as error:
        return row(
            "failed", f"an error of headlift's own: {type(error).__name__}: {error}", trace=traceback.format_exc()
        )
    if result is None:
        return row("skipped", "it was done before")
    psnr, complaints = result
    if asked_to_stop():
        return row("stopped", "the same command goes on from here", psnr)
    return row("done", complaints, psnr)
