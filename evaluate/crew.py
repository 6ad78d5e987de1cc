"""Many tasks, one after the other or in several processes, each of which works with one thread."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import torch

from headlift.errors import ConfigError
from headlift.values import Step
from headlift.workers import asked_to_stop, begin_worker

Task = TypeVar("Task")
Result = TypeVar("Result")
Work = Callable[[Task, Callable[[Step], None], Callable[[], bool]], Result]
"""(task, on_step, should_stop) -> result; raises Stopped when it was asked to stop."""
POLL = 0.2
"""Seconds between two looks at whether to stop."""


class Stopped(Exception):
    """Work that was asked to stop; nothing of it is kept."""


def run_tasks(
    work: Work[Task, Result],
    tasks: Sequence[Task],
    workers: int,
    on_step: Callable[[Step], None] = lambda step: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Result]:
    """Do the tasks, handing out results as they come; in this process if there is one worker.

    Every task is computed with one thread, so that results are the same whatever the number of workers.

    Args:
        work: with several workers a function that a fresh process can import; `on_step` is then not called.
        should_stop: once true, running tasks are asked to stop and no others are begun.

    Raises:
        Stopped: it was asked to stop before everything was done.
        ConfigError: a process died.
        Exception: whatever `work` raises; the other tasks are then stopped.
    """
    if workers == 1:
        yield from _run_here(work, tasks, on_step, should_stop)
    else:
        yield from _run_apart(work, tasks, min(workers, max(1, len(tasks))), should_stop)


def _run_here(
    work: Work[Task, Result],
    tasks: Sequence[Task],
    on_step: Callable[[Step], None],
    should_stop: Callable[[], bool],
) -> Iterator[Result]:
    threads = torch.get_num_threads()
    for task in tasks:
        if should_stop():
            raise Stopped
        torch.set_num_threads(1)
        try:
            result = work(task, on_step, should_stop)
        finally:
            torch.set_num_threads(threads)
        yield result


def _run_apart(
    work: Work[Task, Result], tasks: Sequence[Task], workers: int, should_stop: Callable[[], bool]
) -> Iterator[Result]:
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    waiting = list(reversed(tasks))
    running: set[Future[Result]] = set()
    with ProcessPoolExecutor(workers, context, initializer=begin_worker, initargs=(1, stop)) as pool:

        def begin() -> None:
            while waiting and len(running) < workers and not should_stop():
                running.add(pool.submit(_work, work, waiting.pop()))

        try:
            begin()
            while waiting or running:
                if should_stop():
                    raise Stopped
                done = wait(running, POLL, FIRST_COMPLETED).done
                running -= done
                begin()  # first, so that no worker waits for what is made of the results
                for future in done:
                    yield future.result()
        except BrokenProcessPool:
            raise ConfigError(
                "a worker process died, probably for lack of memory. What is done is kept; the same command with fewer "
                "--workers goes on."
            ) from None
        finally:
            stop.set()


# Inside a worker


def _work(work: Work[Task, Result], task: Task) -> Result:
    return work(task, lambda step: None, asked_to_stop)
