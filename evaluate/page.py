"""The table and the page of an evaluation: `table.md` and `index.html` beside the pictures."""

from __future__ import annotations

from html import escape
from pathlib import Path

from headlift.evaluate.prior import AIM_DEPTH, AIM_GAIN, AIMS, Evaluation, by_yaw, depth_median, gain, seconds_a_head
from headlift.export.files import write_text

TABLE = "table.md"
PAGE = "index.html"


def write_page(out: Path, evaluation: Evaluation) -> None:
    """Write `out/table.md` and `out/index.html`; the pictures are there. Raises OutputError when it cannot."""
    write_text(out / TABLE, markdown(evaluation))
    write_text(out / PAGE, html(evaluation))


def table(evaluation: Evaluation) -> list[list[str]]:
    """The means by absolute yaw as text for people, headings first."""
    rows = evaluation.rows
    psnr, ssim, apart = by_yaw(rows, "psnr"), by_yaw(rows, "ssim"), by_yaw(rows, "perceptual")
    better = gain(evaluation)
    lines = [["view", "PSNR, dB", "aim", "SSIM", "perceptual"] + (["over the mean head, dB"] if better else [])]
    for yaw in psnr:
        aim = f"{AIMS[yaw]:g}" if yaw in AIMS else ""
        line = [_view(yaw), f"{psnr[yaw]:.2f}", aim, f"{ssim[yaw]:.3f}", f"{apart[yaw]:.3f}"]
        lines.append(line + ([f"{better[yaw]:+.2f}" if yaw in better else ""] if better else []))
    return lines


def _view(yaw: str) -> str:
    """One of `by_yaw`'s names for people."""
    sides = "" if yaw == "180" else "\N{PLUS-MINUS SIGN}"
    return {"0": "input", "front": "front"}.get(yaw, f"{sides}{yaw}\N{DEGREE SIGN}")


def notes(evaluation: Evaluation) -> list[str]:
    """What the table does not say, a sentence each."""
    found = []
    depth = depth_median(evaluation.rows)
    if depth is not None:
        found.append(
            f"Depth at the input view: median error {depth:.4f} units after the best shift (aim: at most {AIM_DEPTH})."
        )
    if evaluation.baseline:
        found.append(
            f"Over the mean head: from the searched code less from the mean head's, on {len(evaluation.baseline)} of "
            f"the heads (aim: {AIM_GAIN:g} dB at 30 and 60 degrees)."
        )
    if evaluation.distribution is not None:
        d = evaluation.distribution
        found.append(
            f"Sliced Wasserstein distance, times 1000: {d.mean('samples'):.2f} of random heads to the folder's, "
            f"{d.mean('halves'):.2f} of two halves of these, {d.ratio:.2f} times as much (aim: twice); {d.pictures} "
            "pictures on each side."
        )
    found.append(
        f"{len(evaluation.rows)} heads, preset {evaluation.config.preset}, "
        f"{seconds_a_head(evaluation.rows):.0f} s a head on "
        f"{', '.join(sorted({row.device for row in evaluation.rows}))}; weights {evaluation.config.weights} "
        f"({evaluation.weights_sha256[:12]})."
    )
    return found


def markdown(evaluation: Evaluation) -> str:
    """The table with its notes."""
    return in_markdown(table(evaluation), notes(evaluation))


def html(evaluation: Evaluation) -> str:
    """The page: the table, then each head's pictures, truth above result."""
    parts = [f"<h1>How good the prior is</h1>{in_html(table(evaluation), notes(evaluation))}"]
    if evaluation.distribution is not None:
        about = "Random heads of the prior above, heads of the folder below"
        parts.append(_figure("pictures/samples.jpg", "Random heads", about))
    starts = {row.head: row for row in evaluation.baseline}
    for row in evaluation.rows:
        for found in (row, starts.get(row.head)):
            if found is not None:
                means = by_yaw([found], "psnr")
                about = "  ".join(f"{_view(yaw)} {value:.1f} dB" for yaw, value in means.items())
                depth = "" if found.depth is None else f"  depth {found.depth:.4f}"
                title = found.head if found.start == "search" else f"{found.head}, from the mean head"
                parts.append(_figure(f"pictures/{found.head}-{found.start}.jpg", title, about + depth))
    return as_page("evaluate prior", "\n".join(parts))


def _figure(source: str, title: str, about: str) -> str:
    return (
        f"<section><h2>{escape(title)}</h2><p>{escape(about)}</p>"
        f"<img loading='lazy' src='{escape(source)}' alt='{escape(title)}: truth above, result below'></section>"
    )


# What pages of evaluations have in common


def in_markdown(table: list[list[str]], notes: list[str]) -> str:
    """A table, headings first, with notes below."""

    def row(cells: list[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    heading, *lines = table
    text = [row(heading), row(["---"] * len(heading)), *map(row, lines), ""]
    return "\n".join([*text, *(f"- {note}" for note in notes)]) + "\n"


def in_html(table: list[list[str]], notes: list[str]) -> str:
    """The same in HTML."""
    heading, *lines = table
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heading)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    remarks = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f"<div class='wide'><table><tr>{head}</tr>{body}</table></div><ul>{remarks}</ul>"


def as_page(title: str, body: str) -> str:
    """A whole page."""
    return _PAGE.format(title=escape(title), body=body)


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} \u2013 headlift</title>
<style>
:root {{ color-scheme: light dark; --ground: #f6f5f2; --card: #fff; --ink: #22242a; --soft: #6b6f78; --line: #e2e0da; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ground: #16181c; --card: #1f2227; --ink: #e8e8e4; --soft: #9aa0aa;
  --line: #33373e; }} }}
body {{ margin: 0 auto; max-width: 1400px; padding: 32px 20px; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }}
h1 {{ font-size: 28px; }} h2 {{ font-size: 17px; margin: 0; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 5px 18px 5px 0; border-bottom: 1px solid var(--line); text-align: left; }}
th, p, li {{ color: var(--soft); font-weight: 400; }} p {{ margin: 0 0 8px; font-size: 14px; }}
section {{ background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px 18px;
  margin: 16px 0; }}
img {{ width: 100%; display: block; }}
.wide {{ overflow-x: auto; }} section h3 {{ font-size: 14px; font-weight: 600; margin: 10px 0 4px; }}
section h3 span {{ font-weight: 400; color: var(--soft); }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
