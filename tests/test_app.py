"""The app without its page: folders, uploads, the queue, the estimate, pictures of a head, and the server's gate."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headlift.app.desk import Desk, Kept
from headlift.app.files import (
    PREVIEW_SECONDS,
    UNCLAIMED_SECONDS,
    VisitError,
    Visitors,
    bytes_below,
    claim_upload,
    plain_name,
    sweep_uploads,
)
from headlift.app.jobs import CalledOffError, Job, JobQueue, QueueError, State
from headlift.app.server import COOKIE, Gate, add_routes, allowed_hosts, bound_socket, cookie_in, make_site, most_bytes
from headlift.app.timing import PROBE_STEPS, Pace, Paces, kind, pace_of, shortened, stages, time_left
from headlift.app.views import DRAFTS, amounts_of
from headlift.config import AppConfig, ReconstructConfig, VideoConfig, preset
from headlift.editing.identity import identity_drift
from headlift.errors import ConfigError, FaceError, HeadFileError, PhotoError
from headlift.invert.perceptual import load_distance
from headlift.outputs import HEAD
from headlift.values import Step


def test_a_signal_that_ends_the_app_leaves_no_files(tmp_path: Path) -> None:
    app = subprocess.Popen(
        [sys.executable, "-m", "headlift", "app", "--port", "0", "--no-browser", "--device", "cpu"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert app.stdout is not None
    assert "headlift is at" in app.stdout.readline()
    assert list(tmp_path.glob("headlift-app-*"))
    app.terminate()
    assert app.wait(60) != 0
    assert not list(tmp_path.glob("headlift-app-*"))


# Folders and uploads


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_visitor_keeps_folder_and_token_until_they_are_forgotten(tmp_path: Path) -> None:
    clock = Clock()
    visitors = Visitors(tmp_path, 60.0, clock)
    first, second = visitors.enter(None), visitors.enter("made up by somebody")
    assert first != second != "made up by somebody"
    assert visitors.enter(first) == first
    folder = visitors.folder(first)
    assert folder != visitors.folder(second)
    assert first not in str(folder)  # a listing of the disk gives nobody's token away
    assert folder.stat().st_mode & 0o077 == 0
    (folder / "photo.png").write_bytes(b"x")
    clock.now = 50.0
    visitors.known(second)
    clock.now = 100.0
    assert visitors.sweep(busy={first}) == []
    assert visitors.sweep() == [first]
    assert not folder.exists()
    with pytest.raises(VisitError):
        visitors.folder(first)
    visitors.close()
    assert not tmp_path.exists()


def test_those_who_only_look_in_push_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headlift.app.files.MOST_VISITORS", 3)
    clock = Clock()
    visitors = Visitors(tmp_path, 60.0, clock)
    busy, owner, *others = (visitors.enter(None) for _ in range(4))
    visitors.folder(owner)
    for second in range(1, 20):
        clock.now = float(second)
        others.append(visitors.enter(None))
    assert set(visitors.sweep(busy={busy})) == set(others[:-1])
    assert [visitors.known(token) for token in (busy, owner, others[-1])] == [busy, owner, others[-1]]


def upload(folder: Path, name: str, content: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name


def test_an_upload_is_copied_under_a_name_of_ours(tmp_path: Path) -> None:
    path = upload(tmp_path / "up" / "f00", "Me & my <b>dog.JPG", b"picture")
    first, second = (claim_upload(str(path), tmp_path / "up", tmp_path, 100, PhotoError) for _ in range(2))
    assert first != second  # a photo sent twice has one name among the uploads
    for claimed in (first, second):
        assert claimed.parent == tmp_path
        assert claimed.suffix == ".jpg"
        assert "dog" not in claimed.name
        assert claimed.read_bytes() == b"picture"
        assert claimed.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(("content", "said"), [(b"x" * 101, "at most"), (b"", "empty")])
def test_uploads_that_are_too_large_or_empty_leave_nothing(tmp_path: Path, content: bytes, said: str) -> None:
    path = upload(tmp_path / "up" / "f00", "a.png", content)
    with pytest.raises(PhotoError, match=said):
        claim_upload(str(path), tmp_path / "up", tmp_path, 100, PhotoError)
    assert not list(tmp_path.glob("upload-*"))
    gone_soon(path, tmp_path / "up")


def gone_soon(path: Path, uploads: Path) -> None:
    """An upload that was asked for stays for its preview, and goes long before one that nothing was asked for."""
    untouched = upload(uploads / "f01", "other.png", b"x")
    sweep_uploads(uploads)
    assert path.exists()
    sweep_uploads(uploads, UNCLAIMED_SECONDS - PREVIEW_SECONDS - 1.0)  # as if the preview's time were over
    assert not path.parent.exists()
    assert untouched.exists()


@pytest.mark.parametrize(
    "path", ["/etc/hostname", "up/../secret", "up/missing", "up/link", "", "up/\0", "up/" + 300 * "x"]
)
def test_no_upload_leads_out_of_the_folder_of_uploads(tmp_path: Path, path: str) -> None:
    secret = upload(tmp_path, "secret", b"secret")
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "link").symlink_to(secret)
    with pytest.raises(PhotoError, match="not here"):
        claim_upload(str(tmp_path / path), tmp_path / "up", tmp_path, 100, PhotoError)
    assert secret.read_bytes() == b"secret"
    assert Path("/etc/hostname").exists()


def test_unclaimed_uploads_are_swept(tmp_path: Path) -> None:
    path = upload(tmp_path / "f00", "a.png", b"x")
    sweep_uploads(tmp_path, 60.0)
    assert path.exists()
    sweep_uploads(tmp_path, -1.0)
    assert not path.parent.exists()


def test_a_folder_that_goes_during_a_sweep_does_not_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        upload(tmp_path / f"f0{number}", "a.png", b"x")
    gone, look = tmp_path / "f01", os.scandir

    def late(path: str | Path) -> object:
        if Path(path) == gone:
            (gone / "a.png").unlink()
            gone.rmdir()
        return look(path)

    monkeypatch.setattr(os, "scandir", late)
    sweep_uploads(tmp_path, -1.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("Ada.jpg", "Ada"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\face.of.me.png", "face.of.me"),
        ("<script>alert(1)</script>.png", "script"),
        ("Zoë Ærø.jpeg", "Zoë Ærø"),
        ("\u202egnp.exe\n\r\0", "gnp"),
        ("...", "head"),
        ("x" * 300 + ".png", "x" * 40),
    ],
)
def test_names_are_made_plain(name: str, plain: str) -> None:
    assert plain_name(name) == plain


# The queue


@pytest.fixture
def queue() -> Iterator[JobQueue]:
    made = JobQueue(longest=2)
    yield made
    made.close()


def job(owner: str, work: object = lambda job: 1) -> Job:
    return Job(f"job of {owner}", owner, f"visitor {owner}", work)  # type: ignore[arg-type]


def until(met: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.001)


def test_one_job_at_a_time_in_the_order_of_arrival(queue: JobQueue) -> None:
    gate, order = threading.Event(), []

    def work(name: str) -> object:
        def done(job: Job) -> str:
            gate.wait(10)
            order.append(name)
            return name

        return done

    jobs = [queue.submit(job("a", work("a")))]
    until(lambda: jobs[0].state is not State.WAITING)
    jobs += [queue.submit(job(name, work(name))) for name in "bc"]
    assert [queue.ahead(j) for j in jobs] == [0, 1, 2]
    assert queue.busy_visitors() == {"visitor a", "visitor b", "visitor c"}
    with pytest.raises(QueueError, match="already have"):
        queue.submit(job("b"))
    with pytest.raises(QueueError, match="3 before you"):
        queue.submit(job("d"))
    gate.set()
    for one in jobs:
        queue.wait(one, 10.0)
    assert order == ["a", "b", "c"]
    assert [j.state for j in jobs] == [State.DONE] * 3
    assert [j.result for j in jobs] == ["a", "b", "c"]
    assert queue.busy_visitors() == set()


def test_without_a_queue_one_job_is_taken_whatever_is_measured() -> None:
    gate = threading.Event()
    queue = JobQueue(longest=0)
    measurement = Job("measuring", "nobody", "", lambda job: gate.wait(10))
    queue.submit(measurement)
    until(lambda: measurement.state is State.RUNNING)
    first = queue.submit(job("a", lambda job: gate.wait(10)))
    assert queue.ahead(first) == 0
    with pytest.raises(QueueError, match="1 before you"):
        queue.submit(job("b"))
    gate.set()
    queue.wait(first, 10.0)
    assert queue.submit(job("b")).error == ""
    queue.close()


def steps(job: Job) -> int:
    """Works until it is told to stop; the number of its steps."""
    for i in range(100_000):
        if job.should_stop():
            return i
        job.on_step(Step("latent", i + 1, 100_000, {"mse": 1.0}))
        time.sleep(0.001)
    raise AssertionError("was never stopped")


def test_a_stopped_job_keeps_its_result_and_one_called_off_does_not(queue: JobQueue) -> None:
    kept, off, waiting = job("a", steps), job("b", steps), job("c", steps)
    for one in (kept, off):
        queue.submit(one)
    until(lambda: bool(kept.steps))
    queue.submit(waiting)
    queue.call_off("c")
    assert waiting.state is State.CALLED_OFF
    kept.stop()
    queue.wait(kept, 10.0)
    assert kept.state is State.DONE
    assert kept.result
    until(lambda: bool(off.steps))
    queue.call_off("b")
    queue.wait(off, 10.0)
    assert off.state is State.CALLED_OFF
    assert off.result is None
    assert queue.of("b") is None


def test_errors_are_told_and_the_next_job_runs(queue: JobQueue) -> None:
    def bad(job: Job) -> None:
        raise FaceError("no face in it")

    def worse(job: Job) -> None:
        raise RuntimeError("the secret path /root")

    first, second, third = queue.submit(job("a", bad)), queue.submit(job("b", worse)), None
    queue.wait(second, 10.0)
    third = queue.submit(job("a"))
    queue.wait(third, 10.0)
    assert (first.state, first.error) == (State.FAILED, "no face in it")
    assert second.state is State.FAILED
    assert "secret" not in second.error
    assert third.state is State.DONE


# The estimate


def test_pace_by_hand() -> None:
    """Loading 5 s, then latent steps 2 s apart, tuning steps 3 s apart, 4 s for the mesh."""
    stamps = [("latent", 5.0), ("latent", 7.0), ("latent", 9.0), ("tuning", 20.0), ("tuning", 23.0)]
    pace = pace_of(0.0, stamps, 27.0)
    assert pace == Pace(5.0, {"latent": 2.0, "tuning": 3.0}, 4.0, {"tuning": 8.0})
    config = preset("fast")
    assert stages(config) == {"latent": 14, "tuning": 50, "finish": 32}
    assert pace.total(config) == 5 + 14 * 2 + (8 + 50 * 3) + 4  # nothing is known of what follows the tuning


def test_time_left_follows_the_steps_so_far() -> None:
    config = preset("fast")
    pace = Pace(5.0, {"latent": 1.0, "tuning": 2.0, "finish": 0.5}, 4.0, {"finish": 3.0})
    done = [Step("latent", i, 14) for i in range(1, 11)]
    assert time_left([], [], 0.0, config, pace) == pace.total(config)
    assert time_left([], [], 0.0, config, None) is None
    # As fast as measured: 4 latent steps, 50 of tuning, 32 of the last tuning and what precedes them, the mesh.
    stamps = [float(i) for i in range(1, 11)]
    assert time_left(done, stamps, 10.0, config, pace) == pytest.approx(4 + 100 + 19 + 4)
    # Twice as slow: everything takes twice as long.
    stamps = [2.0 * i for i in range(1, 11)]
    assert time_left(done, stamps, 20.0, config, pace) == pytest.approx(2 * (4 + 100 + 19 + 4))
    # Nothing measured beforehand: later steps are taken to be like these.
    assert time_left(done, stamps, 20.0, config, None) == pytest.approx(2 * (4 + 50 + 32))


def test_shortened_runs_measure_what_they_stand_for() -> None:
    short = shortened(preset("standard"))
    assert set(stages(short).values()) == {4}
    assert (PROBE_STEPS - 1) % preset("standard").inversion.tuning.geometry_every == 0
    assert stages(preset("fast", "hfgi3d")) == {"latent": 60, "tuning": 75, "views": 75}
    assert stages(preset("fast", "w+")) == {"latent": 60}
    for name in ("fast", "thorough"):
        short = shortened(preset(name, "in-n-out"))
        assert stages(short) == {"latent": 4, "tuning": 4, "superres": 4}
    longer = replace(preset("thorough"), mesh=preset("standard").mesh)
    assert kind(preset("standard")) == kind(longer)
    assert kind(preset("standard")) != kind(preset("thorough"))  # the mesh has another resolution
    assert kind(preset("fast")) != kind(preset("standard"))  # and so has the search
    paces = Paces()
    paces.put(preset("standard"), Pace(1.0, {}, 1.0))
    assert paces.get(longer) is not None
    assert paces.get(preset("standard", "spi")) is None


# What a visitor can ask for, on the embedded prior


def tiny(name: str, method: str) -> ReconstructConfig:
    """A fast preset that takes seconds."""
    config = preset("fast", "best")
    latent = replace(config.inversion.latent, steps=3, candidates=2, w_stats_samples=20)
    tuning = replace(config.inversion.tuning, steps=3, side_views=2, finish_steps=2)
    inversion = replace(config.inversion, latent=latent, tuning=tuning, preview_every=1)
    return replace(config, inversion=inversion, mesh=replace(config.mesh, resolution=48, views=2))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    made = Desk(AppConfig(max_mb=1.0, max_megapixels=1.0), tmp_path_factory.mktemp("app"), tiny)
    yield made
    made.close()
    assert not made.visitors.root.exists()


@pytest.fixture
def visitor(desk: Desk) -> str:
    return desk.visitors.enter(None)


def sent(desk: Desk, name: str, content: bytes) -> str:
    return str(upload(desk.uploads / "f00", name, content))


def test_random_heads_are_private_turn_and_change(desk: Desk, visitor: str) -> None:
    kept = desk.random_head(visitor, seed=3)
    stranger = desk.visitors.enter(None)
    with pytest.raises(VisitError):
        desk.view(stranger, kept.id)
    with pytest.raises(VisitError):
        desk.export(stranger, "tab", kept.id, "glb")
    with pytest.raises(VisitError):
        desk.view("nobody", kept.id)
    view = desk.view(visitor, kept.id)
    front, side = (pixels(view.jpeg(yaw, 0.0)) for yaw in (0.0, 0.8))
    assert front.shape == (256, 256, 3)
    assert np.abs(front - side).mean() > 4
    draft = pixels(view.jpeg(0.0, 0.0, draft=True))
    assert draft.shape[0] in {side for side, *_ in DRAFTS}
    small = np.asarray(Image.fromarray(front.astype(np.uint8)).resize(draft.shape[:2]), dtype=float)
    assert np.abs(small - draft).mean() < 12  # the same head from the same side
    older = pixels(view.jpeg(0.0, 0.0, amounts=amounts_of({"age": 2.0})))
    assert np.abs(older - front).mean() > 1
    edited = desk.keep_edit(visitor, kept.id, amounts_of({"age": 2.0}))
    again = pixels(desk.view(visitor, edited.id).jpeg(0.0, 0.0))
    assert np.abs(again - older).mean() < 0.5
    # An edit is kept once, and as one, so that its mesh does not get the photo of the head before.
    assert desk.keep_edit(visitor, kept.id, amounts_of({"age": 2.0})).id == edited.id
    assert [k.id for k in desk.heads(visitor)] == [edited.id, kept.id]
    assert [edit["move"] for edit in desk.view(visitor, edited.id).head.edits] == [{"age": 2.0}]
    assert desk.view(visitor, kept.id).head.edits == ()


def test_identity_drift_is_told_for_the_sliders(desk: Desk, visitor: str, routes: object) -> None:
    kept = desk.random_head(visitor, seed=3)
    told = [
        json.loads(fetched(routes, visitor, f"/headlift/drift/{kept.id}", query=query)[2])
        for query in ("", "age=0.3", "age=2.5&weight=2")
    ]
    values = [one["value"] for one in told]
    assert values[0] == 0
    assert 0 < values[1] < values[2]
    view = desk.view(visitor, kept.id)
    amounts = {"age": 2.5, "weight": 2.0}
    distance = load_distance("builtin", "tuning", view.head.ws.device)
    expected = identity_drift(view.head, view.edited(amounts_of(amounts)), distance)
    assert values[2] == pytest.approx(expected[0].value, rel=1e-4)  # what `headlift edit` says
    assert told[2]["stand_in"] == expected[0].stand_in
    assert fetched(routes, visitor, f"/headlift/drift/{kept.id}", query="height=1")[0] == 404
    assert fetched(routes, desk.visitors.enter(None), f"/headlift/drift/{kept.id}", query="age=1")[0] == 404


def test_a_draft_that_is_too_slow_is_made_cheaper(desk: Desk, visitor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    view = desk.view(visitor, desk.random_head(visitor, seed=1).id)
    monkeypatch.setattr("headlift.app.views.DRAFT_SECONDS", 0.0)
    sides = [pixels(view.jpeg(0.1, 0.0, draft=True)).shape[0] for _ in range(len(DRAFTS) + 1)]
    assert sides == sorted(sides, reverse=True)
    assert sides[-1] == DRAFTS[0][0]
    monkeypatch.setattr("headlift.app.views.DRAFT_SECONDS", 1e9)
    assert pixels(view.jpeg(0.1, 0.0, draft=True)).shape[0] == DRAFTS[0][0]
    assert pixels(view.jpeg(0.1, 0.0, draft=True)).shape[0] == DRAFTS[1][0]


def test_a_photo_becomes_a_head_that_goes_through_its_file(desk: Desk, visitor: str, tmp_path: Path) -> None:
    found = desk.take_example(visitor, "tab")
    assert found.ok
    assert found.faces == 1
    assert found.overlay[:2] == b"\xff\xd8"
    job = desk.lift(visitor, "tab", "fast", "best")
    desk.queue.wait(job, 600.0)
    assert job.error == ""
    assert {step.stage for step in job.steps} >= {"latent", "tuning"}
    assert job.picture is not None
    kept = job.result
    assert kept is not None
    mesh = desk.shown_mesh(visitor, kept.id).read_bytes()
    assert mesh[:4] == b"glTF"
    assert b'"licence"' in mesh
    other = desk.visitors.enter(None)
    opened = desk.open_file(other, sent(desk, "mine.safetensors", kept.file.read_bytes()), "mine.safetensors")
    a, b = (pixels(desk.view(who, k.id).jpeg(0.3, 0.0)) for who, k in ((visitor, kept), (other, opened)))
    assert np.abs(a - b).max() == 0
    assert opened.name == "mine"


def test_a_closed_tab_ends_its_lift_and_leaves_no_head(desk: Desk, visitor: str) -> None:
    desk.take_example(visitor, "closing")
    with pytest.raises(VisitError, match="no photo"):
        desk.lift(visitor, "another", "fast", "best")
    job = desk.lift(visitor, "closing", "fast", "best")
    desk.leave("closing")
    desk.queue.wait(job, 60.0)
    assert job.state is State.CALLED_OFF
    assert desk.heads(visitor) == ()
    assert desk.queue.of("closing") is None


def test_obj_goes_with_all_its_files(desk: Desk, visitor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = desk.random_head(visitor, seed=2)
    small = replace(desk._exports(("obj",)).mesh, resolution=48, texture_size=256)
    monkeypatch.setattr("headlift.app.desk.MeshConfig", lambda texture: replace(small, texture=texture))
    monkeypatch.setattr("headlift.app.desk.VIDEO", VideoConfig(frames=3))
    for format, starts in (("obj", b"PK"), ("ply", b"ply"), ("mp4", b"\0\0\0")):
        job = desk.export(visitor, "tab", kept.id, format)  # type: ignore[arg-type]
        desk.queue.wait(job, 600.0)
        assert job.error == ""
        assert job.result is not None
        assert job.result.read_bytes().startswith(starts)
        if format == "obj":
            names = zipfile.ZipFile(job.result).namelist()
            assert {Path(name).suffix for name in names} >= {".obj", ".mtl"}


def test_a_head_discarded_while_it_is_written_leaves_nothing(desk: Desk, visitor: str) -> None:
    kept = desk.random_head(visitor, seed=3)
    there = set(desk.visitors.folder(visitor).iterdir())

    def called_off() -> None:
        raise CalledOffError

    with pytest.raises(CalledOffError):
        desk._keep(visitor, "late", "", lambda folder: shutil.copy(kept.file, folder / HEAD), check=called_off)
    assert desk.heads(visitor) == (kept,)
    assert set(desk.visitors.folder(visitor).iterdir()) == there


def test_what_cost_least_makes_room(desk: Desk, visitor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    head = desk.shelf.read(desk.random_head(desk.visitors.enter(None), seed=6).file)
    monkeypatch.setattr("headlift.app.desk.MOST_KEPT", 3)
    monkeypatch.setattr(desk.shelf, "read", lambda path: head)
    monkeypatch.setattr("headlift.app.views.HeadView.jpeg", lambda *asked: b"")

    def keep(name: str, lifted: bool = False, of: Kept | None = None) -> Kept:
        edit = None if of is None else (of.id, amounts_of({"age": 1.0}))
        return desk._keep(visitor, name, "", lambda folder: (folder / HEAD).touch(), (), edit, lifted)

    def names() -> list[str]:
        assert {kept.folder for kept in desk.heads(visitor)} == set(desk.visitors.folder(visitor).iterdir())
        return [kept.name for kept in reversed(desk.heads(visitor))]

    first = keep("lifted", lifted=True)
    keep("edit", of=first)
    shown = keep("opened")
    desk.view(visitor, shown.id)
    keep("another")
    assert names() == ["lifted", "opened", "another"]  # the edit went
    edit = keep("edit", of=shown)
    assert names() == ["lifted", "opened", "edit"]  # the head on the stage stayed, and the lifted one
    desk.view(visitor, edit.id)
    last = keep("last")
    assert names() == ["opened", "edit", "last"]  # the edit stayed, and what it was made from
    gate = threading.Event()
    writing = desk.queue.submit(Job("writing", "tab", visitor, lambda job: gate.wait(10), last.id))
    with pytest.raises(VisitError, match="in use"):
        keep("too many")
    assert names() == ["opened", "edit", "last"]
    gate.set()
    desk.queue.wait(writing, 10.0)
    keep("next")
    assert names() == ["opened", "edit", "next"]


def test_no_file_is_written_for_a_head_that_has_gone(desk: Desk, visitor: str) -> None:
    kept = desk.random_head(visitor, seed=4)
    gate = threading.Event()
    desk.queue.submit(Job("before", "another tab", visitor, lambda job: gate.wait(10)))
    job = desk.export(visitor, "tab", kept.id, "stl")
    assert desk.queue.busy_heads() == {kept.id}
    desk._heads[visitor].remove(kept)
    desk._remove(kept.folder)
    gate.set()
    desk.queue.wait(job, 60.0)
    assert "not here" in job.error
    assert not kept.folder.exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("notes.png", b"this is a text file", "notes: not a picture"),
        ("empty.png", b"", "empty"),
        ("../../../big.jpg", b"x" * 2_000_000, "2 MB, and at most 1"),
    ],
)
def test_bad_photos_end_in_a_message_and_leave_nothing(
    desk: Desk, visitor: str, name: str, content: bytes, said: str
) -> None:
    with pytest.raises(PhotoError, match=said) as told:
        desk.take_photo(visitor, "tab", sent(desk, Path(name).name, content), name)
    assert str(desk.visitors.root) not in str(told.value)
    assert list(desk.visitors.folder(visitor).iterdir()) == []
    gone_soon(desk.uploads / "f00" / Path(name).name, desk.uploads)
    with pytest.raises(VisitError, match="no photo"):
        desk.lift(visitor, "tab", "fast", "best")


def test_photos_without_a_face_or_with_too_many_pixels(desk: Desk, visitor: str, tmp_path: Path) -> None:
    for size, error, said in (((300, 200), FaceError, "No face"), ((2000, 1000), PhotoError, "at most 1 million")):
        Image.new("RGB", size, (90, 120, 80)).save(tmp_path / "meadow.png")
        with pytest.raises(error, match=said):
            desk.take_photo(
                visitor, "tab", sent(desk, "meadow.png", (tmp_path / "meadow.png").read_bytes()), "meadow.png"
            )
    assert list(desk.visitors.folder(visitor).iterdir()) == []


def test_the_first_heic_photo_may_have_no_more_pixels_than_others(
    desk: Desk, visitor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(Image.new("RGB", (2000, 1000))).save(tmp_path / "large.heic", quality=1)
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    with pytest.raises(PhotoError, match="at most 1 million"):
        desk.take_photo(visitor, "tab", sent(desk, "large.heic", (tmp_path / "large.heic").read_bytes()), "large.heic")


def test_files_that_are_no_heads_are_refused(desk: Desk, visitor: str) -> None:
    with pytest.raises(HeadFileError, match="evil"):
        desk.open_file(visitor, sent(desk, "evil.safetensors", b"no head at all"), "evil.safetensors")
    assert list(desk.visitors.folder(visitor).iterdir()) == []


def test_a_choice_among_several_faces(desk: Desk, visitor: str, tmp_path: Path) -> None:
    from skimage.data import astronaut

    face = astronaut()[0:250, 100:350]
    smaller = np.asarray(Image.fromarray(face).resize((180, 180)))
    both = np.concatenate([face, np.pad(smaller, ((0, 70), (0, 0), (0, 0)))], axis=1)
    Image.fromarray(both).save(tmp_path / "both.png")
    found = desk.take_photo(visitor, "tab", sent(desk, "both.png", (tmp_path / "both.png").read_bytes()), "both.png")
    assert (found.faces, found.face) == (2, 1)
    other = desk.choose_face(visitor, "tab", 2)
    assert other.face == 2
    assert other.overlay != found.overlay


def test_a_visitor_away_for_long_is_forgotten(desk: Desk, visitor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = desk.random_head(visitor, seed=5)
    monkeypatch.setattr(desk.visitors, "_keep", -1.0)
    desk.sweep()
    assert not kept.folder.exists()
    assert desk.heads(visitor) == ()


def pixels(jpeg: bytes) -> np.ndarray:
    import io

    return np.asarray(Image.open(io.BytesIO(jpeg)), dtype=float)


# The gate


def answer_of(gate: Gate, path: str, headers: dict[str, str], method: str = "GET") -> tuple[int, dict[str, str]]:
    import asyncio

    started: list[dict] = []

    async def send(message: dict) -> None:
        if message["type"] == "http.response.start":
            started.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
    }
    asyncio.run(gate(scope, None, send))
    return started[0]["status"], {k.decode(): v.decode() for k, v in started[0]["headers"]}


async def inner(scope: dict, receive: object, send: object) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})  # type: ignore[operator]
    await send({"type": "http.response.body", "body": b""})  # type: ignore[operator]


def test_the_gate_knows_its_hosts_and_gives_each_visitor_a_cookie(desk: Desk) -> None:
    gate = Gate(inner, desk, allowed_hosts("127.0.0.1"))
    assert answer_of(gate, "/", {"host": "evil.example:7860"})[0] == 421
    status, headers = answer_of(gate, "/", {"host": "localhost:7860"})
    assert status == 200
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "http" not in headers["content-security-policy"]
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie  # a link from elsewhere leads back to one's own heads
    token = cookie_in(cookie.split(";")[0])
    assert token is not None
    assert len(token) >= 40
    again = answer_of(gate, "/", {"host": "127.0.0.1:7860", "cookie": f"a=b; {COOKIE}={token}"})[1]
    assert "set-cookie" not in again
    assert "set-cookie" not in answer_of(gate, "/anything", {"host": "localhost"})[1]
    assert allowed_hosts("0.0.0.0") is None


LINK = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
"""What a browser sends when a link on another site is followed."""


@pytest.mark.parametrize(
    ("method", "sent", "status"),
    [
        ("GET", {}, 200),  # no browser, or an old one
        ("GET", {"sec-fetch-site": "none"}, 200),  # typed in
        ("POST", {"sec-fetch-site": "same-origin", "origin": "http://localhost:7860"}, 200),
        ("POST", {"origin": "http://localhost:7860"}, 200),
        ("GET", LINK, 200),
        ("POST", LINK, 403),
        ("GET", LINK | {"sec-fetch-dest": "iframe"}, 403),
        ("GET", LINK | {"sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}, 403),
        ("POST", {"sec-fetch-site": "same-site", "origin": "http://localhost:8888"}, 403),  # another port
        ("POST", {"origin": "http://localhost:8888"}, 403),
        ("POST", {"origin": "https://evil.example"}, 403),
        ("POST", {"origin": "null"}, 403),
    ],
)
def test_pages_of_other_sites_are_not_answered(desk: Desk, method: str, sent: dict[str, str], status: int) -> None:
    gate = Gate(inner, desk, allowed_hosts("127.0.0.1"))
    headers = {"host": "localhost:7860", "content-length": "9"} | sent
    assert answer_of(gate, "/gradio_api/upload", headers, method)[0] == status


def test_uploads_are_taken_while_there_is_room(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, most = Gate(inner, desk, None), 1000 + bytes_below(desk.uploads)
    monkeypatch.setattr("headlift.app.server.MOST_UPLOADS", most / most_bytes(desk.config))
    path = Path(sent(desk, "large.png", bytes(400)))

    def status(length: str | None, to: str = "/gradio_api/upload") -> int:
        return answer_of(gate, to, {} if length is None else {"content-length": length}, "POST")[0]

    assert [status(length) for length in ("600", "601", None)] == [200, 413, 411]
    assert status("601", "/gradio_api/queue/join") == 200
    path.unlink()
    assert status("601") == 200


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (AppConfig(queue=-1), "--queue is -1, but must be a number from 0 on"),
        (AppConfig(keep_minutes=0.0), "--keep-minutes is 0, but must be a number from 1 on"),
        (AppConfig(max_mb=0.0), "--max-mb is 0"),
        (AppConfig(max_head_mb=float("inf")), "--max-head-mb is inf"),
        (AppConfig(max_megapixels=float("nan")), "--max-megapixels is nan"),
    ],
)
def test_limits_that_nothing_passes_are_refused_at_once(config: AppConfig, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_site(config)


@pytest.fixture(scope="module")
def routes(desk: Desk) -> object:
    from starlette.applications import Starlette

    app = Starlette()
    add_routes(app, desk)
    return app


def fetched(
    app: object, visitor: str, path: str, meanwhile: Callable[[], object] = lambda: None, query: str = ""
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer; `meanwhile` happens once its headers are out."""
    import asyncio

    told: list[dict] = []
    body = bytearray()

    async def send(message: dict) -> None:
        if message["type"] == "http.response.start":
            told.append(message)
            meanwhile()
        body.extend(message.get("body", b""))

    async def receive() -> dict:
        await asyncio.sleep(60.0)
        return {"type": "http.disconnect"}

    cookie = [(b"cookie", f"{COOKIE}={visitor}".encode())]
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "headers": cookie,
        "query_string": query.encode(),
        "root_path": "",
    }
    asyncio.run(app(scope, receive, send))  # type: ignore[operator]
    return told[0]["status"], {k.decode().lower(): v.decode() for k, v in told[0]["headers"]}, bytes(body)


@pytest.fixture(scope="module")
def random_head(desk: Desk) -> tuple[str, Kept]:
    """A visitor and a head of theirs."""
    visitor = desk.visitors.enter(None)
    return visitor, desk.random_head(visitor, seed=6)


@pytest.mark.parametrize("fate", ["deleted", "replaced"])
@pytest.mark.parametrize("what", ["small", "mesh", "file", "upload"])
def test_an_answer_is_whole_whatever_becomes_of_its_file(
    desk: Desk, random_head: tuple[str, Kept], routes: object, what: str, fate: str
) -> None:
    visitor, kept = random_head
    (kept.folder / "view.glb").write_bytes(bytes(range(256)) * 4000)
    picture = Path(sent(desk, "me.png", bytes(range(256)) * 3000))
    path, address = {
        "small": (kept.folder / "small.jpg", f"/headlift/small/{kept.id}"),
        "mesh": (kept.folder / "view.glb", f"/headlift/mesh/{kept.id}"),
        "file": (kept.file, f"/headlift/file/{kept.id}/head"),
        "upload": (picture, f"/gradio_api/file={picture}"),
    }[what]
    before = path.read_bytes()

    def change() -> None:
        path.unlink()
        if fate == "replaced":
            path.write_bytes(b"another one")

    status, headers, body = fetched(routes, visitor, address, change)
    assert status == 200
    assert int(headers["content-length"]) == len(body)
    assert body == before
    assert headers["cache-control"] == "no-store"
    again = fetched(routes, visitor, address)
    assert again[0] == (404 if fate == "deleted" else 200)
    assert fetched(routes, "nobody", address)[0] == 404
    path.write_bytes(before)  # for the next case


def test_the_page_can_show_an_upload_that_has_been_looked_at(desk: Desk, visitor: str, routes: object) -> None:
    """Gradio's page asks for the preview when it likes: before the photo is looked at, meanwhile, or after."""
    picture = sent(desk, "me.png", astronaut_jpeg())
    desk.take_photo(visitor, "tab", picture, "me.png")
    status, headers, body = fetched(routes, visitor, f"/gradio_api/file={picture}")
    assert (status, headers["content-type"], body) == (200, "image/png", astronaut_jpeg())
    desk.sweep()
    assert Path(picture).exists()


def test_uploads_run_as_no_page_and_lead_nowhere_else(desk: Desk, visitor: str, routes: object) -> None:
    for name in ("evil.svg", "evil.html"):
        headers = fetched(routes, visitor, f"/gradio_api/file={sent(desk, name, b'<script>1</script>')}")[1]
        assert headers["content-type"] == "application/octet-stream"
        assert headers["content-disposition"].startswith("attachment")
    for path in (
        "/etc/hostname",
        f"{desk.uploads}/../visitors",
        f"{desk.uploads}/{300 * 'x'}",
        "http://evil.example/a",
    ):
        assert fetched(routes, visitor, f"/gradio_api/file={path}")[0] == 404


def astronaut_jpeg() -> bytes:
    import io

    from skimage.data import astronaut

    stream = io.BytesIO()
    Image.fromarray(astronaut()).save(stream, "JPEG")
    return stream.getvalue()


def test_a_taken_port_is_told() -> None:
    first = bound_socket(AppConfig(port=0))
    host, port = first.getsockname()
    first.listen()
    assert host == "127.0.0.1"
    with pytest.raises(ConfigError, match=f"port {port}"):
        bound_socket(AppConfig(port=port))
    first.close()


def test_amounts_near_zero_are_none() -> None:
    assert amounts_of({"smile": 0.0, "age": 1.5, "beard": -1e-6}) == (("age", 1.5),)
