"""Every setting of headlift, as frozen dataclasses: the same objects are the Python API, the flags of the command
line and the tables of `config.toml`. Defaults are the published values; presets trade quality for time.

Light to import. Angles here are in degrees, as at the command line; inside the library they are radians.
"""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, cast, get_args

from headlift.errors import ConfigError

Perceptual = Literal["builtin", "lpips"]
Preset = Literal["fast", "standard", "thorough"]
Method = Literal["best", "w", "w+", "pti", "pose", "spi", "hfgi3d", "in-n-out", "multi"]
Frame = Literal["ffhq", "embedded"]
"""Whose heads look straight ahead."""
FRAME = "frame"
"""The entry in the metadata of a weights file that says it."""
PRIOR_NAME = "headlift embedded prior"
"""The entry `name` of the prior that is shipped; its file is older than the entry above."""
TUNING_STEPS = ("steps", "finish_steps")
"""Fields of `TuningConfig` that count the steps of a stage."""
NONE = "none"
"""What stands in tables of settings for no value."""


@dataclass(frozen=True)
class PoseConfig:
    """Face detection, crop and camera."""

    face: int | None = None
    """Which face to take, counted from 1, largest first; without it the largest."""
    force: bool = False
    """Go on although the face is turned too far to the side."""
    crop_size: int = 512
    """Side of the crop in pixels."""
    min_face: int = 40
    """Smallest face that is worth a try, side of its box in photo pixels."""
    max_yaw: float = 75.0
    """Largest turn of the head to the side, degrees; beyond it half of the face is guesswork."""
    frame: Literal["auto", "ffhq", "embedded"] = "auto"
    """Whose heads look straight ahead: FFHQ's labels (official weights), or the embedded prior's, 3.7 degrees apart;
    `auto` is what the weights say of themselves, or FFHQ's where there are none or they say nothing."""


@dataclass(frozen=True)
class LatentConfig:
    """Stage 1: the latent code (PTI's projector as published for EG3D)."""

    space: Literal["w", "w+"] = "w"
    """One code for all layers, or one for each."""
    steps: int = 500
    """Optimisation steps."""
    lr: float = 0.01
    """Learning rate of Adam at the top of its ramp."""
    rampup: float = 0.05
    """Share of the steps over which the rate rises linearly."""
    rampdown: float = 0.25
    """Share of the steps over which the rate falls along a cosine."""
    w_noise: float = 0.05
    """Jitter of the code at the start, in standard deviations of w."""
    w_noise_ramp: float = 0.75
    """Share of the steps over which the jitter fades."""
    noise_reg: float = 1e5
    """Weight of the regulariser on the noise images (unused where the generator has none)."""
    mse: float = 0.0
    """Weight of the squared error of pixels beside the perceptual distance."""
    raw: float = 0.0
    """Weight of the squared error of the volume's own small picture, before super-resolution."""
    alpha: float = 0.2
    """Weight of opacity against the mask, where the prior's background is white; published priors have none."""
    near_mean: float = 0.0
    """Weight of the squared distance of the code from the mean, in standard deviations of w."""
    relief: float = 100.0
    """Weight of the squared distance between the surface and the fitted landmarks' points, world units squared."""
    depth: float = 0.0
    """Weight of the squared distance between the surface and the one that the depth network sees in the photo, world
    units squared; for priors that draw heads on white, as it knows them."""
    sides: float = 0.0
    """Weight of colours and opacity of views round the head, as the side network tells them from the photo; for priors
    that draw heads on white, as it knows them."""
    neural_resolution: int | None = None
    """Side of the rendered feature map during the search, pixels; without it the generator's own."""
    candidates: int = 0
    """Random codes that are looked at for a start; 0 starts at the mean, as published."""
    split: float = 1.0
    """With space `w`: share of the steps after which each layer gets a code of its own; 1 for never."""
    w_stats_samples: int = 600
    """Random codes from which mean and spread of w are taken."""
    w_stats_at: Literal["front", "photo"] = "front"
    """The camera that they are conditioned on."""
    w_stats_seed: int = 123
    """Their seed."""


@dataclass(frozen=True)
class CameraRefineConfig:
    """A small correction of the camera, found together with the latent."""

    enabled: bool = True
    """Refine the estimated camera."""
    lr: float = 1e-3
    """Learning rate of the se(3) step (radians and world units), for a pose that is as sure as usual; where it is less
    sure the rate grows with its variance, up to tenfold."""
    start: float = 0.1
    """Share of the latent steps before the camera may move."""
    rotation_weight: float = 1.0
    """Weight of the squared rotation over the pose's own variance."""
    translation_weight: float = 1.0
    """Weight of the squared translation, in units of (0.02 world units)^2."""
    preheat: float = 0.0
    """Share of the latent steps at their beginning in which the camera moves alone."""
    on_sphere: bool = False
    """Keep the camera at the distance from the origin that it was estimated at."""


@dataclass(frozen=True)
class TuningConfig:
    """Stage 2: pivotal tuning of the generator."""

    steps: int = 350
    """Steps at most."""
    lr: float = 3e-4
    """Learning rate of Adam."""
    lr_gain: float | None = None
    """Factor on that rate; without it the one calibrated for the generator's size: 1 for the published networks, 20 for
    small ones such as the embedded prior, which have to change more to show a photo."""
    const_gain: float = 1.0
    """Factor on the rate of the backbone's learned constant, which has a place of its own for every few texels."""
    photo_gain: float = 0.0
    """`best` adds a plane for the photo, a number a texel; factor on the rate at which it learns, 0 for none."""
    muon: float = 0.0
    """The kernels of convolutions take Muon's steps, so many times as large as Adam's; 0 for Adam's."""
    backbone_every: int = 1
    """The backbone draws its planes and moves once in so many steps, by the mean of what they ask of it; in each with
    locality regularisation."""
    rampdown: float = 0.0
    """Share of the steps over which the rate falls along a cosine; 0 for a constant rate, as published."""
    mse: float = 1.0
    """Weight of the squared error of pixels."""
    perceptual: float = 1.0
    """Weight of the perceptual distance."""
    stop: float = 0.06
    """Stop once the perceptual distance is at most this in LPIPS (as published), or as near by the builtin distance; 0
    for never."""
    raw: float = 0.0
    """Weight of the squared error of the volume's own small picture, before super-resolution."""
    alpha: float = 0.2
    """Weight of opacity against the mask, where the prior's background is white."""
    locality: float = 0.0
    """Weight of locality regularisation; PTI ships it switched off."""
    locality_alpha: float = 30.0
    """How far from the pivot the regularised code lies, along the direction to a random code."""
    geometry: float = 1.0
    """Weight of the guard that keeps depth and opacity of other views as they were before tuning."""
    geometry_every: int = 4
    """The guard looks at a side view once in so many steps."""
    relief: float = 100.0
    """Weight of the squared distance between the surface and the fitted landmarks' points, world units squared."""
    depth: float = 0.0
    """Weight of the squared distance between the surface and the one that the depth network sees in the photo, world
    units squared; for priors that draw heads on white, as it knows them."""
    carving: float = 0.0
    """Weight of the guard's empty space before that surface and beside the head."""
    side_views: int = 8
    """Side views that the guard goes round."""
    side_colour: float = 0.0
    """Weight of the guard's colours: the photo carried into the side views, and what a network tells of the rest."""
    finish_steps: int = 0
    """Steps of a last tuning, at full resolution, of the head's own planes and super-resolution; for priors that draw
    heads on white."""


@dataclass(frozen=True)
class WarpingConfig:
    """What the method `pose` adds to the search."""

    warping: float = 0.25
    """Weight of the frontal view's features carried to the photo's camera; headlift's own, on unit features."""


@dataclass(frozen=True)
class SpiConfig:
    """What the method `spi` adds to search and tuning."""

    mirror: float = 1.0
    """Factor on the mirrored photo's weight in the search, which goes by the yaw."""
    every: int = 4
    """Tuning looks elsewhere once in so many steps."""
    neighbours: int = 4
    """Cameras of each kind at a time."""
    neighbour: float = 0.1
    """Weight of the photo carried to cameras near its own; times `every`."""
    contextual: float = 0.005
    """Weight of the mirrored photo's features near the mirrored camera; times `every` (published: 0.1 times 0.05)."""
    region: int = 80
    """Side of the feature maps that are compared there, pixels."""
    depth: float = 1.0
    """Weight of the squared change of depth in views all over the front, world units squared."""


@dataclass(frozen=True)
class Hfgi3dConfig:
    """The second tuning of the method `hfgi3d`."""

    steps: int = 1000
    """Its steps."""
    views: int = 30
    """Pseudo views on the orbit."""
    tolerance: float = 0.02
    """A point this much behind the first head's surface is hidden, world units (published: 1/512, of a mesh)."""


@dataclass(frozen=True)
class InNOutConfig:
    """The second volume of the method `in-n-out`, found in `tuning`, and the last tuning, of super-resolution alone."""

    area: float = 0.1
    """Weight of the share of the picture that the second volume covers (published: 1, of an area not told)."""
    entropy: float = 0.1
    """Weight of the entropy of its share in a point, squared (published: 1)."""
    depth: float = 10.0
    """Weight of the squared change of depth where it is not seen, world units squared (published: 0.1, of MiDaS's)."""
    channels: int = 32
    """Of each of its three planes."""
    resolution: int = 256
    """Their side."""
    hidden: int = 64
    """Width of its decoder."""
    steps: int = 100
    """Of the last tuning."""
    lr: float = 1e-3
    """Its rate."""


@dataclass(frozen=True)
class InversionConfig:
    """From crop to head: latent, camera, tuning.

    The parts' defaults are those of `best`; `published(method)` has every other method's.
    """

    method: Method = "best"
    """How to invert: best (the default), w, w+, pti, pose, spi, hfgi3d, in-n-out or multi."""
    latent: LatentConfig = field(default_factory=LatentConfig)
    camera: CameraRefineConfig = field(default_factory=CameraRefineConfig)
    tuning: TuningConfig = field(default_factory=TuningConfig)
    pose: WarpingConfig = field(default_factory=WarpingConfig)
    spi: SpiConfig = field(default_factory=SpiConfig)
    hfgi3d: Hfgi3dConfig = field(default_factory=Hfgi3dConfig)
    in_n_out: InNOutConfig = field(default_factory=InNOutConfig)
    perceptual: Perceptual = "builtin"
    """Perceptual distance: headlift's own (offline), or LPIPS (its weights must have been fetched)."""
    preview_every: int = 25
    """A picture travels with every so many steps; 0 for none."""
    keep_every: int = 100
    """A state from which an interrupted run can go on is handed out every so many steps."""


@dataclass(frozen=True)
class MeshConfig:
    """From density to mesh."""

    resolution: int = 256
    """Grid points along each side of the cube."""
    level: float | None = None
    """Density at the surface; without it the automatic rule."""
    metres_per_unit: float = 0.396
    """Scale of the mesh: 63 mm between the pupils at 0.159 units."""
    scale: float = 1.0
    """Enlarge what is written by this factor."""
    up: Literal["y", "z"] | None = None
    """The axis that points up; without it that of the format: z in STL, y in the others. GLB is always y up."""
    origin: Literal["head", "base"] = "head"
    """What lies at the origin: the middle of the head, as in EG3D's world, or the lowest point below it."""
    colors: bool = True
    """Colours at all, on a texture or on the vertices."""
    texture: bool = True
    """Bake the colours into a texture; without it they are on the vertices."""
    texture_size: int = 2048
    """Side of the texture, pixels: 256 to 4096."""
    views: int | None = None
    """Rendered views that give the colours, up to 14; without it 14, or 6 where pictures are larger than 256 pixels."""
    photo: bool = True
    """Take the photo's own pixels where it sees the surface."""
    unlit: bool = False
    """GLB: shown as it is, without lights (KHR_materials_unlit)."""
    faces: int | None = None
    """At most so many triangles; without it 40,000 under a texture, and all of them otherwise."""
    smooth: int = 0
    """Rounds of smoothing that does not shrink (Taubin)."""
    close: bool = False
    """Watertight: neck and shoulders closed flat where the generator's cube ends."""
    walls: bool = False
    """Keep the walls where the cube cuts the shoulders."""


@dataclass(frozen=True)
class VideoConfig:
    """Turntables and other camera paths."""

    frames: int = 120
    """Frames of the video."""
    fps: int = 30
    """Frames a second."""
    size: int | None = None
    """Side in pixels; without it the generator's."""
    path: Literal["turntable", "sway"] = "turntable"
    """All round, or a gentle figure in front of the face."""


@dataclass(frozen=True)
class ReconstructConfig:
    """The whole way from a photo to a head."""

    weights: str = "embedded"
    """The generator: a name from `headlift weights list`, or a .safetensors file."""
    preset: Preset = "standard"
    """How much time to spend: fast, standard (the published steps) or thorough."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto takes a GPU when there is one."""
    seed: int = 0
    """Seed of everything random; the same photo, config and seed give the same head."""
    pose: PoseConfig = field(default_factory=PoseConfig)
    inversion: InversionConfig = field(default_factory=InversionConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    mesh_formats: tuple[str, ...] = ("glb", "ply", "obj")
    """Meshes to write."""


@dataclass(frozen=True)
class GenerateConfig:
    """Random heads of a generator."""

    seeds: str = "0-15"
    """Seeds of the heads, such as 0-15 or 1,5,9-12; the same as in EG3D's own tools."""
    weights: str = "embedded"
    """The generator: a name from `headlift weights list`, or a .safetensors file."""
    truncation: float = 0.8
    """Pull towards the mean head: 1 none, 0 the mean head itself."""
    truncation_cutoff: int | None = None
    """Truncate only the first so many layers."""
    yaw: tuple[float, ...] = (0.0,)
    """Cameras, degrees to the side: one picture of each head for each."""
    pitch: float = 0.0
    """Height of the cameras, degrees."""
    whole_head: bool = False
    """Cameras with the wider lens, which see the whole head, instead of EG3D's crop cameras."""
    columns: int | None = None
    """Pictures in a row of the grid."""
    video: bool = False
    """Also a video that walks from head to head while the camera sways."""
    frames: int = 240
    """Its frames."""
    fps: int = 30
    """Frames a second."""
    mix: str | None = None
    """Style mixing: seeds whose colours and details are put on the shapes of `seeds`, as a table of pictures."""
    mix_layer: int | None = None
    """First layer that is taken from the other head; half way when not given."""
    meshes: tuple[str, ...] = ()
    """Also a mesh of each head, in these formats: glb, ply, obj, stl, usdz."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto takes a GPU when there is one."""


@dataclass(frozen=True)
class ExportConfig:
    """Files from a head."""

    meshes: tuple[str, ...] = ()
    """Meshes to write: formats (glb, ply, obj, stl, usdz), for files called mesh, or names of files that end so."""
    splats: Path | None = None
    """Also the head as Gaussian splats, into this .ply file."""
    quality: Path | None = None
    """Also a JSON file that says how good the mesh is: triangles, holes, volume, normals."""
    videos: tuple[str, ...] = ()
    """Videos to write: mp4, gif, webp."""
    views: bool = False
    """A grid of eight views all round."""
    maps: bool = False
    """Depth (16 bit and coloured) and normals, seen from the head's own camera."""
    cameras: Path | None = None
    """A camera path for the videos from a JSON or CSV file, instead of --video.path."""
    cameras_out: Path | None = None
    """Write the path's cameras to this JSON or CSV file."""
    additions: bool = True
    """Show what the method in-n-out added beside the prior (hands, paint, masks), where a head has it."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    weights: str | None = None
    """The base generator, when it is not where the head file says."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto takes a GPU when there is one."""


@dataclass(frozen=True)
class EditConfig:
    """Changes to a head. In this order: truncation, moves, mixing, interpolation; then what is meant for a region."""

    move: tuple[str, ...] = ()
    """Directions with amounts, such as age=1.5 smile=-1: 1 is about one standard deviation."""
    directions: Path | None = None
    """File of directions (`headlift directions`); the embedded prior's when not given."""
    layers: str | None = None
    """Only these layers of the code move, such as 0-2 or 0,3; all when not given."""
    truncation: float = 1.0
    """Pull towards the mean head of the prior: 1 none, 0 the mean head's code."""
    mix: Path | None = None
    """Another head (of the same prior) from which layers are taken."""
    mix_layers: str | None = None
    """The layers that are taken from it; the second half (colours and details) when not given."""
    towards: Path | None = None
    """Another head (of the same prior) to go towards."""
    share: float = 0.5
    """How far: 0 stays, 1 is the other head."""
    region: str | None = None
    """Change only this part and keep the rest: eyes, brows, nose, mouth, face or hair."""
    region_mask: Path | None = None
    """Change only what is white in this picture: black or transparent elsewhere, placed as the crop (crop.png)."""
    color: str | None = None
    """Give the region this colour, such as #a03020."""
    color_strength: float = 0.7
    """How much of it: 0 none, 1 all; light and shade stay."""
    paint: Path | None = None
    """The crop (crop.png) or the photo, painted over: what was painted is carried into the head."""
    steps: int = 80
    """Tuning steps that a region, a colour or paint takes."""
    into_photo: Path | None = None
    """The original photo, in its size: the edited face is put back into it, as photo.png."""
    video: bool = False
    """Also a video of the way from the head to the edited one and back."""
    frames: int = 90
    """Its frames."""
    fps: int = 30
    """Frames a second."""
    weights: str | None = None
    """The base generator, when it is not where the head file says."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto takes a GPU when there is one."""
    seed: int = 0
    """Seed of the random heads that drift is measured against, and of the tuning."""


@dataclass(frozen=True)
class LearnConfig:
    """Finding directions in a generator's latent space."""

    method: Literal["sefa", "pca", "svm", "regression"] = "sefa"
    """sefa and pca need no labels; svm (InterFaceGAN) and regression learn from scores of heads."""
    weights: str = "embedded"
    """The generator: a name from `headlift weights list`, or a .safetensors file."""
    count: int = 10
    """Directions that sefa and pca find."""
    samples: int = 500
    """Random heads that are looked at."""
    space: Literal["w", "s"] = "w"
    """Codes, or the styles that they give (not with sefa)."""
    layers: str | None = None
    """Directions in W+ that leave all but these layers alone, such as 0-1; sefa looks at these layers only."""
    labels: Path | None = None
    """CSV or JSON with a row a head: `seed` or `head`, then one number an attribute."""
    landmarks: bool = False
    """Score random heads by the landmarks of their renders: smile, mouth_open, eyes_open, gaze_x ..."""
    scorer: str | None = None
    """Score random heads by a function of your own, MODULE:FUNCTION, from a picture (uint8, HWC) to a number or to
    numbers by name."""
    attributes: tuple[str, ...] = ()
    """Only these attributes; all that are scored when not given."""
    against: tuple[str, ...] = ()
    """Names of other directions that the new ones shall be orthogonal to (conditional projection)."""
    against_file: Path | None = None
    """The file of those; the embedded prior's directions when not given."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto takes a GPU when there is one."""
    seed: int = 0
    """Seed of the random heads."""


@dataclass(frozen=True)
class DirectionImportConfig:
    """Directions of others, from .npy or .pt."""

    weights: str
    """The generator that they belong to: a name from `headlift weights list`, or a .safetensors file."""
    names: tuple[str, ...] = ()
    """What to call them; the file's own names or its name when not given."""
    space: Literal["w", "w+", "s"] | None = None
    """Where they lie, if the shapes do not tell."""


@dataclass(frozen=True)
class AppConfig:
    """The web app."""

    port: int = 7860
    """Port to listen on; 0 for a free one."""
    host: str = "127.0.0.1"
    """Address to listen on. The default is reached from this machine alone; 0.0.0.0 lets your whole network in."""
    browser: bool = False
    """Open the page in the browser of this machine."""
    weights: str = "embedded"
    """The generator: a name from `headlift weights list`, or a .safetensors file."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto takes a GPU when there is one."""
    max_mb: float = 20.0
    """Largest photo that is taken, megabytes."""
    max_head_mb: float = 100.0
    """Largest head file that is taken, megabytes."""
    max_megapixels: float = 50.0
    """Photos with more pixels are refused, millions."""
    queue: int = 8
    """Jobs that may wait while one is done."""
    keep_minutes: float = 120.0
    """A visitor's files are deleted when nothing was asked for in so many minutes, and all when the app ends."""


def published(method: Method) -> InversionConfig:
    """The settings of a method with the constants that its authors give, where they tell their units.

    Those of `best` are headlift's own; `docs/methods.md` says what differs.

    Published methods have no guard, no opacity against the mask, no landmarks, and most of them keep the camera.
    """
    if method == "best":
        return InversionConfig()
    latent = LatentConfig(alpha=0.0, relief=0.0)
    tuning = TuningConfig(alpha=0.0, relief=0.0, geometry=0.0, side_views=0)
    plain = InversionConfig(method=method, latent=latent, tuning=tuning, camera=CameraRefineConfig(enabled=False))
    per_layer = replace(latent, space="w+")
    if method == "w+":
        return replace(plain, latent=per_layer)
    if method == "pose":
        free = CameraRefineConfig(start=0.0, rotation_weight=0.0, translation_weight=0.0, preheat=0.125, on_sphere=True)
        return replace(plain, latent=replace(latent, steps=400), tuning=replace(tuning, steps=400), camera=free)
    if method == "spi":
        return replace(plain, latent=per_layer, tuning=replace(tuning, steps=1000, stop=0.05))
    if method == "hfgi3d":
        return replace(plain, latent=replace(per_layer, w_stats_at="photo"), tuning=replace(tuning, steps=500))
    if method == "in-n-out":
        latent = replace(per_layer, steps=200, lr=1e-3, near_mean=0.01, w_stats_samples=10_000)
        tuning = replace(tuning, steps=10_000, lr=5e-3, lr_gain=1.0, raw=1.0, stop=0.0)
        return replace(plain, latent=latent, tuning=tuning)
    if method == "multi":
        return replace(plain, camera=CameraRefineConfig())
    return plain


def with_method(config: ReconstructConfig, method: Method) -> ReconstructConfig:
    """The same settings with another method: its latent, camera, tuning and own settings as the preset has them."""
    if config.inversion.method == method:
        return config
    other, now = preset(config.preset, method).inversion, config.inversion
    kept = replace(other, perceptual=now.perceptual, preview_every=now.preview_every, keep_every=now.keep_every)
    return replace(config, inversion=kept)


def preset(name: Preset, method: Method = "best") -> ReconstructConfig:
    """The settings that a preset stands for; single fields can then be replaced.

    The published methods keep their steps and rates in `standard`; `thorough` doubles the steps, and `fast` takes few,
    with a search of its own rate, jitter and resolution. `best` adds what a prior that is far from photographs needs: a
    start among random heads, a code for each layer in the second half of the search, squared errors beside the
    perceptual distance, the photo's surface, and side views that show the photo; its camera moves before the code does
    (not in `fast`), and its tuning runs to the end, in fewer and larger steps, of which every second one moves the
    backbone, its constant at three times the rate, with a plane for the photo and Muon's steps for kernels. Its search
    is short in every preset: on heads of known truth a longer one made other views worse. In `fast` all of it takes
    about a minute on two cores.
    """
    base = ReconstructConfig(preset=name, inversion=published(method))
    latent, camera, tuning = base.inversion.latent, base.inversion.camera, base.inversion.tuning
    if method == "best":
        camera = replace(camera, preheat=0.0 if name == "fast" else 0.2)
        latent = replace(latent, steps=60, lr=0.03, w_noise=0.01, mse=1.0, raw=1.0, candidates=16, split=0.5)
        latent = replace(latent, relief=300.0, depth=300.0, sides=1.0)
        tuning = replace(tuning, steps=120, lr=5e-4, mse=3.0, raw=1.0, side_colour=1.0, rampdown=0.3, stop=0.0)
        tuning = replace(tuning, relief=300.0, depth=300.0, carving=0.2, const_gain=3.0, photo_gain=15.0, muon=0.8)
        tuning = replace(tuning, geometry_every=3, backbone_every=2, finish_steps=80)
    if name == "fast":
        latent = replace(latent, steps=60, lr=0.03, w_noise=0.01, neural_resolution=32)
        tuning = replace(tuning, steps=75)
        if method == "best":
            latent = replace(latent, steps=14, candidates=8)
            tuning = replace(tuning, steps=50, lr=6e-4, rampdown=0.25, photo_gain=20.0, finish_steps=32)
        mesh, video = replace(base.mesh, resolution=192), replace(base.video, frames=60)
    elif name == "standard":
        mesh, video = base.mesh, base.video
    else:
        latent = replace(latent, steps=2 * latent.steps)
        twice = {name: 2 * getattr(tuning, name) for name in TUNING_STEPS}
        tuning = replace(tuning, **twice)
        mesh, video = replace(base.mesh, resolution=384), base.video
    inversion = replace(base.inversion, latent=latent, tuning=tuning, camera=camera)
    if name == "fast":
        spi = replace(inversion.spi, neighbours=1, region=40)
        inversion = replace(inversion, spi=spi, hfgi3d=replace(inversion.hfgi3d, steps=75, views=10))
    elif name == "thorough":
        inversion = replace(inversion, hfgi3d=replace(inversion.hfgi3d, steps=2 * inversion.hfgi3d.steps))
        inversion = replace(inversion, in_n_out=replace(inversion.in_n_out, steps=2 * inversion.in_n_out.steps))
    return replace(base, inversion=inversion, mesh=mesh, video=video)


@dataclass(frozen=True)
class EvaluatePriorConfig:
    """How well a prior shows heads whose truth is known: `headlift evaluate prior`."""

    weights: str = "embedded"
    """The generator: a name from `headlift weights list`, or a .safetensors file. It must draw heads on white."""
    preset: Preset = "standard"
    """How much time to spend on each head: fast, standard or thorough."""
    heads: int | None = None
    """Only the first so many heads of the folder; all when not given."""
    baseline: int = 0
    """So many heads are also tuned from the mean head, without a search for their code, to see what that brings."""
    distribution: bool = True
    """Also compare random heads with the folder's (sliced Wasserstein distance)."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto takes a GPU when there is one."""
    seed: int = 0
    """Seed of everything random."""
    inversion: InversionConfig = field(default_factory=lambda: evaluation("standard").inversion)


def evaluation(name: Preset, base: ReconstructConfig | None = None) -> EvaluatePriorConfig:
    """The settings under which a prior is measured: a preset's, but for the cameras, which are known and stay."""
    inversion = (base or preset(name)).inversion
    return EvaluatePriorConfig(
        preset=name, inversion=replace(inversion, camera=replace(inversion.camera, enabled=False))
    )


@dataclass(frozen=True)
class EvaluateInversionConfig:
    """Inversion methods on the same images: `headlift evaluate inversion`."""

    weights: str = "embedded"
    """The generator: a name from `headlift weights list`, or a .safetensors file."""
    preset: Preset = "fast"
    """How much time each method spends: fast, standard (as published) or thorough."""
    images: int | None = None
    """Only the first so many images of the folder; all when not given."""
    samples: int = 0
    """Also so many random heads of the generator itself, of which everything is known."""
    truncation: float = 0.7
    """How far these lie from the mean head: 1 anywhere, 0 the mean head."""
    photo_yaw: float = 0.0
    """Of a head that is known from several sides, the view nearest to this yaw (degrees) is the photo."""
    camera_off: float = 0.0
    """Start with known cameras that are wrong by so many degrees in yaw and in pitch."""
    steps: int | None = None
    """At most so many steps in each stage of a method; as the preset has them when not given."""
    perceptual: Perceptual = "builtin"
    """Perceptual distance that the methods minimise; what they are measured by stays the same."""
    pose: PoseConfig = field(default_factory=PoseConfig)
    """For photos whose cameras are not known."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto takes a GPU when there is one."""
    seed: int = 0
    """Seed of everything random."""


def output_folder(source: Path, ending: str = "") -> Path:
    """Where the results of a photo, or of a folder of photos, go when nothing else is said."""
    return Path("out") / f"{source.resolve().name if source.is_dir() else source.stem}{ending}"


def from_table(table: dict[str, object]) -> ReconstructConfig:
    """Settings from the tables of a `config.toml`; what it does not name comes from its preset.

    Raises:
        ConfigError: an unknown key or a value of the wrong type.
    """
    from dacite import Config, DaciteError, from_dict

    table = {key: value for key, value in table.items() if key != "run"}
    name = table.get("preset", "standard")
    if name not in get_args(Preset):
        raise ConfigError(f"unknown preset {name!r}; there are {', '.join(get_args(Preset))}")
    inversion = table.get("inversion", {})
    method = inversion.get("method", "best") if isinstance(inversion, dict) else "best"
    if method not in get_args(Method):
        raise ConfigError(f"unknown method {method!r}; there are {', '.join(get_args(Method))}")
    try:
        base = preset(cast(Preset, name), cast(Method, method))
        merged = _merge(asdict(base), table, "")
        return from_dict(ReconstructConfig, merged, Config(strict=True, cast=[tuple], check_types=True))
    except DaciteError as error:
        raise ConfigError(f"settings: {error}") from None


def read_config(path: Path) -> ReconstructConfig:
    """Settings from a TOML file such as the `config.toml` of an earlier run.

    Raises:
        ConfigError: the file is missing or damaged, or holds an unknown key or a value of the wrong type.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: the settings cannot be read ({error.strerror}).") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file ({error}).") from None
    return from_table(table)


def to_table(config: ReconstructConfig) -> dict[str, object]:
    """The settings as nested tables for TOML or JSON, which `from_table` reads.

    TOML has no null: fields without a value are left out, or "none" where their preset gives them one.
    """

    def plain(values: dict[str, object], usual: dict[str, object]) -> dict[str, object]:
        table: dict[str, object] = {}
        for name, value in values.items():
            base = usual[name]
            if isinstance(value, dict) and isinstance(base, dict):
                table[name] = plain(value, base)
            elif value is not None or base is not None:
                table[name] = list(value) if isinstance(value, tuple) else NONE if value is None else value
        return table

    return plain(asdict(config), asdict(preset(config.preset, config.inversion.method)))


def _merge(base: dict[str, object], changes: dict[str, object], where: str) -> dict[str, object]:
    merged = dict(base)
    for key, value in changes.items():
        name = f"{where}{key}"
        if key not in base:
            raise ConfigError(f"unknown setting {name!r}; known here: {', '.join(sorted(base))}")
        inner = base[key]
        if isinstance(inner, dict):
            if not isinstance(value, dict):
                raise ConfigError(f"setting {name!r} is a table, not {value!r}")
            merged[key] = _merge(inner, value, name + ".")
        elif value == NONE:
            merged[key] = None
        elif isinstance(value, int) and isinstance(inner, float) and not isinstance(value, bool):
            merged[key] = float(value)
        else:
            merged[key] = value
    return merged
