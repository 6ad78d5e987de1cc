"""Read official EG3D snapshots (`.pkl`) without running anything that is in them.

Such a file is one pickle of a dictionary with the networks G, D and G_ema. Each network carries the Python source of
its class, and Python's own unpickler would execute it. Here a file passes two gates instead:

1. `_scan`: `pickletools.genops` walks the stream without building anything. Only the opcodes that such files use may
   appear, every global must be on the allow-list (names are followed through the memo), and memo indices, frames,
   depth and the number of operations are bounded.
2. `_Machine`: a small stack machine of our own interprets the opcodes. It never imports a name and never calls
   anything that the file supplies; networks become inert `_Object`s, tensors views into the file, checked against
   their storage. Nothing it makes outlives the load, so BUILD cannot reach anything but the load's own objects.

Tensors lie in the file as nested legacy `torch.save` streams: five protocol-2 pickles, a count and raw little-endian
numbers. They pass the same two gates with an allow-list of their own. Whatever is not expected is refused with one
`CheckpointError` that names it; no option opens the gates.
"""

from __future__ import annotations

import io
import math
import mmap
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from headlift.eg3d.published import discriminator_spec_from_published, plane_layout_from_axes, spec_from_published
from headlift.eg3d.spec import DiscriminatorSpec, GeneratorSpec, PlaneLayout
from headlift.errors import CheckpointError

Role = Literal["G_ema", "G", "D"]


@dataclass(frozen=True)
class Limits:
    """What a file may ask for at most. The official 512-pixel snapshots need about a tenth of each."""

    file_bytes: int = 4 << 30
    """Size of the file, bytes."""
    operations: int = 600_000
    """Opcodes, those of all nested streams included."""
    marks: int = 128
    """Open MARKs at a time, which is the depth of structures under construction."""
    stack: int = 50_000
    """Values on the stack at a time."""
    depth: int = 32
    """Depth of modules within modules, and of settings within settings, when they are read out."""
    values: int = 20_000
    """Modules, or settings, that one network may have."""
    dimensions: int = 8
    """Axes of a tensor."""


@dataclass(frozen=True)
class OfficialNetwork:
    """One network of a snapshot: its settings and its tensors under their published names."""

    role: str
    """The key in the snapshot: G_ema, G or D."""
    class_name: str
    """The class that the file names, e.g. TriPlaneGenerator."""
    init_kwargs: Mapping[str, object]
    """Keyword arguments the network was constructed with: numbers, strings, lists and dictionaries."""
    rendering_kwargs: Mapping[str, object]
    """The renderer's settings in force (the network's attribute, which may differ from `init_kwargs`); empty for D."""
    neural_rendering_resolution: int | None
    """Side of the volume rendering in pixels; None for D."""
    plane_layout: PlaneLayout | None
    """How the renderer projects points onto the three planes; None for D."""
    state: Mapping[str, Tensor]
    """Parameters and persistent buffers, float32 where they are real numbers, by published name."""


@dataclass(frozen=True)
class Snapshot:
    """An official file after both gates: inert values only."""

    root: Mapping[str, object]
    size: int
    """Of the file, bytes: the tensors of a network are never more."""

    @property
    def roles(self) -> tuple[str, ...]:
        """The networks in the file."""
        return tuple(k for k in ("G_ema", "G", "D") if isinstance(self.root.get(k), _Object))


def read_official(stream: io.BufferedIOBase, limits: Limits = Limits()) -> Snapshot:
    """Take an official snapshot apart, from the stream's current position to its end, running nothing in it.

    Raises CheckpointError for anything that is not such a snapshot, naming what was found.
    """
    reader, view = _open(stream, limits)
    budget = _Budget(limits, operations=limits.operations, bytes=len(view))
    try:
        end = _scan(reader, len(view), _OUTER, budget)
        if end != len(view):
            _refuse(f"{len(view) - end} bytes follow its end")
        reader.seek(0)
        budget.operations = limits.operations
        root = _Machine(reader, view, _OUTER, budget).run()
    except CheckpointError:
        raise
    except RecursionError:
        _refuse("its structures are nested too deeply")
    except Exception as error:  # whatever a damaged stream sets off in a parser is damage, not a bug to show
        raise CheckpointError(_message(f"it is damaged or cut short ({str(error)[:200]})")) from None
    if type(root) is not dict:
        _refuse(f"it holds {_describe(root)} where a dictionary of networks was expected")
    if not any(isinstance(root.get(role), _Object) for role in ("G_ema", "G", "D")):
        _refuse(f"it has none of the networks G_ema, G and D, but {_names(root)}")
    return Snapshot(root=MappingProxyType(root), size=len(view))


def read_network(snapshot: Snapshot, role: Role = "G_ema", limits: Limits = Limits()) -> OfficialNetwork:
    """Settings and tensors of one network; the tensors are copies, so the file may go.

    Raises CheckpointError where the network is missing or is not one of EG3D's.
    """
    network = snapshot.root.get(role)
    if not isinstance(network, _Object):
        raise CheckpointError(f"The snapshot has no network {role}; it holds {_names(snapshot.root)}.")
    expected = "DualDiscriminator" if role == "D" else "TriPlaneGenerator"
    if network.name != expected:
        raise CheckpointError(f"{role} is a {network.name}; headlift reads EG3D's {expected}.")
    attributes = _attributes(network, role)
    if attributes.get("_init_args", ()) != ():
        raise CheckpointError(f"{role} was built with positional arguments; EG3D's are built with named ones only.")
    init_kwargs = _mapping(attributes.get("_init_kwargs"), f"{role}._init_kwargs", limits)
    budget = _Budget(limits, operations=0, bytes=snapshot.size)
    state = _state_dict(network, role, budget)
    if role == "D":
        return OfficialNetwork(role, network.name, init_kwargs, {}, None, None, state)
    rendering = attributes.get("rendering_kwargs", init_kwargs.get("rendering_kwargs"))
    resolution = attributes.get("neural_rendering_resolution", 64)
    if type(resolution) is not int or not 1 <= resolution <= 4096:
        raise CheckpointError(f"{role}.neural_rendering_resolution is {_describe(resolution)}, not a size in pixels.")
    return OfficialNetwork(
        role=role,
        class_name=network.name,
        init_kwargs=init_kwargs,
        rendering_kwargs=_mapping(rendering, f"{role}.rendering_kwargs", limits),
        neural_rendering_resolution=resolution,
        plane_layout=_plane_layout(attributes, role, budget),
        state=state,
    )


def generator_spec(network: OfficialNetwork) -> GeneratorSpec:
    """The typed spec of a generator out of a snapshot. Raises CheckpointError for settings that make no generator."""
    kwargs = {**network.init_kwargs, "rendering_kwargs": network.rendering_kwargs}
    try:
        return spec_from_published(
            kwargs,
            network.state,
            plane_layout=network.plane_layout or "official",
            neural_resolution=network.neural_rendering_resolution,
        )
    except (TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise CheckpointError(f"{network.role} has settings of the wrong kind ({str(error)[:200]}).") from None


def discriminator_spec(network: OfficialNetwork) -> DiscriminatorSpec:
    """The typed spec of a discriminator out of a snapshot. Raises CheckpointError like `generator_spec`."""
    try:
        return discriminator_spec_from_published(network.init_kwargs, network.state)
    except (TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise CheckpointError(f"{network.role} has settings of the wrong kind ({str(error)[:200]}).") from None


def read_tensors(stream: io.BufferedIOBase, limits: Limits = Limits()) -> Mapping[str, Tensor]:
    """The tensors of a small `torch.save` file (its zip form) through the same two gates, real numbers as float32.

    What the file holds may be one tensor (its name is then empty), or a list or dictionary of them (named by place or
    key). Raises CheckpointError for anything else, naming what was found.
    """
    data = stream.read(limits.file_bytes + 1)
    try:
        if len(data) > limits.file_bytes:
            raise CheckpointError(f"it is larger than {limits.file_bytes >> 20} MiB")
        if data[:4] != b"PK\x03\x04":
            raise CheckpointError(
                "it is no zip archive; a file of torch before 1.6 has to be saved anew by a newer one"
            )
        root = _unzip(data, limits)
        budget = _Budget(limits, operations=0, bytes=len(data))
        if isinstance(root, _Tensor | _Array):
            return {"": _tensor(root, "the tensor", budget)}
        if isinstance(root, list | tuple):
            root = dict(enumerate(root))
        if not isinstance(root, dict):
            raise CheckpointError(f"it holds {_describe(root)}, where tensors were expected")
        return {str(name): _tensor(value, f"entry {str(name)[:100]!r}", budget) for name, value in root.items()}
    except CheckpointError as error:
        what = (
            str(error)
            .removeprefix(_message("").partition(":")[0] + ": ")
            .partition(". Nothing in it was run.")[0]
            .rstrip(".")
        )
        raise CheckpointError(
            f"This file cannot be read as a file of tensors: {what}. Nothing in it was run."
        ) from None
    except RecursionError:
        raise CheckpointError("This file cannot be read as a file of tensors: it is nested too deeply.") from None
    except Exception as error:  # as in `read_official`
        raise CheckpointError(f"This file cannot be read as a file of tensors: damaged ({str(error)[:200]}).") from None


def _unzip(data: bytes, limits: Limits) -> object:
    """What `torch.save` put into a zip archive: `*/data.pkl`, and the numbers in `*/data/KEY`, none of them packed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise CheckpointError("its entries are compressed, which those of torch.save are not")
        if sum(entry.file_size for entry in entries) > len(data):
            raise CheckpointError("its entries claim more bytes than the file has")
        content = {entry.filename.partition("/")[2]: archive.read(entry) for entry in entries}
    if "data.pkl" not in content:
        raise CheckpointError("it is a zip archive, but not of torch.save")
    if content.get("byteorder", b"little") != b"little":
        raise CheckpointError("it was not written on a little-endian machine")

    def storage(identity: object) -> object:
        match identity:
            case ("storage", _Global(module="torch", name=kind), str(key), str(), int(count)) if kind in _STORAGES:
                found = content.get(f"data/{key}")
                if found is not None and len(found) == count * _ITEM_SIZES[_STORAGES[kind]]:
                    return _Storage(_STORAGES[kind], memoryview(found))
        raise CheckpointError("a tensor's numbers are not where it says")

    pickled = content["data.pkl"]
    budget = _Budget(limits, operations=limits.operations, bytes=len(data))
    if _scan(io.BytesIO(pickled), len(pickled), _ZIPPED, budget) != len(pickled):
        raise CheckpointError("bytes follow the end of its pickle")
    budget.operations = limits.operations
    return _Machine(io.BytesIO(pickled), memoryview(pickled), _ZIPPED, budget, storage).run()


# Gate 1: the scan


@dataclass(frozen=True)
class _Rules:
    """What one kind of stream may contain."""

    opcodes: frozenset[str]
    globals: frozenset[tuple[str, str]]
    protocols: range


@dataclass
class _Budget:
    """What is left of the limits in the course of one load."""

    limits: Limits
    operations: int
    bytes: int

    def spend_bytes(self, count: int, what: str) -> None:
        """Numbers read out of the file can never be more than the file has; sharing must not multiply them, neither
        that of a storage by tensors nor that of a tensor by names."""
        self.bytes -= count
        if self.bytes < 0:
            _refuse(f"{what}: its tensors together ask for more numbers than the file holds")


_MARKED = frozenset({"TUPLE", "APPENDS", "SETITEMS", "ADDITEMS"})
_STRINGS = frozenset({"SHORT_BINUNICODE", "BINUNICODE"})
_PUTS = frozenset({"MEMOIZE", "BINPUT", "LONG_BINPUT"})
_GETS = frozenset({"BINGET", "LONG_BINGET"})


def _scan(reader: Any, size: int, rules: _Rules, budget: _Budget) -> int:
    """Walk one pickle of a stream of `size` bytes without building anything; returns the position after its STOP.

    Raises CheckpointError for an opcode or global that is not in `rules`, and for memo indices, frames or depths out
    of bounds; ValueError where the stream is damaged.
    """
    memo: list[str | None] = []
    recent: tuple[str | None, str | None] = (None, None)  # the last two values pushed, where they are strings
    marks = 0
    start: int = reader.tell()
    operations: Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]] = pickletools.genops(reader)
    for opcode, argument, position in operations:
        name, at = opcode.name, (position or 0) - start
        budget.operations -= 1
        if budget.operations < 0:
            _refuse(f"it has more than {budget.limits.operations} operations")
        if name not in rules.opcodes:
            _refuse(f"byte {at} is the opcode {name}{_argument(argument)}, which such files do not use")
        if (name == "PROTO") != (at == 0) or (at == 0 and argument not in rules.protocols):
            _refuse(f"byte {at}: it is not a pickle of protocol 4")
        if name == "FRAME" and argument > size - at - 9:
            _refuse(f"byte {at}: a frame of {argument} bytes, where {size - at - 9} are left")
        if name in ("BINPUT", "LONG_BINPUT") and argument > len(memo):
            _refuse(f"byte {at}: memo index {argument}, where {len(memo)} would be next")
        if name in _GETS and argument >= len(memo):
            _refuse(f"byte {at}: memo index {argument} is read before it is written")
        if name == "LONG1" and not -(2**127) <= argument < 2**127:
            _refuse(f"byte {at}: an integer of {argument.bit_length()} bits")
        if name == "GLOBAL":
            _check_global(tuple(argument.split(" ", 1)), rules, at)
        if name == "STACK_GLOBAL":
            _check_global(recent, rules, at)
        marks += (name == "MARK") - (name in _MARKED)
        if not 0 <= marks <= budget.limits.marks:
            _refuse(f"byte {at}: " + ("MARKs nested too deeply" if marks > 0 else f"{name} without its MARK"))

        if name in _PUTS:
            index = len(memo) if name == "MEMOIZE" else argument
            memo[index : index + 1] = [recent[1]]
        elif name in _GETS:
            recent = (recent[1], memo[argument])
        elif name != "FRAME":
            recent = (recent[1], argument if name in _STRINGS else None)
        if name == "STOP":
            return at + 1
    raise ValueError("no STOP")


def _check_global(names: tuple[str | None, ...], rules: _Rules, at: int) -> None:
    if len(names) != 2 or names[0] is None or names[1] is None:
        _refuse(f"byte {at}: it composes the name of a global at run time")
    if names not in rules.globals:
        _refuse(f"byte {at}: it asks for {names[0]}.{names[1]}"[:200] + ", which no EG3D snapshot needs")


# Gate 2: the machine, and the inert values that it makes


@dataclass(frozen=True)
class _Global:
    """A name on the allow-list; only a name, nothing is imported for it."""

    module: str
    name: str


@dataclass(eq=False)
class _Object:
    """A module of a network: what it is called and its attributes."""

    name: str
    state: object = None


@dataclass(frozen=True, eq=False)
class _Storage:
    dtype: str
    data: memoryview

    @property
    def count(self) -> int:
        return len(self.data) // _ITEM_SIZES[self.dtype]


@dataclass(frozen=True, eq=False)
class _Tensor:
    """A view into a storage that was checked to lie inside it."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def byte_count(self) -> int:
        return math.prod(self.size) * _ITEM_SIZES[self.storage.dtype]

    def tensor(self) -> Shaped[Tensor, "*size"]:
        """A copy of the numbers."""
        dtype = self.storage.dtype
        item = _ITEM_SIZES[dtype]
        flat = np.frombuffer(self.storage.data, dtype="<i2" if dtype == "bf16" else dtype)
        strides = tuple(s * item for s in self.stride)
        picked = np.lib.stride_tricks.as_strided(flat[self.offset :], self.size, strides, writeable=False)
        copied = torch.from_numpy(np.array(picked, order="C"))
        return copied.view(torch.bfloat16) if dtype == "bf16" else copied


@dataclass(eq=False)
class _DType:
    code: str
    order: str = "<"


@dataclass(eq=False)
class _Array:
    """A numpy array of an older file; empty until BUILD fills it."""

    size: tuple[int, ...] = (0,)
    dtype: _DType = field(default_factory=lambda: _DType("f4"))
    fortran: bool = False
    data: bytes = b""

    @property
    def byte_count(self) -> int:
        return len(self.data)

    def tensor(self) -> Shaped[Tensor, "*size"]:
        """A copy of the numbers."""
        dtype = np.dtype(self.dtype.order.replace("|", "<") + self.dtype.code)
        shaped = np.frombuffer(self.data, dtype).reshape(self.size, order="F" if self.fortran else "C")
        return torch.from_numpy(np.array(shaped, dtype=self.dtype.code, order="C"))


class _Machine:
    """Interpret one scanned pickle: `reader` is at its start, `view` holds the bytes from there on.

    `persistent` receives BINPERSID's argument; the outer stream has none.
    """

    def __init__(
        self,
        reader: Any,
        view: memoryview,
        rules: _Rules,
        budget: _Budget,
        persistent: Callable[[object], object] | None = None,
    ) -> None:
        self.reader, self.view, self.rules, self.budget, self.persistent = reader, view, rules, budget, persistent
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}

    def run(self) -> object:
        start = self.reader.tell()
        for opcode, argument, position in pickletools.genops(self.reader):
            self.budget.operations -= 1
            if self.budget.operations < 0 or len(self.stack) > self.budget.limits.stack:
                _refuse("it has too many operations or keeps too many values at a time")
            if opcode.name == "STOP":
                break
            self.step(opcode.name, argument, (position or 0) - start)
        if len(self.stack) != 1 or self.marks:
            _refuse("values are left over at its end")
        return self.stack[0]

    def step(self, name: str, argument: object, at: int) -> None:
        """Carry out one opcode (https://docs.python.org/3/library/pickletools.html describes each)."""
        push = self.stack.append
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self.marks.append(len(self.stack))
            case "SHORT_BINUNICODE" | "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "BINFLOAT" | "LONG1":
                push(argument)
            case "SHORT_BINBYTES" | "BINBYTES":
                assert isinstance(argument, bytes)
                start = at + (2 if name == "SHORT_BINBYTES" else 5)
                push(self.view[start : start + len(argument)])
            case "NONE":
                push(None)
            case "NEWTRUE" | "NEWFALSE":
                push(name == "NEWTRUE")
            case "EMPTY_DICT":
                push({})
            case "EMPTY_LIST":
                push([])
            case "EMPTY_SET":
                push(set())
            case "EMPTY_TUPLE":
                push(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                push(tuple(self.pop_many(int(name[-1]))))
            case "TUPLE":
                push(tuple(self.pop_mark()))
            case "APPEND":
                self.append([self.pop()])
            case "APPENDS":
                self.append(self.pop_mark())
            case "ADDITEMS":
                self.add(self.pop_mark())
            case "SETITEM":
                self.set_items(self.pop_many(2))
            case "SETITEMS":
                self.set_items(self.pop_mark())
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.top()
            case "BINPUT" | "LONG_BINPUT":
                assert isinstance(argument, int)
                self.memo[argument] = self.top()
            case "BINGET" | "LONG_BINGET":
                assert isinstance(argument, int)
                push(self.memo[argument])
            case "GLOBAL":
                assert isinstance(argument, str)
                push(self.find(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                push(self.find(*self.pop_many(2)))
            case "REDUCE":
                function, arguments = self.pop_many(2)
                push(self.call(function, arguments))
            case "NEWOBJ":
                function, arguments = self.pop_many(2)
                push(self.new(function, arguments))
            case "BUILD":
                state = self.pop()
                self.build(self.top(), state)
            case "BINPERSID":
                if self.persistent is None:
                    _refuse("it refers to an object outside the file")
                push(self.persistent(self.pop()))
            case _:
                _refuse(f"byte {at} is the opcode {name}, which such files do not use")

    # the stack

    def top(self) -> object:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise ValueError("the stack is empty")
        return self.stack[-1]

    def pop(self) -> object:
        self.top()
        return self.stack.pop()

    def pop_many(self, count: int) -> list[object]:
        return [self.pop() for _ in range(count)][::-1]

    def pop_mark(self) -> list[object]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    # containers: the plain ones of Python, keys and members that cost nothing to hash

    def append(self, values: list[object]) -> None:
        target = self.top()
        if type(target) is not list:
            _refuse(f"it appends to {_describe(target)}")
        target.extend(values)

    def add(self, values: list[object]) -> None:
        target = self.top()
        if type(target) is not set:
            _refuse(f"it adds members to {_describe(target)}")
        target.update(_key(v) for v in values)

    def set_items(self, values: list[object]) -> None:
        target = self.top()
        if type(target) is not dict or len(values) % 2:
            _refuse(f"it sets items of {_describe(target)}")
        for key, value in zip(map(_key, values[::2]), values[1::2], strict=True):
            if key in target:
                _refuse(f"the name {_describe(key)} stands twice in one dictionary")
            target[key] = value

    # globals and what they stand for

    def find(self, *names: object) -> _Global:
        if names not in self.rules.globals:
            _refuse(f"it asks for {'.'.join(_describe(n) for n in names)}, which no EG3D snapshot needs")
        module, name = names
        assert isinstance(module, str)
        assert isinstance(name, str)
        return _Global(module, name)

    def new(self, function: object, arguments: object) -> object:
        """NEWOBJ: an empty dictionary, or a module without attributes as yet."""
        if not isinstance(function, _Global) or arguments != ():
            _refuse(f"it makes a new object of {_describe(function)}")
        if function.name in ("EasyDict", "OrderedDict"):
            return {}
        if (function.module, function.name) in _MODULES:
            return _Object(function.name)
        _refuse(f"it makes a new object of {_describe(function)}")

    def call(self, function: object, arguments: object) -> object:
        """REDUCE: our own versions of the few functions that such files use."""
        if not isinstance(function, _Global) or type(arguments) is not tuple:
            _refuse(f"it calls {_describe(function)}")
        match function.name, *arguments:
            case [("OrderedDict" | "EasyDict")]:
                return {}
            case "_reconstruct_persistent_obj", dict(meta):
                return _persistent_object(meta)
            case "_load_from_bytes", memoryview() as data:
                return _load_storage(data, self.budget)
            case "_rebuild_tensor_v2", _Storage() as storage, offset, size, stride, bool(), dict(), *rest:
                if rest not in ([], [None], [{}]):
                    _refuse("a tensor carries metadata of its own")
                return _rebuild_tensor(storage, offset, size, stride, self.budget)
            case "_rebuild_parameter", _Tensor() as tensor, bool(), dict():
                return tensor
            case "dtype", str(code), bool() | int(), bool() | int():
                return _dtype(code)
            case "scalar", _DType() as dtype, (memoryview() | bytes()) as data:
                return _scalar(dtype, bytes(data))
            case "encode", str(text), "latin1":
                self.budget.spend_bytes(len(text), "_codecs.encode")
                return text.encode("latin1")
            case "_reconstruct", _Global(module="numpy", name="ndarray"), tuple(), (memoryview() | bytes()):
                return _Array()
        _refuse(f"it calls {_describe(function)} with ({', '.join(_describe(a) for a in arguments[:8])})")

    def build(self, target: object, state: object) -> None:
        """BUILD: give an object that this load has made its attributes, once."""
        if isinstance(target, _Object) and target.state is None and type(state) is dict:
            target.state = state
        elif isinstance(target, _DType) and type(state) is tuple and len(state) == 8:
            version, order, subdtype, names, fields, *_ = state
            if version != 3 or order not in ("<", "|", ">") or (subdtype, names, fields) != (None, None, None):
                _refuse("a numpy type is not one of plain numbers")
            target.order = str(order)
        elif isinstance(target, _Array) and type(state) is tuple and len(state) == 5:
            _fill_array(target, state, self.budget)
        elif type(target) is dict and state == {}:
            pass  # before Python 3.11 an EasyDict without attributes says so
        else:
            _refuse(f"it sets attributes of {_describe(target)} to {_describe(state)}")


def _key(value: object) -> str | int:
    if type(value) is str or type(value) is int:
        return value
    _refuse(f"a name is {_describe(value)}")


def _persistent_object(meta: dict[object, object]) -> _Object:
    """Keep the state of a persistent object and forget its source."""
    name, state = meta.get("class_name"), meta.get("state")
    if meta.get("type") != "class" or meta.get("version") != 6:
        _refuse(
            f"a persistent object is of type {_describe(meta.get('type'))} and version {_describe(meta.get('version'))}"
        )
    if type(name) is not str or len(name) > 100 or type(state) is not dict:
        _refuse(f"a persistent object is called {_describe(name)} and holds {_describe(state)}")
    return _Object(name, state)


def _dtype(code: str) -> _DType:
    if code not in _SCALARS:
        _refuse(f"the numpy type {_describe(code)} is not one of plain numbers")
    return _DType(code)


def _scalar(dtype: _DType, data: bytes) -> float | int | bool:
    layout = dtype.order.replace("|", "<") + _SCALARS[dtype.code]
    if len(data) != struct.calcsize(layout):
        _refuse(f"a numpy scalar of type {dtype.code} has {len(data)} bytes")
    value: float | int | bool = struct.unpack(layout, data)[0]
    return value


def _fill_array(target: _Array, state: tuple[object, ...], budget: _Budget) -> None:
    _, shape, dtype, fortran, data = state
    if not isinstance(dtype, _DType) or not isinstance(data, memoryview | bytes) or target.data:
        _refuse("a numpy array holds something other than plain numbers")
    shape = _sizes(shape, "the shape of a numpy array", budget.limits)
    if math.prod(shape) * struct.calcsize(_SCALARS[dtype.code]) != len(data):
        _refuse(f"a numpy array of shape {shape} and type {dtype.code} has {len(data)} bytes")
    budget.spend_bytes(len(data), "numpy.ndarray")
    target.size, target.dtype, target.fortran, target.data = shape, dtype, bool(fortran), bytes(data)


def _rebuild_tensor(storage: _Storage, offset: object, size: object, stride: object, budget: _Budget) -> _Tensor:
    """torch._utils._rebuild_tensor_v2 for storages of ours: every element must lie inside the storage, and there can be
    no more of them than the storage has (a stride of 0 would otherwise multiply them)."""
    sizes = _sizes(size, "the size of a tensor", budget.limits)
    strides = _sizes(stride, "the stride of a tensor", budget.limits)
    if len(strides) != len(sizes) or type(offset) is not int or offset < 0:
        _refuse(f"a tensor has size {sizes}, stride {strides} and offset {_describe(offset)}")
    count = math.prod(sizes)
    last = offset + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True)) if count else offset - 1
    if last >= storage.count or count > storage.count or (not count and max(sizes) >= 2**16):
        _refuse(
            f"a tensor of size {sizes}, stride {strides} and offset {offset} reaches out of its storage"
            f" of {storage.count} numbers"
        )
    budget.spend_bytes(count * _ITEM_SIZES[storage.dtype], "_rebuild_tensor_v2")
    return _Tensor(storage, offset, sizes, strides)


def _sizes(value: object, what: str, limits: Limits) -> tuple[int, ...]:
    if type(value) is not tuple or len(value) > limits.dimensions:
        _refuse(f"{what} is {_describe(value)}")
    sizes: list[int] = []
    for number in value:
        if type(number) is not int or not 0 <= number < 2**48:
            _refuse(f"{what} has the entry {_describe(number)}")
        sizes.append(number)
    return tuple(sizes)


# The nested legacy torch.save stream


def _load_storage(data: memoryview, budget: _Budget) -> _Storage:
    """torch.storage._load_from_bytes for the legacy (not zip) format of one storage."""
    if bytes(data[:2]) == b"PK":
        _refuse("a nested storage is a zip archive; EG3D's are legacy torch.save streams")
    found: list[tuple[str, str, int]] = []  # of the storage: its type, key and count

    def storage(identity: object) -> object:
        match identity:
            case ("storage", _Global(module="torch", name=kind), str(key), str(), int(count), *rest) if rest in (
                [None],
                [],
            ):
                found.append((kind, key, count))
                return None
        _refuse("a nested stream refers to something other than one storage")

    head = io.BytesIO(data[:_NESTED_HEAD])

    def load() -> object:
        start, operations = head.tell(), budget.operations
        _scan(head, len(data) - start, _NESTED, budget)
        head.seek(start)
        budget.operations = operations
        return _Machine(head, data[start:], _NESTED, budget, storage).run()

    magic, protocol, system = load(), load(), load()
    if magic != _MAGIC or protocol != 1001:
        _refuse("a nested storage is not a legacy torch.save stream")
    if type(system) is not dict or system.get("little_endian") is not True:
        _refuse("a nested storage was not written on a little-endian machine")
    load()
    keys = load()
    if len(found) != 1 or keys != [found[0][1]]:
        _refuse("a nested stream holds something other than one storage")
    kind, _, count = found[0]
    dtype = _STORAGES[kind]
    position = head.tell()
    left = len(data) - position - 8
    if left < 0:
        _refuse("a nested storage is cut short")
    written: int = struct.unpack("<q", data[position : position + 8])[0]
    if written != count or count < 0 or count * _ITEM_SIZES[dtype] != left:
        _refuse(f"a {kind} announces {written} and {count} numbers and has {left} bytes")
    return _Storage(dtype, data[position + 8 :])


_MAGIC = 0x1950A86A20F9469CFC6C
_NESTED_HEAD = 4096
"""The five pickles before the numbers take about 250 bytes."""
_STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bf16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "|i1",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
}
_ITEM_SIZES = {code: 2 if code == "bf16" else int(code[-1]) for code in _STORAGES.values()}
_SCALARS = {
    "f2": "e",
    "f4": "f",
    "f8": "d",
    "i1": "b",
    "i2": "h",
    "i4": "i",
    "i8": "q",
    "u1": "B",
    "u2": "H",
    "u4": "I",
    "u8": "Q",
    "b1": "?",
}

_MODULES = frozenset(
    {
        ("torch.nn.modules.container", "Sequential"),
        ("torch.nn.modules.activation", "Softplus"),
        ("training.triplane", "OSGDecoder"),
        ("training.volumetric_rendering.renderer", "ImportanceRenderer"),
        ("training.volumetric_rendering.ray_marcher", "MipRayMarcher2"),
        ("training.volumetric_rendering.ray_sampler", "RaySampler"),
    }
)
_COMMON = frozenset(
    {
        "PROTO",
        "MARK",
        "STOP",
        "BINPUT",
        "LONG_BINPUT",
        "BINGET",
        "LONG_BINGET",
        "EMPTY_DICT",
        "EMPTY_LIST",
        "EMPTY_TUPLE",
        "TUPLE",
        "TUPLE1",
        "TUPLE2",
        "TUPLE3",
        "APPEND",
        "APPENDS",
        "SETITEM",
        "SETITEMS",
        "BINUNICODE",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG1",
        "NEWTRUE",
        "NEWFALSE",
        "NONE",
        "GLOBAL",
    }
)
_OUTER = _Rules(
    opcodes=_COMMON
    | {
        "FRAME",
        "MEMOIZE",
        "EMPTY_SET",
        "ADDITEMS",
        "SHORT_BINUNICODE",
        "SHORT_BINBYTES",
        "BINBYTES",
        "BINFLOAT",
        "STACK_GLOBAL",
        "REDUCE",
        "NEWOBJ",
        "BUILD",
    },
    globals=_MODULES
    | {
        ("collections", "OrderedDict"),
        ("dnnlib.util", "EasyDict"),
        ("torch_utils.persistence", "_reconstruct_persistent_obj"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_parameter"),
        ("torch.storage", "_load_from_bytes"),
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("_codecs", "encode"),
    },
    protocols=range(2, 6),
)
_NESTED = _Rules(
    opcodes=_COMMON | {"BINPERSID"},
    globals=frozenset(("torch", kind) for kind in _STORAGES),
    protocols=range(2, 3),
)
_ZIPPED = _Rules(
    opcodes=_NESTED.opcodes | {"REDUCE", "BUILD", "BINFLOAT", "SHORT_BINBYTES", "BINBYTES"},
    globals=_NESTED.globals
    | {
        ("collections", "OrderedDict"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_parameter"),
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("_codecs", "encode"),
    },
    protocols=range(2, 3),
)


# Reading names, tensors and settings out of the inert values


def _attributes(module: object, path: str) -> dict[str, object]:
    if not isinstance(module, _Object) or type(module.state) is not dict:
        raise CheckpointError(f"{path} is {_describe(module)}, not a network module; the snapshot is not EG3D's.")
    attributes: dict[str, object] = module.state
    return attributes


def _table(attributes: dict[str, object], name: str, path: str) -> dict[str, object]:
    table = attributes.get(name)
    if type(table) is not dict:
        raise CheckpointError(f"{path}.{name} is {_describe(table)}, not a dictionary; the snapshot is not EG3D's.")
    for key in table:
        if type(key) is not str or not key or len(key) > 100 or "." in key or not key.isprintable():
            raise CheckpointError(f"{path}.{name} has an entry called {_describe(key)}, which cannot be a name.")
    return table


def _state_dict(network: _Object, role: str, budget: _Budget) -> dict[str, Tensor]:
    """Parameters and persistent buffers under their published names, in torch's order."""
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    limits = budget.limits

    def visit(module: object, prefix: str, depth: int) -> None:
        path = f"{role}.{prefix}".rstrip(".")
        attributes = _attributes(module, path)
        if id(module) in seen:
            raise CheckpointError(f"{path} stands in the network twice, or contains itself.")
        seen.add(id(module))
        if depth > limits.depth or len(seen) > limits.values:
            raise CheckpointError(f"{path}: modules are nested deeper than {limits.depth}, or there are too many.")
        transient = attributes.get("_non_persistent_buffers_set", set())
        if type(transient) is not set:
            raise CheckpointError(f"{path}._non_persistent_buffers_set is {_describe(transient)}, not a set.")
        for kind in ("_parameters", "_buffers"):
            for name, tensor in _table(attributes, kind, path).items():
                if tensor is None or (kind == "_buffers" and name in transient):
                    continue
                if prefix + name in state:
                    raise CheckpointError(f"{path}.{name} is both a parameter and a buffer.")
                state[prefix + name] = _tensor(tensor, f"{path}.{name}", budget)
        for name, child in _table(attributes, "_modules", path).items():
            if child is not None:
                visit(child, f"{prefix}{name}.", depth + 1)

    visit(network, "", 0)
    return state


def _tensor(value: object, path: str, budget: _Budget) -> Tensor:
    """A copy of its own for each name that a tensor has: names that shared one would be tuned together."""
    if not isinstance(value, _Tensor | _Array):
        raise CheckpointError(f"{path} is {_describe(value)}, not a tensor.")
    budget.spend_bytes(value.byte_count, path)
    tensor = value.tensor()
    if tensor.is_floating_point():
        tensor = tensor.float()
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path} holds numbers that are not finite; the network would render nothing.")
    return tensor


def _plane_layout(attributes: dict[str, object], role: str, budget: _Budget) -> PlaneLayout:
    """The layout is in no state dict: it is a plain attribute of the renderer."""
    path = f"{role}.renderer"
    renderer = _attributes(_table(attributes, "_modules", role).get("renderer"), path)
    axes = renderer.get("plane_axes")
    if not isinstance(axes, _Tensor | _Array):
        raise CheckpointError(f"{path}.plane_axes is {_describe(axes)}: which way its planes lie cannot be told.")
    if axes.size != (3, 3, 3):
        raise CheckpointError(f"{path}.plane_axes has shape {axes.size}, where three bases (3, 3, 3) were expected.")
    return plane_layout_from_axes(_tensor(axes, f"{path}.plane_axes", budget))


def _mapping(value: object, path: str, limits: Limits) -> dict[str, object]:
    """Settings as plain numbers, strings, lists and dictionaries with string keys."""
    left = limits.values

    def plain(value: object, path: str, depth: int) -> object:
        nonlocal left
        left -= 1
        if depth > limits.depth or left < 0:
            raise CheckpointError(f"{path[:200]}: settings are nested too deeply, or there are too many.")
        if value is None or type(value) in (bool, int, float):
            return value
        if type(value) is str and len(value) <= 1000:
            return value
        if type(value) is list or type(value) is tuple:
            return [plain(v, f"{path}[{i}]", depth + 1) for i, v in enumerate(value)]
        if type(value) is dict:
            return {str(k): plain(v, f"{path}.{str(k)[:100]}", depth + 1) for k, v in value.items()}
        if isinstance(value, _Tensor | _Array) and math.prod(value.size) <= 64:
            numbers: object = value.tensor().tolist()
            return numbers
        raise CheckpointError(f"{path[:200]} is {_describe(value)}, not a setting.")

    if type(value) is not dict:
        raise CheckpointError(f"{path} is {_describe(value)}, not a dictionary of settings.")
    result = plain(value, path, 0)
    assert isinstance(result, dict)
    return result


# Words and bytes


def _open(stream: io.BufferedIOBase, limits: Limits) -> tuple[Any, memoryview]:
    """The rest of the stream as something to read from and as bytes; mapped, not copied, where it is a file.

    Both kinds of readers give what is there and no more, whatever length is asked for.
    """
    reader: Any
    try:
        if stream.tell() != 0:
            raise ValueError("not at its start")
        reader = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        view = memoryview(reader)
    except (OSError, ValueError):  # not a file, or an empty one
        content = stream.read(limits.file_bytes + 1)
        reader, view = io.BytesIO(content), memoryview(content)
    if len(view) > limits.file_bytes:
        _refuse(f"it is larger than {limits.file_bytes >> 20} MiB")
    head = bytes(view[:4])
    if head == b"PK\x03\x04":
        _refuse("it is a zip archive (a torch.save file?); EG3D's snapshots are plain pickles")
    if head[:1] != b"\x80":
        _refuse("it is empty" if not head else "it is not a pickle")
    return reader, view


def _message(what: str) -> str:
    return (
        f"This file cannot be read as an official EG3D snapshot: {what}. Nothing in it was run."
        " If it should be one, download it again from NVIDIA and compare its checksum."
    )


def _refuse(what: str) -> NoReturn:
    raise CheckpointError(_message(what))


def _argument(argument: object) -> str:
    return f" ({argument[:100]})" if isinstance(argument, str) else ""


def _describe(value: object) -> str:
    """A few words on any value, safe for hostile ones: no nested value is looked into."""
    if type(value) is str:
        return repr(value[:80])
    if value is None or type(value) in (bool, float):
        return repr(value)
    if type(value) is int:
        return repr(value) if value.bit_length() < 128 else f"an integer of {value.bit_length()} bits"
    if isinstance(value, _Global):
        return f"{value.module}.{value.name}"
    if isinstance(value, _Object):
        return f"a {value.name}"
    kind = type(value).__name__.lstrip("_").lower()
    return {"memoryview": "bytes"}.get(kind, f"{'an' if kind[:1] in 'aeiou' else 'a'} {kind}")


def _names(root: Iterable[object]) -> str:
    shown = [_describe(k) for k, _ in zip(_iterate(root), range(12), strict=False)]
    return ", ".join(shown) or "nothing"


def _iterate(root: Iterable[object]) -> Iterator[object]:
    yield from root
