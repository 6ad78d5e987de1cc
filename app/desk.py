"""What a visitor can ask for, without a word about the page: look at a photo, lift a head, edit it, take it along."""

from __future__ import annotations

import io
import secrets
import shutil
import threading
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import UInt8

from headlift.app.files import VisitError, Visitors, claim_upload, plain_name, sweep_uploads
from headlift.app.jobs import CalledOffError, Job, JobQueue
from headlift.app.timing import Pace, Paces, measure
from headlift.app.views import Amounts, HeadView, Shelf
from headlift.config import (
    AppConfig,
    ExportConfig,
    MeshConfig,
    Method,
    PoseConfig,
    Preset,
    ReconstructConfig,
    VideoConfig,
    preset,
)
from headlift.device import find_device
from headlift.editing.directions import Directions, load_directions
from headlift.errors import CheckpointError, HeadFileError, HeadliftError, PhotoError, WeightsError
from headlift.export.files import write_bytes
from headlift.export.formats import write_mesh
from headlift.export.images import jpeg_bytes, pose_overlay, shrink, to_uint8, write_png
from headlift.export.placement import Placement
from headlift.generate import codes_of_seeds
from headlift.head import Head, head_of, write_head
from headlift.outputs import HEAD, export_head, provenance
from headlift.photo import enable_heic, read_photo
from headlift.pipeline import Reconstruction, frame_of, reconstruct
from headlift.pose_estimation.detect import find_boxes
from headlift.pose_estimation.estimate import estimate
from headlift.poses import pose_line
from headlift.values import Finding, Similarity, Step
from headlift.weights import load_generator

Pixels = UInt8[np.ndarray, "h w 3"]
Presets = Callable[[Preset, Method], ReconstructConfig]
Format = Literal["glb", "obj", "ply", "stl", "mp4", "head"]
FORMATS: tuple[Format, ...] = get_args(Format)
MOST_FACES = 8
"""Faces of a photo that are offered."""
OVERLAY_SIDE = 760
"""Longest side of the picture with landmarks and pose, pixels."""
MOST_KEPT = 12
"""Heads of one visitor that are kept; `Desk.room` tells which one makes room."""
PLAIN_MESH, THUMBNAIL = "view.glb", "small.jpg"
"""In each head's folder, besides the head and what has been exported."""
VIDEO = VideoConfig(frames=90)
"""A whole turn in three seconds."""


@dataclass(frozen=True)
class Looked:
    """A photo in which a face was found."""

    path: Path
    name: str
    """Shown to the visitor, and what the head is called."""
    face: int
    """The face taken, counted from 1, largest first."""
    faces: int
    """How many there are to choose from."""
    overlay: bytes
    """A JPEG with landmarks, crop frame and the head's axes; faces are numbered where there are several."""
    line: str
    """Angles and residual in words."""
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return all(finding.ok for finding in self.findings)


@dataclass(frozen=True)
class Kept:
    """A head in a visitor's folder."""

    id: str
    folder: Path
    name: str
    about: str
    """How it came about, in a sentence."""
    doubts: tuple[str, ...] = ()
    """What to look at closely."""
    of: tuple[str, Amounts] | None = None
    """The head that it was edited from, and how."""
    lifted: bool = False
    """From a photo, in minutes; others can be had again in a moment."""

    @property
    def file(self) -> Path:
        return self.folder / HEAD


class Desk:
    """Everything behind the page: visitors, the queue of jobs, the generator and the heads made from it."""

    def __init__(self, config: AppConfig, root: Path, presets: Presets = preset) -> None:
        self.config = config
        self.uploads = root / "uploads"
        self.uploads.mkdir(mode=0o700, parents=True)
        self.visitors = Visitors(root, 60 * config.keep_minutes)
        self.queue = JobQueue(config.queue)
        self.paces = Paces()
        self.device = find_device(config.device)
        self._base = load_generator(config.weights, self.device)
        self.directions = directions_for(self._base[1])
        self.shelf = Shelf(lambda name, device: self._base, config.weights, self.device, self.directions)
        self._presets = presets
        self._heads: dict[str, list[Kept]] = {}
        self._looked_at: dict[str, str] = {}
        """The head that each visitor looked at last."""
        self._photos: dict[tuple[str, str], Looked] = {}
        self._detecting = threading.Lock()
        self._changing = threading.Lock()

    def settings(self, name: Preset, method: Method) -> ReconstructConfig:
        """The settings that stand behind a preset and a method, for the app's generator; textures are baked later."""
        config = self._presets(name, method)
        mesh = replace(config.mesh, texture=False)
        return replace(config, mesh=mesh, weights=self.config.weights, device=self.config.device)

    # Photos

    def take_photo(self, visitor: str, tab: str, upload: str, name: str) -> Looked:
        """An uploaded photo, looked at; each tab has its own. Raises PhotoError, FaceError, VisitError."""
        folder = self.visitors.folder(visitor)
        path = claim_upload(upload, self.uploads, folder, round(self.config.max_mb * 1e6), PhotoError)
        try:
            return self._looked(visitor, tab, path, plain_name(name, "photo"))
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def take_example(self, visitor: str, tab: str) -> Looked:
        """The example photo: scikit-image's public-domain astronaut."""
        path = self.visitors.folder(visitor) / f"upload-{secrets.token_hex(8)}.png"
        write_png(path, example_pixels())
        return self._looked(visitor, tab, path, "astronaut")

    def choose_face(self, visitor: str, tab: str, face: int) -> Looked:
        """Another face of the photo. Raises FaceError, VisitError."""
        now = self.photo(visitor, tab)
        return self._looked(visitor, tab, now.path, now.name, face)

    def photo(self, visitor: str, tab: str) -> Looked:
        """The photo that the visitor works on in this tab. Raises VisitError when there is none."""
        self.visitors.known(visitor)
        with self._changing:
            if (visitor, tab) not in self._photos:
                raise VisitError("There is no photo yet. Choose one first.")
            return self._photos[visitor, tab]

    def _looked(self, visitor: str, tab: str, path: Path, name: str, face: int | None = None) -> Looked:
        pixels = self._pixels(path, name)
        pose = PoseConfig(face=face, force=True, frame=frame_of(self.settings("fast", "best")))
        with self._detecting:
            crop = estimate(pixels, pose)
            count = next((round(f.value) for f in crop.verdict.findings if f.name == "faces"), 1)
            boxes = [found.box for found in find_boxes(pixels)[:MOST_FACES]] if count > 1 else []
        # The largest face is not always the one that was taken: its features may not be made out.
        chosen = face or next((i for i, box in enumerate(boxes, 1) if box == crop.face.box), 1)
        picture = pose_overlay(pixels, crop)
        overlay = jpeg_bytes(shrink(numbered(picture, boxes, chosen), OVERLAY_SIDE), 85)
        findings = tuple(f for f in crop.verdict.findings if f.name != "faces" or count < 2)
        found = Looked(path, name, chosen, max(1, len(boxes)), overlay, pose_line(crop), findings)
        with self._changing:
            before = self._photos.get((visitor, tab))
            self._photos[visitor, tab] = found
        if before is not None and before.path != path and self.queue.busy_visitors().isdisjoint({visitor}):
            before.path.unlink(missing_ok=True)
        return found

    def _pixels(self, path: Path, name: str) -> Pixels:
        """The photo's pixels. Raises PhotoError, which calls it by the visitor's name for it."""
        from PIL import Image

        enable_heic()
        try:
            with Image.open(path) as opened:
                width, height = opened.size
        except Exception:
            width = height = 0  # `read_photo` says what is wrong
        if width * height > 1e6 * self.config.max_megapixels:
            raise PhotoError(
                f"The photo has {width} x {height} pixels, and at most {self.config.max_megapixels:g} million are "
                "taken. Scale it down and try again; the face needs about 1000 pixels."
            )
        try:
            return read_photo(path)
        except PhotoError as error:
            raise PhotoError(str(error).replace(str(path), name)) from None

    # Heads

    def lift(self, visitor: str, tab: str, name: Preset, method: Method) -> Job[Kept]:
        """Queue the reconstruction of the tab's photo. Raises QueueError, VisitError."""
        photo = self.photo(visitor, tab)
        self.room(visitor)  # rather now than after minutes
        config = self.settings(name, method)
        config = replace(config, pose=replace(config.pose, face=photo.face, force=True))

        def work(job: Job[Kept]) -> Kept:
            pixels = self._pixels(photo.path, photo.name)
            result = reconstruct(pixels, config, job.on_step, job.should_stop, lambda crops: job.check())
            return self._keep_result(visitor, photo.name, result, config, job.check)

        return self.queue.submit(Job(f"Lifting {photo.name}", tab, visitor, work))

    def _keep_result(
        self,
        visitor: str,
        name: str,
        result: Reconstruction,
        config: ReconstructConfig,
        check: Callable[[], None],
    ) -> Kept:
        def write(folder: Path) -> None:
            head = head_of(result.inversion, result.base_sha256, result.crop, config)
            write_head(folder / HEAD, head, result.base)
            camera = result.inversion.camera.to("cpu")
            placement = Placement.of(config.mesh, result.mesh.vertices)
            source = provenance(config.weights, result.base_sha256)
            write_mesh(result.mesh, folder / PLAIN_MESH, placement, {"photo": camera}, config.mesh.unlit, source)

        about = f"{result.inversion.reason}. PSNR {result.check.psnr:.1f} dB against the photo."
        about = about[:1].upper() + about[1:]
        doubts = tuple(result.check.complaints)
        return self._keep(visitor, name, about, write, doubts, lifted=True, check=check)

    def random_head(self, visitor: str, seed: int | None = None) -> Kept:
        """A head that the prior makes up; the same for the same seed."""
        seed = secrets.randbelow(10_000) if seed is None else seed
        generator, sha256 = self._base
        ws = codes_of_seeds(generator, [seed], 0.8)
        camera = generator.frontal_camera()
        with torch.no_grad():
            seen = generator.render(generator.planes(ws), ws, camera)
        image = to_uint8(seen.image)
        alpha = torch.nn.functional.interpolate(seen.alpha, size=image.shape[:2], mode="bilinear")[0, 0]
        mask = (alpha.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
        similarity = Similarity(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]) / image.shape[0])
        settings = self.settings("fast", "best")
        head = Head(generator, ws, camera, image, mask, similarity, settings, self.config.weights, sha256)
        return self._keep(
            visitor,
            f"random head {seed}",
            f"Made up by the prior from the number {seed}; nobody's face.",
            lambda folder: write_head(folder / HEAD, head, generator),
        )

    def open_file(self, visitor: str, upload: str, name: str) -> Kept:
        """An uploaded head file. Raises HeadFileError, VisitError."""
        folder = self.visitors.folder(visitor)
        path = claim_upload(upload, self.uploads, folder, round(self.config.max_head_mb * 1e6), HeadFileError)
        try:
            head = self.shelf.read(path)
            metrics = ", ".join(f"PSNR {v:.1f} dB" for k, v in head.metrics.items() if k == "psnr")
            about = f"Opened from a file{'; ' + metrics if metrics else ''}."
            return self._keep(visitor, plain_name(name), about, lambda place: shutil.move(path, place / HEAD))
        except HeadliftError as error:
            raise HeadFileError(str(error).replace(str(path), plain_name(name))) from None
        finally:
            path.unlink(missing_ok=True)

    def keep_edit(self, visitor: str, id: str, amounts: Amounts) -> Kept:
        """The head moved along directions, as a head of its own; the same one when it was kept before."""
        kept = self.head(visitor, id)
        before = next((other for other in self.heads(visitor) if other.of == (id, amounts)), None)
        if before is not None:
            return before
        words = ", ".join(f"{name.replace('_', ' ')} {value:+.1f}" for name, value in amounts)
        edited = self.view(visitor, id).edited(amounts)
        edited = replace(edited, edits=(*edited.edits, {"summary": words, "move": dict(amounts)}))
        return self._keep(
            visitor,
            f"{kept.name}, edited"[:48] if not kept.name.endswith(", edited") else kept.name,
            f"Edited: {words}.",
            lambda folder: write_head(folder / HEAD, edited, self._base[0]),
            of=(id, amounts),
        )

    def heads(self, visitor: str) -> Sequence[Kept]:
        """The visitor's heads, the latest first."""
        with self._changing:
            return tuple(reversed(self._heads.get(visitor, [])))

    def head(self, visitor: str, id: str) -> Kept:
        """One of the visitor's own heads. Raises VisitError for anybody else's."""
        self.visitors.known(visitor)
        found = next((kept for kept in self.heads(visitor) if kept.id == id), None)
        if found is None:
            raise VisitError("This head is not here (any more).")
        return found

    def shown_mesh(self, visitor: str, id: str) -> Path:
        """The GLB that the page shows: the one made for downloading, or the plain one. Raises VisitError."""
        folder = self.head(visitor, id).folder
        for path in (folder / exported_name("glb"), folder / PLAIN_MESH):
            if path.exists():
                return path
        raise VisitError("This head has no mesh yet.")

    def view(self, visitor: str, id: str) -> HeadView:
        """Where a head's pictures come from. Raises VisitError, HeadFileError."""
        kept = self.head(visitor, id)
        self._looked_at[visitor] = id
        return self.shelf.view(kept.file)

    def room(self, visitor: str) -> Kept | None:
        """The head that goes when one more is kept: an edit, else one that can be had again, else a lifted one; of
        these the oldest. The head looked at last stays, one that a job works on, and an original with edits here.

        Raises VisitError when none can go.
        """
        mine = self._heads.get(visitor, [])
        if len(mine) < MOST_KEPT:
            return None
        stay = self.queue.busy_heads() | {self._looked_at.get(visitor)}
        origins = {kept.of[0] for kept in mine if kept.of}
        free = [kept for kept in mine if kept.id not in stay and (kept.of or kept.id not in origins)]
        if not free:
            raise VisitError(f"You have {MOST_KEPT} heads here, and all are in use. Wait until your files are written.")
        return min(free, key=lambda kept: (kept.lifted, not kept.of))

    def _keep(
        self,
        visitor: str,
        name: str,
        about: str,
        write: Callable[[Path], object],
        doubts: tuple[str, ...] = (),
        of: tuple[str, Amounts] | None = None,
        lifted: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> Kept:
        """Give a head a folder of its own, with its thumbnail; another goes when there are too many.

        `check` raises when it is not wanted any more once it is written; nothing of it stays then. Raises VisitError
        when there is no room.
        """
        id = secrets.token_hex(8)
        folder = self.visitors.folder(visitor) / id
        folder.mkdir(mode=0o700)
        kept = Kept(id, folder, name, about, doubts, of, lifted)
        try:
            write(folder)
            write_bytes(folder / THUMBNAIL, self.shelf.view(kept.file).jpeg(0.35, 0.1))
            check()
            with self._changing:
                going = self.room(visitor)
                mine = self._heads.setdefault(visitor, [])
                mine.append(kept)
                if going is not None:
                    mine.remove(going)
        except BaseException:
            self._remove(folder)
            raise
        if going is not None:
            self._remove(going.folder)
        return kept

    def _remove(self, folder: Path) -> None:
        self.shelf.drop(folder)
        shutil.rmtree(folder, ignore_errors=True)

    # Files to take along

    def exported(self, visitor: str, id: str, kind: Format) -> Path | None:
        """The file, if it has been written: the head file always has. Raises VisitError."""
        path = self.head(visitor, id).folder / exported_name(kind)
        return path if path.exists() else None

    def export(self, visitor: str, tab: str, id: str, kind: Format) -> Job[Path]:
        """Queue the writing of a file. Raises QueueError, VisitError."""
        name = self.head(visitor, id).name

        def work(job: Job[Path]) -> Path:
            kept = self.head(visitor, id)  # it stays from now on
            self._export(kept, kind, job)
            return kept.folder / exported_name(kind)

        return self.queue.submit(Job(f"Writing {name}.{suffix_of(kind)}", tab, visitor, work, id))

    def _export(self, kept: Kept, kind: Format, job: Job[Path]) -> None:
        if kind == "mp4":
            export_head(kept.file, kept.folder, self._exports(videos=("mp4",)), True, job.on_step)
        elif kind == "obj":
            with_parts = kept.folder / "obj"
            export_head(kept.file, with_parts, self._exports(meshes=("obj",)), True, job.on_step)
            write_bytes(kept.folder / exported_name(kind), zipped(with_parts))
            shutil.rmtree(with_parts)
        else:  # colours of a PLY go on its vertices: a texture would be a second file
            export_head(kept.file, kept.folder, self._exports((kind,), texture=kind != "ply"), True, job.on_step)

    def _exports(
        self, meshes: tuple[str, ...] = (), videos: tuple[str, ...] = (), texture: bool = True
    ) -> ExportConfig:
        return ExportConfig(
            meshes=meshes,
            videos=videos,
            mesh=MeshConfig(texture=texture),
            video=VIDEO,
            weights=self.config.weights,
            device=self.config.device,
        )

    # House-keeping

    def pace(self, name: Preset, method: Method) -> Pace | None:
        """How fast such settings run here, if that has been measured."""
        return self.paces.get(self.settings(name, method))

    def measure(self, name: Preset, method: Method) -> Job[None] | None:
        """Queue the measurement of a pace that is not known yet, on the example; visitors' jobs break it off.

        The same measurement is queued once. None when the pace is known or somebody's job is under way.
        """
        config = self.settings(name, method)
        owner = f"measuring {name} {method}"
        pending = self.queue.of(owner)
        if pending is not None or self.paces.get(config) is not None or self.queue.busy_visitors():
            return pending

        def work(job: Job[None]) -> None:
            def step(event: Step) -> None:
                if self.queue.crowded():
                    raise CalledOffError
                job.on_step(event)

            def run(short: ReconstructConfig, on_step: Callable[[Step], None]) -> None:
                def both(event: Step) -> None:
                    step(event)
                    on_step(event)

                reconstruct(example_pixels(), short, both)

            self.paces.put(config, measure(config, run))

        return self.queue.submit(Job("Measuring this machine", owner, "", work))

    def leave(self, tab: str) -> None:
        """A tab was closed: nothing more is done for it."""
        self.queue.call_off(tab)

    def sweep(self) -> None:
        """Delete the files of visitors who have been away for long."""
        sweep_uploads(self.uploads)
        for visitor in self.visitors.sweep(self.queue.busy_visitors()):
            with self._changing:
                heads = self._heads.pop(visitor, [])
                self._looked_at.pop(visitor, None)
                self._photos = {key: photo for key, photo in self._photos.items() if key[0] != visitor}
            for kept in heads:
                self.shelf.drop(kept.folder)

    def close(self) -> None:
        """End all jobs and delete all files."""
        self.queue.close()
        self.visitors.close()


def example_pixels() -> Pixels:
    """A photo of Eileen Collins, NASA, in the public domain; it comes with scikit-image."""
    from skimage.data import astronaut

    photo: Pixels = astronaut()
    return photo


def directions_for(sha256: str) -> Directions | None:
    """The shipped directions, if they belong to this generator."""
    try:
        return load_directions(None, sha256)
    except (CheckpointError, WeightsError):
        return None


def suffix_of(kind: Format) -> str:
    """What a download of this kind ends in."""
    return {"obj": "zip", "head": "safetensors"}.get(kind, kind)


def exported_name(kind: Format) -> str:
    """The name that an exported file has in its head's folder."""
    return HEAD if kind == "head" else f"{VIDEO.path}.mp4" if kind == "mp4" else f"mesh.{suffix_of(kind)}"


def zipped(folder: Path) -> bytes:
    """A ZIP of a folder's files."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    return stream.getvalue()


def numbered(
    picture: UInt8[np.ndarray, "h w 3"], boxes: Sequence[tuple[float, float, float, float]], chosen: int
) -> UInt8[np.ndarray, "h w 3"]:
    """A photo with its faces framed and numbered from 1, the chosen one strongly."""
    from PIL import Image, ImageDraw, ImageFont

    if not boxes:
        return picture
    sheet = Image.fromarray(picture)
    draw = ImageDraw.Draw(sheet)
    size = max(14, max(picture.shape[:2]) // 28)
    font = ImageFont.load_default(size)
    for number, box in enumerate(boxes, 1):
        color = (255, 196, 0) if number == chosen else (255, 255, 255)
        draw.rectangle(box, outline=color, width=max(2, size // 8))
        left, top = box[0], max(0.0, box[1] - 1.3 * size)
        draw.rectangle((left, top, left + 1.1 * size, top + 1.3 * size), fill=color)
        draw.text((left + 0.25 * size, top), str(number), fill=(20, 20, 20), font=font)
    return np.asarray(sheet)
