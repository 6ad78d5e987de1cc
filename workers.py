"""What a worker process starts with: its share of the cores, and an end when its parent ends, however that was."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.synchronize import Event

_stop: Event | threading.Event = threading.Event()


def begin_worker(threads: int, stop: Event) -> None:
    """Set a fresh process up: `threads` threads; ctrl-C is for the parent, which passes it on by `stop`."""
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(threads)


def asked_to_stop() -> bool:
    """Whether the parent wants this process to stop what it is doing."""
    return _stop.is_set()


def _end_with_parent() -> None:
    """A parent that is killed can tell nobody; without this its workers would go on for minutes."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
