"""Hostile and damaged snapshots: one clear error each, nothing run, memory bounded."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import pickletools
import struct
import subprocess
import sys
import textwrap
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from official_files import (
    MARK,
    PLANE_AXES,
    Persistent,
    Style,
    discriminator_tree,
    generator_tree,
    module_state,
    pretended_modules,
    snapshot_bytes,
)

from headlift.eg3d.pickles import Limits, generator_spec, read_network, read_official, read_tensors
from headlift.errors import CheckpointError

KWARGS: dict[str, Any] = {
    "z_dim": 4,
    "w_dim": 4,
    "c_dim": 25,
    "rendering_kwargs": {
        "superresolution_module": "training.superresolution.SuperresolutionHybrid2X",
        "c_scale": 1.0,
    },
    "sr_num_fp16_res": 4,
}
SHAPES = {
    "backbone.synthesis.b4.const": (2, 4, 4),
    "backbone.synthesis.b4.conv1.weight": (2, 2, 3, 3),
    "backbone.mapping.embed.weight": (4, 25),
    "backbone.mapping.fc0.weight": (4, 8),
    "backbone.mapping.w_avg": (4,),
    "superresolution.block0.conv0.noise_const": (4, 4),
    "superresolution.block0.conv1.weight": (2, 2, 3, 3),
    "superresolution.block1.conv1.weight": (2, 2, 3, 3),
    "decoder.net.0.weight": (3, 2),
    "decoder.net.2.weight": (4, 3),
}
BUFFERS = frozenset({"backbone.mapping.w_avg", "superresolution.block0.conv0.noise_const"})


def small_file(change: Callable[[dict[str, Any]], None] = lambda state: None, **options: Any) -> bytes:
    """A valid file of a few kilobytes, or one whose generator was changed before it was written."""
    random = torch.Generator().manual_seed(3)
    state = {name: torch.rand(shape, generator=random) for name, shape in SHAPES.items()}
    with pretended_modules() as names:
        tree = generator_tree(state, BUFFERS, KWARGS, Style(), names, **options)
        change(tree.state)
        return snapshot_bytes({"G_ema": tree}, Style(), names)


def load(data: bytes) -> None:
    """Everything that an import does with a file."""
    generator_spec(read_network(read_official(io.BytesIO(data))))


def refused(data: bytes, words: str, megabytes: float = 4.0) -> str:
    """The file is refused with these words, without running anything or using much memory."""
    os.environ.pop(MARK, None)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=words) as caught:
            load(data)
        assert tracemalloc.get_traced_memory()[1] < megabytes * 2**20
    finally:
        tracemalloc.stop()
    assert MARK not in os.environ
    message = str(caught.value)
    assert len(message) < 800
    return message


def test_the_small_file_itself_is_read() -> None:
    network = read_network(read_official(io.BytesIO(small_file())))
    assert {name: tuple(t.shape) for name, t in network.state.items()} == SHAPES


class Call:
    """Pickled as a call of a function with arguments."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


SETS_MARK = f"__import__('os').environ[{MARK!r}] = 'run'"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    ("evil", "name"),
    [
        (Call(os.system, f"echo {MARK}"), rf"{os.system.__module__}.system"),
        (Call(eval, SETS_MARK), r"builtins?(__)?\.eval"),
        (Call(exec, SETS_MARK), r"builtins?(__)?\.exec"),
        (Call(getattr, "text", "upper"), r"builtins?(__)?\.getattr"),
        (Call(__import__, "os"), r"builtins?(__)?\.__import__"),
        (Call(subprocess.check_output, ["true"]), r"\.check_output"),
        (Call(torch.load, "x"), r"torch.serialization.load"),
        (Call(np.load, "x"), r"numpy.load|numpy"),
        (Call(pickle.loads, b"N."), r"ickle\.loads"),
        (torch.nn.Linear(1, 1), r"torch.nn.modules.linear.Linear"),
    ],
)
@pytest.mark.parametrize("place", ["alone", "beside", "inside"])
def test_a_foreign_global_is_refused_by_name(evil: Any, name: str, place: str, protocol: int) -> None:
    if place == "inside" and protocol == 4:
        data = small_file(lambda state: state.update(training=evil))
    else:
        data = pickle.dumps(evil if place == "alone" else {"G_ema": 1, "evil": evil}, protocol=protocol)
    refused(data, name)


def assemble(*parts: bytes | str | int) -> bytes:
    """A protocol-4 pickle: opcodes as bytes, and strings pushed."""
    out = b"\x80\x04"
    for part in parts:
        if isinstance(part, str):
            out += b"\x8c" + bytes([len(part)]) + part.encode()
        elif isinstance(part, int):
            out += b"J" + struct.pack("<i", part)
        else:
            out += part
    return out + b"."


def found(module: str, name: str) -> bytes:
    """STACK_GLOBAL of a name."""
    return assemble(module, name, b"\x93")[2:-1]


ORDERED = found("collections", "OrderedDict")
TENSOR = found("torch._utils", "_rebuild_tensor_v2")
LOAD = found("torch.storage", "_load_from_bytes")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (assemble("o", "s", b"\x86", "os", "system", b"\x93"), "os.system"),
        (assemble("system", b"\x94", "os", b"h\x00\x93"), "os.system"),  # the name comes out of the memo
        (assemble(b"(", "os", "system", b"l\x93"), "LIST"),
        (assemble(b"N", "system", b"\x93"), "composes the name"),
        (assemble("x", ORDERED, b")R\x93"), "composes the name"),
        (b"\x80\x02cos\nsystem\n(X\x01\x00\x00\x00xtR.", "os.system"),
        (b"cos\nsystem\n(S'x'\ntR.", "not a pickle"),
        (b"\x80\x04ios\nsystem\n.", "INST"),
        (b"\x80\x04(cos\nsystem\no.", "os.system"),
        (assemble(b"\x82\x01"), "EXT1"),
        (assemble(b"Pelsewhere\n"), "PERSID"),
        (assemble("elsewhere", b"Q"), "BINPERSID"),
        (assemble(ORDERED, b")\x92"), "NEWOBJ_EX|ends|empty"),
        (assemble(b"\x80\x04N"), "protocol"),
        (assemble(ORDERED, b"}b"), "sets attributes of collections.OrderedDict"),  # BUILD on the name itself
        (assemble(found("training.triplane", "OSGDecoder"), b"N}", "x", 1, b"s\x86b"), "sets attributes of training"),
        (assemble(found("training.triplane", "OSGDecoder"), b")R"), "calls training.triplane.OSGDecoder"),
        (assemble(ORDERED, b"(", 1, b"tR"), "calls collections.OrderedDict"),
        (assemble("text", b")R"), "calls 'text'"),
        (assemble(ORDERED, ORDERED, b"\x85R"), "calls collections"),
        (assemble(b"})", "v", b"s"), "a name is a tuple"),  # a key that could be costly to hash
        (assemble(b"}", "a", 1, b"s", "a", 2, b"s"), "'a' stands twice"),
        (assemble(b"\x8f(", "a", b")", b"\x90"), "a name is a tuple"),
        (assemble(b"}]", 1, b"s"), "a name is a list"),
        (assemble(b"N", 1, b"a"), "appends to None"),
        (assemble(b"N(", 1, b"e"), "appends to None"),
        (assemble(b"N(", 1, b"\x90"), "adds members to None"),
        (assemble(b"N", "a", 1, b"s"), "sets items of None"),
        (assemble(b"N", "a", b"}", b"(u"), "sets items|left over"),
        (assemble(b"s"), "damaged"),
        (assemble(b"("), "damaged|left over"),
        (assemble(b"t"), "without its MARK"),
        (assemble(b"NN"), "left over"),
        (assemble(b"h\x00"), "read before"),
        (assemble(b"N"), "None where a dictionary"),
        (assemble(b"}"), "none of the networks"),
        (assemble(b"}", "G_ema", b"}s"), "none of the networks"),
        (assemble(b"N") + b"more", "4 bytes follow"),
        (b"", "empty"),
        (b"\x80", "damaged"),
        (b"PK\x03\x04zip", "zip archive"),
        (b"just some text\n", "not a pickle"),
        (b"\x80\x06N.", "protocol"),
        (assemble(b"I" + b"9" * 10000 + b"\n"), "damaged"),
        (b"\x80\x04" + b"(" * 1000 + b".", "too deeply"),
        (assemble(b")" + b"\x85" * 3000), "a tuple where a dictionary"),  # a tuple in a tuple in a tuple ...
        (assemble(*[b"]\x94"] * 1000, *[b"a"] * 999), "a list where"),
        (assemble(b"\x8a\x40" + b"\xff" * 63 + b"\x7f"), "511 bits|bits"),
    ],
)
def test_a_hostile_stream_is_refused(data: bytes, words: str) -> None:
    refused(data, words, megabytes=48.0)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x80\x04Nr\xff\xff\xff\x0f0N.", "memo index 268435455"),  # 11 bytes that make the C unpickler touch 1 GiB
        (b"\x80\x04Nr\xff\xff\xff\xff.", "memo index 4294967295"),
        (b"\x80\x04Nq\xc8.", "memo index 200"),
        (b"\x80\x04j\xff\xff\xff\x7f.", "memo index 2147483647"),
        (b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"N.", "a frame of 1152921504606846976"),
        (b"\x80\x04B" + struct.pack("<I", 0xFFFFFFF0) + b"abc.", "damaged"),
        (b"\x80\x04X" + struct.pack("<I", 0xFFFFFFF0) + b"abc.", "damaged"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 50) + b"abc.", "damaged"),
        (b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"abc.", "damaged"),
        (b"\x80\x05\x96" + struct.pack("<Q", 1 << 50) + b"abc.", "damaged"),
        (b"\x80\x04\x8b" + struct.pack("<i", 0x7FFFFFFF) + b"abc.", "damaged"),
    ],
)
def test_lengths_and_indices_cost_no_memory(data: bytes, words: str) -> None:
    refused(data, words, megabytes=1.0)


# Tensors and their nested streams


def storage_stream(count: int = 6, tensor: torch.Tensor | None = None) -> bytes:
    buffer = io.BytesIO()
    tensor = torch.arange(float(count)) if tensor is None else tensor
    torch.save(tensor._typed_storage(), buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def with_tensor(stream: bytes, offset: Any, size: Any, stride: Any, *more: Any) -> bytes:
    """A snapshot with one tensor that is rebuilt by hand."""

    def change(state: dict[str, Any]) -> None:
        storage = Call(torch.storage._load_from_bytes, stream)
        tensor = Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict(), *more)
        state["_buffers"]["probe"] = tensor

    return small_file(change)


def test_tensors_are_read_as_torch_reads_them() -> None:
    base = torch.arange(24.0).reshape(4, 6)
    views = [base, base.T, base[1:3, 2:5], base[::2, ::3], base[0], base[2, 3], base[:0]]
    types = [torch.float16, torch.float64, torch.bfloat16, torch.float32]
    for tensor in [*views, *(base.to(t) for t in types)]:
        stream = storage_stream(tensor=tensor)
        data = with_tensor(stream, tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
        read = read_network(read_official(io.BytesIO(data))).state["probe"]
        assert read.dtype == torch.float32
        assert torch.equal(read, tensor.float())
    for whole in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool):
        tensor = torch.tensor([0, 1, 1, 0]).to(whole)
        read = read_network(read_official(io.BytesIO(with_tensor(storage_stream(tensor=tensor), 0, (4,), (1,)))))
        assert torch.equal(read.state["probe"], tensor)


@pytest.mark.parametrize(
    ("offset", "size", "stride", "words"),
    [
        (0, (7,), (1,), "reaches out of its storage of 6"),
        (1, (6,), (1,), "reaches out"),
        (-1, (2,), (1,), "offset -1"),
        (6, (1,), (1,), "reaches out"),
        (0, (2, 3), (4, 1), "reaches out"),
        (0, (2,), (-1,), "entry -1"),
        (0, (-2,), (1,), "entry -2"),
        (0, (1 << 40,), (0,), "reaches out"),  # one number, spread over terabytes
        (0, (7,), (0,), "reaches out"),
        (0, (1 << 62,), (1,), "entry 4611686018427387904"),
        (0, (1 << 47, 1 << 47, 0), (1, 1, 1), "reaches out"),
        (0, (0, 512), (512, 1), None),
        (1 << 62, (1,), (1,), "reaches out"),
        (0, (2, 2), (1,), "size"),
        (0, (1,) * 9, (1,) * 9, "the size of a tensor is a tuple"),
        (0, [6], (1,), "the size of a tensor is a list"),
        (0, (2.0,), (1,), "entry 2.0"),
        (True, (2,), (1,), "offset True"),
        (0, (True,), (1,), "entry True"),
        (None, (2,), (1,), "offset None"),
    ],
)
def test_a_tensor_stays_within_its_storage(offset: Any, size: Any, stride: Any, words: str | None) -> None:
    data = with_tensor(storage_stream(6), offset, size, stride)
    if words is None:
        assert read_network(read_official(io.BytesIO(data))).state["probe"].numel() == 0
    else:
        refused(data, words)


def test_a_shared_storage_cannot_multiply_memory() -> None:
    def change(state: dict[str, Any]) -> None:
        storage = Call(torch.storage._load_from_bytes, storage_stream(100_000))
        for i in range(1000):  # one storage of 0.4 MB by the memo, a thousand tensors: 400 MB
            call = Call(torch._utils._rebuild_tensor_v2, storage, 0, (100_000,), (1,), False, OrderedDict())
            state["_buffers"][f"probe{i}"] = call

    refused(small_file(change), "more numbers than the file holds")


def test_a_shared_tensor_cannot_multiply_memory() -> None:
    def change(state: dict[str, Any]) -> None:
        storage = Call(torch.storage._load_from_bytes, storage_stream(100_000))
        tensor = Call(torch._utils._rebuild_tensor_v2, storage, 0, (100_000,), (1,), False, OrderedDict())
        for i in range(100):  # one tensor of 0.4 MB by the memo, a hundred names: 40 MB
            state["_buffers"][f"probe{i}"] = tensor

    refused(small_file(change), "more numbers than the file holds", megabytes=8.0)


def test_a_shared_tensor_in_a_file_of_tensors_cannot_multiply_memory() -> None:
    file = io.BytesIO()
    tensor = torch.zeros(100_000)
    torch.save({f"probe{i}": tensor for i in range(100)}, file)
    file.seek(0)
    with pytest.raises(CheckpointError, match="more numbers than the file holds"):
        read_tensors(file)


def nested(*parts: bytes) -> bytes:
    return b"".join(parts)


def pickles_of(stream: bytes) -> tuple[list[bytes], bytes]:
    """The five pickles of a legacy stream, and the raw rest."""
    pieces = []
    for _ in range(5):
        end = 1 + max(position or 0 for _, _, position in pickletools.genops(stream))
        pieces.append(stream[:end])
        stream = stream[end:]
    return pieces, stream


def evil_streams() -> dict[str, tuple[bytes, str]]:
    (magic, protocol, system, storage, keys), raw = pickles_of(storage_stream(6))
    count, numbers = raw[:8], raw[8:]
    evil = pickle.dumps(Call(os.system, f"echo {MARK}"), protocol=2)
    big = system.replace(b"\x88", b"\x89")  # little_endian False
    return {
        "evil magic": (nested(evil, protocol, system, storage, keys, raw), "system"),
        "evil storage": (nested(magic, protocol, system, evil, keys, raw), "system"),
        "evil keys": (nested(magic, protocol, system, storage, evil, raw), "system"),
        "other magic": (nested(protocol, protocol, system, storage, keys, raw), "not a legacy"),
        "other protocol": (nested(magic, magic, system, storage, keys, raw), "not a legacy"),
        "big endian": (nested(magic, protocol, big, storage, keys, raw), "little-endian"),
        "no storage": (nested(magic, protocol, system, system, keys, raw), "other than one storage"),
        "two keys": (nested(magic, protocol, system, storage, storage, raw), "other than one storage"),
        "no keys": (nested(magic, protocol, system, storage, system, raw), "other than one storage"),
        "count too large": (
            nested(magic, protocol, system, storage, keys, struct.pack("<q", 1 << 40), numbers),
            "announces 1099511627776",
        ),
        "count negative": (
            nested(magic, protocol, system, storage, keys, struct.pack("<q", -6), numbers),
            "announces -6",
        ),
        "numbers missing": (nested(magic, protocol, system, storage, keys, count, numbers[:-4]), "has 20 bytes"),
        "numbers left over": (nested(magic, protocol, system, storage, keys, raw, b"abcd"), "has 28 bytes"),
        "cut before the count": (nested(magic, protocol, system, storage, keys, count[:5]), "cut short"),
        "cut in the pickles": (nested(magic, protocol, system, storage[:40]), "damaged"),
        "another type": (
            nested(magic, protocol, system, storage.replace(b"FloatStorage", b"ClownStorage"), keys, raw),
            "torch.ClownStorage",
        ),
        "of another module": (
            nested(magic, protocol, system, storage.replace(b"torch\nFloatStorage", b"posix\nsystem123456"), keys, raw),
            "posix.system",
        ),
        "reduce inside": (nested(magic, protocol, system, b"\x80\x02)R.", keys, raw), "REDUCE"),
        "global without a use": (
            nested(magic, protocol, system, b"\x80\x02ctorch\nFloatStorage\n.", keys, raw),
            "other than one storage",
        ),
        "huge memo index": (nested(magic, protocol, system, b"\x80\x02Nr\xff\xff\xff\x0f.", keys, raw), "memo index"),
        "a zip": (b"PK\x03\x04" + bytes(100), "zip archive"),
        "empty": (b"", "damaged"),
    }


@pytest.mark.parametrize("name", list(evil_streams()))
def test_a_hostile_nested_stream_is_refused(name: str) -> None:
    stream, words = evil_streams()[name]
    refused(with_tensor(stream, 0, (2, 3), (3, 1)), words)


# Structures that are well-formed and no EG3D network


def child(name: str) -> Persistent:
    return Persistent(name, module_state(Style()))


def cyclic(state: dict[str, Any]) -> None:
    state["_modules"]["again"] = inner = torch.nn.Sequential()
    inner.__dict__.clear()
    inner.__dict__.update(module_state(Style(), _modules={"inner": inner}))


def deep(state: dict[str, Any]) -> None:
    for _ in range(60):
        state["_modules"]["next"] = inner = child("SynthesisLayer")
        state = inner.state


def laughs(state: dict[str, Any]) -> None:
    level: Any = ["ha"] * 10
    for _ in range(25):
        level = [level] * 10  # 10^26 values by sharing, a few hundred bytes
    state["rendering_kwargs"]["joke"] = level


def endless(state: dict[str, Any]) -> None:
    state["rendering_kwargs"]["self"] = state["rendering_kwargs"]


def rename(name: str) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        state["_buffers"][name] = torch.zeros(1)

    return change


def remove(*path: str) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        for name in path[:-1]:
            node = state[name]
            state = node.state if isinstance(node, Persistent) else node
        del state[path[-1]]

    return change


def put(value: Any, *path: str) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        for name in path[:-1]:
            node = state[name]
            state = node.state if isinstance(node, Persistent) else getattr(node, "__dict__", node)
        state[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (cyclic, "contains itself"),
        (deep, "nested deeper"),
        (laughs, "too many|too deeply"),
        (endless, "too deeply"),
        (rename("a.b"), "cannot be a name"),
        (rename(""), "cannot be a name"),
        (rename("a\nb"), "cannot be a name"),
        (put(5, "_buffers", "probe"), "G_ema.probe is 5, not a tensor"),
        (put("text", "_parameters", "probe"), "not a tensor"),
        (put(torch.tensor([float("nan")]), "_buffers", "probe"), "G_ema.probe holds numbers that are not finite"),
        (put(torch.tensor([1e300], dtype=torch.float64), "_buffers", "probe"), "not finite"),
        (put([], "_modules"), "G_ema._modules is a list"),
        (put(5, "_modules", "probe"), "G_ema.probe is 5, not a network module"),
        (remove("_parameters"), "G_ema._parameters is None"),
        (put([], "_non_persistent_buffers_set"), "not a set"),
        (remove("_init_kwargs"), "_init_kwargs is None"),
        (put((1,), "_init_args"), "positional"),
        (put("yes", "rendering_kwargs"), "rendering_kwargs is 'yes'"),
        (put({"superresolution_module": 5}, "rendering_kwargs"), "super-resolution '5' is unknown"),
        (put({**KWARGS["rendering_kwargs"], "box_warp": []}, "rendering_kwargs"), "wrong kind"),
        (put({**KWARGS["rendering_kwargs"], "box_warp": -1}, "rendering_kwargs"), "box_warp"),
        (put({**KWARGS["rendering_kwargs"], "avg_camera_pivot": [0]}, "rendering_kwargs"), "wrong kind"),
        (put({**KWARGS["rendering_kwargs"], "depth_resolution": 1e400}, "rendering_kwargs"), "wrong kind"),
        (put(-1, "neural_rendering_resolution"), "neural_rendering_resolution is -1"),
        (put(True, "neural_rendering_resolution"), "neural_rendering_resolution is True"),
        (remove("_modules", "renderer"), "renderer is None"),
        (remove("_modules", "backbone"), "backbone"),
        (remove("_modules", "decoder"), "decoder.net.0.weight"),
        (put(torch.eye(3), "_modules", "renderer", "plane_axes"), r"plane_axes has shape \(3, 3\)"),
        (put(torch.zeros(3, 3, 3), "_modules", "renderer", "plane_axes"), "axes that no known layout has"),
        (put(None, "_modules", "renderer", "plane_axes"), "plane_axes is None"),
    ],
)
def test_a_structure_of_another_kind_is_refused(change: Callable[[dict[str, Any]], None], words: str) -> None:
    refused(small_file(change), words)


def test_planes_without_axes_or_with_unknown_ones_are_refused() -> None:
    refused(small_file(plane_axes=None), "plane_axes is None")
    swapped = [PLANE_AXES["official"][i] for i in (1, 0, 2)]
    refused(small_file(plane_axes=swapped), "axes that no known layout has")


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ({"type": "function"}, "of type 'function'"),
        ({"version": 99}, "version 99"),
        ({"class_name": 5}, "called 5"),
        ({"state": None}, "holds None"),
        ({"class_name": "StyleGAN3"}, "G_ema is a StyleGAN3"),
    ],
)
def test_persistent_objects_of_another_kind_are_refused(meta: dict[str, Any], words: str) -> None:
    with pretended_modules() as names:
        usual = {"type": "class", "version": 6, "module_src": "", "class_name": "TriPlaneGenerator", "state": {}}
        rebuild = names["torch_utils.persistence", "_reconstruct_persistent_obj"]
        data = pickle.dumps({"G_ema": Call(rebuild, {**usual, **meta})}, protocol=4)
    refused(data, words)


def test_a_missing_network_is_named() -> None:
    with pytest.raises(CheckpointError, match="no network D; it holds 'training_set_kwargs', 'G_ema', 'augment_pipe'"):
        read_network(read_official(io.BytesIO(small_file())), "D")
    with pretended_modules() as names:
        tree = discriminator_tree({"b4.out.weight": torch.ones(1, 1)}, frozenset(), {}, Style(), names)
        data = snapshot_bytes({"G_ema": tree}, Style(), names)
    refused(data, "G_ema is a DualDiscriminator")


def test_numpy_values_are_held_to_their_types() -> None:
    with pretended_modules():
        scalar = np.float64(1).__reduce__()[0]
        dtype, half = np.dtype("f8"), b"1234"
        for value, words in [
            (Call(scalar, dtype, half), "a numpy scalar of type f8 has 4 bytes"),
            (Call(np.dtype, "O", False, True), "numpy type 'O'"),
            (Call(np.dtype, "V9", False, True), "numpy type 'V9'"),
            (np.array([1, "x"], dtype=object), "numpy"),
            (np.zeros(1, dtype=[("a", "f4")]), "numpy"),
        ]:
            refused(small_file(put(value, "rendering_kwargs", "probe")), words)


def test_a_load_leaves_nothing_behind() -> None:
    """BUILD gives attributes to objects of one load only: another load sees none of them."""
    first = read_official(io.BytesIO(small_file()))
    second = read_official(io.BytesIO(small_file()))
    renderer = first.root["G_ema"].state["_modules"]["renderer"]  # type: ignore[attr-defined]
    other = second.root["G_ema"].state["_modules"]["renderer"]  # type: ignore[attr-defined]
    renderer.state["plane_axes"] = "changed"
    assert type(renderer) is type(other)
    assert other.state["plane_axes"] != "changed"
    assert not hasattr(type(other), "plane_axes")


# Damage


def test_a_file_cut_short_anywhere_is_refused() -> None:
    data = small_file()
    for position in [*range(0, 400, 7), *range(400, len(data), 997), len(data) - 1]:
        with pytest.raises(CheckpointError):
            load(data[:position])


SMALL = small_file()


@settings(max_examples=150)
@given(st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(1, 255)), min_size=1, max_size=4))
def test_flipped_bits_give_a_checkpoint_error_or_nothing(flips: list[tuple[int, int]]) -> None:
    data = bytearray(SMALL)
    for position, value in flips:
        data[position] ^= value
    os.environ.pop(MARK, None)
    with contextlib.suppress(CheckpointError):
        load(bytes(data))
    assert MARK not in os.environ


@settings(max_examples=100)
@given(st.binary(max_size=200))
def test_any_bytes_after_the_protocol_give_a_checkpoint_error(tail: bytes) -> None:
    with pytest.raises(CheckpointError):
        load(b"\x80\x04" + tail)


def test_the_limits_hold() -> None:
    for limits, words in [
        (Limits(file_bytes=1000), "larger than"),
        (Limits(operations=100), "more than 100 operations"),
        (Limits(marks=2), "too deeply"),
        (Limits(stack=3), "too many values"),
    ]:
        with pytest.raises(CheckpointError, match=words):
            read_official(io.BytesIO(SMALL), limits)


def test_memory_stays_within_a_hard_limit() -> None:
    """In a process that may use 256 MiB beyond what the imports take, each of these ends with a CheckpointError."""
    script = textwrap.dedent(
        """
        import io, resource, struct, sys
        from headlift.eg3d.pickles import read_official
        from headlift.errors import CheckpointError

        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * resource.getpagesize() + (256 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for data in (
            b"\\x80\\x04Nr\\xff\\xff\\xff\\x0f0N.",
            b"\\x80\\x04\\x95" + struct.pack("<Q", 1 << 40) + b"N.",
            b"\\x80\\x04\\x8e" + struct.pack("<Q", 1 << 40) + b"N.",
            b"\\x80\\x04" + b"]\\x94" * 60000 + b".",
            b"\\x80\\x04)" + b"\\x85" * 60000 + b".",
        ):
            try:
                read_official(io.BytesIO(data))
            except CheckpointError:
                print("refused")
        """
    )
    if not sys.platform.startswith("linux"):
        pytest.skip("RLIMIT_AS and /proc are Linux's")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["refused"] * 5, done.stderr[-2000:]
