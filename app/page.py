"""The page: what stands where, and which of the desk's answers goes where. Pictures are turned by `static/app.js`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, get_args

import gradio as gr

from headlift.app import parts
from headlift.app.desk import Desk, Format, Kept, Looked
from headlift.app.jobs import Job, State
from headlift.app.timing import time_left
from headlift.app.views import amounts_of
from headlift.config import Method, Preset
from headlift.editing.directions import Direction
from headlift.errors import HeadliftError

HEAD = (
    '<meta name="color-scheme" content="light dark">'
    '<link rel="stylesheet" href="/headlift/static/app.css">'
    '<script src="/headlift/static/app.js" defer></script>'
)
METHODS = tuple(method for method in get_args(Method) if method != "multi")
GROUPS = {
    "Expression": ("smile", "toothy_smile", "open_mouth", "eyes_closed", "brows_up", "frown", "gaze_x", "gaze_y"),
    "Age and build": ("age", "gender", "weight"),
    "Hair": ("hair_length", "hair_light", "hair_red", "hair_curl", "beard", "stubble"),
    "Skin and eyes": ("skin_dark", "freckles", "makeup", "eyes_light"),
}
"""Which directions stand together; all others go under `Shape`."""
LABELS: dict[Format, str] = {
    "glb": "GLB",
    "obj": "OBJ (zip)",
    "ply": "PLY",
    "stl": "STL",
    "mp4": "Video",
    "head": "Head file",
}
MOST = 3.0
"""How far a slider goes to either side, standard deviations."""
POLL_SECONDS = 0.7
"""Between two looks at a job's progress."""
OPEN_JS = """
element.addEventListener('click', event => {
  const card = event.target.closest('[data-open]');
  if (card) trigger('click', {id: card.dataset.open});
});
"""
Update = dict[Any, Any]


def theme() -> gr.themes.Base:
    """Quiet colours and the fonts of the machine: none is fetched."""
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "DejaVu Sans", "sans-serif"]
    return gr.themes.Base(
        primary_hue="blue", neutral_hue="stone", radius_size="lg", font=fonts, font_mono=["ui-monospace", "monospace"]
    ).set(
        body_background_fill="#f6f5f2",
        body_background_fill_dark="#16181c",
        button_primary_background_fill="#2f6fb3",
        button_primary_background_fill_hover="#285f99",
        button_primary_text_color="#ffffff",
        button_primary_background_fill_dark="#2f6fb3",
    )


def build(desk: Desk) -> gr.Blocks:
    """The page over a desk."""
    with gr.Blocks(title="headlift", analytics_enabled=False, fill_width=True) as page:
        Page(desk).lay_out(page)
    return page


def visitor_of(request: gr.Request) -> str:
    """Whose page sent this."""
    from headlift.app.server import COOKIE

    inner = request.request
    return "" if inner is None else str(dict(inner.cookies).get(COOKIE, ""))


def tab_of(request: gr.Request) -> str:
    """The tab that sent this: unique for each time the page was loaded."""
    return str(request.session_hash)


class Page:
    """Components by name, and the events that join them to the desk."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.sliders: list[gr.Slider] = []
        self.names: list[str] = []

    # Layout

    def lay_out(self, page: gr.Blocks) -> None:
        gr.HTML(parts.HEADER, elem_id="hl-header")
        self.head_id = gr.State("")
        with gr.Row(elem_id="hl-main", equal_height=False):
            with gr.Column(scale=4, min_width=320, elem_id="hl-left"):
                self._lay_out_photo()
            with gr.Column(scale=7, min_width=320, elem_id="hl-right"):
                self._lay_out_head()
        self.recent = gr.HTML(parts.recent(()), js_on_load=OPEN_JS, elem_id="hl-recent")
        gr.HTML(parts.footer(self.desk.config.keep_minutes), elem_id="hl-footer")
        self._join(page)

    def _lay_out_photo(self) -> None:
        self.drop = gr.Image(
            label="Photo: drop it here, paste it, or take one",
            sources=["upload", "webcam", "clipboard"],
            type="filepath",
            height=210,
            buttons=[],
            elem_id="hl-drop",
        )
        with gr.Row(elem_classes="hl-buttons"):
            self.astronaut = gr.Button("Try the astronaut", size="sm", elem_id="hl-astronaut")
            self.random = gr.Button("Random head", size="sm", elem_id="hl-random")
            self.open = gr.UploadButton("Open a head file", size="sm", file_count="single", elem_id="hl-open")
        self.notice = gr.HTML("", elem_id="hl-notice")
        self.verdict = gr.HTML("", elem_id="hl-verdict", visible=False)
        self.face = gr.Radio([], label="Which face?", visible=False, elem_id="hl-face")
        with gr.Column(visible=False, elem_id="hl-settings") as self.settings:
            self.preset = gr.Radio(
                [(name.capitalize(), name) for name in get_args(Preset)],
                value="fast",
                label="How thorough?",
                elem_id="hl-preset",
            )
            self.estimate = gr.HTML("", elem_id="hl-estimate")
            with gr.Accordion("More settings", open=False):
                self.method = gr.Dropdown(
                    list(METHODS),
                    value="best",
                    label="Method",
                    info="best is headlift's own; the others are as published.",
                    elem_id="hl-method",
                )
            self.go = gr.Button("Lift the head", variant="primary", size="lg", elem_id="hl-go")

    def _lay_out_head(self) -> None:
        self.progress = gr.HTML(parts.EMPTY, elem_id="hl-progress")
        with gr.Row(visible="hidden", elem_classes="hl-buttons", elem_id="hl-stop-row") as self.stop_row:
            self.stop = gr.Button("Stop and keep what there is", size="sm", elem_id="hl-stop")
            self.discard = gr.Button("Discard", size="sm", elem_id="hl-discard")
        with gr.Column(visible=False, elem_id="hl-head") as self.workbench:
            self.stage = gr.HTML("", elem_id="hl-stage-box")
            with gr.Tabs(elem_id="hl-tabs"):
                if self.desk.directions is not None:
                    with gr.Tab("Change it"):
                        self._lay_out_sliders()
                with gr.Tab("Mesh in 3D"):
                    self.mesh = gr.HTML("", elem_id="hl-mesh")
                    self.make_mesh = gr.Button("Make the textured mesh", size="sm", elem_id="hl-make-mesh")
                with gr.Tab("Take it along"):
                    gr.HTML(parts.TAKE_ALONG)
                    with gr.Row(elem_classes="hl-buttons"):
                        self.exports = {
                            kind: gr.Button(label, size="sm", elem_id=f"hl-export-{kind}")
                            for kind, label in LABELS.items()
                        }
                    self.written = gr.HTML("", elem_id="hl-written")

    def _lay_out_sliders(self) -> None:
        assert self.desk.directions is not None
        entries = {entry.name: entry for entry in self.desk.directions.entries}
        grouped = {group: [entries[n] for n in names if n in entries] for group, names in GROUPS.items()}
        named = {name for names in GROUPS.values() for name in names}
        grouped["Shape"] = [entry for name, entry in entries.items() if name not in named]
        with gr.Row(elem_classes="hl-buttons"):
            self.compare = gr.Checkbox(False, label="Before and after", elem_id="hl-compare", container=False)
            self.reset = gr.Button("Back to the start", size="sm", elem_id="hl-reset")
            self.keep = gr.Button("Keep as a new head", size="sm", elem_id="hl-keep")
        gr.HTML(parts.DRIFT, elem_id="hl-drift")
        for number, (group, members) in enumerate(grouped.items()):
            if members:
                with gr.Accordion(group, open=number == 0), gr.Row(elem_classes="hl-sliders"):
                    for entry in members:
                        self.sliders.append(slider(entry))
                        self.names.append(entry.name)

    # Events

    def _join(self, page: gr.Blocks) -> None:
        """Every event ends in a message or a result: the desk's errors are told in `notice`."""
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        one: dict[str, Any] = {**private, "trigger_mode": "always_last"}
        looked = [self.drop, self.notice, self.verdict, self.face, self.settings, self.estimate, self.go]
        shown = [
            self.head_id, self.progress, self.stop_row, self.workbench, self.stage, self.mesh, self.make_mesh,
            self.written, self.recent, self.notice, self.go, *self.sliders,
        ]  # fmt: skip
        page.load(self.load, None, [self.recent], **private)
        page.unload(self.leave)
        self.drop.input(self.take_photo, self.drop, looked, preprocess=False, **one)
        self.astronaut.click(self.take_example, None, looked, **private)
        self.face.input(self.choose_face, self.face, looked, **one)
        for chosen in (self.preset, self.method, self.verdict):
            chosen.change(self.tell_time, [self.preset, self.method], self.estimate, concurrency_limit=None, **one)
        lifted = self.go.click(self.lift, [self.preset, self.method], shown, concurrency_limit=None, **private)
        lifted.then(self.settle, self.head_id, [self.progress, self.workbench], **private)
        self.stop.click(self.stop_job, None, self.notice, **private)
        self.discard.click(self.discard_job, None, self.notice, **private)
        self.random.click(self.random_head, None, shown, **private)
        self.open.upload(self.open_file, self.open, shown, preprocess=False, **private)
        self.recent.click(self.open_recent, None, shown, **private)
        if self.sliders:
            tell = f"(...amounts) => {{ headlift.edit({self.names!r}, amounts) }}"
            for one_slider in self.sliders:
                one_slider.change(None, self.sliders, None, js=tell, **private)
            self.compare.change(None, self.compare, None, js="(on) => { headlift.compare(on) }", **private)
            self.reset.click(lambda: [0.0] * len(self.sliders), None, self.sliders, **private)
            self.keep.click(self.keep_edit, [self.head_id, *self.sliders], shown, **private)
        written = [self.head_id, self.written, self.recent, self.notice, self.mesh, self.make_mesh]
        for kind, button in self.exports.items():
            button.click(
                self.export_as(kind), [self.head_id, *self.sliders], written, concurrency_limit=None, **private
            )
        self.make_mesh.click(
            self.show_textured, [self.head_id, *self.sliders], written, concurrency_limit=None, **private
        )

    def load(self, request: gr.Request) -> str:
        return parts.recent(self.desk.heads(visitor_of(request)))

    def leave(self, request: gr.Request) -> None:
        self.desk.leave(tab_of(request))

    def take_photo(self, upload: Any, request: gr.Request) -> Update:
        if not upload:
            return {self.notice: gr.skip()}
        data = upload if isinstance(upload, dict) else upload.model_dump()
        return self._look(
            lambda visitor, tab: self.desk.take_photo(
                visitor, tab, str(data.get("path")), str(data.get("orig_name") or "")
            ),
            request,
        )

    def take_example(self, request: gr.Request) -> Update:
        return self._look(self.desk.take_example, request)

    def choose_face(self, face: int, request: gr.Request) -> Update:
        return self._look(lambda visitor, tab: self.desk.choose_face(visitor, tab, int(face)), request)

    def _look(self, take: Callable[[str, str], Looked], request: gr.Request) -> Update:
        """What `take` makes of a visitor and a tab, on the page."""
        try:
            found = take(visitor_of(request), tab_of(request))
        except HeadliftError as error:
            return {self.drop: None, self.notice: parts.alert(str(error)), **self._face_kept(request)}
        faces = [(f"{n}", n) for n in range(1, found.faces + 1)]
        return {
            self.drop: None,
            self.notice: "",
            self.verdict: gr.update(value=parts.verdict(found), visible=True),
            self.face: gr.update(choices=faces, value=found.face, visible=found.faces > 1),
            self.settings: gr.update(visible=True),
            self.go: gr.update(interactive=self.desk.queue.of(tab_of(request)) is None),
        }

    def _face_kept(self, request: gr.Request) -> Update:
        """The face that the desk works on, if there is a photo."""
        try:
            return {self.face: self.desk.photo(visitor_of(request), tab_of(request)).face}
        except HeadliftError:
            return {}

    async def tell_time(self, name: Preset, method: Method) -> AsyncIterator[str]:
        """How long the chosen settings will take; measured first if nobody has done so yet."""
        job = None
        if self.desk.pace(name, method) is None:
            with contextlib.suppress(HeadliftError):
                job = self.desk.measure(name, method)
        if job is not None:
            yield parts.MEASURING
            async for _ in until_over(job):
                pass
        pace = self.desk.pace(name, method)
        yield parts.estimate(None if pace is None else pace.total(self.desk.settings(name, method)))

    async def lift(self, name: Preset, method: Method, request: gr.Request) -> AsyncIterator[Update]:
        try:
            job = self.desk.lift(visitor_of(request), tab_of(request), name, method)
        except HeadliftError as error:
            yield {self.notice: parts.alert(str(error))}
            return
        config = self.desk.settings(name, method)
        yield {
            self.notice: "",
            self.progress: gr.update(value=parts.waiting(job, self.desk.queue.ahead(job)), visible=True),
            self.stop_row: gr.update(visible=True),
            self.workbench: gr.update(visible=False),
            self.go: gr.update(interactive=False),
        }
        async for _ in until_over(job):
            pace = self.desk.pace(name, method)
            left = time_left(job.steps, job.stamps, time.monotonic(), config, pace)
            ahead = self.desk.queue.ahead(job)
            told = parts.waiting(job, ahead) if job.state is State.WAITING else parts.progress(job, left)
            yield {self.progress: told}
        yield self._after(job, request)

    def _after(self, job: Job[Kept], request: gr.Request) -> Update:
        """What is shown once a lift is over, well or not."""
        if job.state is State.DONE and job.result is not None:
            return self._show(job.result, request)
        now = "" if job.state is State.CALLED_OFF else parts.alert(job.error)
        return {
            self.notice: now,
            self.stop_row: gr.update(visible="hidden"),
            self.go: gr.update(interactive=True),
        }

    def settle(self, id: str) -> Update:
        """The head that stands there once a lift is over, the new one or the one before; else what to do for one."""
        return {
            self.progress: gr.update(value=parts.EMPTY, visible=not id),
            self.workbench: gr.update(visible=bool(id)),
        }

    def stop_job(self, request: gr.Request) -> str:
        job = self.desk.queue.of(tab_of(request))
        if job is not None:
            job.stop()
        return ""

    def discard_job(self, request: gr.Request) -> str:
        self.desk.leave(tab_of(request))
        return ""

    def random_head(self, request: gr.Request) -> Update:
        return self._try(lambda visitor: self.desk.random_head(visitor), request)

    def open_file(self, upload: Any, request: gr.Request) -> Update:
        data = upload[0] if isinstance(upload, list) else upload
        data = data if isinstance(data, dict) else data.model_dump()
        name = str(data.get("orig_name") or "")
        return self._try(lambda visitor: self.desk.open_file(visitor, str(data.get("path")), name), request)

    def open_recent(self, request: gr.Request, event: gr.EventData) -> Update:
        return self._try(lambda visitor: self.desk.head(visitor, str(event.id)), request)

    def keep_edit(self, id: str, request: gr.Request, *values: float | int) -> Update:
        amounts = amounts_of(dict(zip(self.names, values, strict=True)))
        if not amounts:
            return {self.notice: parts.alert("Nothing has been changed yet: move a slider first.")}
        return self._try(lambda visitor: self.desk.keep_edit(visitor, id, amounts), request)

    def _try(self, make: Callable[[str], Kept], request: gr.Request) -> Update:
        """A head that is there at once."""
        try:
            return self._show(make(visitor_of(request)), request)
        except HeadliftError as error:
            return {self.notice: parts.alert(str(error))}

    def _show(self, kept: Kept, request: gr.Request) -> Update:
        busy = self.desk.queue.of(tab_of(request)) is not None
        shown: Update = {
            self.head_id: kept.id,
            self.notice: "",
            self.workbench: gr.update(visible=True),
            self.stage: parts.stage(kept),
            self.mesh: parts.mesh(kept),
            self.make_mesh: gr.update(visible=not parts.textured(kept)),
            self.written: "",
            self.recent: parts.recent(self.desk.heads(visitor_of(request)), kept.id),
            **dict.fromkeys(self.sliders, 0.0),
        }
        if not busy:
            shown |= {
                self.progress: gr.update(visible=False),
                self.stop_row: gr.update(visible="hidden"),
                self.go: gr.update(interactive=True),
            }
        return shown

    def export_as(self, kind: Format) -> Callable[..., AsyncIterator[Update]]:
        """The handler of a download button."""

        async def export(id: str, request: gr.Request, *values: float | int) -> AsyncIterator[Update]:
            async for update in self._export(kind, id, values, request):
                yield update

        return export

    async def show_textured(self, id: str, request: gr.Request, *values: float | int) -> AsyncIterator[Update]:
        async for update in self._export("glb", id, values, request, auto=False):
            yield update

    async def _export(
        self, kind: Format, id: str, values: Sequence[float | int], request: gr.Request, auto: bool = True
    ) -> AsyncIterator[Update]:
        """An edited head is kept first, so that what is taken along is what is seen."""
        visitor = visitor_of(request)
        try:
            kept = self.desk.head(visitor, id)
            amounts = amounts_of(dict(zip(self.names, values, strict=True)))
            if amounts:
                kept = await asyncio.to_thread(self.desk.keep_edit, visitor, id, amounts)
            path = self.desk.exported(visitor, kept.id, kind)
            job = None if path else self.desk.export(visitor, tab_of(request), kept.id, kind)
        except HeadliftError as error:
            yield {self.notice: parts.alert(str(error))}
            return
        yield {self.notice: "", self.recent: parts.recent(self.desk.heads(visitor), id)}
        if job is not None:
            async for _ in until_over(job):
                yield {self.written: parts.writing(job, self.desk.queue.ahead(job))}
            path = job.result
        if path is not None:
            yield {
                self.written: parts.download(kept, kind, path.stat().st_size, auto),
                self.mesh: parts.mesh(kept),
                self.make_mesh: gr.update(visible=not parts.textured(kept)),
            }
        else:
            yield {self.written: "", self.notice: parts.alert((job and job.error) or "Nothing was written.")}


def slider(entry: Direction) -> gr.Slider:
    """A direction's slider, in standard deviations."""
    label = entry.name.replace("_", " ").capitalize()
    return gr.Slider(
        -MOST, MOST, 0.0, step=0.1, label=label, info=entry.about, min_width=210, elem_id=f"hl-slider-{entry.name}"
    )


async def until_over(job: Job) -> AsyncIterator[None]:
    """Now and then, until the job is over."""
    while not job.state.over:
        yield
        await asyncio.sleep(POLL_SECONDS)
