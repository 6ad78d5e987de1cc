"""The registry of weights: what there is, where it lies, how it gets here, under which licence it stands.

Nothing is ever downloaded unasked: only `fetch` reaches for the network, and not at all where HEADLIFT_OFFLINE is set.
Weights that the package does not carry lie in the cache folder (HEADLIFT_CACHE, else the platform's own place): fetched
files under their published names, generators as NAME.safetensors, so that NAME can be given wherever weights are asked
for.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

import torch

from headlift.config import FRAME, PRIOR_NAME, Frame
from headlift.eg3d.checkpoint import (
    GENERATOR,
    load_checkpoint,
    load_discriminator,
    network_from_official,
    read_metadata,
    read_spec,
    save_checkpoint,
)
from headlift.eg3d.generator import Generator
from headlift.eg3d.pickles import Role, read_network, read_official
from headlift.eg3d.spec import DiscriminatorSpec, GeneratorSpec
from headlift.errors import CheckpointError, HeadliftError, OutputError, WeightsError

EMBEDDED = "embedded"
OWN_LICENCE = "Apache-2.0"
"""Of the embedded generator and of what it makes."""
FACENET, INCEPTION = "facenet", "inception"
"""Networks that only measure."""
OFFICIAL_LICENCE = "NVIDIA Source Code License for EG3D: non-commercial, for research or evaluation only"
"""What the official checkpoints stand under; shown when one is imported and written into its metadata."""
OFFICIAL_PAGE = "https://catalog.ngc.nvidia.com/orgs/nvidia/teams/research/models/eg3d"
CHUNK = 1 << 20


@dataclass(frozen=True)
class Weights:
    """One entry of the registry."""

    name: str
    """How it is asked for."""
    kind: Literal["generator", "perceptual", "measure"]
    """A generator for --weights, the backbone of a perceptual distance, or a network that `evaluate` measures with."""
    file: str
    """Name of its file, in the package (embedded) or in the cache."""
    licence: str
    """Terms, in a few words."""
    about: str
    """What it is, in a few words."""
    url: str | None = None
    """Where `fetch` gets it; None where it cannot be fetched."""
    sha256: str = ""
    """What its sha256 is or, where only that was published, begins with; empty for files made on this machine."""
    path: Path | None = None
    """Where it is on this machine; None while it is not."""


@dataclass(frozen=True)
class Verified:
    """What a look into a weights file has shown."""

    path: Path
    kind: str
    """headlift generator, headlift discriminator, or a backbone's name."""
    sha256: str
    tensors: int
    """Tensors in the file; 0 for a backbone."""
    parameters: int
    """Numbers in them; 0 for a backbone."""
    spec: GeneratorSpec | DiscriminatorSpec | None
    licence: str


@dataclass(frozen=True)
class Imported:
    """An official network that was written as a checkpoint of headlift's."""

    path: Path
    role: str
    """Which network of the snapshot it is."""
    sha256: str
    """Of the file written."""
    source_sha256: str
    """Of the snapshot."""
    spec: GeneratorSpec | DiscriminatorSpec
    parameters: int
    licence: str
    """To be shown to whoever imports it."""


_TORCHVISION = "BSD 3-Clause (torchvision); trained on ImageNet"
_KNOWN = (
    Weights(EMBEDDED, "generator", "embedded.safetensors", OWN_LICENCE, "headlift's own compact prior of whole heads"),
    Weights(
        "vgg16",
        "perceptual",
        "vgg16-397923af.pth",
        _TORCHVISION,
        "backbone of LPIPS for the latent code (--perceptual lpips)",
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "397923af",  # torchvision publishes the first eight digits, as part of the file's name
    ),
    Weights(
        "alexnet",
        "perceptual",
        "alexnet-owt-7be5be79.pth",
        _TORCHVISION,
        "backbone of LPIPS for tuning (--perceptual lpips)",
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        "7be5be79",
    ),
    Weights(
        FACENET,
        "measure",
        "20180402-114759-vggface2.pt",
        "MIT (facenet-pytorch); trained on VGGFace2",
        "identity in `evaluate inversion`: InceptionResnetV1, put there by hand (facenet-pytorch's release v2.2.9)",
    ),
    Weights(
        INCEPTION,
        "measure",
        "inception_v3_google-0cc3c7bd.pth",
        _TORCHVISION,
        "FID and KID in `evaluate inversion`",
        "https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth",
        "0cc3c7bd",
    ),
)


def load_generator(name_or_path: str, device: torch.device | str = "cpu") -> tuple[Generator, str]:
    """A generator ready for use (evaluation mode, no gradients to its weights) and its file's sha256.

    Args:
        name_or_path: a name from `list_weights`, or a .safetensors file.

    Raises:
        WeightsError: there is no such generator on this machine; the message says how to get it.
        CheckpointError: the file is damaged or holds something else.
    """
    path = find_generator(name_or_path)
    generator = load_checkpoint(path, device)
    return generator.requires_grad_(False), file_sha256(path)


def looks_ahead(name_or_path: str, asked: Literal["auto", "ffhq", "embedded"] = "auto") -> Frame:
    """What a generator takes for straight ahead: what was `asked` for, or what its file says (`FRAME`).

    The embedded prior, and what is trained as it was, has the synthetic heads' idea of it.

    Raises:
        WeightsError, CheckpointError: as `load_generator`.
    """
    if asked != "auto":
        return asked
    if name_or_path == EMBEDDED:
        return "embedded"
    told = read_metadata(find_generator(name_or_path))
    return "embedded" if told.get(FRAME) == "embedded" or told.get("name") == PRIOR_NAME else "ffhq"


def find_generator(name_or_path: str) -> Path:
    """Where a generator's file is.

    Raises:
        WeightsError: there is none of that name here; the message says how to get it.
    """
    if name_or_path == EMBEDDED:
        path = _embedded_path()
        if path is None:
            raise WeightsError(
                "The embedded generator is not in this installation (prior/data/embedded.safetensors is missing): "
                "install headlift from its wheel or a full checkout, or give a file with --weights FILE.safetensors."
            )
        return path
    path = Path(name_or_path).expanduser()
    looks_like_a_file = path.suffix != "" or path.name != name_or_path
    if path.suffix == ".pkl":
        raise WeightsError(
            f"{path} is a pickle, which headlift does not load directly. Run `headlift weights import {path} --out "
            f"{path.with_suffix('.safetensors')}` once (nothing in it is run), then give that file."
        )
    if path.is_file():
        return path
    cached = cache_folder() / f"{name_or_path}.safetensors"
    if path.name == name_or_path and cached.is_file():
        return cached
    if path.is_dir():
        raise WeightsError(f"{path} is a folder; --weights takes a .safetensors file or a name.")
    if looks_like_a_file:
        raise WeightsError(f"There is no weights file {path}. Check the path, or see `headlift weights list`.")
    names = ", ".join(w.name for w in list_weights() if w.kind == "generator" and w.path is not None) or "none"
    raise WeightsError(
        f"There is no generator called {name_or_path!r} here (known: {names}). Give a .safetensors file, or import an "
        f"official checkpoint as {cached}; `headlift weights list` shows what there is."
    )


def licence(name_or_path: str) -> str:
    """Of what a generator made."""
    return OWN_LICENCE if name_or_path == EMBEDDED else "that of its weights"


def find_measure(name: str) -> Path | None:
    """Where the file of a network that only measures is; None where it is not on this machine."""
    return next(found.path for found in list_weights() if found.name == name and found.kind == "measure")


def list_weights() -> tuple[Weights, ...]:
    """All that is known by name, and where it is on this machine: the registry, then generators in the cache."""
    listed = [_located(weights) for weights in _KNOWN]
    folder = cache_folder()
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else []:
        if path.stem == EMBEDDED:
            continue
        try:
            metadata = read_metadata(path)
        except CheckpointError:
            continue
        if metadata.get("kind") == GENERATOR:
            licence = metadata.get("licence", "unknown")
            listed.append(Weights(path.stem, "generator", path.name, licence, "imported on this machine", path=path))
    return tuple(listed)


def fetch(name: str, progress: bool = False) -> Path:
    """Download weights by name into the cache, unless they are there; what arrives is held against its sha256.

    Raises:
        WeightsError: the name is unknown or cannot be fetched, HEADLIFT_OFFLINE is set, the download fails, or
            its sha256 is another.
        OutputError: the cache cannot be written.
    """
    known = {weights.name: weights for weights in _KNOWN}
    weights = known.get(name)
    if weights is None or weights.url is None:
        names = ", ".join(w.name for w in _KNOWN if w.url)
        hint = " It is part of the package." if name == EMBEDDED else ""
        raise WeightsError(
            f"{name!r} cannot be fetched.{hint} What can be: {names}. Official EG3D checkpoints are downloaded by hand "
            f"from {OFFICIAL_PAGE} and then read by `headlift weights import`."
        )
    here = _located(weights).path
    if here is not None and file_sha256(here).startswith(weights.sha256):
        return here
    if offline():
        raise WeightsError(
            f"{name} is not on this machine and HEADLIFT_OFFLINE is set: nothing is downloaded. Unset it, or copy "
            f"{weights.file} to {cache_folder()} by hand."
        )
    return _download(weights, cache_folder(), progress)


def import_official(
    pkl_path: Path | str, out_path: Path | str, role: Role = "G_ema", overwrite: bool = False, half: bool = False
) -> Imported:
    """Read one network of an official EG3D snapshot, running nothing in it, and write it as a .safetensors file.

    Args:
        role: which network: G_ema (the one to use), G or D.
        half: store large tensors in half precision.

    Raises:
        CheckpointError: the file is missing or is not such a snapshot.
        OutputError: the target is already there, or cannot be written.
    """
    source, target = Path(pkl_path), Path(out_path)
    if target.suffix != ".safetensors":
        raise OutputError(f"{target} should end in .safetensors; that is what is written.")
    if target.exists() and not overwrite:
        raise OutputError(f"{target} is already there. Give another --out, or --overwrite to replace it.")
    if not source.is_file():
        raise CheckpointError(f"There is no file {source}." if not source.exists() else f"{source} is not a file.")
    try:
        with source.open("rb") as stream:
            official = read_network(read_official(stream), role)
        source_sha256 = file_sha256(source)
    except OSError as error:
        raise CheckpointError(f"{source} cannot be read: {error.strerror}.") from error
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    network = network_from_official(official)
    metadata = {
        "licence": OFFICIAL_LICENCE,
        "network": role,
        "source": source.name,
        "source_sha256": source_sha256,
    }
    save_checkpoint(target, network, metadata, half)
    parameters = sum(tensor.numel() for tensor in network.parameters())
    return Imported(target, role, file_sha256(target), source_sha256, network.spec, parameters, OFFICIAL_LICENCE)


def verify(path: Path | str) -> Verified:
    """Read a whole weights file, hold it against its own spec or its published sha256, and say what it is.

    Raises:
        CheckpointError: it is missing, damaged, or not what its name says.
    """
    path = Path(path)
    for known in _KNOWN:
        if known.url is not None and path.name == known.file and path.is_file():
            sha256 = file_sha256(path)
            if not sha256.startswith(known.sha256):
                raise CheckpointError(f"{path} has the sha256 {sha256}, which should begin with {known.sha256}.")
            return Verified(path, known.name, sha256, 0, 0, None, known.licence)
    metadata = read_metadata(path)
    if "kind" not in metadata and metadata.get("format", "").startswith("headlift "):
        raise CheckpointError(f"{path} is a {metadata['format']}, not the weights of a generator or discriminator.")
    spec = read_spec(path)
    load: Callable[[Path], torch.nn.Module] = load_checkpoint if isinstance(spec, GeneratorSpec) else load_discriminator
    network = load(path)
    parameters = sum(tensor.numel() for tensor in network.parameters())
    tensors = len(network.state_dict())
    licence = metadata.get("licence", "unknown")
    return Verified(path, metadata["kind"], file_sha256(path), tensors, parameters, spec, licence)


def cache_folder() -> Path:
    """Where weights that the package does not carry are kept: HEADLIFT_CACHE, else the platform's cache folder."""
    chosen = os.environ.get("HEADLIFT_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    import pooch

    return Path(pooch.os_cache("headlift"))


def offline() -> bool:
    """Whether HEADLIFT_OFFLINE forbids all downloads (any value but 0, no, false and nothing)."""
    return os.environ.get("HEADLIFT_OFFLINE", "").strip().lower() not in ("", "0", "no", "false")


def file_sha256(path: Path) -> str:
    """The sha256 of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _located(weights: Weights) -> Weights:
    """The entry with the place of its file, where it has one."""
    if weights.name == EMBEDDED:
        path = _embedded_path()
    else:
        path = next((p for p in _places(weights.file) if p.is_file()), None)
    return Weights(**{**weights.__dict__, "path": path})


def _places(file: str) -> tuple[Path, ...]:
    """Where a fetched file may lie: headlift's cache, torch's own, facenet-pytorch's."""
    hub = Path(torch.hub.get_dir())
    return cache_folder() / file, hub / "checkpoints" / file, hub.parent / "checkpoints" / file


_EXTRACTED = ExitStack()


def _embedded_path() -> Path | None:
    """The embedded generator's file; taken out of a zipped installation into a temporary file if need be."""
    resource = resources.files("headlift").joinpath("prior", "data", "embedded.safetensors")
    if not resource.is_file():
        return None
    return resource if isinstance(resource, Path) else _EXTRACTED.enter_context(resources.as_file(resource))


def _download(weights: Weights, folder: Path, progress: bool) -> Path:
    import tempfile

    import pooch

    assert weights.url is not None
    pooch.get_logger().setLevel("WARNING")  # it would announce each download on the terminal
    full = weights.sha256 if len(weights.sha256) == 64 else None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary:
            got = Path(
                pooch.retrieve(
                    weights.url,
                    known_hash=f"sha256:{full}" if full else None,
                    fname=weights.file,
                    path=temporary,
                    downloader=pooch.HTTPDownloader(progressbar=progress, timeout=30),
                )
            )
            sha256 = file_sha256(got)
            if not sha256.startswith(weights.sha256):
                raise WeightsError(
                    f"What {weights.url} delivered has the sha256 {sha256}, which should begin with {weights.sha256}. "
                    "It was thrown away; try again, and beware of what stands between you and that server."
                )
            return got.replace(folder / weights.file)
    except HeadliftError:
        raise
    except PermissionError as error:
        raise OutputError(f"The cache {folder} cannot be written. Set HEADLIFT_CACHE to a folder of yours.") from error
    except Exception as error:  # requests, urllib3 and pooch each have errors of their own for a failed download
        raise WeightsError(
            f"{weights.name} could not be downloaded from {weights.url} ({type(error).__name__}: {str(error)[:200]}). "
            f"Check the connection, or copy the file to {folder} by hand."
        ) from error
