"""A run on the disk: what a photo and its settings gave, resumable, never half-written.

A folder holds `head.safetensors`, `mesh.*`, `turntable.mp4`, `views.png`, `crop.png`, `pose.png`, `camera.json`,
`report.html`, `config.toml` and `log.jsonl`. While a run is under way it also holds `resume.safetensors`.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from headlift import __version__
from headlift.config import ReconstructConfig, to_table
from headlift.errors import OutputError
from headlift.export.files import output_error, write_text

CONFIG = "config.toml"
HEAD = "head.safetensors"
STATE = "resume.safetensors"
LOG = "log.jsonl"


class Status(Enum):
    """What a folder holds for a photo and its settings."""

    NEW = "nothing yet"
    INTERRUPTED = "an interrupted run of this photo with these settings"
    DONE = "the finished run of this photo with these settings"
    OTHER = "something else"


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run, and what identifies that run: the photo's bytes and the settings."""

    path: Path
    photo: Path
    photo_sha256: str
    config: ReconstructConfig

    @classmethod
    def of(cls, path: Path, photo: Path, config: ReconstructConfig) -> RunFolder:
        """The folder for a photo that has already been found readable."""
        return cls(path, photo, hashlib.sha256(photo.read_bytes()).hexdigest(), config)

    def status(self) -> Status:
        """What is there now.

        Raises:
            OutputError: the path is a file or cannot be looked into.
        """
        if not self.path.exists():
            return Status.NEW
        if not self.path.is_dir():
            raise OutputError(f"{self.path} is a file; results need a folder. Give another --out.")
        try:
            if not any(self.path.iterdir()):
                return Status.NEW
            known = tomllib.loads((self.path / CONFIG).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return Status.OTHER
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
            return Status.OTHER
        run = known.pop("run", {})
        if run.get("photo_sha256") != self.photo_sha256 or known != to_table(self.config):
            return Status.OTHER
        return Status.DONE if run.get("finished") else Status.INTERRUPTED

    def begin(self, overwrite: bool) -> Status:
        """Make the folder ready and say how the run starts: NEW, INTERRUPTED (resume) or DONE (nothing to do).

        Raises:
            OutputError: it holds something else and `overwrite` was not asked for, or it cannot be written.
        """
        status = self.status()
        if status is Status.OTHER and not overwrite:
            raise OutputError(
                f"{self.path} already holds results of another photo or other settings. "
                "Give another --out, or --overwrite to replace them."
            )
        if status in (Status.OTHER, Status.DONE) and overwrite:
            status = Status.NEW
        if status is not Status.DONE:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise output_error(self.path, error) from error
            if status is Status.NEW:
                (self.path / STATE).unlink(missing_ok=True)
                (self.path / LOG).unlink(missing_ok=True)
            self.write_config(finished=False)
        return status

    def write_config(self, finished: bool) -> None:
        """Write the settings with what identifies the run."""
        import tomli_w

        table = to_table(self.config)
        table["run"] = {
            "photo": self.photo.name,
            "photo_sha256": self.photo_sha256,
            "headlift": __version__,
            "finished": finished,
        }
        write_text(self.path / CONFIG, tomli_w.dumps(table))

    def finish(self) -> None:
        """Mark the run as done and drop what only a resumption needs."""
        (self.path / STATE).unlink(missing_ok=True)
        self.write_config(finished=True)

    def log(self) -> Callable[[dict[str, object]], None]:
        """A function that appends one record to `log.jsonl`."""
        target = self.path / LOG

        def append(record: dict[str, object]) -> None:
            try:
                with target.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(record) + "\n")
            except OSError as error:
                raise output_error(target, error) from error

        return append
