"""What holds for every test: one thread (`make test` runs several files at a time), no random examples, and, in CI,
no skips."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import settings

settings.register_profile("headlift", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("headlift")
torch.set_num_threads(1)  # small networks only wait for each other on more


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A skip hides a missing install step: with HEADLIFT_NO_SKIPS set it fails the run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if skipped and os.environ.get("HEADLIFT_NO_SKIPS") and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
