"""The app's server: Gradio's page at the root, and beside it what the page asks for by itself, each visitor their own.

| address | gives |
|---|---|
| `/headlift/view/ID?yaw=..&pitch=..&draft=0` | a head's picture; other parameters are amounts of directions |
| `/headlift/drift/ID?NAME=AMOUNT` | how far an edit takes a head from being the same person, as JSON |
| `/headlift/file/ID/KIND` | a file that has been written for a head, to be downloaded |
| `/headlift/mesh/ID` | the head's GLB, to be shown |
| `/headlift/small/ID` | its thumbnail |
| `/headlift/static/NAME` | the page's own script and style, and `<model-viewer>` |
| `/gradio_api/file=PATH` | an upload, which Gradio's page shows until the photo has been looked at |

Nothing is loaded from other hosts: the content policy forbids it, and Gradio's telemetry is off.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import mimetypes
import os
import re
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from headlift.app.files import bytes_below
from headlift.config import AppConfig, preset
from headlift.errors import ConfigError, HeadliftError

if TYPE_CHECKING:
    from starlette.responses import Response

    from headlift.app.desk import Desk, Presets

COOKIE = f"headlift-visitor-{secrets.token_hex(4)}"
"""Of this process alone: browsers keep cookies by host, and another app may run at another port."""
STATIC = {"app.js": "text/javascript", "app.css": "text/css", "model-viewer.js": "text/javascript"}
PICTURES = frozenset({"image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/avif"})
"""Uploads that a browser may show; anything else may only be downloaded, so that no upload runs as a page of ours."""
PORTION = 2**18
"""Bytes of a file that are sent at a time."""
SWEEP_SECONDS = 10.0
UPLOAD = "/gradio_api/upload"
"""Where Gradio takes files."""
MOST_UPLOADS = 20
"""So many of the largest files may lie among the uploads."""
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; "
    "style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; worker-src 'self' blob:; "
    "connect-src 'self' data: blob:; frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)
"""Gradio's page carries scripts in its HTML and compiles templates; nothing may come from, or go to, another host."""


@dataclass(frozen=True)
class Site:
    """The web application with what is behind it."""

    asgi: Any
    desk: Desk
    folder: Path
    """Where all visitors' files are, until `close`."""

    def close(self) -> None:
        """End all jobs and delete all files."""
        self.desk.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def make_site(config: AppConfig, presets: Presets = preset) -> Site:
    """Load the generator and build the web application; nothing listens yet.

    Raises:
        ConfigError: a setting is out of range, or the extra `app` is not installed.
        HeadliftError: the generator cannot be loaded.
    """
    check(config)
    folder = Path(tempfile.mkdtemp(prefix="headlift-app-"))
    quiet_gradio(folder / "uploads")
    try:
        import gradio
        from fastapi import FastAPI
    except ImportError as error:
        folder.rmdir()
        raise ConfigError(
            f"The app needs the extra `app` ({error.name} is missing): pip install 'headlift[app]'."
        ) from None
    from headlift.app.desk import Desk
    from headlift.app.page import HEAD, build, theme

    try:
        desk = Desk(config, folder, presets)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise

    @contextlib.asynccontextmanager
    async def alive(app: FastAPI) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(sweep_now_and_then(desk))
        yield
        sweeping.cancel()

    app = FastAPI(title="headlift", docs_url=None, redoc_url=None, openapi_url=None, lifespan=alive)
    add_routes(app, desk)
    gradio.mount_gradio_app(
        app,
        build(desk),
        path="",
        server_name=config.host,
        server_port=config.port,
        footer_links=[],
        run_history=False,
        max_file_size=most_bytes(config),
        show_error=True,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme(),
        head=HEAD,
    )
    return Site(Gate(app, desk, allowed_hosts(config.host)), desk, folder)


def check(config: AppConfig) -> None:
    """Raises ConfigError when a limit is one that nothing passes."""
    for flag, value, least in (
        ("--queue", config.queue, 0),
        ("--keep-minutes", config.keep_minutes, 1),
        ("--max-mb", config.max_mb, 1),
        ("--max-head-mb", config.max_head_mb, 1),
        ("--max-megapixels", config.max_megapixels, 1),
    ):
        if not least <= value < math.inf:
            raise ConfigError(f"{flag} is {value:g}, but must be a number from {least} on")


def most_bytes(config: AppConfig) -> int:
    """Of a file that is taken, whatever it is."""
    return round(1e6 * max(config.max_mb, config.max_head_mb))


def quiet_gradio(uploads: Path) -> None:
    """Before Gradio is imported: no telemetry, no look-ups at other hosts, uploads into a folder of ours."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)


def add_routes(app: Any, desk: Desk) -> None:
    """What the page asks for beside Gradio. Answers are for the visitor alone and are kept by no cache."""
    from starlette.requests import Request
    from starlette.responses import JSONResponse, PlainTextResponse, Response

    from headlift.app.desk import FORMATS, THUMBNAIL, suffix_of
    from headlift.app.files import VisitError, upload_at
    from headlift.app.views import amounts_of

    private = {"Cache-Control": "no-store"}

    def route(path: str, give: Callable[[str, Request], Response]) -> None:
        def answer(request: Request) -> Response:
            try:
                return give(desk.visitors.known(request.cookies.get(COOKIE)), request)
            except (HeadliftError, ValueError) as error:
                return PlainTextResponse(str(error), 404, headers=private)

        app.add_route(path, answer)

    def view(visitor: str, request: Request) -> Response:
        numbers = {name: float(value) for name, value in request.query_params.items()}
        yaw, pitch, draft = (numbers.pop(name, 0.0) for name in ("yaw", "pitch", "draft"))
        seen = desk.view(visitor, request.path_params["id"])
        return Response(
            seen.jpeg(yaw, pitch, bool(draft), amounts_of(numbers)), media_type="image/jpeg", headers=private
        )

    def drift(visitor: str, request: Request) -> Response:
        amounts = amounts_of({name: float(value) for name, value in request.query_params.items()})
        found = desk.view(visitor, request.path_params["id"]).drift(amounts)
        told = {"value": found.value, "measure": found.measure, "stand_in": found.stand_in}
        return JSONResponse(told, headers=private)

    def small(visitor: str, request: Request) -> Response:
        return opened(desk.head(visitor, request.path_params["id"]).folder / THUMBNAIL, "image/jpeg", private)

    def mesh(visitor: str, request: Request) -> Response:
        return opened(desk.shown_mesh(visitor, request.path_params["id"]), "model/gltf-binary", private)

    def file(visitor: str, request: Request) -> Response:
        kept, kind = desk.head(visitor, request.path_params["id"]), request.path_params["kind"]
        path = desk.exported(visitor, kept.id, kind) if kind in FORMATS else None
        if path is None:
            raise ValueError("This file has not been written.")
        return opened(path, None, private | attachment(f"{kept.name}.{suffix_of(kind)}"))

    def upload(visitor: str, request: Request) -> Response:
        path = upload_at(request.path_params["path"], desk.uploads)
        if path is None:
            raise VisitError("This upload is not here (any more).")
        kind = mimetypes.guess_type(path.name)[0]
        if kind in PICTURES:
            return opened(path, kind, private)
        return opened(path, None, private | attachment(path.name))

    def static(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in STATIC:
            return PlainTextResponse("not here", 404)
        return Response(static_bytes(name), media_type=STATIC[name], headers={"Cache-Control": "max-age=60"})

    route("/headlift/view/{id}", view)
    route("/headlift/drift/{id}", drift)
    route("/headlift/small/{id}", small)
    route("/headlift/mesh/{id}", mesh)
    route("/headlift/file/{id}/{kind}", file)
    route("/gradio_api/file={path:path}", upload)
    app.add_route("/headlift/static/{name}", static)


def opened(path: Path, media_type: str | None, headers: dict[str, str]) -> Response:
    """A file as an answer, opened before the answer begins: whoever replaces or deletes the file meanwhile, what is
    sent is of one piece and as long as it was said to be. Raises VisitError when it is not there."""
    from starlette.responses import StreamingResponse

    from headlift.app.files import VisitError

    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise VisitError("This file is not here (any more).") from None

    def portions() -> Iterator[bytes]:
        with file:
            while portion := file.read(PORTION):
                yield portion

    size = str(os.fstat(file.fileno()).st_size)
    return StreamingResponse(
        portions(), media_type=media_type or "application/octet-stream", headers=headers | {"Content-Length": size}
    )


def attachment(name: str) -> dict[str, str]:
    """The header that makes a browser download an answer under a name."""
    return {"Content-Disposition": f"attachment; filename*=utf-8''{quote(name)}"}


def static_bytes(name: str) -> bytes:
    """The page's own script and style, and the vendored viewer."""
    if name == "model-viewer.js":
        return resources.files("headlift.export.data").joinpath("model-viewer.min.js").read_bytes()
    return resources.files("headlift.app").joinpath("static", name).read_bytes()


class Gate:
    """In front of everything: known hosts only (against DNS rebinding), no requests by other sites' pages, a cookie for
    the visitor, a content policy, and no more uploads than there is room for."""

    def __init__(self, inner: Any, desk: Desk, hosts: frozenset[str] | None) -> None:
        self._inner, self._desk, self._hosts = inner, desk, hosts
        self._arriving = 0
        """Bytes of the uploads that are under way."""

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = re.sub(r":\d+$", "", headers.get("host", ""))
        if self._hosts is not None and host.lower() not in self._hosts:
            await refuse(send, 421, "headlift does not answer to this name")
            return
        if foreign(scope["method"], headers):
            await refuse(send, 403, "headlift does not answer to the pages of others")
            return
        added = [
            (b"content-security-policy", POLICY.encode()),
            (b"referrer-policy", b"no-referrer"),
            (b"x-content-type-options", b"nosniff"),
        ]
        if scope["path"] in ("", "/") and scope["method"] == "GET":
            mine = cookie_in(headers.get("cookie", ""))
            token = self._desk.visitors.enter(mine)
            if token != mine:
                added.append((b"set-cookie", f"{COOKIE}={token}; Path=/; HttpOnly; SameSite=Lax".encode()))

        async def send_with_headers(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *added]}
            await send(message)

        length = headers.get("content-length", "") if scope["path"] == UPLOAD else "0"
        if not length.isdecimal():
            await refuse(send, 411, "How long is this file?")
            return
        self._arriving += int(length)
        try:
            if int(length) and not await self._has_room():
                await refuse(send, 413, "There is no room for this file now. Try again in a minute.")
            else:
                await self._inner(scope, receive, send_with_headers)
        finally:
            self._arriving -= int(length)

    async def _has_room(self) -> bool:
        """Do the uploads that are under way fit beside those that are here?"""
        here = await asyncio.to_thread(bytes_below, self._desk.uploads)
        return here + self._arriving <= MOST_UPLOADS * most_bytes(self._desk.config)


async def refuse(send: Any, status: int, why: str) -> None:
    """Answer with a line of text."""
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": why.encode()})


def foreign(method: str, headers: Mapping[str, str]) -> bool:
    """Does a page of another site ask, in a visitor's browser? Links from there to here may be followed.

    Browsers tell `Sec-Fetch-Site` to this machine and over TLS; elsewhere the `Origin`, with all that is no plain GET.
    """
    site = headers.get("sec-fetch-site")
    if site is None:
        origin = headers.get("origin")
        return origin is not None and origin.partition("://")[2] != headers.get("host")
    followed = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
    return site not in ("same-origin", "none") and not (followed and headers.get("sec-fetch-dest") == "document")


def cookie_in(header: str) -> str | None:
    """The visitor's token in a Cookie header."""
    found = re.search(rf"(?:^|;\s*){COOKIE}=([\w-]+)", header)
    return found[1] if found else None


def allowed_hosts(host: str) -> frozenset[str] | None:
    """Names that the server answers to; None for all, where it was opened to the network."""
    if host in ("0.0.0.0", "::"):
        return None
    return frozenset({"localhost", "127.0.0.1", "[::1]", in_address(host).lower()})


def in_address(host: str) -> str:
    """A host as it stands in addresses."""
    return f"[{host}]" if ":" in host else host


async def sweep_now_and_then(desk: Desk) -> None:
    """Delete what nobody asks for any more."""
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        try:
            await asyncio.to_thread(desk.sweep)
        except Exception:  # the next one may go better, and must not be left out
            logging.getLogger(__name__).exception("files of visitors could not be swept")


def bound_socket(config: AppConfig) -> socket.socket:
    """The socket that the server listens on. Raises ConfigError when the port is taken or the address not ours."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((config.host, config.port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise ConfigError(
            f"Cannot listen on {config.host}, port {config.port} ({error}). Is the app running already? Take another "
            "port with --port, or 0 for a free one."
        ) from None
    return listening


def serve(config: AppConfig, on_ready: Callable[[str], None], presets: Presets = preset) -> None:
    """Run the app until it is interrupted; `on_ready` is told its address.

    Raises:
        ConfigError: a setting is out of range, the extra `app` is missing, or the port is taken.
        HeadliftError: the generator cannot be loaded.
    """
    listening = bound_socket(config)
    try:
        site = make_site(config, presets)
    except BaseException:
        listening.close()
        raise
    import uvicorn

    server = uvicorn.Server(
        uvicorn.Config(site.asgi, log_level="warning", access_log=False, timeout_graceful_shutdown=3)
    )
    before = end_tidily()
    try:
        site.desk.measure("fast", "best")
        shown = "localhost" if config.host in ("127.0.0.1", "0.0.0.0", "::", "::1") else in_address(config.host)
        on_ready(f"http://{shown}:{listening.getsockname()[1]}")
        server.run(sockets=[listening])
    finally:
        site.close()
        listening.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def end_tidily() -> dict[int, Any]:
    """Let signals that end a process end it as an exception does, so that visitors' files go; returns the handlers
    before. Threads other than the main one get no signals."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        return {}
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    return {number: signal.signal(number, leave) for number in (getattr(signal, name) for name in names)}
