"""`report.html`: one file that shows how a head came about, with the head itself to turn in it.

Pictures, curves, the viewer's script and the mesh are all inside, so the page opens from the disk with the network
off; its content policy forbids the browser to fetch anything.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from headlift.export.clean import simplify
from headlift.export.files import write_text
from headlift.export.gltf import glb_bytes
from headlift.export.images import crop_overlay, jpeg_bytes, png_bytes, pose_overlay, shrink
from headlift.export.mesh import Mesh
from headlift.export.placement import Placement
from headlift.values import Crop, Step, Verdict

VIEWER_FACES = 150_000
"""Triangles of the mesh inside the page; the mesh files beside it have them all."""


@dataclass(frozen=True)
class Report:
    """What the page tells. Everything but the name may be missing; its part of the page is then left out."""

    name: str
    """What the head is called, such as the photo's file name."""
    photo: UInt8[np.ndarray, "ph pw 3"] | None = None
    """The photo; landmarks and pose are drawn on it here."""
    crop: Crop | None = None
    target: UInt8[np.ndarray, "th tw 3"] | None = None
    """The crop as it was inverted, on white by the mask where the prior wants it so."""
    inversion: UInt8[np.ndarray, "ih iw 3"] | None = None
    """The head rendered from the photo's camera."""
    views: UInt8[np.ndarray, "vh vw 3"] | None = None
    """The grid of views all round."""
    depth: UInt8[np.ndarray, "dh dw 3"] | None = None
    """The depth map in colours, from the photo's camera."""
    normals: UInt8[np.ndarray, "nh nw 3"] | None = None
    """The normal map, from the photo's camera."""
    mesh: Mesh | None = None
    placement: Placement = field(default_factory=Placement)
    history: Sequence[Step] = ()
    """All steps of the optimisation with their losses."""
    reason: str = ""
    """Why the optimisation ended."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall-clock time of each part."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Tables of settings, nested as in config.toml."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Other things worth a line, such as the weights and their licence."""


def write_report(path: Path | str, report: Report) -> None:
    """Write the page. Raises OutputError when the place cannot be written."""
    write_text(path, report_html(report))


def report_html(report: Report) -> str:
    """The page as a string."""
    parts = [
        _header(report),
        _section("From the photo", _figures(report), _POSE_NOTE),
        _section("The head", _viewer(report), _MESH_NOTE),
        _section("All round", _wide(report.views, "The head from all sides")),
        _section("How it was found", _curves(report.history), report.reason),
        _section("Verdict on the photo", _verdict(report.crop.verdict if report.crop else None)),
        '<div class="columns">',
        _section("Measured", _table({_words(k): _number(v) for k, v in report.metrics.items()})),
        _section("Time", _times(report.seconds)),
        "</div>",
        _section("Settings", _settings(report.settings)),
    ]
    viewer = f'<script type="module">{viewer_script()}</script>' if report.mesh is not None else ""
    return _PAGE.format(title=escape(report.name), style=_STYLE, body="\n".join(p for p in parts if p), viewer=viewer)


def viewer_script() -> str:
    """The vendored `<model-viewer>`, made safe to stand inside a script element."""
    source = resources.files("headlift.export.data").joinpath("model-viewer.min.js").read_text(encoding="utf-8")
    source = source[: source.rindex("//# sourceMappingURL=")] if "//# sourceMappingURL=" in source else source
    # Inside strings and regular expressions `<\/` and `<\!` mean the same, and no longer end or open anything in HTML.
    return source.replace("</script", "<\\/script").replace("<!--", "<\\!--")


# Parts of the page

_POSE_NOTE = (
    "The pose found in the photo, the crop it gives, and the head seen by the same camera. Axes: red to the head's "
    "left, green up, blue forwards."
)
_MESH_NOTE = (
    "Drag to turn, scroll to come closer. The mesh is in metres; the files beside this page have all its triangles."
)


def _header(report: Report) -> str:
    chips = []
    if "psnr" in report.metrics:
        chips.append(f"PSNR {report.metrics['psnr']:.1f} dB")
    if report.seconds:
        chips.append(_duration(sum(report.seconds.values())))
    if report.mesh is not None:
        chips.append(f"{len(report.mesh.faces):,} triangles".replace(",", "\u2009"))
    if report.crop is not None:
        chips.append("photo looks good" if report.crop.verdict.ok else "photo with doubts")
    facts = "".join(f"<li><b>{escape(k)}</b> {escape(v)}</li>" for k, v in report.facts.items())
    return (
        f"<header><p class='brand'>headlift</p><h1>{escape(report.name)}</h1>"
        f"<p class='chips'>{''.join(f'<span>{escape(c)}</span>' for c in chips)}</p>"
        + (f"<ul class='facts'>{facts}</ul>" if facts else "")
        + "</header>"
    )


def _section(title: str, content: str, note: str = "") -> str:
    if not content:
        return ""
    about = f"<p class='note'>{escape(note)}</p>" if note else ""
    return f"<section><h2>{escape(title)}</h2>{about}{content}</section>"


def _figures(report: Report) -> str:
    figures = []
    if report.photo is not None:
        drawn = pose_overlay(report.photo, report.crop) if report.crop is not None else report.photo
        figures.append(_figure(_jpeg(shrink(drawn, 1200)), "Photo, landmarks and pose", "photo"))
    if report.crop is not None:
        figures.append(_figure(_png(crop_overlay(report.crop)), "Crop"))
    if report.target is not None:
        figures.append(_figure(_png(report.target), "What is inverted"))
    if report.inversion is not None:
        figures.append(_figure(_png(report.inversion), "The head, same camera"))
    if report.depth is not None:
        figures.append(_figure(_png(report.depth), "Depth: near is yellow"))
    if report.normals is not None:
        figures.append(_figure(_png(report.normals), "Normals"))
    return f"<div class='figures'>{''.join(figures)}</div>" if figures else ""


def _figure(source: str, caption: str, kind: str = "square") -> str:
    return (
        f"<figure class='{kind}'><img src='{source}' alt='{escape(caption)}'>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _wide(picture: UInt8[np.ndarray, "h w 3"] | None, caption: str) -> str:
    return "" if picture is None else f"<img class='wide' src='{_png(picture)}' alt='{escape(caption)}'>"


def _viewer(report: Report) -> str:
    if report.mesh is None:
        return ""
    glb = glb_bytes(simplify(report.mesh, VIEWER_FACES), replace(report.placement, up=None))  # a GLB is y up
    return (
        "<model-viewer id='head' camera-controls touch-action='pan-y' interaction-prompt='none' "
        "camera-orbit='0deg 90deg 85%' field-of-view='20deg' min-field-of-view='4deg' max-field-of-view='40deg' "
        "min-camera-orbit='auto 5deg auto' max-camera-orbit='auto 175deg auto' shadow-intensity='0' "
        "environment-image='neutral' tone-mapping='commerce' exposure='0.9' loading='eager' "
        f"alt='The head as a mesh' src='{_data('model/gltf-binary', glb)}'></model-viewer>"
        "<noscript><p class='note'>The mesh needs JavaScript; the mesh files beside this page do not.</p></noscript>"
    )


def _curves(history: Sequence[Step]) -> str:
    stages: dict[str, list[Step]] = {}
    for step in history:
        if step.losses:
            stages.setdefault(step.stage, []).append(step)
    charts = [
        f"<figure class='chart'><figcaption>{escape(_words(stage))}: {steps[-1].index} steps</figcaption>"
        f"{loss_chart(steps)}</figure>"
        for stage, steps in stages.items()
    ]
    return f"<div class='columns'>{''.join(charts)}</div>" if charts else ""


def loss_chart(steps: Sequence[Step], width: int = 560, height: int = 300) -> str:
    """The losses of one stage as an SVG: steps to the right, losses on a logarithmic scale upwards.

    Values that are not positive have no place on it and leave a gap; a loss that never is positive is left out.
    """
    names = list(dict.fromkeys(name for step in steps for name in step.losses))
    series = {
        name: [(step.index, step.losses[name]) for step in steps if _drawable(step.losses.get(name))] for name in names
    }
    series = {name: points for name, points in series.items() if points}
    if not series:
        return "<p class='note'>No losses to show.</p>"
    values = [v for points in series.values() for _, v in points]
    low, high = math.log10(min(values)), math.log10(max(values))
    low, high = (low - 0.5, high + 0.5) if high - low < 0.1 else (low - 0.04 * (high - low), high + 0.04 * (high - low))
    first, last = steps[0].index, max(steps[-1].index, steps[0].index + 1)
    left, right, top, bottom = 56, 12, 10 + 18 * math.ceil(len(series) / 3), 34

    def x(index: int) -> float:
        return left + (index - first) / (last - first) * (width - left - right)

    def y(value: float) -> float:
        return top + (high - math.log10(value)) / (high - low) * (height - top - bottom)

    parts = [f"<svg viewBox='0 0 {width} {height}' role='img' aria-label='Losses over the steps'>"]
    for tick in _log_ticks(low, high):
        parts.append(f"<line class='grid' x1='{left}' x2='{width - right}' y1='{y(tick):.1f}' y2='{y(tick):.1f}'/>")
        parts.append(f"<text x='{left - 8}' y='{y(tick) + 4:.1f}' text-anchor='end'>{tick:g}</text>")
    for tick in _ticks(first, last):
        parts.append(f"<text x='{x(tick):.1f}' y='{height - 12}' text-anchor='middle'>{tick}</text>")
    parts.append(f"<line class='axis' x1='{left}' x2='{width - right}' y1='{height - bottom}' y2='{height - bottom}'/>")
    for i, (name, points) in enumerate(series.items()):
        line = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in _thinned(points, 400))
        parts.append(f"<polyline class='s{i % 6}' points='{line}'/>")
        at = left + i % 3 * (width - left - right) / 3
        row = 12 + 18 * (i // 3)
        parts.append(f"<line class='s{i % 6}' x1='{at:.0f}' x2='{at + 18:.0f}' y1='{row}' y2='{row}'/>")
        parts.append(f"<text x='{at + 24:.0f}' y='{row + 4}'>{escape(_words(name))} {_number(points[-1][1])}</text>")
    return "".join(parts) + "</svg>"


def _drawable(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0


def _thinned(points: list[tuple[int, float]], most: int) -> list[tuple[int, float]]:
    """At most `most` points, evenly, the first and the last among them."""
    if len(points) <= most:
        return points
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 of each power of ten between 10^low and 10^high, thinned to the powers where they are many."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    fine = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= math.log10(m * 10.0**p) <= high]
    coarse = [10.0**p for p in powers if low <= p <= high]
    return fine if len(fine) <= 7 else coarse[:: math.ceil(len(coarse) / 7)]


def _ticks(first: int, last: int) -> list[int]:
    """Round step numbers between the first and the last, about five."""
    raw = (last - first) / 5
    size = 10 ** math.floor(math.log10(max(raw, 1)))
    step = next(size * m for m in (1, 2, 5, 10) if size * m >= raw)
    return list(range(math.ceil(first / step) * step, last + 1, step))


def _verdict(verdict: Verdict | None) -> str:
    if verdict is None or not verdict.findings:
        return ""
    rows = "".join(
        f"<tr class='{'good' if f.ok else 'doubt'}'><td class='mark'>{'✓' if f.ok else '!'}</td>"
        f"<td>{escape(_words(f.name))}</td><td class='n'>{_number(f.value)}</td><td class='n'>{_number(f.limit)}</td>"
        f"<td>{escape(f.message)}</td></tr>"
        for f in verdict.findings
    )
    head = "<tr><th></th><th>What</th><th class='n'>Value</th><th class='n'>Limit</th><th></th></tr>"
    return f"<table class='verdict'>{head}{rows}</table>"


def _table(rows: Mapping[str, str]) -> str:
    body = "".join(f"<tr><td>{escape(k)}</td><td class='n'>{escape(v)}</td></tr>" for k, v in rows.items())
    return f"<table>{body}</table>" if body else ""


def _times(seconds: Mapping[str, float]) -> str:
    if not seconds:
        return ""
    total = sum(seconds.values())
    rows = "".join(
        f"<tr><td>{escape(_words(k))}</td><td class='bar'><i style='width:{100 * v / max(total, 1e-9):.1f}%'></i></td>"
        f"<td class='n'>{_duration(v)}</td></tr>"
        for k, v in seconds.items()
    )
    return f"<table>{rows}<tr class='sum'><td>Together</td><td></td><td class='n'>{_duration(total)}</td></tr></table>"


def _settings(settings: Mapping[str, Any]) -> str:
    flat = _flattened(settings)
    if not flat:
        return ""
    return f"<details><summary>{len(flat)} settings</summary>{_table(flat)}</details>"


def _flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def _words(name: str) -> str:
    return name.replace("_", " ")


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{int(seconds) // 60} min {int(seconds) % 60} s"


def _png(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    return _data("image/png", png_bytes(pixels))


def _jpeg(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    return _data("image/jpeg", jpeg_bytes(pixels))


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


_STYLE = """
:root { color-scheme: light dark; --ground: #f6f5f2; --card: #ffffff; --ink: #22242a; --soft: #6b6f78;
  --line: #e2e0da; --stage: linear-gradient(#fbfbfa, #e4e4e1); --accent: #2f6fb3; --good: #2e8550; --doubt: #b4571b;
  --c0: #2f6fb3; --c1: #d1622b; --c2: #2e8b62; --c3: #8a55b5; --c4: #b88a00; --c5: #b0405f; }
@media (prefers-color-scheme: dark) { :root { --ground: #16181c; --card: #1f2227; --ink: #e8e8e4; --soft: #9aa0aa;
  --line: #33373e; --stage: linear-gradient(#3a3e45, #23262b); --accent: #7db2ea; --good: #63c48a; --doubt: #eda06a;
  --c0: #7db2ea; --c1: #f09a6c; --c2: #6ccba0; --c3: #c197e8; --c4: #e0bf55; --c5: #ea86a3; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 64px; }
header { margin-bottom: 28px; }
.brand { margin: 0; color: var(--soft); font-size: 13px; letter-spacing: .14em; text-transform: uppercase; }
h1 { margin: 2px 0 12px; font-size: 32px; line-height: 1.2; font-weight: 650; overflow-wrap: anywhere; }
h2 { margin: 0 0 6px; font-size: 18px; font-weight: 650; }
.chips { margin: 0; display: flex; flex-wrap: wrap; gap: 8px; }
.chips span { padding: 3px 12px; border: 1px solid var(--line); border-radius: 99px; background: var(--card);
  font-size: 14px; font-variant-numeric: tabular-nums; }
.facts { margin: 14px 0 0; padding: 0; list-style: none; color: var(--soft); font-size: 14px;
  overflow-wrap: anywhere; }
.facts b { color: var(--ink); font-weight: 600; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 20px 22px;
  margin-bottom: 20px; min-width: 0; }
.note { margin: 0 0 14px; color: var(--soft); font-size: 14px; max-width: 72ch; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(46%, 190px), 1fr)); gap: 16px; }
figure { margin: 0; min-width: 0; }
figure.photo { grid-column: span 2; grid-row: span 2; }
figure img { width: 100%; display: block; border-radius: 8px; background: #fff; }
figcaption { margin-top: 6px; color: var(--soft); font-size: 13.5px; }
img.wide { width: 100%; display: block; border-radius: 8px; }
model-viewer { display: block; width: 100%; height: min(72vh, 620px); border-radius: 10px;
  background: var(--stage); --progress-bar-color: var(--accent); --poster-color: transparent; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 20px; }
.columns > section { margin-bottom: 20px; }
.chart figcaption { margin: 0 0 6px; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
svg .grid { stroke: var(--line); } svg .axis { stroke: var(--soft); }
svg polyline, svg line[class^=s] { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.s0 { stroke: var(--c0); } .s1 { stroke: var(--c1); } .s2 { stroke: var(--c2); } .s3 { stroke: var(--c3); }
.s4 { stroke: var(--c4); } .s5 { stroke: var(--c5); }
table { border-collapse: collapse; width: 100%; font-size: 14.5px; }
td, th { padding: 6px 10px 6px 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  overflow-wrap: break-word; }
tr:last-child td { border-bottom: 0; }
th { color: var(--soft); font-weight: 500; font-size: 13px; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.verdict .n { padding-right: 18px; }
.mark { font-weight: 700; width: 1.6em; } .good .mark { color: var(--good); } .doubt .mark { color: var(--doubt); }
.bar { width: 45%; vertical-align: middle; } .bar i { display: block; height: 8px; min-width: 2px;
  border-radius: 4px; background: var(--accent); }
.sum td { font-weight: 600; }
summary { cursor: pointer; color: var(--accent); }
details table { margin-top: 10px; font-size: 13.5px; }
footer { color: var(--soft); font-size: 13px; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'wasm-unsafe-eval'; connect-src data: blob:; worker-src blob:">
<title>{title} \u2013 headlift</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
<footer>Made by headlift. This page needs no network; the viewer inside is &lt;model-viewer&gt; (Apache-2.0).</footer>
</main>
{viewer}
</body>
</html>
"""  # noqa: E501
