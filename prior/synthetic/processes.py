"""Work in this process or in several, each with tools of its own."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol, TypeVar

from headlift.errors import ConfigError, DeviceError, HeadliftError


class Closable(Protocol):
    """Tools that can be given back."""

    def close(self) -> None:
        """Give them back."""


Task = TypeVar("Task")
Result = TypeVar("Result")
Tools = TypeVar("Tools", bound=Closable)


def spread(
    make: Callable[[], Tools], work: Callable[[Tools, Task], Result], tasks: Sequence[Task], procs: int
) -> Generator[tuple[Task, Result], None, None]:
    """Each task with what `work` makes of it, as they are done; each process has the tools that `make` gives it.

    With one process everything happens in this one, and the tools are given back when the generator is closed. Raises
    ConfigError for less than one, DeviceError when a process dies, and what `make` and `work` raise.
    """
    if procs < 1:
        raise ConfigError(f"--procs must be at least 1: seen {procs}.")
    if not tasks:
        return
    os.environ.setdefault("LP_NUM_THREADS", "1")  # Mesa's software renderer: processes, not threads
    if procs == 1:
        tools = make()
        try:
            for task in tasks:
                yield task, work(tools, task)
        finally:
            tools.close()
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(procs, context, _set_up, (make,)) as pool:
        waiting = iter(tasks)
        running: dict[Future[Result], Task] = {}
        try:
            while True:
                for task in waiting:
                    running[pool.submit(_work, work, task)] = task
                    if len(running) >= 2 * procs:
                        break
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        except BrokenProcessPool:
            raise DeviceError(
                "A process that draws has died; for lack of memory, or by a fault of the graphics library. What is "
                "done is kept: give the same command again, with fewer --procs if it happens again."
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


_mine: list[Any] = []
"""The tools of this process, or the error that kept it from having them."""


def _set_up(make: Callable[[], Any]) -> None:
    """What a pool's initializer raises never reaches the process that waits: it is kept for the first task."""
    try:
        _mine[:] = [make()]
    except HeadliftError as error:
        _mine[:] = [error]


def _work(work: Callable[[Any, Any], Any], task: Any) -> Any:
    if isinstance(_mine[0], HeadliftError):
        raise _mine[0]
    return work(_mine[0], task)
