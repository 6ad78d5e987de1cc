"""One job at a time, the others in a queue. A job is stopped with what it has, or called off and forgotten."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import UInt8

from headlift.errors import HeadliftError
from headlift.values import Step

T = TypeVar("T")
_LOG = logging.getLogger(__name__)


class QueueError(HeadliftError):
    """The queue takes no more, now."""


class CalledOffError(Exception):
    """Raised inside a job whose visitor has gone; no error to be shown."""


class State(Enum):
    """Where a job stands."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CALLED_OFF = "called off"

    @property
    def over(self) -> bool:
        return self in (State.DONE, State.FAILED, State.CALLED_OFF)


class Job(Generic[T]):
    """A piece of work with its progress; the worker writes, everybody reads."""

    def __init__(self, title: str, owner: str, visitor: str, work: Callable[[Job[T]], T], head: str = "") -> None:
        self.id = secrets.token_hex(8)
        self.title = title
        self.owner = owner
        """The tab that asked for it."""
        self.visitor = visitor
        """Whose files it works on; nobody's for a measurement, which gives way to all others."""
        self.head = head
        """The head that it works on, if there is one already."""
        self.state = State.WAITING
        self.steps: list[Step] = []
        """All steps so far, without pictures."""
        self.started: float | None = None
        """When it began, in seconds of `time.monotonic`."""
        self.stamps: list[float] = []
        """When each step was reported."""
        self.picture: UInt8[np.ndarray, "h w 3"] | None = None
        """The last picture that came with a step."""
        self.result: T | None = None
        self.error: str = ""
        self.work = work
        self._stop = threading.Event()
        self._off = threading.Event()

    def stop(self) -> None:
        """End early and keep what there is."""
        self._stop.set()

    def call_off(self) -> None:
        """End as soon as possible and keep nothing."""
        self._off.set()
        self._stop.set()

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    def check(self) -> None:
        """Raises CalledOffError once the job has been called off."""
        if self._off.is_set():
            raise CalledOffError

    def on_step(self, step: Step) -> None:
        """For the work: report a step. Raises CalledOffError."""
        self.check()
        if step.image is not None:
            self.picture = step.image
        self.stamps.append(time.monotonic())
        self.steps.append(Step(step.stage, step.index, step.total, step.losses))

    def should_stop(self) -> bool:
        """For the work: asked before each step."""
        return self._stop.is_set()


class JobQueue:
    """A worker thread and the jobs that wait for it, first come first served, one for each tab."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._worker = threading.Thread(target=self._run, name="headlift-jobs", daemon=True)
        self._worker.start()

    def submit(self, job: Job[T]) -> Job[T]:
        """Put a job at the end. Raises QueueError when the tab has one already or too many wait."""
        with self._changed:
            if self._closed:
                raise QueueError("The app is being closed.")
            if self.of(job.owner) is not None:
                raise QueueError("You already have something in the works; let it end, or stop it first.")
            before = len(self._asked())
            if before > self._longest:
                raise QueueError(f"The queue is full: {before} before you. Try again in a few minutes.")
            self._waiting.append(job)
            self._changed.notify_all()
        return job

    def of(self, owner: str) -> Job | None:
        """The job of a tab that is not over, if there is one."""
        with self._changed:
            jobs = [self._running, *self._waiting]
            return next((j for j in jobs if j is not None and j.owner == owner and not j.state.over), None)

    def ahead(self, job: Job) -> int:
        """How many visitors' jobs come before this one; 0 once it runs."""
        with self._changed:
            asked = self._asked()
            return asked.index(job) if job in asked else 0

    def crowded(self) -> bool:
        """Is anybody waiting?"""
        with self._changed:
            return bool(self._waiting)

    def busy_visitors(self) -> set[str]:
        """Those whose files are in use or will be."""
        with self._changed:
            return {job.visitor for job in self._asked()}

    def busy_heads(self) -> set[str]:
        """Those that are being written to files, or will be."""
        with self._changed:
            return {job.head for job in self._asked()} - {""}

    def call_off(self, owner: str) -> None:
        """End all of a tab's jobs, because it was closed or its user wants no result."""
        with self._changed:
            for job in [j for j in self._waiting if j.owner == owner]:
                self._waiting.remove(job)
                job.state = State.CALLED_OFF
            if self._running is not None and self._running.owner == owner:
                self._running.call_off()
            self._changed.notify_all()

    def wait(self, job: Job, seconds: float) -> None:
        """Return when the job is over, or after so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: job.state.over, seconds)

    def close(self, seconds: float = 10.0) -> None:
        """Call everything off and let the worker end."""
        with self._changed:
            self._closed = True
            for job in self._waiting:
                job.state = State.CALLED_OFF
            self._waiting.clear()
            if self._running is not None:
                self._running.call_off()
            self._changed.notify_all()
        self._worker.join(seconds)

    def _asked(self) -> list[Job]:
        """The jobs of visitors, measurements left out: the running one, then those that wait."""
        return [job for job in (self._running, *self._waiting) if job is not None and job.visitor]

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                job = self._running = self._waiting.popleft()
                job.started, job.state = time.monotonic(), State.RUNNING
            state = self._do(job)
            with self._changed:
                self._running = None
                job.state = state
                self._changed.notify_all()

    @staticmethod
    def _do(job: Job) -> State:
        """Run a job to its end and say how it ended."""
        try:
            job.result = job.work(job)
            job.check()
        except CalledOffError:
            job.result = None
            return State.CALLED_OFF
        except HeadliftError as error:
            job.error = str(error)
            return State.FAILED
        except Exception:
            _LOG.exception("job %s failed", job.title)
            job.error = "Something went wrong here that should not have; the server's log has the details."
            return State.FAILED
        return State.DONE
