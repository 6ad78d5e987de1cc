"""A run on the disk: what a photo and its settings gave, resumable, never half-written.

A folder holds `head.safetensors`, `mesh.*` (with `mesh-texture.png`), `turntable.mp4`, `views.png`, `crop.png`,
`pose.png`, `camera.json`, `report.html`, `config.toml` and `log.jsonl`. While a run is under way it
also holds `resume.safetensors`.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from headlift import __version__
from headlift.config import ReconstructConfig, from_table, to_table
from headlift.errors import ConfigError, OutputError
from headlift.export.files import output_error, write_text
from headlift.export.formats import SUFFIXES as MESH_SUFFIXES
from headlift.export.head_mesh import check_mesh
from headlift.export.paths import check_video
from headlift.head import load_state, save_state
from headlift.invert.invert import check as check_inversion
from headlift.invert.result import InversionState
from headlift.outputs import check_formats, results, write_crop, write_results
from headlift.photo import read_photo
from headlift.pipeline import Reconstruction, reconstruct
from headlift.values import Crop, Step
from headlift.weights import file_sha256, find_generator

CONFIG = "config.toml"
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
    """The folder of one run, and what identifies that run: the bytes of photo and weights, and the settings."""

    path: Path
    photo: Path
    photo_sha256: str
    weights_sha256: str
    config: ReconstructConfig

    @classmethod
    def of(cls, path: Path, photo: Path, config: ReconstructConfig, more: Sequence[Path] = ()) -> RunFolder:
        """The folder for photos that have already been found readable. Raises WeightsError without the weights."""
        digest = hashlib.sha256()
        for one in (photo, *more):
            digest.update(one.read_bytes())
        return cls(path, photo, digest.hexdigest(), file_sha256(find_generator(config.weights)), config)

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
        try:
            before = from_table(known)  # fields that an older version did not write have their defaults
        except ConfigError:
            return Status.OTHER
        if run.get("photo_sha256") != self.photo_sha256 or run.get("weights_sha256") != self.weights_sha256:
            return Status.OTHER
        if run.get("finished"):
            return Status.DONE if before == self.config else Status.OTHER
        # What is made of the head once it is there does not matter to where the inversion stands.
        made = replace(before, mesh=self.config.mesh, mesh_formats=self.config.mesh_formats, video=self.config.video)
        return Status.INTERRUPTED if made == self.config else Status.OTHER

    def check(self, overwrite: bool) -> Status:
        """How the run would start: NEW, INTERRUPTED (resume) or DONE (nothing to do). Writes nothing.

        Raises:
            OutputError: the folder holds something else and `overwrite` was not asked for.
        """
        status = self.status()
        if status is Status.OTHER and not overwrite:
            raise OutputError(
                f"{self.path} already holds results of another photo, other weights or other settings. "
                "Give another --out, or --overwrite to replace them."
            )
        return Status.NEW if overwrite else status

    def begin(self, status: Status) -> None:
        """Make the folder ready for a run that starts as `check` said.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if status is Status.NEW:
                # Nothing of another run stays that could be taken for this one's.
                another = results() if (self.path / CONFIG).exists() else []
                for name in (STATE, LOG, *another):
                    (self.path / name).unlink(missing_ok=True)
        except OSError as error:
            raise output_error(self.path, error) from error
        self.write_config(finished=False)

    def write_config(self, finished: bool) -> None:
        """Write the settings with what identifies the run."""
        import tomli_w

        table = to_table(self.config)
        table["run"] = {
            "photo": self.photo.name,
            "photo_sha256": self.photo_sha256,
            "weights_sha256": self.weights_sha256,
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


def reconstruct_into(
    photo: Path,
    config: ReconstructConfig,
    out: Path,
    overwrite: bool = False,
    on_step: Callable[[Step], None] = lambda step: None,
    should_stop: Callable[[], bool] = lambda: False,
    notice: Callable[[str], None] = lambda text: None,
    more: Sequence[Path] = (),
) -> Reconstruction | None:
    """Reconstruct a photo into a folder: resume an interrupted run, or None when it is done already.

    With a method for several photos, `more` are the others of the same person.

    Nothing is written before the photo has been found usable. When `should_stop` ends the optimisation, its result so
    far is written, and the same call later goes on from there.

    Raises:
        HeadliftError: whatever is wrong with the photo, the settings or the folder.
    """
    check_formats(config.mesh_formats, MESH_SUFFIXES, "mesh")
    check_mesh(config.mesh, [f".{suffix}" for suffix in config.mesh_formats])
    check_video(config.video)
    check_inversion(config.inversion, 1 + len(more))
    pixels, others = read_photo(photo), [read_photo(one) for one in more]
    run = RunFolder.of(out, photo, config, more)
    status = run.check(overwrite)
    if status is Status.DONE:
        return None
    resume = None
    if status is Status.INTERRUPTED and (out / STATE).exists():
        resume = load_state(out / STATE)
        notice(f"going on from step {resume.step} of stage {resume.stage!r}")
    log = run.log()

    def begin(crops: Sequence[Crop]) -> None:
        run.begin(status)
        for number, crop in enumerate(crops, 1):
            of = f"photo {number}: " if number > 1 else ""
            for finding in crop.verdict.findings:
                if not finding.ok:
                    notice(f"warning: {of}{finding.message}")
                elif finding.name == "faces" and finding.value > 1:
                    notice(of + finding.message)
        write_crop(out, pixels, crops[0])

    def step(event: Step) -> None:
        log({"stage": event.stage, "step": event.index, "of": event.total, **event.losses})
        on_step(event)

    def keep(state: InversionState) -> None:
        save_state(out / STATE, state)

    result = reconstruct(pixels, config, step, should_stop, begin, resume, keep, others)
    write_results(out, photo.name, config, result, on_step)
    if not should_stop():
        run.finish()
    return result
