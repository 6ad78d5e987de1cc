"""Write pickles of the structure that official EG3D snapshots have, from networks of our own.

Everything goes through Python's real pickler and torch's real legacy `torch.save`, so opcodes, memo and nested
streams are authentic. The modules whose names such a file carries (`dnnlib`, `torch_utils`, `training`) are made up
for the time of the writing only. Each persistent object carries Python source which would leave a mark in the
environment, were it ever run.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

MARK = "HEADLIFT_TEST_MARK"
SOURCE = f"import os\nos.environ[{MARK!r}] = 'run'\nraise SystemExit('the source was run')\n" + "# filler\n" * 40

PLANE_AXES = {
    "official": [
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[1, 0, 0], [0, 0, 1], [0, 1, 0]],
        [[0, 0, 1], [1, 0, 0], [0, 1, 0]],
    ],
    "zy": [[[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 0, 1], [0, 1, 0]], [[0, 0, 1], [0, 1, 0], [1, 0, 0]]],
    "yz": [[[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 0, 1], [0, 1, 0]], [[0, 1, 0], [0, 0, 1], [1, 0, 0]]],
}


@dataclass(frozen=True)
class Style:
    """The spellings that differ between the versions such files were written with."""

    numpy2: bool = False
    """`numpy._core.multiarray` instead of `numpy.core.multiarray`."""
    ordered: bool = False
    """torch 1.x: `_parameters`, `_buffers` and `_modules` are OrderedDicts."""
    empty_state: bool = False
    """Python before 3.11: an EasyDict is followed by BUILD with an empty dictionary."""
    protocol: int = 4


class Persistent:
    """Stands for an instance of a persistent class: pickled as a call of `_reconstruct_persistent_obj`."""

    def __init__(self, class_name: str, state: dict[str, Any]) -> None:
        self.class_name, self.state = class_name, state

    def __reduce__(self) -> tuple[Any, ...]:
        meta = {
            "type": "class",
            "version": 6,
            "module_src": SOURCE,
            "class_name": self.class_name,
            "state": self.state,
        }
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


@contextlib.contextmanager
def pretended_modules() -> Iterator[dict[tuple[str, str], Any]]:
    """The modules that the names in such a file point to, for as long as it takes to write it."""

    def function(module: str, name: str) -> Any:
        def stand_in(*_: Any) -> None: ...

        stand_in.__module__, stand_in.__name__, stand_in.__qualname__ = module, name, name
        return stand_in

    names: dict[tuple[str, str], Any] = {}
    for module, name, base in (
        ("dnnlib.util", "EasyDict", dict),
        ("training.triplane", "OSGDecoder", object),
        ("training.volumetric_rendering.renderer", "ImportanceRenderer", object),
        ("training.volumetric_rendering.ray_marcher", "MipRayMarcher2", object),
        ("training.volumetric_rendering.ray_sampler", "RaySampler", object),
    ):
        names[module, name] = type(name, (base,), {"__module__": module})
    for module, name in (
        ("torch_utils.persistence", "_reconstruct_persistent_obj"),
        ("numpy._core.multiarray", "scalar"),
    ):
        names[module, name] = function(module, name)
    packages = {module.rsplit(".", i)[0] for module, _ in names for i in range(3)}
    before = {package: sys.modules.get(package) for package in packages}
    for package in packages:
        if before[package] is None or package == "numpy._core.multiarray":
            sys.modules[package] = ModuleType(package)
    for (module, name), value in names.items():
        setattr(sys.modules[module], name, value)
    try:
        yield names
    finally:
        for package, module_before in before.items():
            sys.modules.pop(package)
            if module_before is not None:
                sys.modules[package] = module_before


class _Pickler(pickle.Pickler):
    """Numpy scalars under numpy 2's name where asked for; EasyDicts with Python 3.10's empty state."""

    def __init__(self, file: io.BytesIO, style: Style, names: Mapping[tuple[str, str], Any]) -> None:
        super().__init__(file, protocol=style.protocol)
        self.style, self.names = style, names

    def reducer_override(self, value: Any) -> Any:
        if self.style.numpy2 and isinstance(value, np.generic):
            return self.names["numpy._core.multiarray", "scalar"], (value.dtype, value.tobytes())
        if self.style.empty_state and type(value) is self.names["dnnlib.util", "EasyDict"]:
            import copyreg

            return copyreg.__newobj__, (type(value),), {}, None, iter(value.items())  # type: ignore[attr-defined]
        return NotImplemented


def module_state(style: Style, **attributes: Any) -> dict[str, Any]:
    """What an nn.Module's `__dict__` has besides its own attributes."""
    table = OrderedDict if style.ordered else dict
    return {
        "training": False,
        "_parameters": table(),
        "_buffers": table(),
        "_non_persistent_buffers_set": set(),
        "_backward_hooks": OrderedDict(),
        "_is_full_backward_hook": None,
        "_forward_hooks": OrderedDict(),
        "_forward_pre_hooks": OrderedDict(),
        "_state_dict_hooks": OrderedDict(),
        "_load_state_dict_pre_hooks": OrderedDict(),
        "_modules": table(),
        **attributes,
    }


def _class_of(path: str, names: Mapping[tuple[str, str], Any]) -> Any:
    """A class for the module at a path, where it is no persistent one."""
    known = {
        "decoder": ("training.triplane", "OSGDecoder"),
        "renderer": ("training.volumetric_rendering.renderer", "ImportanceRenderer"),
        "renderer.ray_marcher": ("training.volumetric_rendering.ray_marcher", "MipRayMarcher2"),
        "ray_sampler": ("training.volumetric_rendering.ray_sampler", "RaySampler"),
    }
    if path == "decoder.net":
        return torch.nn.Sequential
    if path == "decoder.net.1":
        return torch.nn.Softplus
    return names[known[path]] if path in known else None


def _node(
    path: str,
    state: Mapping[str, Tensor],
    buffers: frozenset[str],
    style: Style,
    names: Mapping[tuple[str, str], Any],
    extra: Mapping[str, Mapping[str, Any]],
    classes: Mapping[str, str],
) -> Any:
    prefix = f"{path}." if path else ""
    attributes = module_state(style, **extra.get(path, {}))
    children: list[str] = []
    for name, tensor in state.items():
        head, _, rest = name.removeprefix(prefix).partition(".")
        if not name.startswith(prefix):
            continue
        if rest:
            if head not in children:
                children.append(head)
        elif name in buffers:
            attributes["_buffers"][head] = tensor.detach().clone()
        else:
            attributes["_parameters"][head] = torch.nn.Parameter(tensor.detach().clone())
            if head == "weight":
                attributes["weight_gain"] = np.float64(1 / np.sqrt(max(1, tensor[0].numel())))
    if path == "":
        children += [c for c in ("renderer", "ray_sampler") if c in extra]
    if path == "renderer":
        children += ["ray_marcher"]
    if path == "decoder.net":
        children.insert(1, "1")
    for child in children:
        inner = _node(prefix + child, state, buffers, style, names, extra, classes)
        attributes["_modules"][child] = inner
    kind = _class_of(path, names)
    if kind is None:
        return Persistent(classes.get(path, "SynthesisLayer"), attributes)
    made = kind.__new__(kind)
    made.__dict__.clear()
    made.__dict__.update(attributes)
    return made


def generator_tree(
    state: Mapping[str, Tensor],
    buffers: frozenset[str],
    kwargs: Mapping[str, Any],
    style: Style,
    names: Mapping[tuple[str, str], Any],
    plane_axes: Any = PLANE_AXES["official"],
    neural_resolution: int = 64,
    rendering_kwargs: Mapping[str, Any] | None = None,
) -> Persistent:
    """A TriPlaneGenerator as it lies in a snapshot."""
    easy = names["dnnlib.util", "EasyDict"]
    init = dict(kwargs)
    for key in ("mapping_kwargs", "sr_kwargs"):
        init[key] = easy(init.get(key, {}))
    extra: dict[str, dict[str, Any]] = {
        "": {
            "neural_rendering_resolution": neural_resolution,
            "rendering_kwargs": dict(rendering_kwargs or kwargs["rendering_kwargs"]),
            "_last_planes": None,
            "_init_args": (),
            "_init_kwargs": init,
        },
        "renderer": {} if plane_axes is None else {"plane_axes": torch.tensor(plane_axes, dtype=torch.float32)},
        "ray_sampler": {"ray_origins_h": None, "ray_directions": None},
        "decoder": {"hidden_dim": 64},
        "decoder.net.1": {"beta": 1, "threshold": 20},
    }
    tree = _node("", state, buffers, style, names, extra, {"": "TriPlaneGenerator"})
    assert isinstance(tree, Persistent)
    return tree


def discriminator_tree(
    state: Mapping[str, Tensor],
    buffers: frozenset[str],
    kwargs: Mapping[str, Any],
    style: Style,
    names: Mapping[tuple[str, str], Any],
) -> Persistent:
    """A DualDiscriminator as it lies in a snapshot."""
    extra = {"": {"_init_args": (), "_init_kwargs": dict(kwargs)}}
    tree = _node("", state, buffers, style, names, extra, {"": "DualDiscriminator"})
    assert isinstance(tree, Persistent)
    return tree


def snapshot_bytes(networks: Mapping[str, Any], style: Style, names: Mapping[tuple[str, str], Any]) -> bytes:
    """The file: training_set_kwargs, the networks, and an augment pipe beside them."""
    augment = Persistent("AugmentPipe", module_state(style, _init_args=(), _init_kwargs={"xflip": 1}, brightness=0.5))
    augment.state["_buffers"]["Hz_geom"] = torch.ones(12)
    augment.state["_buffers"]["p"] = torch.ones([])
    content = {
        "training_set_kwargs": names["dnnlib.util", "EasyDict"](
            class_name="training.dataset.ImageFolderDataset", path="data", resolution=512, use_labels=True
        ),
        **networks,
        "augment_pipe": augment,
    }
    file = io.BytesIO()
    _Pickler(file, style, names).dump(content)
    return file.getvalue()


def official_settings(spec: Any) -> dict[str, Any]:
    """The constructor's arguments that stand for a GeneratorSpec in an official file."""
    render = spec.render
    return {
        "z_dim": spec.mapping.z_dim,
        "w_dim": spec.mapping.w_dim,
        "c_dim": spec.mapping.label_dim,
        "img_resolution": spec.image_resolution,
        "img_channels": 3,
        "mapping_kwargs": {"num_layers": spec.mapping.layers},
        "channel_base": 32768,
        "channel_max": 512,
        "fused_modconv_default": "inference_only",
        "num_fp16_res": 0,
        "sr_num_fp16_res": 4,
        "sr_kwargs": {"channel_base": 32768, "channel_max": 512, "fused_modconv_default": "inference_only"},
        "conv_clamp": None,
        "rendering_kwargs": {
            "image_resolution": spec.image_resolution,
            "superresolution_module": f"training.superresolution.SuperresolutionHybrid{spec.superres.kind}",
            "superresolution_noise_mode": spec.superres.noise_mode,
            "sr_antialias": spec.superres.antialias,
            "disparity_space_sampling": render.disparity_sampling,
            "clamp_mode": render.clamp_mode,
            "c_gen_conditioning_zero": spec.mapping.zero_label,
            "c_scale": spec.mapping.label_scale,
            "decoder_lr_mul": spec.decoder.lr_multiplier,
            "depth_resolution": render.depth_samples,
            "depth_resolution_importance": render.importance_samples,
            "ray_start": render.ray_start,
            "ray_end": render.ray_end,
            "box_warp": render.box_warp,
            "white_back": render.white_background,
            "avg_camera_radius": render.camera_radius,
            "avg_camera_pivot": list(render.camera_pivot),
        },
    }


def discriminator_settings(spec: Any) -> dict[str, Any]:
    """The constructor's arguments that stand for a DiscriminatorSpec in an official file."""
    return {
        "c_dim": spec.mapping.label_dim,
        "img_resolution": spec.image_resolution,
        "img_channels": 3,
        "block_kwargs": {"freeze_layers": 0},
        "mapping_kwargs": {},
        "epilogue_kwargs": {"mbstd_group_size": spec.group_size},
        "channel_base": 32768,
        "channel_max": 512,
        "disc_c_noise": spec.label_noise,
        "num_fp16_res": 4,
        "conv_clamp": spec.conv_clamp,
    }


def official_file(generator: Any, discriminator: Any = None, style: Style = Style(), **options: Any) -> bytes:
    """A snapshot in the official structure of networks of ours: G_ema and, beside a D, a G whose weights differ."""
    buffers = frozenset(name for name, _ in generator.named_buffers())
    state = {name: tensor.detach() for name, tensor in generator.state_dict().items()}
    kwargs = official_settings(generator.spec)
    options = {"neural_resolution": generator.spec.neural_resolution, **options}
    options.setdefault("plane_axes", PLANE_AXES[generator.spec.plane_layout])
    with pretended_modules() as names:
        trees: dict[str, Any] = {}
        if discriminator is not None:
            other = {name: tensor + 1 for name, tensor in state.items()}
            trees["G"] = generator_tree(other, buffers, kwargs, style, names, **options)
            own = frozenset(name for name, _ in discriminator.named_buffers())
            arguments = discriminator_settings(discriminator.spec)
            trees["D"] = discriminator_tree(discriminator.state_dict(), own, arguments, style, names)
        trees["G_ema"] = generator_tree(state, buffers, kwargs, style, names, **options)
        return snapshot_bytes(trees, style, names)
