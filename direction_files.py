"""Directions from files and into files: `headlift directions learn`, `import` and `report`."""

from __future__ import annotations

import csv
import importlib
import io
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headlift.config import DirectionImportConfig, LearnConfig
from headlift.device import find_device
from headlift.editing import discover
from headlift.editing.directions import Direction, Directions, Space, load_directions, save_directions
from headlift.editing.edit import parse_layers
from headlift.editing.effects import effects, face_measures, table_of_effects
from headlift.editing.styles import style_layers
from headlift.eg3d.generator import Generator
from headlift.eg3d.pickles import Limits, read_tensors
from headlift.errors import ConfigError, DataError
from headlift.export.files import refuse_existing
from headlift.generate import codes_of_seeds
from headlift.head import load_head
from headlift.pose_estimation import mediapipe_models
from headlift.values import Step
from headlift.weights import EMBEDDED, licence, load_generator

KEYS = ("seed", "head")
"""Columns of a label file that say which head a row is about."""
LARGEST_FILE = 256 << 20
"""Bytes of a file of directions or labels."""
LANDMARK_NAMES = {
    "smile": "mouth corners up", "mouth_open": "lips apart", "mouth_wide": "mouth wide", "lips_full": "lips full",
    "eyes_open": "eyes open", "eyes_wide": "eyes wide", "gaze_x": "gaze right", "gaze_y": "gaze down",
    "brows_up": "brows up", "face_wide": "face wide", "jaw_wide": "jaw wide", "nose_wide": "nose wide",
}  # fmt: skip
"""Attributes that landmarks can measure, and how `headlift.editing.effects` calls them."""
COMPONENTS = {"sefa": "SeFa (Shen and Zhou 2021)", "pca": "PCA (GANSpace, Haerkoenen et al. 2020)"}
SCORED = {"svm": "linear SVM (InterFaceGAN, Shen et al. 2020)", "regression": "ridge regression"}


# Learning


def learn_into(
    out: Path, config: LearnConfig, overwrite: bool = False, on_step: Callable[[Step], None] = lambda step: None
) -> Directions:
    """Find directions in a generator and write them to a file.

    Raises:
        ConfigError: settings that contradict one another, or too few heads with scores.
        DataError: the labels cannot be read.
        WeightsError, CheckpointError: the generator or other directions cannot be read, or do not belong together.
        OutputError: the file is in the way and `overwrite` was not asked for, or the place cannot be written.
    """
    check(config)
    refuse_existing([out], overwrite)
    generator, sha256 = load_generator(config.weights, find_device(config.device))
    layers = None if config.layers is None else parse_layers(config.layers, generator.num_ws)
    space: Space = config.space
    if config.method in COMPONENTS:
        codes = discover.sample_codes(generator, discover.random_z(generator, config.samples, config.seed))
        points = discover.points_in(generator, codes, space)
        if config.method == "sefa":
            vectors, _ = discover.sefa(generator, config.count, layers)
        else:
            vectors, _ = discover.pca(points, config.count)
        fitted = discover.along(vectors, points)
        names: Sequence[str] = [f"{config.method}{i}" for i in range(len(vectors))]
        source = COMPONENTS[config.method]
    else:
        codes, scores = scored_heads(generator, sha256, config, on_step)
        names = config.attributes or tuple(scores)
        missing = [name for name in names if name not in scores]
        if missing:
            raise ConfigError(f"no scores for {missing[0]!r}; there are: {', '.join(scores)}")
        table = np.stack([np.array(scores[name]) for name in names], axis=1)
        points = discover.points_in(generator, codes, space)
        fit = discover.boundaries if config.method == "svm" else discover.regression
        fitted = fit(points, table, seed=config.seed)
        source = f"{SCORED[config.method]} on {len(table)} heads"
    if config.against:
        fitted = freed(fitted, config, sha256, space)
        source += f", freed of {', '.join(config.against)}"
    found = discover.directions_of(generator, fitted, names, sha256, space, source, licence(config.weights), layers)
    save_directions(out, found)
    return found


def check(config: LearnConfig) -> None:
    """Raises ConfigError for settings that contradict one another."""
    scorers = [config.labels is not None, config.scorer is not None, config.landmarks]
    if config.method in COMPONENTS and any(scorers):
        raise ConfigError(f"{config.method} takes no scores; use --method svm or regression with labels or scorers")
    if config.method in SCORED and sum(scorers) != 1:
        raise ConfigError(
            f"{config.method} needs scores: give one of --labels FILE (csv or json), --landmarks or --scorer "
            "MODULE:FUNCTION"
        )
    if config.samples < 2 or config.count < 1:
        raise ConfigError("--samples must be at least 2 and --count at least 1")
    if config.method == "sefa" and config.space == "s":
        raise ConfigError("SeFa finds directions in W; --space s goes with pca, svm and regression")


def scored_heads(
    generator: Generator, sha256: str, config: LearnConfig, on_step: Callable[[Step], None]
) -> tuple[Float[Tensor, "n w"], dict[str, list[float]]]:
    """Codes with their attributes: from a label file, or of random heads whose renders are scored."""
    if config.labels is not None:
        return read_labels(config.labels, generator, sha256, config.attributes)
    scorer = landmark_scores if config.landmarks else user_scorer(config.scorer or "")
    codes = discover.sample_codes(generator, discover.random_z(generator, config.samples, config.seed))
    scores = discover.scores_of_renders(
        generator, codes, scorer, lambda done: on_step(Step("heads", done, config.samples))
    )
    if not scores:
        raise ConfigError("not one head got a score: the scorer saw nothing in any render")
    return codes, scores


def freed(fitted: discover.Fitted, config: LearnConfig, sha256: str, space: Space) -> discover.Fitted:
    """The vectors less their parts along named directions of another file (or the embedded ones)."""
    others = load_directions(config.against_file, sha256)
    if others.space != space:
        raise ConfigError(f"--against names directions in {others.space.upper()}; these lie in {space.upper()}")
    chosen = torch.stack([others.vectors[others.index(name)] for name in config.against])
    vectors = discover.conditional(fitted.vectors, chosen.to(fitted.vectors))
    return discover.Fitted(vectors, fitted.readers, fitted.quality, fitted.std, fitted.about)


def landmark_scores(picture: np.ndarray) -> dict[str, float] | None:
    """What landmarks say of a render: `LANDMARK_NAMES`; None where no face is found."""
    points = mediapipe_models.face_mesh(picture)
    if points is None:
        return None
    found = face_measures(points)
    return {name: found[key] for name, key in LANDMARK_NAMES.items()}


def user_scorer(name: str) -> discover.Scorer:
    """A function of the user's own, MODULE:FUNCTION, the module being found from the current folder too.

    Raises:
        ConfigError: there is no such module or function.
    """
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise ConfigError(f"the scorer {name!r} is not MODULE:FUNCTION, such as my_scores:beard")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"the scorer {name!r} cannot be imported: {error}") from None
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise ConfigError(f"the scorer {name!r} is no function")
    scorer: discover.Scorer = found
    return scorer


def read_labels(
    path: Path, generator: Generator, sha256: str, attributes: Sequence[str] = ()
) -> tuple[Float[Tensor, "n w"], dict[str, list[float]]]:
    """Codes and attributes from a CSV or JSON file with a row a head.

    `seed` (as `headlift generate` counts, without truncation) or `head` (a head file, relative to the label file) says
    which; the other columns are attributes, empty for unknown. Without `attributes` all of them are read.

    Raises:
        DataError: the file is missing, damaged, or has other columns.
        HeadFileError: a head cannot be read, or belongs to another generator.
    """
    table = _label_rows(path)
    key = next((name for name in KEYS if name in table[0]), None)
    if key is None:
        raise DataError(f"{path}: no column 'seed' or 'head' that says which head a row is about.")
    columns = [name for name in dict.fromkeys(name for row in table for name in row) if name not in KEYS]
    if not columns:
        raise DataError(f"{path}: no column beside {key!r}: what is to be learned of each head?")
    absent = [name for name in attributes if name not in columns]
    if absent:
        raise DataError(f"{path}: no column {absent[0]!r}; there are: {', '.join(map(str, columns))}.")
    rows = list(enumerate(table, 1))
    scores = {name: [score_in(path, number, name, row) for number, row in rows] for name in attributes or columns}
    nameless = [number for number, row in rows if row.get(key) in (None, "")]
    if nameless:
        raise DataError(f"{path}: row {nameless[0]} has no {key!r}.")
    if key == "seed":
        seeds = [seed_in(path, number, row) for number, row in rows]
        return codes_of_seeds(generator, seeds, 1.0)[:, 0], scores

    def code(head: str) -> Float[Tensor, "1 w"]:
        found = load_head(path.parent / head, None, generator.w_avg.device, lambda name, device: (generator, sha256))
        return found.ws.mean(1)

    return torch.cat([code(str(row[key])) for row in table]), scores


def score_in(path: Path, number: int, name: str, row: dict[str, Any]) -> float:
    """What row `number` says of an attribute; not a number for unknown. Raises DataError for what is no score."""
    value = row.get(name)
    try:
        return math.nan if value in (None, "") else float(value)
    except (TypeError, ValueError):
        raise DataError(f"{path}: row {number}, column {name!r}: {str(value)[:80]!r} is no number.") from None


def seed_in(path: Path, number: int, row: dict[str, Any]) -> int:
    """The seed of row `number`. Raises DataError for what NumPy's RandomState does not take."""
    try:
        seed = int(row["seed"])
    except (TypeError, ValueError, OverflowError):
        seed = -1
    if not 0 <= seed < 2**32:
        raise DataError(
            f"{path}: row {number}, column 'seed': {str(row['seed'])[:80]!r} is none from 0 to {2**32 - 1}."
        )
    return seed


def _label_rows(path: Path) -> list[dict[str, Any]]:
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise DataError(f"{path}: larger than {LARGEST_FILE >> 20} MiB.")
        text = path.read_text(encoding="utf-8-sig")
        rows = json.loads(text) if path.suffix.lower() == ".json" else list(csv.DictReader(io.StringIO(text)))
    except OSError as error:
        raise DataError(f"{path}: the labels cannot be read ({error.strerror}).") from None
    except (UnicodeDecodeError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: neither CSV nor JSON ({str(error)[:200]}).") from None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: expected a table with a row for each head.")
    return rows


# Importing


def import_into(file: Path, out: Path, config: DirectionImportConfig, overwrite: bool = False) -> Directions:
    """Take directions of others from a `.npy` or `.pt` file, for a named generator; nothing in the file is run.

    Raises:
        DataError, CheckpointError: the file cannot be read, or holds something else.
        ConfigError: its numbers do not fit the generator, or it cannot be told which space they lie in.
        OutputError: the file is in the way and `overwrite` was not asked for, or the place cannot be written.
    """
    refuse_existing([out], overwrite)
    named = read_vectors(file)
    generator, sha256 = load_generator(config.weights)
    space, vectors, names = fit_to(generator, named, config.space, file.name, config.weights)
    if config.names:
        if len(config.names) != len(vectors):
            raise ConfigError(f"{file} holds {len(vectors)} directions and {len(config.names)} names were given")
        names = list(config.names)
    if len(set(names)) != len(names):
        raise ConfigError("two directions have the same name; give each its own")
    length = torch.linalg.vector_norm(vectors.flatten(1), dim=1)
    if not bool((length > 0).all()):
        raise ConfigError(f"{file}: a direction of nothing but zeros leads nowhere")
    unit = vectors.flatten(1) / length[:, None]
    entries = tuple(Direction(name, f"from {file.name}", "", math.nan, math.nan) for name in names)
    table = vectors.flatten(1) @ (unit / length[:, None]).T
    found = Directions(entries, vectors, table, sha256, space, f"imported from {file.name}", "that of its source")
    save_directions(out, found)
    return found


def read_vectors(file: Path) -> dict[str, Float[Tensor, ...]]:
    """Named arrays of a `.npy` or `.pt` file, float32; the name is empty for a file that is one array.

    Raises:
        DataError: the file is missing, too large, of another kind, or holds Python objects.
        CheckpointError: a `.pt` file holds anything but tensors.
    """
    try:
        size = file.stat().st_size
        data = file.read_bytes() if size <= LARGEST_FILE else b""
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}).") from None
    if size > LARGEST_FILE:
        raise DataError(f"{file}: {size >> 20} MiB are too many for directions (at most {LARGEST_FILE >> 20}).")
    if file.suffix.lower() in (".pt", ".pth"):
        found = dict(read_tensors(io.BytesIO(data), Limits(file_bytes=LARGEST_FILE)))
    elif file.suffix.lower() == ".npy":
        try:
            array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
        except (ValueError, OSError, EOFError, MemoryError, OverflowError, TypeError) as error:
            raise DataError(f"{file}: not a .npy file of numbers ({str(error)[:200]}).") from None
        if array.dtype.kind not in "fiu" or array.size * array.itemsize > len(data):
            raise DataError(f"{file}: holds {array.dtype}, where real numbers were expected.")
        found = {"": torch.from_numpy(np.ascontiguousarray(array.astype(np.float32)))}
    else:
        raise DataError(f"{file}: directions come as .npy or .pt, not {file.suffix or 'without a suffix'}.")
    if not found or not all(bool(torch.isfinite(value.float()).all()) for value in found.values()):
        raise DataError(f"{file}: empty, or with numbers that are not finite.")
    return {name: value.float() for name, value in found.items()}


def fit_to(
    generator: Generator, named: dict[str, Tensor], space: Space | None, file: str, weights: str
) -> tuple[Space, Float[Tensor, "k ..."], list[str]]:
    """Space, vectors and names of what a file holds, by the shapes that the generator has.

    W: [w], [1, w], [k, w]. W+: [l, w], [1, l, w], [k, l, w]. S: [s] or [k, s], or one vector for each affine layer.
    """
    layers, width = generator.num_ws, generator.spec.mapping.w_dim
    parts = [layer.width for layer in style_layers(generator)]
    if space in (None, "s") and [value.numel() for value in named.values()] == parts:
        return "s", torch.cat([value.flatten() for value in named.values()])[None], [Path(file).stem]
    shapes: dict[Space, tuple[int, ...]] = {"w": (width,), "w+": (layers, width), "s": (sum(parts),)}
    vectors: list[Tensor] = []
    names: list[str] = []
    spaces: set[Space] = set()
    for name, value in named.items():
        fits = {s: value.reshape(-1, *shape) for s, shape in shapes.items() if _ends_with(value, shape)}
        if space is not None:
            fits = {s: v for s, v in fits.items() if s == space}
        if len(fits) > 1:
            told = " or ".join(f"{len(v)} in {s.upper()}" for s, v in fits.items())
            raise ConfigError(f"{file}: shape {tuple(value.shape)} can be read as {told}; say which with --space")
        if not fits:
            raise ConfigError(_does_not_fit(file, tuple(value.shape), layers, width, sum(parts), weights))
        (found, rows), *_ = fits.items()
        spaces.add(found)
        vectors.append(rows)
        own = name or Path(file).stem
        names += [own] if len(rows) == 1 else [f"{own}{i}" for i in range(len(rows))]
    if len(spaces) != 1:
        raise ConfigError(f"{file}: its directions lie in several spaces; import them one by one")
    return spaces.pop(), torch.cat(vectors), names


def _ends_with(value: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether an array is one vector of that shape, or a row of them."""
    extra = value.ndim - len(shape)
    return extra in (0, 1) and value.shape[extra:] == torch.Size(shape) and value.numel() > 0


def _does_not_fit(file: str, shape: tuple[int, ...], layers: int, width: int, styles: int, weights: str) -> str:
    message = (
        f"{file}: shape {shape} does not fit the generator {weights!r}, whose directions have {width} numbers in W, "
        f"{layers} x {width} in W+ and {styles} in S."
    )
    if weights == EMBEDDED:
        message += (
            " Directions made by others belong to the checkpoints that they were made for and do not fit the embedded "
            "prior: import that checkpoint (headlift weights import) and name it with --weights. For the embedded "
            "prior use its own directions (headlift directions list), or learn some (headlift directions learn)."
        )
    return message


# Reporting


def report(file: Path | None, measure: int, weights: str) -> tuple[str, dict[str, object]]:
    """How entangled directions are, as a Markdown table and for a JSON file: as read from the code and, with `measure`
    random heads, as measured on their renders."""
    found = load_directions(file)
    text = discover.report(found)
    about: dict[str, object] = {
        "names": list(found.names),
        "space": found.space,
        "source": found.source,
        "base_sha256": found.base_sha256,
        "entanglement": found.entanglement.tolist(),
        "cosines": found.cosines.tolist(),
    }
    if measure:
        generator, sha256 = load_generator(weights)
        found.check_base(sha256)
        moved = effects(generator, found, measure, mediapipe_models.face_mesh)
        text += "\n\n" + table_of_effects(moved)
        about["effects"] = moved
    return text, about
