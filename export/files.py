"""Writing files so that a reader never sees half of one: a temporary name in the same folder, then a rename."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from headlift.errors import OutputError


def _usual_permissions() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


_PERMISSIONS = _usual_permissions()
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_MISPLACED = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ENOTEMPTY}


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Hand out a temporary path beside `path`; rename it to `path` when the block ends well, else remove it.

    The temporary name keeps the suffix, so that writers that choose the format by it work. Missing folders are
    made. A file that is already there is replaced at once, by the rename.

    Raises OutputError, with the remedy, when the place cannot be written or is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem[:100]}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.chmod(_PERMISSIONS)  # some writers make private files
        temporary.replace(path)
    except OSError as error:
        told = output_error(path, error)
        if told is error:
            raise
        raise told from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def output_error(path: Path | str, error: OSError) -> Exception:
    """The OutputError that tells a user what an operating-system error means for `path`; other errors as they are."""
    where = Path(path)
    if error.errno in _FULL:
        return OutputError(
            f"{where} could not be written: the disk is full (or the quota used up). Free some space, or choose "
            "another place with --out."
        )
    if error.errno in _FORBIDDEN:
        return OutputError(
            f"{where} could not be written: {error.strerror or 'no permission'}. Choose a folder that you may write to "
            "with --out, or change its permissions."
        )
    if error.errno in _MISPLACED:
        return OutputError(
            f"{where} could not be written: {error.strerror}. A file stands where a folder is needed, or a folder "
            "where the file should go; choose another place with --out."
        )
    return error


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write a whole file at once. Raises OutputError when the place cannot be written."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path | str, text: str) -> None:
    """Write a whole text file at once, UTF-8. Raises OutputError when the place cannot be written.

    File names that are not text themselves have question marks in it.
    """
    write_bytes(path, text.encode("utf-8", "replace"))


def refuse_existing(paths: Iterable[Path], overwrite: bool) -> None:
    """Leave other files alone. Raises OutputError when one of the paths is taken and `overwrite` was not asked for."""
    taken = [] if overwrite else [path for path in paths if path.exists()]
    if taken:
        more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
        raise OutputError(f"{taken[0]}{more} is already there. Give another --out, or --overwrite to replace it.")
