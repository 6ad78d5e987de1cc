"""The report: what it says, and that a browser with the network off shows it, the mesh included."""

import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chromium import CHROMIUM, FLAGS
from PIL import Image

from headlift.eg3d.camera import orbit
from headlift.eg3d.density import grid_axis
from headlift.export.mesh import Mesh, mesh_from_density
from headlift.export.report import Report, loss_chart, report_html, viewer_script, write_report
from headlift.values import Crop, Face, Finding, Similarity, Step, Verdict


def ball() -> Mesh:
    """A ball, red on the left and green on the right of a frontal view."""
    axis = grid_axis(48, 1.0)
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
    mesh = mesh_from_density((0.3 - grid.norm(dim=-1)).numpy(), 1.0, 0.0)
    colors = np.zeros_like(mesh.vertices)
    colors[:, 0], colors[:, 1] = mesh.vertices[:, 0] < 0, mesh.vertices[:, 0] >= 0
    return Mesh(mesh.vertices, mesh.faces, mesh.normals, colors, 0.0)


def full_report() -> Report:
    rng = np.random.default_rng(0)
    photo = np.full((300, 400, 3), (90, 120, 150), dtype=np.uint8)
    landmarks = np.concatenate([[200, 150] + 30 * rng.standard_normal((478, 2)), np.zeros((478, 1))], axis=1)
    findings = (
        Finding("sharpness", 210.0, 50.0, True, "sharp enough"),
        Finding("yaw", 61.0, 45.0, False, "turned far: the hidden side is <guessed>"),
    )
    crop = Crop(
        torch.full((1, 3, 128, 128), 0.2),
        torch.ones(1, 1, 128, 128),
        orbit(0.2, 0.1),
        Similarity(np.array([[1 / 200, 0, -0.5], [0, 1 / 200, -0.25]])),
        Face((100.0, 50.0, 300.0, 250.0), 0.99, landmarks),
        0.01,
        np.eye(2) * 1e-3,
        Verdict(findings),
    )
    history = [Step("latent", i, 40, {"perceptual": 1.0 / i, "w_reg": 1e-3 * i}) for i in range(1, 41)]
    history += [Step("tuning", i, 30, {"perceptual": 0.1 * 0.9**i, "mse": 0.01 * 0.8**i}) for i in range(1, 31)]
    square = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return Report(
        name="Ada <Lovelace> & co.jpg",
        photo=photo,
        crop=crop,
        target=square,
        inversion=square,
        views=np.full((64, 256, 3), 200, dtype=np.uint8),
        depth=square,
        normals=square,
        mesh=ball(),
        history=history,
        reason="the perceptual distance came below 0.06",
        metrics={"psnr": 26.1234, "ssim": 0.871},
        seconds={"pose": 1.2, "inversion": 101.5},
        settings={"seed": 0, "inversion": {"latent": {"steps": 40}}},
        facts={"weights": "embedded"},
    )


def test_page_tells_everything_and_escapes_it() -> None:
    page = report_html(full_report())
    text = re.sub(r"<script.*?</script>|<style.*?</style>|data:[^'\"]+", "", page, flags=re.S)
    for told in (
        "Ada &lt;Lovelace&gt; &amp; co.jpg",
        "the hidden side is &lt;guessed&gt;",
        "PSNR 26.1 dB",
        "photo with doubts",
        "latent: 40 steps",
        "tuning: 30 steps",
        "the perceptual distance came below 0.06",
        "inversion.latent.steps",
        "1 min 42 s",
        "embedded",
    ):
        assert told in text, told
    assert "<Lovelace>" not in page
    assert text.count("<svg") == 2
    assert text.count("<figure") == 8
    assert not re.search(r"(src|href)\s*=\s*['\"]?https?:", text)


def test_missing_parts_are_left_out() -> None:
    page = report_html(Report(name="bare"))
    assert "<h1>bare</h1>" in page
    for absent in ("<section>", "<script", "<model-viewer", "<img", "<svg"):
        assert absent not in page


def test_script_cannot_end_early() -> None:
    script = viewer_script()
    assert len(script) > 900_000
    assert "</script" not in script.lower()
    assert "<!--" not in script
    assert "sourceMappingURL" not in script


def test_loss_chart_by_hand() -> None:
    """Losses 1 and 0.01 are two decades apart: their points are too, and 0.1 lies in the middle."""
    steps = [Step("latent", i, 3, {"a": v, "b": -1.0}) for i, v in zip((1, 2, 3), (1.0, 0.1, 0.01), strict=True)]
    root = ElementTree.fromstring(loss_chart(steps))
    lines = [e for e in root if e.tag == "polyline"]
    assert len(lines) == 1  # b never is positive
    points = np.array([[float(v) for v in p.split(",")] for p in lines[0].attrib["points"].split()])
    assert points[1] == pytest.approx((points[0] + points[2]) / 2, abs=0.11)
    assert points[0, 1] < points[2, 1]  # greater is higher up
    ticks = {e.text: float(e.attrib["y"]) - 4 for e in root if e.tag == "text" and e.attrib.get("text-anchor") == "end"}
    assert ticks["0.1"] == pytest.approx(points[1, 1], abs=0.11)


@pytest.mark.parametrize("losses", [[0.0, 0.0], [float("nan"), float("inf")], [0.5, 0.5], [0.5]])
def test_loss_chart_of_odd_histories(losses: list[float]) -> None:
    chart = loss_chart([Step("latent", i + 1, 9, {"a": v}) for i, v in enumerate(losses)])
    ElementTree.fromstring(chart)
    assert "nan" not in chart
    assert "inf" not in chart


def test_long_histories_stay_small() -> None:
    steps = [Step("latent", i + 1, 5000, {"a": 1.0 / (i + 1)}) for i in range(5000)]
    assert len(loss_chart(steps)) < 12_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


def test_opens_from_the_disk_with_the_network_off(browser: Any, tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", full_report())
    context = browser.new_context(viewport={"width": 800, "height": 600}, color_scheme="light", offline=True)
    page = context.new_page()
    page.set_default_timeout(180_000)  # software rendering on a busy machine
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.on("request", lambda r: requests.append(r.url[:60]))
    page.goto((tmp_path / "report.html").as_uri())
    page.wait_for_function("document.querySelector('model-viewer').loaded")
    page.evaluate("document.querySelector('model-viewer').scrollIntoView({block: 'center'})")
    viewer = page.locator("model-viewer")
    pixels = np.zeros((1, 1, 3))
    for _ in range(40):  # the first frame comes a moment after loading
        pixels = np.asarray(Image.open(io.BytesIO(viewer.screenshot())).convert("RGB")).astype(int)
        if (pixels[..., 0] - pixels[..., 1] > 60).sum() > 1000:
            break
        page.wait_for_timeout(250)
    broken = page.evaluate("[...document.images].filter(i => !(i.complete && i.naturalWidth)).length")
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(ground)
    context.close()

    outside = [url for url in requests if not url.startswith(("file:", "data:", "blob:"))]
    assert outside == []
    assert complaints == []
    assert (light, dark) == ("rgb(246, 245, 242)", "rgb(22, 24, 28)")
    assert broken == 0
    assert wide <= 0
    # The ball: red on the left, green on the right, lit and not black, about in the middle.
    red, green = pixels[..., 0] - pixels[..., 1] > 60, pixels[..., 1] - pixels[..., 0] > 60
    assert red.sum() > 4000
    assert green.sum() > 4000
    assert np.nonzero(red)[1].mean() < pixels.shape[1] / 2 < np.nonzero(green)[1].mean()
    assert abs(np.nonzero(red | green)[0].mean() - pixels.shape[0] / 2) < 0.1 * pixels.shape[0]
    assert pixels[red][:, 0].max() > 150
