"""What works on this machine, and what to do about what does not.

Each check tries the thing itself (a face detector looks at a picture, an encoder encodes), for a package can be
installed and still not work. Nothing is downloaded and nothing is left on the disk.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from headlift.errors import HeadliftError

FREE_DISK = 1.0
"""GiB that a few runs need."""
MEMORY = 6.0
"""GiB that the standard settings need on the embedded prior."""
REINSTALL = "Install headlift again in a fresh environment: `make setup` in a checkout, or `pip install headlift`."
SYSTEM_LIBRARIES = "On Debian and Ubuntu: `apt-get install libgl1 libglib2.0-0`."


@dataclass(frozen=True)
class Check:
    """One thing that was tried."""

    name: str
    ok: bool
    found: str
    """What was seen: a version, a size, an error."""
    remedy: str = ""
    """What to do where it is not ok."""
    needed: bool = True
    """Whether headlift works without it; of the others, a missing one is a hint and no fault."""


def diagnose(folder: Path | str = ".") -> list[Check]:
    """Try everything that headlift needs. `folder` is where results would go. Never raises for what it finds."""
    checks: list[tuple[str, bool, Callable[[], Check]]] = [
        ("python", True, _python),
        ("packages", True, _packages),
        ("torch", True, _torch),
        ("device", True, _device),
        ("memory", True, _memory),
        ("disk", True, lambda: _disk(Path(folder))),
        ("cache", True, _cache),
        ("embedded generator", True, _embedded),
        ("builtin perceptual distance", True, _perceptual),
        ("depth and sides", True, _guides),
        ("directions", True, _directions),
        ("lpips", False, _lpips),
        ("face detection", True, _detector),
        ("landmarks and mask", True, _landmarks),
        ("head model", True, _head_model),
        ("mesh", True, _mesh),
        ("video (H.264)", True, _video),
        ("images", True, _images),
        ("HEIC photos", False, _heic),
        ("web app", False, _app),
        ("report viewer", True, _viewer),
    ]
    return [_guarded(name, needed, check) for name, needed, check in checks]


def healthy(checks: list[Check]) -> bool:
    """Whether everything that is needed works."""
    return all(check.ok for check in checks if check.needed)


def _guarded(name: str, needed: bool, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except HeadliftError as error:
        return Check(name, False, str(error), REINSTALL, needed)
    except Exception as error:  # the doctor reports whatever is wrong, he does not fall ill himself
        found = f"{type(error).__name__}: {str(error)[:300]}"
        libraries = ("libGL" in found or "libgthread" in found or "libglib" in found) and SYSTEM_LIBRARIES
        return Check(name, False, found, libraries or REINSTALL, needed)


def _python() -> Check:
    version = sys.version_info[:3]
    found = f"{'.'.join(map(str, version))} on {platform.system()} {platform.machine()}"
    return Check("python", (3, 11) <= version[:2] < (3, 13), found, "headlift needs Python 3.11 or 3.12 (MediaPipe's).")


def _packages() -> Check:
    from packaging.requirements import Requirement

    wrong, shown = [], []
    for line in metadata.requires("headlift") or []:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, {requirement.specifier} was asked for")
        if requirement.name in ("torch", "torchvision", "mediapipe", "numpy", "opencv-python", "av"):
            shown.append(f"{requirement.name} {version}")
    found = "; ".join(wrong) or f"headlift {metadata.version('headlift')}, {', '.join(shown)}"
    return Check("packages", not wrong, found, REINSTALL)


def _torch() -> Check:
    import torch
    import torchvision

    remedy = "torch and torchvision must come from the same index: `pip install --force-reinstall torch torchvision`."
    try:
        kept = torchvision.ops.nms(torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1]]), torch.tensor([1.0, 0.5]), 0.5)
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        return Check("torch", False, str(error)[:300], remedy)
    return Check("torch", kept.tolist() == [0], f"{torch.__version__}, torchvision {torchvision.__version__}", remedy)


def _device() -> Check:
    import torch

    cores = f"{torch.get_num_threads()} CPU threads"
    if not torch.cuda.is_available():
        return Check("device", True, f"cpu, {cores}; no CUDA GPU (a reconstruction then takes minutes)")
    cards = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        cards.append(
            f"cuda:{index} {torch.cuda.get_device_name(index)}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
        )
    worked = float(torch.ones(4, device="cuda").sum()) == 4.0
    return Check("device", worked, f"{'; '.join(cards)}; {cores}", "Update the GPU's driver, or use --device cpu.")


def _memory() -> Check:
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (ValueError, OSError, AttributeError):
        return Check("memory", True, "unknown")
    remedy = f"Reconstructions take up to {MEMORY:.0f} GiB; close other programs, or use --preset fast."
    return Check("memory", total >= MEMORY, f"{total:.1f} GiB", remedy)


def _disk(folder: Path) -> Check:
    existing = folder.resolve()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free / 2**30
    if not os.access(existing, os.W_OK):
        return Check("disk", False, f"{existing} cannot be written", "Choose another place with --out.")
    return Check(
        "disk", free >= FREE_DISK, f"{free:.1f} GiB free in {existing}", "Free some space, or choose --out elsewhere."
    )


def _cache() -> Check:
    from headlift.weights import cache_folder, offline

    folder = cache_folder()
    existing = folder
    while not existing.exists():
        existing = existing.parent
    downloads = "off (HEADLIFT_OFFLINE)" if offline() else "only when asked for"
    found = f"{folder}{'' if folder.exists() else ' (not made yet)'}; downloads {downloads}"
    return Check("cache", os.access(existing, os.W_OK), found, "Set HEADLIFT_CACHE to a folder that you may write to.")


def _embedded() -> Check:
    from headlift.weights import EMBEDDED, find_generator, verify

    found = verify(find_generator(EMBEDDED))
    size = found.path.stat().st_size / 2**20
    text = f"{found.parameters / 1e6:.1f} M parameters, {size:.0f} MiB, sha256 {found.sha256[:16]}..., {found.licence}"
    return Check("embedded generator", found.kind == "headlift generator", text, REINSTALL)


def _perceptual() -> Check:
    import torch

    from headlift.invert.perceptual import load_distance

    load_distance("builtin", "latent", torch.device("cpu"))
    return Check("builtin perceptual distance", True, "ready")


def _guides() -> Check:
    from headlift.invert.depth_net import load_depth_net
    from headlift.invert.side_net import load_side_net

    nets = load_depth_net(), load_side_net()
    size = sum(p.numel() for net in nets for p in net.parameters())
    return Check("depth and sides", True, f"the two networks that `best` asks, {size / 1e6:.1f} M parameters")


def _directions() -> Check:
    from headlift.editing.directions import load_directions
    from headlift.weights import EMBEDDED, file_sha256, find_generator

    found = load_directions(None, file_sha256(find_generator(EMBEDDED)))
    return Check("directions", True, f"{len(found.names)} of the embedded generator")


def _lpips() -> Check:
    from headlift.weights import list_weights

    backbones = [weights for weights in list_weights() if weights.kind == "perceptual"]
    missing = [weights.name for weights in backbones if weights.path is None]
    found = "ready" if not missing else f"not fetched: {', '.join(missing)}"
    fetches = " and ".join(f"`headlift weights fetch {name}`" for name in missing)
    return Check("lpips", not missing, found, f"Only --perceptual lpips needs them: {fetches}.", needed=False)


def _detector() -> Check:
    import numpy as np

    from headlift.pose_estimation.detect import find_boxes

    boxes = find_boxes(np.full((96, 96, 3), 128, dtype=np.uint8))
    return Check(
        "face detection", boxes == [], f"MTCNN (facenet-pytorch {metadata.version('facenet-pytorch')})", REINSTALL
    )


def _landmarks() -> Check:
    import numpy as np

    from headlift.pose_estimation import mediapipe_models

    blank = np.full((128, 128, 3), 128, dtype=np.uint8)
    points, mask = mediapipe_models.face_mesh(blank), mediapipe_models.person_mask(blank)
    version = metadata.version("mediapipe")
    works = points is None and mask.shape == (128, 128)
    return Check("landmarks and mask", works, f"MediaPipe {version}", REINSTALL)


def _head_model() -> Check:
    from headlift.pose_estimation.head_model import POINTS, load_head_model

    model = load_head_model()
    return Check("head model", len(model.mean) == POINTS, f"{len(model.mean)} points", REINSTALL)


def _mesh() -> Check:
    import mcubes
    import numpy as np
    import trimesh

    x, y, z = np.mgrid[-1:1:12j, -1:1:12j, -1:1:12j]
    vertices, faces = mcubes.marching_cubes(0.8 - np.sqrt(x * x + y * y + z * z), 0.0)
    closed = bool(trimesh.Trimesh(vertices, faces).is_watertight)
    return Check("mesh", closed, f"PyMCubes, trimesh {trimesh.__version__}", REINSTALL)


def _video() -> Check:
    import av
    import numpy as np

    remedy = "This PyAV has no x264; take its official wheel: `pip install --force-reinstall --only-binary av av`."
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.mp4"
        try:
            with av.open(str(path), "w") as container:
                stream = container.add_stream("libx264", rate=30)
                stream.width = stream.height = 64
                stream.pix_fmt = "yuv420p"
                frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), dtype=np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
                container.mux(stream.encode(None))
        except (ValueError, OSError, LookupError, RuntimeError) as error:
            return Check("video (H.264)", False, f"PyAV {av.__version__}: {str(error)[:200]}", remedy)
        return Check("video (H.264)", path.stat().st_size > 0, f"PyAV {av.__version__} with libx264", remedy)


def _images() -> Check:
    import cv2
    import PIL
    from PIL import features

    missing = [codec for codec in ("jpg", "zlib", "webp") if not features.check(codec)]
    found = f"Pillow {PIL.__version__}, OpenCV {cv2.__version__}" + (
        f"; without {', '.join(missing)}" if missing else ""
    )
    return Check("images", not missing, found, "Take Pillow's official wheel: `pip install --force-reinstall pillow`.")


def _heic() -> Check:
    try:
        import pillow_heif
    except ImportError:
        return Check(
            "HEIC photos", False, "not installed", "`pip install 'headlift[heic]'` reads iPhone photos.", needed=False
        )
    from PIL import Image

    from headlift.photo import enable_heic

    enable_heic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.heic"
        Image.new("RGB", (64, 64)).save(path)
        with Image.open(path) as probe:
            size = probe.convert("RGB").size
    return Check("HEIC photos", size == (64, 64), f"pillow-heif {pillow_heif.__version__}", REINSTALL, needed=False)


def _app() -> Check:
    try:
        import gradio
    except ImportError as error:
        remedy = "`pip install 'headlift[app]'` installs what `headlift app` needs."
        return Check("web app", False, str(error), remedy, needed=False)
    return Check("web app", True, f"gradio {gradio.__version__}", needed=False)


def _viewer() -> Check:
    from headlift.export.report import viewer_script

    script = viewer_script()
    return Check("report viewer", "model-viewer" in script, f"model-viewer, {len(script) >> 10} KiB", REINSTALL)
