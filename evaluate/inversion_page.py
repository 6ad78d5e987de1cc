"""Tables and page of a comparison of methods: `table.md`, `table.csv` and `index.html` beside the pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import median
from urllib.parse import quote

from headlift.evaluate.inversion import BETTER, Comparison, Group, Verdict, means, to_csv, verdicts
from headlift.evaluate.page import as_page, in_html, in_markdown
from headlift.evaluate.statistics import LEVEL, Interval, fewest
from headlift.evaluate.subjects import Kind
from headlift.export.files import write_text

COLUMNS: Mapping[str, tuple[str, int]] = {
    "psnr": ("PSNR in view, dB", 2),
    "psnr_30": ("PSNR \N{PLUS-MINUS SIGN}30\N{DEGREE SIGN}, dB", 2),
    "psnr_60": ("PSNR \N{PLUS-MINUS SIGN}60\N{DEGREE SIGN}, dB", 2),
    "ssim": ("SSIM", 3),
    "ssim_60": ("SSIM \N{PLUS-MINUS SIGN}60\N{DEGREE SIGN}", 3),
    "ms_ssim": ("MS-SSIM", 3),
    "perceptual": ("perceptual", 3),
    "perceptual_30": ("perceptual \N{PLUS-MINUS SIGN}30\N{DEGREE SIGN}", 3),
    "perceptual_60": ("perceptual \N{PLUS-MINUS SIGN}60\N{DEGREE SIGN}", 3),
    "lpips": ("LPIPS", 3),
    "identity": ("identity", 3),
    "identity_over_yaw": ("identity over yaw", 3),
    "pose": ("pose, \N{DEGREE SIGN}", 1),
    "camera_error": ("camera error, \N{DEGREE SIGN}", 2),
    "depth": ("depth, units", 4),
    "landmarks_30": ("landmarks \N{PLUS-MINUS SIGN}30\N{DEGREE SIGN}, %", 2),
    "silhouette_60": ("silhouette \N{PLUS-MINUS SIGN}60\N{DEGREE SIGN}", 3),
    "consistency": ("consistency, dB", 1),
    "symmetry": ("symmetry, dB", 1),
    "seconds": ("seconds", 0),
    "memory": ("memory, GiB", 2),
    "steps": ("steps", 0),
}
"""What the table shows, where some method has it, with its decimals."""
PLAIN = frozenset({"seconds", "memory", "steps"})
"""Without intervals."""
KINDS: Mapping[Kind, str] = {"photo": "photo", "views": "head", "sample": "sample"}
SHORT = ("psnr", "psnr_30", "psnr_60", "perceptual", "perceptual_60", "depth", "camera_error", "seconds")
"""What a terminal has room for, without intervals."""


def write_page(out: Path, comparison: Comparison) -> None:
    """Write the tables and the page; the pictures are there. Raises OutputError when it cannot."""
    lines, remarks = table(comparison), notes(comparison)
    write_text(out / "table.md", in_markdown(lines, remarks))
    write_text(out / "table.csv", to_csv(comparison))
    write_text(out / "index.html", html(comparison, lines, remarks))


def table(comparison: Comparison, short: bool = False) -> list[list[str]]:
    """Means with their intervals, a line for each kind of image and method, headings first; `short` for a terminal."""
    there = set(comparison.figures)
    shown = [name for name in (SHORT if short else COLUMNS) if name in there and not _always_zero(comparison, name)]
    plain = PLAIN | set(SHORT if short else ())
    sets = not short and any(group.sets for group in comparison.groups)
    lines = [["method", "images", *(COLUMNS[name][0] for name in shown), *(["FID", "KID"] if sets else [])]]
    for group in comparison.groups:
        found = {name: means(group, name) for name in shown}
        for method in comparison.methods:
            done = sum(row.method == method and not row.error for row in group.rows)
            cells = [_in_words(found[name].get(method), COLUMNS[name][1], name in plain, done) for name in shown]
            if sets:
                one = group.sets.get(method)
                cells += ["", ""] if one is None else [f"{one.fid:.1f}", f"{one.kid:.4f}"]
            lines.append([method, _count(done, group.kind), *cells])
    return lines


def _always_zero(comparison: Comparison, figure: str) -> bool:
    """As the error of cameras that are known and kept is."""
    return not any(row.figures.get(figure) for row in comparison.rows)


def _in_words(found: Interval | None, decimals: int, plain: bool, done: int) -> str:
    if found is None:
        return ""
    about = [] if plain or found.n < 2 else [f"{found.low:.{decimals}f} to {found.high:.{decimals}f}"]
    about += [f"n {found.n}"] if found.n < done else []
    return f"{found.mean:.{decimals}f}" + (f" ({', '.join(about)})" if about else "")


def _count(number: int, kind: Kind) -> str:
    return f"{number} {KINDS[kind]}{'s' if number != 1 else ''}"


def notes(comparison: Comparison) -> list[str]:
    """What the table does not say, a sentence each."""
    config = comparison.config
    found = [
        f"Means over the images, with {LEVEL:.0%} bootstrap intervals, and n where fewer have the figure; "
        f"{', '.join(_count(len(group.images), group.kind) for group in comparison.groups)}, "
        f"preset {config.preset}{'' if config.steps is None else f', at most {config.steps} steps a stage'}, on "
        f"{'; '.join(sorted({row.device for row in comparison.rows if row.device})) or 'nothing yet'}; weights "
        f"{config.weights} ({comparison.weights_sha256[:12]})."
    ]
    for group in comparison.groups:
        found += _comparisons(group)
        if any(row.figures.get("camera_error") for row in group.rows):
            found.append(_cameras(group))
        counts = {(one.n, one.true) for one in group.sets.values()}
        if counts:
            pictures = ", ".join(f"{n} against {true}" for n, true in sorted(counts))
            found.append(f"FID and KID with torchvision's Inception v3, pictures of {KINDS[group.kind]}s: {pictures}.")
    if "camera_start" in comparison.figures and config.camera_off:
        found.append(f"Cameras start {config.camera_off:g} degrees off in yaw and in pitch.")
    if not comparison.complete:
        found.append("Not complete: the same command goes on.")
    return found + [f"{row.image}, {row.method}: {row.error}" for row in comparison.rows if row.error]


def _comparisons(group: Group) -> list[str]:
    """What can be said of differences between methods on images of one kind."""
    pairs = math.comb(len(group.methods), 2)
    images = _count(len(group.images), group.kind)
    if pairs and len(group.images) < fewest(pairs):
        return [
            f"No difference between methods can be shown by a test on {images}: for {pairs} pair"
            f"{'s' if pairs != 1 else ''} of methods it takes {fewest(pairs)}."
        ]
    return [_compared(found, group.kind) for name in BETTER if (found := verdicts(group, name))]


def _compared(found: Sequence[Verdict], kind: Kind) -> str:
    """Which methods the one with the best mean is better than in a figure."""
    best = found[0].best
    better, unclear = ([v for v in found if v.best == best and v.shown is shown] for shown in (True, False))
    about = f"{_name(found[0].figure)}, on {_count(found[0].gain.n, kind)}: {best}"
    if not better:
        smallest = min(v.p for v in unclear)
        return f"{about} has the best mean; no difference is shown to be one (smallest p {smallest:.2g})."
    rest = f"; not shown to differ from {', '.join(v.other for v in unclear)}" if unclear else ""
    return f"{about} is better than {', '.join(_gain(v) for v in better)}{rest} (Wilcoxon, Holm over all pairs)."


def _gain(verdict: Verdict) -> str:
    gain = verdict.gain
    decimals = COLUMNS[verdict.figure][1] if verdict.figure in COLUMNS else 3
    span = f"{gain.low:.{decimals}f} to {gain.high:.{decimals}f}"
    return f"{verdict.other} by {gain.mean:.{decimals}f} ({span}, p {verdict.p:.2g})"


def _cameras(group: Group) -> str:
    """By their medians: a few cameras are far off."""
    found = {method: group.values(method, "camera_error").values() for method in group.methods}
    told = [
        f"{method} {median(values):.1f} ({min(values):.1f} to {max(values):.1f})"
        for method, values in found.items()
        if values
    ]
    return f"Camera error on {KINDS[group.kind]}s, degrees, median (least to most): {', '.join(told)}."


def _name(figure: str) -> str:
    return COLUMNS[figure][0] if figure in COLUMNS else figure.replace("_", " ")


def html(comparison: Comparison, lines: list[list[str]], remarks: list[str]) -> str:
    """The page: the table with its notes, then for each image what is true and what every method shows."""
    parts = [f"<h1>Inversion methods</h1>{in_html(lines, remarks)}"]
    for image in dict.fromkeys(row.image for row in comparison.rows if not row.error):
        rows = [row for row in comparison.rows if row.image == image and not row.error]
        strips = [_strip(f"{image}.jpg", "truth", "the photo, and the true new views where they are known")]
        for row in rows:
            figures = row.figures
            about = " \N{MIDDLE DOT} ".join(
                f"{COLUMNS[name][0]} {figures[name]:.{COLUMNS[name][1]}f}"
                for name in ("psnr", "psnr_30", "psnr_60", "perceptual", "depth", "camera_error", "seconds")
                if figures.get(name)
            )
            strips.append(_strip(f"{image}--{row.method}.jpg", row.method, about))
        parts.append(f"<section><h2>{escape(image)}</h2>{''.join(strips)}</section>")
    return as_page("evaluate inversion", "\n".join(parts))


def _strip(file: str, title: str, about: str) -> str:
    source = quote(f"pictures/{file}")
    return (
        f"<h3>{escape(title)} <span>{escape(about)}</span></h3>"
        f"<img loading='lazy' src='{source}' alt='{escape(title)}: the photo&#39;s view, then new views'>"
    )
