"""Visitors' private folders: who may see which file, what an upload has to pass, and when everything is deleted.

A visitor is known by a random token in a cookie that no script can read; a folder's name is a hash of it, so neither a
listing of the disk nor another visitor's answers lead to it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

from headlift.errors import HeadliftError, PhotoError

TOKEN_BYTES = 32
"""Random bytes of a visitor's token."""
MOST_VISITORS = 10_000
"""Tokens that are remembered from one sweep to the next; those without a folder go first, unseen for longest first."""
UNCLAIMED_SECONDS = 600.0
"""An upload that nothing was asked for is deleted after so long."""
PREVIEW_SECONDS = 30.0
"""An upload stays so long after it was taken or refused: the page shows it until it is told, and two visitors, or one
who sends a photo twice, may have the same upload, which is named after what is in it."""


class VisitError(HeadliftError):
    """The visitor is not known here (any more), or the file is not theirs."""


class Visitors:
    """Tokens and folders of all visitors, under one root. Safe to use from several threads."""

    def __init__(self, root: Path, keep_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.root = root
        self._keep = keep_seconds
        self._clock = clock
        self._seen: dict[str, float] = {}
        self._owners: set[str] = set()
        """Those who have a folder."""
        self._lock = threading.Lock()

    def enter(self, token: str | None) -> str:
        """The token of someone who opens the page: their own if it is known here, else a new one."""
        with self._lock:
            if token not in self._seen or token is None:
                token = secrets.token_urlsafe(TOKEN_BYTES)
            self._seen[token] = self._clock()
            return token

    def known(self, token: str | None) -> str:
        """The token, marked as seen now. Raises VisitError when it is none of ours."""
        with self._lock:
            if token is None or token not in self._seen:
                raise VisitError("This page is too old: its files have been deleted. Reload it and start again.")
            self._seen[token] = self._clock()
            return token

    def folder(self, token: str) -> Path:
        """The visitor's own folder, made when it is first needed. Raises VisitError as `known` does."""
        path = self._path(self.known(token))
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._owners.add(token)
        return path

    def sweep(self, busy: Collection[str] = ()) -> list[str]:
        """Forget those who have not been seen for long, and more where there are too many, save the busy ones; returns
        their tokens."""
        now = self._clock()
        with self._lock:
            idle = sorted(self._seen.keys() - busy, key=lambda t: (t in self._owners, self._seen[t]))
            many = len(self._seen) - MOST_VISITORS
            gone = [t for i, t in enumerate(idle) if i < many or now - self._seen[t] > self._keep]
            for token in gone:
                del self._seen[token]
                self._owners.discard(token)
        for token in gone:
            shutil.rmtree(self._path(token), ignore_errors=True)
        return gone

    def close(self) -> None:
        """Delete everything."""
        shutil.rmtree(self.root, ignore_errors=True)

    def _path(self, token: str) -> Path:
        return self.root / "visitors" / hashlib.sha256(token.encode()).hexdigest()[:40]


def claim_upload(path: str, uploads: Path, folder: Path, most_bytes: int, error: type[HeadliftError]) -> Path:
    """Copy a file that a browser sent from where uploads arrive into a visitor's folder, under a name of ours.

    The upload itself, taken or refused, goes with the first sweep after `PREVIEW_SECONDS`.

    Raises:
        PhotoError: the path leads elsewhere.
        error: the file is empty or larger than `most_bytes`.
    """
    found = upload_at(path, uploads)
    if found is None:
        raise PhotoError("That upload is not here (any more). Choose the file again.")
    size = found.stat().st_size
    try:
        if size > most_bytes:
            raise error(
                f"The file has {size / 1e6:.0f} MB, and at most {most_bytes / 1e6:.0f} are taken. Make it smaller and "
                "try again; of a photo, the face needs about 1000 pixels."
            )
        if size == 0:
            raise error("The file is empty. Save or download it again.")
        suffix = re.sub(r"[^a-z0-9.]", "", found.suffix.lower())[:12]
        claimed = folder / f"upload-{secrets.token_hex(8)}{suffix}"
        shutil.copyfile(found, claimed)
        claimed.chmod(0o600)
        return claimed
    finally:
        taken = time.time() - UNCLAIMED_SECONDS + PREVIEW_SECONDS
        with contextlib.suppress(FileNotFoundError):
            os.utime(found, (taken, taken))


def upload_at(path: str, uploads: Path) -> Path | None:
    """The upload at a path that a browser told; None when there is none, or when the path leads elsewhere."""
    try:
        found = Path(path).resolve()
        return found if found.is_relative_to(uploads.resolve()) and found.is_file() else None
    except (OSError, ValueError):  # no file can have such a name
        return None


def sweep_uploads(uploads: Path, older_than: float = UNCLAIMED_SECONDS) -> None:
    """Remove uploads that are so many seconds old, and the folders that were made for them."""
    for path in files_below(uploads):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > older_than:
                path.unlink()
                if path.parent != uploads:
                    with contextlib.suppress(OSError):  # another upload lies in it, or has just arrived
                        path.parent.rmdir()


def files_below(folder: Path) -> list[Path]:
    """All files in a folder and the folders in it; folders that are removed meanwhile are left out."""
    return [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]


def bytes_below(folder: Path) -> int:
    """The size of all files in a folder and the folders in it; files that are removed meanwhile are left out."""
    size = 0
    for path in files_below(folder):
        with contextlib.suppress(FileNotFoundError):
            size += path.stat().st_size
    return size


def plain_name(name: str, otherwise: str = "head") -> str:
    """A file's stem as it may be shown and used for downloads: letters, digits, spaces, dots, dashes; 40 at most."""
    last = re.split(r"[/\\]", name)[-1]
    stem = last.rpartition(".")[0] or last
    kept = re.sub(r"[^\w .-]", "", stem, flags=re.UNICODE).strip(" .-_")
    return kept[:40].strip(" .-_") or otherwise
