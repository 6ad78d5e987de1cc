"""The pictures of the app's walk, taken in a real Chromium: `python benchmarks/app_pictures.py [FOLDER]`.

Starts the app, lifts the astronaut with the preset that is chosen there at first (`fast`), changes the head, and looks
at it on a phone. Writes `app-lift.jpg`, `app-head.jpg` and `app-phone.jpg` (into `docs/` when no folder is given).
"""

from __future__ import annotations

import io
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from headlift.export.files import write_bytes
from headlift.export.images import jpeg_bytes

PATIENCE = 1_200_000
"""Milliseconds that a lift may take."""
AT = 0.6
"""Share of the tuning at which it is looked at."""
CHANGES = {"Smile": 20, "Open mouth": 15}
"""Sliders by their names, and how many strokes of the arrow key they are moved up."""
PAPER = (204, 204, 199)


@contextmanager
def running() -> Iterator[str]:
    """`headlift app` on a free port; its address."""
    command = [sys.executable, "-m", "headlift", "app", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as app:
        assert app.stdout is not None
        try:
            yield next(found[0] for line in app.stdout if (found := re.search(r"http://\S+:\d+", line)))
        finally:
            app.send_signal(signal.SIGINT)


def taken(page: Any) -> Image.Image:
    """What stands in the window."""
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def from_the_top(page: Any) -> None:
    """Scroll up, as the page has brought into view what has just appeared."""
    page.evaluate("window.scrollTo(0, 0)")
    page.wait_for_timeout(500)


def lift(page: Any) -> Image.Image:
    """Lift the astronaut to the end; the page in the midst of it."""
    page.click("#hl-astronaut")
    page.wait_for_selector(".hl-word")
    page.wait_for_function("/minute|second/.test(document.querySelector('#hl-estimate').innerText)")
    page.click("#hl-go")
    page.wait_for_function(
        "share => { const line = document.querySelector('#hl-progress').innerText;"
        " const told = /Tuning.*step (\\d+) of (\\d+)/.exec(line); return told && told[1] / told[2] > share }",
        arg=AT,
    )
    from_the_top(page)
    seen = taken(page)
    page.wait_for_selector(".hl-after img[data-draft='0']")
    return seen


def change(page: Any) -> None:
    """Turn the head a little and move its sliders, with the head as it was beside it."""
    page.locator(".hl-stage").focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    for name, strokes in CHANGES.items():
        page.get_by_role("slider", name=name).first.focus()
        for _ in range(strokes):
            page.keyboard.press("ArrowRight")
    page.check("#hl-compare input")
    page.wait_for_selector(".hl-before img[data-draft='0']")
    page.wait_for_selector(".hl-after img[data-draft='0']")
    page.wait_for_function("Number(document.querySelector('.hl-drift output').textContent) > 0")
    from_the_top(page)


def on_a_phone(page: Any) -> Image.Image:
    """The start of the page, the photo looked at, and the head, side by side."""
    seen = []
    for place in ("#hl-header", "#hl-verdict", "#hl-stage-box"):
        page.locator(place).evaluate("part => part.scrollIntoView()")
        page.wait_for_timeout(500)
        seen.append(ImageOps.expand(taken(page), 10, PAPER))
    side = Image.new("RGB", (sum(picture.width for picture in seen), seen[0].height), PAPER)
    for number, picture in enumerate(seen):
        side.paste(picture, (number * picture.width, 0))
    return ImageOps.expand(side, 10, PAPER)


def main() -> None:
    """Take and write the pictures."""
    from playwright.sync_api import sync_playwright

    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "docs"
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("No Chromium here: apt-get install chromium")
    with running() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1180, "height": 1000})
        page.set_default_timeout(PATIENCE)
        page.goto(address)
        pictures = {"app-lift.jpg": lift(page)}
        change(page)
        pictures["app-head.jpg"] = taken(page)
        page.uncheck("#hl-compare input")
        page.set_viewport_size({"width": 390, "height": 844})
        pictures["app-phone.jpg"] = on_a_phone(page)
        browser.close()
    for name, picture in pictures.items():
        write_bytes(folder / name, jpeg_bytes(np.asarray(picture), 88))
        print(folder / name)


if __name__ == "__main__":
    main()
