"""Pieces of HTML for the page. Everything that a visitor named is escaped."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence
from html import escape

from headlift.app.desk import MOST_KEPT, PLAIN_MESH, Format, Kept, Looked, exported_name, suffix_of
from headlift.app.jobs import Job
from headlift.export.images import jpeg_bytes
from headlift.export.report import loss_chart
from headlift.values import Finding, Step

CURVES = ("total", "perceptual", "mse")
"""Losses that are drawn while a head is made."""

HEADER = (
    "<header class='hl-top'><h1>headlift</h1>"
    "<p>One photo of a face in, a 3D head out. Everything stays on this machine.</p></header>"
)
EMPTY = (
    "<div class='hl-empty'>"
    "<svg viewBox='0 0 120 120' aria-hidden='true'><path d='M60 14c-24 0-38 17-38 41 0 11 3 19 8 27l4 22c1 5 5 8 10 8"
    "h28c5 0 9-3 10-8l4-22c7-8 12-16 12-27 0-24-14-41-38-41z'/><path d='M60 14v98M22 55h76M30 82c18 7 42 7 60 0'/>"
    "</svg>"
    "<h2>Your head will stand here</h2>"
    "<p>Choose a photo of one face, looking about straight ahead. Or try an example.</p></div>"
)
MEASURING = "<p class='hl-note'><i class='hl-spin'></i> Measuring how long this takes on this machine\u2026</p>"
DRIFT = (
    "<div class='hl-drift'><label for='hl-drift-meter'>Identity drift</label> "
    "<meter id='hl-drift-meter' min='0' max='1' value='0'></meter> <output role='status'></output>"
    "<p class='hl-note'></p></div>"
)
"""How far the sliders take the head from being the same person; `app.js` fills it."""
TAKE_ALONG = (
    "<p class='hl-note'>GLB for Blender, game engines and the web; OBJ with its material; PLY for scripts; STL in "
    "millimetres for printing; a turning video; the head file opens here again. Meshes take a moment.</p>"
)


def footer(keep_minutes: float) -> str:
    """What becomes of a visitor's files."""
    return (
        f"<footer>Your photos and heads are seen by nobody else. They are deleted {duration(60 * keep_minutes)} after "
        "you last did something here, and when the app ends: download what you want to keep.</footer>"
    )


def alert(message: str) -> str:
    """A message about something that did not work, read aloud by screen readers."""
    return f"<div class='hl-alert' role='alert'>{escape(message)}</div>" if message else ""


def verdict(found: Looked) -> str:
    """What was found in a photo: picture, angles, the doubts in the open and the rest folded away."""
    doubts = [f for f in found.findings if not f.ok]
    good = [f for f in found.findings if f.ok]
    word = "This photo should work well." if found.ok else "This photo may work, with doubts."
    return (
        f"<figure class='hl-look'><img src='{data_uri(found.overlay)}' alt='The photo with landmarks, crop and the "
        f"head&#39;s axes'></figure><p class='hl-word {'good' if found.ok else 'doubt'}' role='status'>{word}</p>"
        f"{findings(doubts)}<details class='hl-details'><summary>{len(good)} checks passed</summary>{findings(good)}"
        f"<p class='hl-note'>Pose: {escape(found.line)}.</p></details>"
    )


def findings(found: Sequence[Finding]) -> str:
    """Findings as a list; the mark is text for those who do not see it."""
    lines = "".join(
        f"<li class='{'good' if f.ok else 'doubt'}'><span>{'Good' if f.ok else 'Doubt'}: </span>"
        f"{escape(f.message)}</li>"
        for f in found
    )
    return f"<ul class='hl-findings'>{lines}</ul>" if found else ""


def estimate(seconds: float | None) -> str:
    """How long a lift will take."""
    if seconds is None:
        return "<p class='hl-note'>How long this takes here is measured while it runs.</p>"
    return f"<p class='hl-note'>About <b>{duration(seconds)}</b> on this machine, measured just now.</p>"


def waiting(job: Job, ahead: int) -> str:
    """A job that has not begun."""
    line = "You are next." if ahead <= 1 else f"{ahead} others are before you."
    return f"<div class='hl-run'><h2>{escape(job.title)}</h2><p role='status'>Waiting. {line}</p></div>"


def progress(job: Job, left: float | None) -> str:
    """A running reconstruction: picture, bar, time left, losses."""
    if not job.steps:
        line, share, chart = "Looking at the photo and loading the generator\u2026", 0.0, ""
    else:
        step = job.steps[-1]
        words = {
            "latent": "Searching for the head",
            "tuning": "Tuning the generator to the photo",
            "finish": "Tuning the details, from all round",
            "views": "Tuning to views from all round",
            "superres": "Tuning super-resolution",
        }
        line = f"{words.get(step.stage, step.stage.capitalize())}: step {step.index} of {step.total}"
        share = step.index / max(1, step.total)
        chart = loss_chart([curve(s) for s in job.steps if s.stage == step.stage])
        if step.index == step.total:
            line += "; finishing"
    if job.stopping:
        line = "Stopping; what there is will be kept\u2026"
    remaining = "" if left is None else f"About {duration(left)} left"
    picture = (
        f"<img src='{data_uri(jpeg_bytes(job.picture))}' alt='The head so far'>"
        if job.picture is not None
        else "<div class='hl-blank'></div>"
    )
    return (
        f"<div class='hl-run'><h2>{escape(job.title)}</h2><div class='hl-bar' role='progressbar' aria-valuemin='0' "
        f"aria-valuemax='100' aria-valuenow='{100 * share:.0f}' aria-label='{escape(line)}'>"
        f"<i style='width:{100 * share:.1f}%'></i></div>"
        f"<p class='hl-line'><span>{escape(line)}</span><span>{remaining}</span></p>"
        f"<div class='hl-both'>{picture}<div class='hl-chart'>{chart}</div></div></div>"
    )


def curve(step: Step) -> Step:
    """The step with the losses that are drawn, if it has them; with all where it has none of them."""
    drawn = {name: step.losses[name] for name in CURVES if name in step.losses}
    return Step(step.stage, step.index, step.total, drawn or step.losses)


def stage(kept: Kept) -> str:
    """Where a head is turned; `app.js` fills it."""
    doubts = findings([Finding("doubt", 0.0, 0.0, False, f"Look closely: {doubt}.") for doubt in kept.doubts])
    return (
        f"<div class='hl-title'><h2>{escape(kept.name)}</h2><p class='hl-note'>{escape(kept.about)}</p></div>"
        f"{doubts}"
        f"<div class='hl-stage' data-head='{kept.id}' tabindex='0' role='application' "
        "aria-label='The head. Drag it, or use the arrow keys, to turn it; Home turns it to the front.'>"
        "<figure class='hl-before' hidden><img alt='' draggable='false'><figcaption>before</figcaption></figure>"
        "<figure class='hl-after'><img alt='' draggable='false'><figcaption>after</figcaption></figure></div>"
        "<p class='hl-hint'><span>Drag to turn, or use the arrow keys</span>"
        "<span class='hl-angle' role='status' aria-live='polite'></span></p>"
    )


def textured(kept: Kept) -> bool:
    """Has the mesh for downloading been made?"""
    return (kept.folder / exported_name("glb")).exists()


def mesh(kept: Kept) -> str:
    """The head's mesh to turn in 3D, if there is one."""
    if not textured(kept) and not (kept.folder / PLAIN_MESH).exists():
        return "<p class='hl-note'>This head has no mesh yet.</p>"
    kind = "with its texture" if textured(kept) else "with plain colours"
    return (
        f"<model-viewer src='/headlift/mesh/{kept.id}?{'t' if textured(kept) else 'v'}' camera-controls "
        f"touch-action='pan-y' interaction-prompt='none' camera-orbit='20deg 80deg auto' shadow-intensity='0.6' "
        f"alt='The mesh of the head, {kind}' aria-label='The mesh of the head, {kind}'></model-viewer>"
        f"<p class='hl-note'>The mesh {kind}. Drag to turn, scroll to come closer.</p>"
    )


def writing(job: Job, ahead: int) -> str:
    """A file that is being written."""
    if ahead:
        return f"<p class='hl-note' role='status'>{escape(job.title)}: waiting, {ahead} before you.</p>"
    share = f" {job.steps[-1].index} of {job.steps[-1].total}" if job.steps else ""
    return f"<p class='hl-note' role='status'><i class='hl-spin'></i> {escape(job.title)}\u2026{share}</p>"


def download(kept: Kept, kind: Format, size: int, auto: bool) -> str:
    """A file that is ready; with `auto` the page begins to download it, each time: no two such links are the same."""
    name = escape(f"{kept.name}.{suffix_of(kind)}")
    begin = f" data-auto='{secrets.token_hex(4)}'" if auto else ""
    return (
        f"<p class='hl-note' role='status'>Ready: <a class='hl-download' href='/headlift/file/{kept.id}/{kind}'{begin} "
        f"download='{name}'>{name}</a> ({size / 1e6:.1f} MB)</p>"
    )


def recent(heads: Sequence[Kept], current: str = "") -> str:
    """The visitor's heads, to be opened again."""
    if not heads:
        return ""
    cards = "".join(
        f"<button type='button' class='hl-card' data-open='{kept.id}' "
        f"{'aria-current=true' if kept.id == current else ''}>"
        f"<img src='/headlift/small/{kept.id}' alt='' loading='lazy'><span>{escape(kept.name)}</span></button>"
        for kept in heads
    )
    full = (
        f"<p class='hl-note'>No more than {MOST_KEPT} are kept: with the next one an edit goes, or else the oldest. "
        "Download what you want to keep.</p>"
        if len(heads) >= MOST_KEPT
        else ""
    )
    return (
        f"<section aria-label='Recent heads'><h2>Recent heads</h2>{full}<div class='hl-cards'>{cards}</div></section>"
    )


def duration(seconds: float) -> str:
    """Seconds or minutes in words, no more exact than an estimate is."""
    if seconds < 50:
        return f"{max(5, 5 * round(seconds / 5))} seconds"
    if seconds < 90:
        return "1 minute"
    return f"{round(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.2g} hours"


def data_uri(jpeg: bytes) -> str:
    """A JPEG inside the page."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
