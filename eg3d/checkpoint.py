"""Networks as `.safetensors`: tensors under their published names, the spec as JSON in the metadata.

Everything in headlift loads these files and no others; `headlift weights import` makes them of official pickles. A
file is held against its own spec before anything is allocated: what a damaged or foreign file can cost is its own size.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from headlift.eg3d.discriminator import Discriminator
from headlift.eg3d.generator import Generator
from headlift.eg3d.pickles import OfficialNetwork, discriminator_spec, generator_spec
from headlift.eg3d.spec import DiscriminatorSpec, GeneratorSpec
from headlift.errors import CheckpointError, ConfigError, OutputError

GENERATOR, DISCRIMINATOR = "headlift generator", "headlift discriminator"
"""What the metadata's `kind` says."""
WHOLE_BELOW = 4096
"""Tensors of fewer numbers stay in float32 when the others are stored in half precision: they cost next to nothing."""
SHOWN = 6
"""Mismatches that a message lists before it only counts them."""

Network = TypeVar("Network", bound=nn.Module)


def save_checkpoint(
    path: Path | str,
    network: Generator | Discriminator,
    metadata: Mapping[str, str] | None = None,
    half: bool = False,
) -> None:
    """Write a network with its spec; the file appears under its name only when it is whole.

    Args:
        metadata: further entries (licence, where it came from ...), found again by `read_metadata`; what is no text,
            such as bytes of a file name that mean nothing, becomes a question mark.
        half: store large tensors in half precision; loading gives float32 again.

    Raises:
        CheckpointError: a weight is not finite, or too large for half precision.
        OutputError: the place cannot be written.
    """
    path = Path(path)
    tensors = {name: _stored(name, tensor, half) for name, tensor in network.state_dict().items()}
    kind = GENERATOR if isinstance(network, Generator) else DISCRIMINATOR
    told = {key: value.encode(errors="replace").decode() for key, value in (metadata or {}).items()}
    entries = {**told, "kind": kind, "spec": json.dumps(network.spec.to_dict())}
    temporary = path.with_name(f".{path.stem[:100]}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, metadata=entries)
        temporary.chmod(0o644)  # safetensors leaves it to its owner alone
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{path} could not be written: {error}. Choose another place, or free some space.") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path | str, device: torch.device | str = "cpu") -> Generator:
    """The generator in a file, in float32, in evaluation mode.

    On a GPU PyTorch lets convolutions round to TF32, with 10 bits, all the same: `headlift.device.find_device`, through
    which every command comes by its device, or `headlift.device.forbid_tf32` keeps it from that.

    Raises:
        CheckpointError: the file is missing, damaged, not a generator's, or contradicts its own spec.
    """
    network = _read(Path(path), GENERATOR)
    assert isinstance(network, Generator)
    return network.to(device)


def load_discriminator(path: Path | str, device: torch.device | str = "cpu") -> Discriminator:
    """The discriminator in a file; arguments and errors as in `load_checkpoint`."""
    network = _read(Path(path), DISCRIMINATOR)
    assert isinstance(network, Discriminator)
    return network.to(device)


def read_metadata(path: Path | str) -> dict[str, str]:
    """All entries of a file's metadata; `kind` and `spec` are always among those of headlift's networks.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    with _opened(Path(path)) as file:
        return dict(file.metadata() or {})


def read_spec(path: Path | str) -> GeneratorSpec | DiscriminatorSpec:
    """The spec of the network in a file, without its tensors. Raises CheckpointError like `load_checkpoint`."""
    metadata = read_metadata(path)
    return _spec(metadata, metadata.get("kind", ""), str(path))


def network_from_official(official: OfficialNetwork) -> Generator | Discriminator:
    """A network of ours with the settings and tensors of one out of an official snapshot.

    Raises:
        CheckpointError: it has settings headlift does not know, or tensors that do not go with them.
    """
    if official.role == "D":
        return build_discriminator(discriminator_spec(official), official.state, official.role)
    return build_generator(generator_spec(official), official.state, official.role)


def build_generator(spec: GeneratorSpec, state: Mapping[str, Tensor], where: str = "the checkpoint") -> Generator:
    """A generator in evaluation mode that takes over the tensors of `state`; `where` names them in messages.

    Raises:
        CheckpointError: names or shapes differ from what the spec asks for.
    """
    network = _outline(spec, len(state), where)
    assert isinstance(network, Generator)
    compare_shapes(_shapes(network), {name: tuple(tensor.shape) for name, tensor in state.items()}, where)
    return _adopt(network, state, where)


def build_discriminator(
    spec: DiscriminatorSpec, state: Mapping[str, Tensor], where: str = "the checkpoint"
) -> Discriminator:
    """A discriminator; arguments and errors as in `build_generator`."""
    network = _outline(spec, len(state), where)
    assert isinstance(network, Discriminator)
    compare_shapes(_shapes(network), {name: tuple(tensor.shape) for name, tensor in state.items()}, where)
    return _adopt(network, state, where)


def compare_shapes(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Hold the names and shapes of tensors against those that a spec asks for.

    Raises:
        CheckpointError: they differ; the message says which, what was found and what was expected.
    """
    wrong = [
        f"{name} has shape {_shape(found[name])}, expected {_shape(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    missing = [f"{name} {_shape(shape)} is missing" for name, shape in expected.items() if name not in found]
    foreign = [f"{name} {_shape(shape)} is not part of it" for name, shape in found.items() if name not in expected]
    differences = wrong + missing + foreign
    if not differences:
        return
    shown = "; ".join(d[:200] for d in differences[:SHOWN])
    more = f"; and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
    raise CheckpointError(
        f"The tensors in {where} are not those of the network that its settings describe: {shown}{more}. "
        "It may be of another architecture (PanoHead, StyleGAN2 ...), or damaged."
    )


def _adopt(network: Network, state: Mapping[str, Tensor], where: str) -> Network:
    """Give an outline the tensors that it was compared with."""
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            raise CheckpointError(f"{name} in {where} holds {tensor.dtype}, where real numbers were expected.")
    network.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    return network.eval()


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _outline(spec: GeneratorSpec | DiscriminatorSpec, tensors: int, where: str) -> Generator | Discriminator:
    """The network without memory for its numbers, so that a spec alone costs nothing however large it claims to be."""
    if spec.mapping.layers > tensors:
        raise CheckpointError(f"{where} claims {spec.mapping.layers} mapping layers and has {tensors} tensors.")
    try:
        with _WithoutNumbers():
            return Generator(spec) if isinstance(spec, GeneratorSpec) else Discriminator(spec)
    except (RuntimeError, OverflowError, TypeError, ConfigError) as error:
        raise CheckpointError(f"The settings in {where} make no network: {str(error)[:300]}.") from error


class _WithoutNumbers(TorchFunctionMode):
    """Tensors of initial values are made without values, on the meta device.

    `with torch.device("meta")` would do, but loads a compiler for the first division there: seconds, not milliseconds.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function is torch.full:
            return torch.empty(args[0], device="meta")
        if function in (torch.randn, torch.zeros, torch.ones):
            return torch.empty(*args, device="meta")
        if function in (Tensor.__truediv__, Tensor.div, Tensor.__mul__, Tensor.mul) and args[0].is_meta:
            return args[0]
        return function(*args, **(kwargs or {}))


def _read(path: Path, kind: str) -> Generator | Discriminator:
    with _opened(path) as file:
        spec = _spec(dict(file.metadata() or {}), kind, str(path))
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        network = _outline(spec, len(found), str(path))
        compare_shapes(_shapes(network), found, str(path))
        state: dict[str, Tensor] = {}
        for name in found:
            tensor = file.get_tensor(name)
            state[name] = tensor.to(torch.float32, copy=True) if tensor.is_floating_point() else tensor
            if not bool(torch.isfinite(state[name]).all()):
                raise CheckpointError(f"{name} in {path} holds numbers that are not finite; fetch the file again.")
    return _adopt(network, state, str(path))


def _spec(metadata: Mapping[str, str], kind: str, where: str) -> GeneratorSpec | DiscriminatorSpec:
    found = metadata.get("kind")
    if "spec" not in metadata or found not in (GENERATOR, DISCRIMINATOR):
        raise CheckpointError(
            f"{where} does not say what network it holds: it was not written by headlift. "
            "Official EG3D pickles become readable by `headlift weights import FILE.pkl --out FILE.safetensors`."
        )
    if found != kind:
        raise CheckpointError(f"{where} holds a {found}, where a {kind} was expected.")
    try:
        values = json.loads(metadata["spec"])
    except (ValueError, RecursionError) as error:  # no JSON, or a number of thousands of digits
        raise CheckpointError(f"The settings in {where} are damaged: {str(error)[:200]}.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"The settings in {where} are damaged: they are no table.")
    try:
        return GeneratorSpec.from_dict(values) if kind == GENERATOR else DiscriminatorSpec.from_dict(values)
    except CheckpointError as error:
        raise CheckpointError(f"The settings in {where} make no network: {str(error)[:300]}") from error


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file whose faults, on opening and while it is read, are CheckpointErrors."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise CheckpointError(f"The checkpoint {path} {what}; give the .safetensors file itself.")
    try:
        opened: Any = safe_open(path, framework="pt")
        with opened as file:
            yield file
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        hint = " It is a pickle: `headlift weights import` reads official ones." if path.suffix == ".pkl" else ""
        raise CheckpointError(
            f"{path} cannot be read as a .safetensors file ({str(error)[:200]}): it is damaged, cut short, or "
            f"something else.{hint}"
        ) from error


def _stored(name: str, tensor: Tensor, half: bool) -> Tensor:
    tensor = tensor.detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(f"{name} holds numbers that are not finite: this network is not worth keeping.")
    if half and tensor.numel() >= WHOLE_BELOW:
        tensor = tensor.half()
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{name} has numbers beyond 65504 and cannot be stored in half precision.")
    return tensor.contiguous()


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
