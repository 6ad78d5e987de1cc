"""The app in real headless Chromium: what a user does, what goes wrong for users, and what must never leave."""

from __future__ import annotations

import io
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from chromium import CHROMIUM, FLAGS
from PIL import Image
from safetensors import safe_open

from headlift.app.desk import Looked
from headlift.app.files import files_below
from headlift.app.server import COOKIE
from headlift.config import AppConfig, ReconstructConfig, preset
from headlift.errors import FaceError

PATIENCE = 600_000
"""Milliseconds that a condition may take to come true on a busy machine."""


def tiny(name: str, method: str) -> ReconstructConfig:
    """Settings that take seconds; `standard` goes on until it is stopped."""
    config = preset("fast", "best")
    latent = replace(config.inversion.latent, steps=3, candidates=2, w_stats_samples=20)
    steps = 3 if name == "fast" else 5000
    tuning = replace(config.inversion.tuning, steps=steps, side_views=2, finish_steps=2)
    inversion = replace(config.inversion, latent=latent, tuning=tuning, preview_every=1)
    return replace(config, inversion=inversion, mesh=replace(config.mesh, resolution=48, views=2))


@dataclass
class Running:
    desk: Any
    address: str
    port: int


@pytest.fixture(scope="module")
def app() -> Iterator[Running]:
    import uvicorn

    from headlift.app.server import bound_socket, make_site

    config = AppConfig(port=0, max_mb=5.0)
    listening = bound_socket(config)
    site = make_site(config, tiny)
    server = uvicorn.Server(uvicorn.Config(site.asgi, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    port = listening.getsockname()[1]
    yield Running(site.desk, f"http://127.0.0.1:{port}/", port)
    server.should_exit = True
    thread.join(20)
    site.close()
    assert not site.folder.exists()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@dataclass
class Visit:
    """A visitor's page, with what it asked for and complained about."""

    page: Any
    requests: list[str]
    complaints: list[str]
    token: str


def visit(browser: Any, app: Running, width: int = 1280) -> Visit:
    context = browser.new_context(viewport={"width": width, "height": 900}, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda r: requests.append(r.url))
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.goto(app.address)
    page.wait_for_selector("#hl-astronaut")
    token = next(c["value"] for c in context.cookies() if c["name"] == COOKIE)
    return Visit(page, requests, complaints, token)


@pytest.fixture(scope="module")
def ada(browser: Any, app: Running) -> Iterator[Visit]:
    """A visitor who stays for all of the walk."""
    made = visit(browser, app)
    yield made
    made.page.context.close()


def astronaut() -> bytes:
    from skimage.data import astronaut as photo

    stream = io.BytesIO()
    Image.fromarray(photo()).save(stream, "PNG")
    return stream.getvalue()


def send(page: Any, name: str, content: bytes, kind: str = "image/png") -> None:
    page.set_input_files(
        "#hl-drop input[type=file]", files=[{"name": name, "mimeType": kind, "buffer": content}], strict=False
    )


def picture(page: Any, figure: str = ".hl-after") -> np.ndarray:
    """What a figure shows, at one size: on the page sides differ by a pixel or two."""
    seen = Image.open(io.BytesIO(page.locator(f"{figure} img").screenshot())).convert("RGB")
    return np.asarray(seen.resize((256, 256)), dtype=float)


def at_rest(page: Any) -> None:
    page.wait_for_selector(".hl-after img[data-draft='0']")


def shows(visit: Visit, id: str) -> None:
    """The stage shows this head, and the last picture that was asked for is its own."""
    visit.page.wait_for_selector(f".hl-stage[data-head='{id}'] .hl-after img[data-draft='0']")
    assert f"/headlift/view/{id}?" in [url for url in visit.requests if "/headlift/view/" in url][-1]
    assert picture(visit.page).std() > 20  # a head on white, not a blank


def files_of(app: Running, token: str) -> list[Path]:
    return files_below(app.desk.visitors.folder(token))


def photos_of(app: Running, token: str) -> list[Looked]:
    """The photos that a visitor works on, one for each tab."""
    return [photo for (visitor, _), photo in app.desk._photos.items() if visitor == token]


def until(met: Any, seconds: float = PATIENCE / 1000) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


def test_upload_verdict_and_lift(ada: Visit, app: Running) -> None:
    page = ada.page
    send(page, 'ada <img src=x onerror="document.title=1">.png', astronaut())
    page.wait_for_selector(".hl-word")
    assert "should work well" in page.inner_text("#hl-verdict")
    assert page.locator("#hl-look img, .hl-look img").count() == 1
    page.click("#hl-go")
    page.wait_for_selector(".hl-bar")
    page.wait_for_selector(".hl-stage")
    at_rest(page)
    assert page.title() == "headlift"  # the file's name is text, nothing else
    title = page.inner_text(".hl-title h2")
    assert "<" not in title
    assert title.startswith("ada")
    assert page.locator(".hl-card").count() == 1
    shows(ada, app.desk.heads(ada.token)[0].id)


def test_drag_and_keys_turn_the_head(ada: Visit) -> None:
    page = ada.page
    at_rest(page)
    before = picture(page)
    box = page.locator(".hl-stage").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    for i in range(1, 6):
        page.mouse.move(x - 20 * i, y)
    page.wait_for_selector(".hl-after img[data-draft='1']")
    page.mouse.up()
    at_rest(page)
    after = picture(page)
    assert np.abs(before - after).mean() > 2
    assert "from the head's left" in page.inner_text(".hl-angle")
    page.locator(".hl-stage").focus()
    page.keyboard.press("Home")
    page.wait_for_function("document.querySelector('.hl-after img').dataset.seen === '0.00 0.00'")
    assert page.inner_text(".hl-angle") == "from the front"


def test_a_stage_that_goes_while_it_waits_for_a_picture_shows_the_next_one(ada: Visit) -> None:
    page = ada.page
    at_rest(page)
    page.evaluate("""async () => {
        const stage = document.querySelector('.hl-stage'), place = stage.parentElement, after = stage.nextSibling;
        const press = () => stage.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowUp' }));
        press();  // is being drawn
        press();  // waits
        stage.remove();
        await new Promise(done => setTimeout(done, 1500));
        place.insertBefore(stage, after);
    }""")
    page.wait_for_selector(".hl-after img[data-draft='0'][data-seen='0.00 0.17']")


def test_sliders_change_the_head_and_show_before_and_after(ada: Visit, app: Running) -> None:
    page = ada.page
    at_rest(page)
    before = picture(page)
    frames = int(page.get_attribute(".hl-after img", "data-frames"))
    slider = page.get_by_role("slider", name=re.compile("mouth", re.I)).first
    slider.focus()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    page.wait_for_function(f"Number(document.querySelector('.hl-after img').dataset.frames) > {frames}")
    at_rest(page)
    assert np.abs(before - picture(page)).mean() > 0.5
    page.wait_for_function("Number(document.querySelector('.hl-drift output').textContent) > 0")
    assert 0.01 < float(page.locator(".hl-drift meter").evaluate("meter => meter.value")) < 1
    assert "0 is the same head" in page.inner_text(".hl-drift")
    page.check("#hl-compare input")
    page.wait_for_selector(".hl-before img[data-draft='0']")
    sides = picture(page, ".hl-before"), picture(page, ".hl-after")
    assert np.abs(sides[0] - sides[1]).mean() > 0.5
    page.uncheck("#hl-compare input")
    page.click("#hl-keep")
    page.wait_for_function("document.querySelectorAll('.hl-card').length === 2")
    page.wait_for_function("document.querySelector('.hl-drift output').textContent === '0.00'")  # of the new head
    assert "edited" in page.inner_text(".hl-title h2")
    edited, original = (kept.id for kept in app.desk.heads(ada.token))
    shows(ada, edited)
    for id in (original, edited):
        page.click(f".hl-card[data-open='{id}']")
        shows(ada, id)


def test_downloads_are_read_by_other_libraries(
    ada: Visit, browser: Any, app: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headlift.config import MeshConfig

    quick = MeshConfig(resolution=48, texture_size=256)
    monkeypatch.setattr("headlift.app.desk.MeshConfig", lambda texture: replace(quick, texture=texture))
    page = ada.page
    page.get_by_role("tab", name="Take it along").click()
    with page.expect_download() as waiting:
        page.click("#hl-export-head")
    waiting.value.save_as(tmp_path / "mine.safetensors")
    with page.expect_download():  # a second time
        page.click("#hl-export-head")
    with safe_open(tmp_path / "mine.safetensors", "np") as stored:
        assert stored.get_tensor("ws").shape[0] == 1
    with page.expect_download() as waiting:
        page.click("#hl-export-glb")
    assert waiting.value.suggested_filename.endswith(".glb")
    waiting.value.save_as(tmp_path / "mine.glb")
    scene = trimesh.load(tmp_path / "mine.glb")
    assert sum(len(part.faces) for part in scene.geometry.values()) > 500
    page.get_by_role("tab", name="Mesh in 3D").click()
    page.wait_for_function("document.querySelector('model-viewer')?.loaded")

    # The files are the visitor's alone; somebody else opens the head from its file.
    address = page.get_attribute(".hl-download", "href")
    other = visit(browser, app, width=390)
    for path in (address, address.replace("/file/", "/view/").rpartition("/")[0], "/headlift/mesh/" + "0" * 16):
        assert other.page.evaluate("path => fetch(path).then(answer => answer.status)", path) == 404
    with other.page.expect_file_chooser() as chooser:
        other.page.click("#hl-open")
    chooser.value.set_files(tmp_path / "mine.safetensors")
    at_rest(other.page)
    assert other.page.inner_text(".hl-title h2") == "mine"
    assert other.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0  # fits a phone
    unnamed = other.page.evaluate(
        "[...document.querySelectorAll('button, input, select, textarea')].filter(e => e.checkVisibility() && !("
        "e.getAttribute('aria-label') || e.labels?.length || e.innerText?.trim() || e.title)).map(e => e.outerHTML)"
    )
    assert unnamed == []
    other.page.context.close()


def test_bad_files_end_in_a_message_and_a_clean_state(ada: Visit, browser: Any, app: Running) -> None:
    nobody = visit(browser, app)
    page = nobody.page
    meadow = io.BytesIO()
    Image.new("RGB", (320, 240), (80, 140, 70)).save(meadow, "PNG")
    for name, content, said in (
        ("meadow.png", meadow.getvalue(), "No face was found"),
        ("../../notes.png", b"only words", "not a picture"),
        ("huge.jpg", b"\xff\xd8" + bytes(30_000_000), "30 MB"),
    ):
        send(page, name, content)
        page.wait_for_function("said => document.querySelector('#hl-notice').innerText.includes(said)", arg=said)
        assert files_of(app, nobody.token) == []
    until(lambda: not files_below(app.desk.uploads))
    assert not page.locator("#hl-go").is_visible()
    # After all that a good photo still works; two at once end in one photo, the same file twice as well.
    for first, second in (("one.png", "two.png"), ("same.png", "same.png")):
        send(page, first, astronaut())
        send(page, second, astronaut())
        page.wait_for_selector(".hl-word")
        names = {Path(first).stem, Path(second).stem}
        until(lambda names=names: [photo.name in names for photo in photos_of(app, nobody.token)] == [True])
        until(lambda: len(files_of(app, nobody.token)) == 1)
        assert page.locator("#hl-notice .hl-alert").count() == 0
    page.context.close()


def test_a_stopped_lift_is_kept_and_a_closed_tab_ends_one(browser: Any, app: Running) -> None:
    guest = visit(browser, app)
    page = guest.page
    page.click("#hl-astronaut")
    page.wait_for_selector(".hl-word")
    estimate = page.inner_text("#hl-estimate")
    page.check("#hl-preset input[value=standard]")
    page.wait_for_function("was => document.querySelector('#hl-estimate').innerText !== was", arg=estimate)
    page.click("#hl-go")
    page.wait_for_function("document.querySelector('.hl-line')?.innerText.includes('Tuning')")
    page.wait_for_selector("#hl-stop", state="visible")
    page.dispatch_event("#hl-stop", "click")  # `click` waits for a page that stands still; this one shows every step
    at_rest(page)
    assert page.locator(".hl-card").count() == 1
    page.click("#hl-go")
    page.wait_for_selector("#hl-discard", state="visible")
    page.dispatch_event("#hl-discard", "click")
    shows(guest, app.desk.heads(guest.token)[0].id)  # as before
    assert not page.locator(".hl-empty").is_visible()
    page.click("#hl-go")
    page.wait_for_selector(".hl-bar")
    until(lambda: guest.token in app.desk.queue.busy_visitors())
    page.context.close()
    until(lambda: guest.token not in app.desk.queue.busy_visitors())
    assert len(app.desk.heads(guest.token)) == 1


def test_the_face_shown_is_the_one_that_will_be_lifted(app: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    import gradio as gr
    from starlette.requests import Request

    from headlift.app.page import Page

    def unclear(*choice: object) -> Looked:
        raise FaceError("The features of face 2 cannot be made out.")

    visitor = app.desk.visitors.enter(None)
    monkeypatch.setattr(app.desk, "_photos", {(visitor, "tab"): Looked(Path("two.png"), "two", 1, 2, b"", "", ())})
    monkeypatch.setattr(app.desk, "choose_face", unclear)
    page = Page(app.desk)
    with gr.Blocks() as blocks:
        page.lay_out(blocks)
    scope = {"type": "http", "headers": [(b"cookie", f"{COOKIE}={visitor}".encode())]}
    told = page.choose_face(2, gr.Request(Request(scope), session_hash="tab"))
    assert told[page.face] == 1
    assert "cannot be made out" in told[page.notice]


def test_nothing_is_asked_of_other_hosts(browser: Any, app: Running, ada: Visit) -> None:
    """A page with a head on it, and, where the walk above was taken, all that it asked for and complained about."""
    guest = visit(browser, app)
    guest.page.click("#hl-random")
    at_rest(guest.page)
    for one in (guest, ada):
        assert len(one.requests) > 5
        assert [url for url in one.requests if not url.startswith((app.address, "data:", "blob:"))] == []
        assert one.complaints == []
    guest.page.context.close()


def test_only_this_machine_is_listened_to(app: Running) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(app.address, headers={"Host": "evil.example"}))
    assert refused.value.code == 421
    with socket.socket(socket.AF_INET) as other:
        other.settimeout(5)
        assert other.connect_ex(("127.0.0.2", app.port)) != 0  # loopback too, but not the address that was bound
