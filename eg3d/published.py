"""From the settings of a published EG3D network (its constructor's arguments) and its weights to a spec of ours.

Where settings and weights both say something - the backbone's size, the widths - the weights are believed: the
published classes hard-code some numbers that derived checkpoints change.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast, get_args

from torch import Tensor

from headlift.eg3d.spec import (
    SUPERRES_INPUT,
    BackboneSpec,
    DecoderSpec,
    DensityClamp,
    DiscriminatorSpec,
    GeneratorSpec,
    MappingSpec,
    NoiseMode,
    PlaneLayout,
    RenderSpec,
    SuperresKind,
    SuperresSpec,
)
from headlift.errors import CheckpointError, ConfigError

FP16_CLAMP = 256.0
"""What the published blocks clamp to as soon as they are set up for half precision, on every device."""


def spec_from_published(
    init_kwargs: Mapping[str, Any],
    state: Mapping[str, Tensor],
    *,
    plane_layout: PlaneLayout = "official",
    neural_resolution: int | None = None,
    published_faults: bool = False,
) -> GeneratorSpec:
    """The spec of a published generator (`TriPlaneGenerator`).

    `init_kwargs` are its constructor's arguments (`_init_kwargs` of an official pickle, with `rendering_kwargs`
    replaced by the network's own where the two differ), or a table that holds them under `G_kwargs`. `state` gives the
    shapes of its weights; tensors on the meta device do. `neural_resolution` is not among the arguments: the network
    carries it as an attribute (64 without it). Raises CheckpointError where something is missing or unknown.
    """
    if "G_kwargs" in init_kwargs:
        neural_resolution = neural_resolution or init_kwargs.get("neural_rendering_resolution")
        init_kwargs = init_kwargs["G_kwargs"]
    rendering = _table(init_kwargs, "rendering_kwargs")
    noise = rendering.get("density_noise", 0)
    if noise:
        raise CheckpointError(
            f"the checkpoint adds noise to the density (density_noise {noise}), which is not supported"
        )
    try:
        superres = _superres(init_kwargs, rendering, state)
        return GeneratorSpec(
            mapping=_mapping(init_kwargs, rendering, state),
            backbone=_backbone(init_kwargs, state),
            decoder=DecoderSpec(
                hidden=_shape(state, "decoder.net.0.weight")[0],
                features=_shape(state, "decoder.net.2.weight")[0] - 1,
                lr_multiplier=float(rendering.get("decoder_lr_mul", 1)),
            ),
            render=_render(rendering),
            superres=superres,
            plane_channels=_shape(state, "decoder.net.0.weight")[1],
            plane_layout=plane_layout,
            image_resolution=superres.output_resolution,
            neural_resolution=int(neural_resolution or 64),
            published_faults=published_faults,
        )
    except ConfigError as error:
        raise CheckpointError(f"the checkpoint's settings make no generator: {error}") from error


def discriminator_spec_from_published(init_kwargs: Mapping[str, Any], state: Mapping[str, Tensor]) -> DiscriminatorSpec:
    """The spec of a published discriminator (`DualDiscriminator`); arguments and errors as in `spec_from_published`."""
    init_kwargs = init_kwargs.get("D_kwargs", init_kwargs)
    epilogue = _table(init_kwargs, "epilogue_kwargs")
    sides = sorted(int(m[1]) for key in state if (m := re.fullmatch(r"b(\d+)\.conv1\.weight", key)))
    if not sides:
        raise CheckpointError("the checkpoint has no discriminator blocks (b8.conv1.weight ...)")
    widths = [_shape(state, f"b{side}.conv1.weight") for side in sides]
    label_dim = int(init_kwargs.get("c_dim", 25))
    mapping = MappingSpec(
        z_dim=0,
        w_dim=_shape(state, "b4.out.weight")[0],
        label_dim=label_dim,
        layers=_count(state, r"mapping\.fc\d+\.weight"),
        layer_features=_shape(state, "mapping.fc0.weight")[0],
        embed_features=_shape(state, "mapping.embed.weight")[0],
        lr_multiplier=float(_table(init_kwargs, "mapping_kwargs").get("lr_multiplier", 0.01)),
    )
    try:
        return DiscriminatorSpec(
            image_resolution=sides[-1],
            channels=(widths[0][0], *(width[1] for width in widths)),
            image_channels=_shape(state, f"b{sides[-1]}.fromrgb.weight")[1],
            mapping=mapping,
            group_size=int(epilogue.get("mbstd_group_size", 4)),
            group_channels=int(epilogue.get("mbstd_num_channels", 1)),
            conv_clamp=_clamp(init_kwargs),
            label_noise=float(init_kwargs.get("disc_c_noise", 0)),
        )
    except ConfigError as error:
        raise CheckpointError(f"the checkpoint's settings make no discriminator: {error}") from error


def plane_layout_from_axes(axes: Tensor) -> PlaneLayout:
    """Which layout a published renderer has, from its `plane_axes` [3, 3, 3]. Raises CheckpointError for any other."""
    known: dict[PlaneLayout, list[list[int]]] = {
        "official": [[0, 0, 1], [1, 0, 0], [0, 1, 0]],
        "zy": [[0, 0, 1], [0, 1, 0], [1, 0, 0]],
        "yz": [[0, 1, 0], [0, 0, 1], [1, 0, 0]],
    }
    first_two = [[[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 0, 1], [0, 1, 0]]]
    values = axes.tolist()
    for layout, third in known.items():
        if values == [*first_two, third]:
            return layout
    raise CheckpointError(f"the checkpoint's planes span axes that no known layout has: {values}")


def _mapping(kwargs: Mapping[str, Any], rendering: Mapping[str, Any], state: Mapping[str, Tensor]) -> MappingSpec:
    prefix = "backbone.mapping"
    layers = _count(state, rf"{re.escape(prefix)}\.fc\d+\.weight")
    label_dim = int(kwargs.get("c_dim", 25))
    settings = _table(kwargs, "mapping_kwargs")
    return MappingSpec(
        z_dim=int(kwargs.get("z_dim", 512)),
        w_dim=_shape(state, f"{prefix}.fc{layers - 1}.weight")[0],
        label_dim=label_dim,
        layers=layers,
        layer_features=_shape(state, f"{prefix}.fc0.weight")[0] if layers > 1 else None,
        embed_features=_shape(state, f"{prefix}.embed.weight")[0] if label_dim else None,
        lr_multiplier=float(settings.get("lr_multiplier", 0.01)),
        w_avg_beta=float(settings.get("w_avg_beta", 0.998)),
        label_scale=float(rendering.get("c_scale", 0)),  # the published code's default: a missing scale is 0
        zero_label=bool(rendering.get("c_gen_conditioning_zero", False)),
    )


def _backbone(kwargs: Mapping[str, Any], state: Mapping[str, Tensor]) -> BackboneSpec:
    pattern = r"backbone\.synthesis\.b(\d+)\.conv1\.weight"
    sides = sorted(int(m[1]) for key in state if (m := re.fullmatch(pattern, key)))
    if not sides:
        raise CheckpointError("the checkpoint has no backbone (backbone.synthesis.b4.conv1.weight ...)")
    channels = tuple(_shape(state, f"backbone.synthesis.b{side}.conv1.weight")[0] for side in sides)
    # The backbone is set up for half precision nowhere unless num_fp16_res says so; conv_clamp then bounds all of it.
    clamp = kwargs.get("conv_clamp")
    return BackboneSpec(resolution=sides[-1], channels=channels, conv_clamp=None if clamp is None else float(clamp))


def _render(rendering: Mapping[str, Any]) -> RenderSpec:
    def distance(key: str, default: float) -> Any:
        value = rendering.get(key, default)
        return value if value == "auto" else float(value)

    x, y, z = (float(v) for v in rendering.get("avg_camera_pivot", (0.0, 0.0, 0.2)))
    clamp = rendering.get("clamp_mode", "softplus")
    if clamp not in get_args(DensityClamp):
        raise CheckpointError(f"clamp_mode {clamp!r} is unknown; known are {get_args(DensityClamp)}")
    return RenderSpec(
        ray_start=distance("ray_start", 2.25),
        ray_end=distance("ray_end", 3.3),
        box_warp=float(rendering.get("box_warp", 1)),
        depth_samples=int(rendering.get("depth_resolution", 48)),
        importance_samples=int(rendering.get("depth_resolution_importance", 48)),
        disparity_sampling=bool(rendering.get("disparity_space_sampling", False)),
        white_background=bool(rendering.get("white_back", False)),
        clamp_mode=cast(DensityClamp, clamp),
        camera_radius=float(rendering.get("avg_camera_radius", 2.7)),
        camera_pivot=(x, y, z),
    )


def _superres(kwargs: Mapping[str, Any], rendering: Mapping[str, Any], state: Mapping[str, Tensor]) -> SuperresSpec:
    module = str(rendering.get("superresolution_module", "")).rsplit(".", 1)[-1]
    kind = module.removeprefix("SuperresolutionHybrid")
    if kind not in get_args(SuperresKind) or kind == module:
        raise CheckpointError(
            f"the super-resolution {module!r} is unknown; known are SuperresolutionHybrid{get_args(SuperresKind)}"
        )
    noise = rendering.get("superresolution_noise_mode", "none")
    if noise not in get_args(NoiseMode):
        raise CheckpointError(f"superresolution_noise_mode {noise!r} is unknown; known are {get_args(NoiseMode)}")
    known = cast(SuperresKind, kind)
    grows = known in ("8X", "8XDC")
    side = _shape(state, "superresolution.block0.conv0.noise_const")[0] // (2 if grows else 1)
    half = int(kwargs.get("sr_num_fp16_res", 0)) > 0
    return SuperresSpec(
        kind=known,
        input_resolution=side or SUPERRES_INPUT[known],
        channels=(
            _shape(state, "superresolution.block0.conv1.weight")[0],
            _shape(state, "superresolution.block1.conv1.weight")[0],
        ),
        antialias=bool(rendering.get("sr_antialias", True)),
        conv_clamp=FP16_CLAMP if half else None,
        noise_mode=cast(NoiseMode, noise),
    )


def _clamp(kwargs: Mapping[str, Any]) -> float | None:
    clamp = kwargs.get("conv_clamp")
    return None if clamp is None else float(clamp)


def _table(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    table = values.get(key) or {}
    if not isinstance(table, Mapping):
        raise CheckpointError(f"the checkpoint's {key} should be a table, but is {type(table).__name__}")
    return table


def _shape(state: Mapping[str, Tensor], key: str) -> tuple[int, ...]:
    if key not in state:
        raise CheckpointError(f"the checkpoint lacks {key}: it is not an EG3D network, or of a kind that is not known")
    return tuple(state[key].shape)


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    count = sum(1 for key in state if re.fullmatch(pattern, key))
    if not count:
        raise CheckpointError(f"the checkpoint has no layers named like {pattern}")
    return count
