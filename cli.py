"""The command line: each verb parses, calls and shows. Heavy imports stand inside the verbs: `--help` is instant."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import tyro
from tyro.conf import OmitSubcommandPrefixes, Positional, UseAppendAction, arg, subcommand

from headlift.config import (
    AppConfig,
    DirectionImportConfig,
    EditConfig,
    EvaluateInversionConfig,
    EvaluatePriorConfig,
    ExportConfig,
    GenerateConfig,
    LearnConfig,
    Method,
    PoseConfig,
    Preset,
    ReconstructConfig,
    evaluation,
    output_folder,
    preset,
    read_config,
    with_method,
)
from headlift.errors import ConfigError, HeadliftError

if TYPE_CHECKING:
    from headlift.values import Crop

_DEFAULTS: ContextVar[ReconstructConfig] = ContextVar("defaults", default=preset("standard"))  # noqa: B039 (frozen)
"""What the flags of a command start from: set by --preset or --config before the command is parsed."""


@dataclass(frozen=True)
class Reconstruct:
    """Lift the head out of a photo: mesh, turntable video, views and a report."""

    photo: Positional[Path]
    """The photo: JPEG, PNG, WebP, TIFF or (with the extra) HEIC."""
    more: Positional[tuple[Path, ...]] = ()
    """Further photos of the same person, with --method multi."""
    out: Path | None = None
    """Folder for the results; out/NAME when not given."""
    face: int | None = None
    """Which face to take, counted from 1, largest first."""
    force: bool = False
    """Go on although the face is turned too far."""
    overwrite: bool = False
    """Replace other results in the folder."""
    quiet: bool = False
    """No progress and no notices; errors are still shown."""
    config: Path | None = None
    """Settings from a TOML file, such as the config.toml of an earlier run; flags change single ones."""
    method: Method | None = None
    """How to invert: sets all that belongs to the method, as published; flags change single settings."""
    settings: Annotated[ReconstructConfig, arg(name="")] = field(default_factory=lambda: _DEFAULTS.get())


@dataclass(frozen=True)
class Pose:
    """Face, landmarks, crop and camera of a photo, or of each photo in a folder (with a dataset.json)."""

    photo: Positional[Path]
    """A photo or a folder of photos."""
    out: Path | None = None
    """Folder for the results; out/NAME-pose when not given."""
    overwrite: bool = False
    """Replace files of an earlier run."""
    quiet: bool = False
    """No notices; errors are still shown."""
    settings: Annotated[PoseConfig, arg(name="")] = field(default_factory=PoseConfig)


@dataclass(frozen=True)
class Generate:
    """Random heads of the prior: pictures, grids, meshes, walks from head to head, style mixing."""

    out: Path = Path("out/generate")
    """Folder for the results."""
    overwrite: bool = False
    """Replace files of an earlier run."""
    quiet: bool = False
    """No progress; errors are still shown."""
    settings: Annotated[GenerateConfig, arg(name="")] = field(default_factory=GenerateConfig)


@dataclass(frozen=True)
class Export:
    """Meshes, videos, view grids, depth and normal maps of a head."""

    head: Positional[Path]
    """A head.safetensors, or the folder of a run."""
    out: Path | None = None
    """Folder for the results; the head's own when not given."""
    overwrite: bool = False
    """Replace files that are already there."""
    quiet: bool = False
    """No progress; errors are still shown."""
    mesh: UseAppendAction[tuple[Path, ...]] = ()
    """A mesh file to write (.glb, .ply, .obj, .stl, .usdz), with a texture unless --mesh.no-texture;
    may be repeated."""
    up: Literal["y", "z"] | None = None
    """The axis of the mesh that points up; without it that of its format."""
    scale: float | None = None
    """Enlarge the mesh by this factor; at 1 it is life-size, in metres (STL: millimetres)."""
    settings: Annotated[ExportConfig, arg(name="")] = field(default_factory=ExportConfig)


@dataclass(frozen=True)
class Edit:
    """Change a head: directions, style mixing, interpolation, regions; a new head file, with before and after."""

    head: Positional[Path]
    """A head.safetensors, or the folder of a run."""
    out: Path
    """Folder for the new head and its pictures."""
    overwrite: bool = False
    """Replace files of an earlier edit."""
    quiet: bool = False
    """No progress; errors are still shown."""
    settings: Annotated[EditConfig, arg(name="")] = field(default_factory=EditConfig)


@dataclass(frozen=True)
class Batch:
    """Many photos, in worker processes; goes on where it stopped and skips what is done."""

    folder: Positional[Path]
    """Folder of photos."""
    out: Path | None = None
    """Folder for the results, one inside it for each photo; out/NAME when not given."""
    workers: int = 1
    """Processes at a time."""
    force: bool = False
    """Go on although a face is turned too far."""
    overwrite: bool = False
    """Replace other results in the folders."""
    quiet: bool = False
    """No progress; errors are still shown."""
    config: Path | None = None
    """Settings from a TOML file; flags change single ones."""
    method: Method | None = None
    """How to invert: sets all that belongs to the method, as published; flags change single settings."""
    settings: Annotated[ReconstructConfig, arg(name="")] = field(default_factory=lambda: _DEFAULTS.get())


@dataclass(frozen=True)
class EvaluatePrior:
    """How good a prior is: heads of known truth, one view in, the others compared; goes on where it stopped."""

    folder: Positional[Path]
    """Folder with dataset.json and the pictures it names: several views of each head, with transparency."""
    json: Path | None = None
    """Also write the figures to this file, after each head anew."""
    out: Path = Path("out/evaluate-prior")
    """Folder for figures, table and page."""
    workers: int | None = None
    """Processes at a time, with one thread each; one for each core (8 at most) or for the GPU when not given."""
    overwrite: bool = False
    """Measure anew, and replace other results."""
    quiet: bool = False
    """No progress; errors are still shown."""
    settings: Annotated[EvaluatePriorConfig, arg(name="")] = field(
        default_factory=lambda: evaluation(_DEFAULTS.get().preset, _DEFAULTS.get())
    )


@dataclass(frozen=True)
class EvaluateInversion:
    """Inversion methods side by side: the same images, figures and page for all; goes on where it stopped."""

    folder: Positional[Path | None] = None
    """Photos; or crops with their cameras in dataset.json; or several views of each head, as `evaluate prior` takes."""
    methods: str = "w,w+,pti,pose,spi,hfgi3d,in-n-out,best"
    """Which, separated by commas; NAME@spi.mirror=0.0 changes a setting."""
    json: Path | None = None
    """Also write the list of rows to this file, after each anew."""
    out: Path = Path("out/evaluate-inversion")
    """Folder for rows, tables and page."""
    workers: int | None = None
    """Processes at a time, with one thread each; one for each core (8 at most) or for the GPU when not given."""
    overwrite: bool = False
    """Measure anew, and replace other results."""
    quiet: bool = False
    """No progress; errors are still shown."""
    settings: Annotated[EvaluateInversionConfig, arg(name="")] = field(default_factory=EvaluateInversionConfig)


@dataclass(frozen=True)
class Evaluate:
    """Measure a prior, or inversion methods side by side."""

    verb: Annotated[EvaluatePrior, subcommand("prior")] | Annotated[EvaluateInversion, subcommand("inversion")]


@dataclass(frozen=True)
class WeightsList:
    """Every generator and network known here, and which of them are on this machine."""


@dataclass(frozen=True)
class WeightsImport:
    """Read an official EG3D .pkl without running the code inside it, and write it as .safetensors."""

    file: Positional[Path]
    """The .pkl file."""
    out: Path
    """The .safetensors file to write."""
    network: Literal["G_ema", "G", "D"] = "G_ema"
    """Which of its networks."""
    overwrite: bool = False
    """Replace a file that is already there."""


@dataclass(frozen=True)
class WeightsFetch:
    """Download weights by name; the file is checked against its sha256."""

    name: Positional[str]
    """A name from `headlift weights list`."""


@dataclass(frozen=True)
class WeightsVerify:
    """Check that a file is a whole, readable checkpoint."""

    file: Positional[Path]
    """A .safetensors file."""


@dataclass(frozen=True)
class Weights:
    """List, import, fetch and verify the weights of networks."""

    verb: (
        Annotated[WeightsList, subcommand("list")]
        | Annotated[WeightsImport, subcommand("import")]
        | Annotated[WeightsFetch, subcommand("fetch")]
        | Annotated[WeightsVerify, subcommand("verify")]
    )


@dataclass(frozen=True)
class DirectionsList:
    """The directions of a file (the embedded prior's when none is given), and what each does."""

    file: Positional[Path | None] = None
    """A file of directions."""


@dataclass(frozen=True)
class DirectionsLearn:
    """Find directions in a generator: SeFa, PCA, or from attributes of heads (SVM, regression)."""

    out: Path
    """The .safetensors file to write."""
    overwrite: bool = False
    """Replace a file that is already there."""
    quiet: bool = False
    """No progress; errors are still shown."""
    settings: Annotated[LearnConfig, arg(name="")] = field(default_factory=LearnConfig)


@dataclass(frozen=True)
class DirectionsImport:
    """Take directions from a .npy or .pt file (W, W+ or S), for the generator that they were made for."""

    file: Positional[Path]
    """The .npy or .pt file; nothing in it is run."""
    out: Path
    """The .safetensors file to write."""
    settings: Annotated[DirectionImportConfig, arg(name="")]
    overwrite: bool = False
    """Replace a file that is already there."""


@dataclass(frozen=True)
class DirectionsReport:
    """How entangled directions are: what else each one moves."""

    file: Positional[Path | None] = None
    """A file of directions; the embedded prior's when not given."""
    measure: int = 0
    """Also move so many random heads and measure landmarks and colours of their renders."""
    weights: str = "embedded"
    """The generator for --measure."""
    json: Path | None = None
    """Also write the figures to this file."""


@dataclass(frozen=True)
class DirectionsVerb:
    """List, learn, import and examine directions for `headlift edit`."""

    verb: (
        Annotated[DirectionsList, subcommand("list")]
        | Annotated[DirectionsLearn, subcommand("learn")]
        | Annotated[DirectionsImport, subcommand("import")]
        | Annotated[DirectionsReport, subcommand("report")]
    )


@dataclass(frozen=True)
class App:
    """The web app, on this machine alone: drop a photo, watch it become a head, turn it, change it, take it along."""

    settings: Annotated[AppConfig, arg(name="")] = field(default_factory=AppConfig)


@dataclass(frozen=True)
class Doctor:
    """What works on this machine, and what to do about what does not."""


def main() -> None:
    """Run the command line and exit: 0 done, 2 for what the user can mend, 130 when interrupted."""
    try:
        code = run(sys.argv[1:])
    except HeadliftError as error:
        warn(str(error))
        code = error.exit_code
    except KeyboardInterrupt:
        warn("stopped.")
        code = 130
    except BrokenPipeError:
        sys.stderr.close()
        code = 141
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Parse and run one command; returns the exit code.

    Raises:
        HeadliftError: whatever the user can mend.
    """
    if arguments == ["--version"]:
        from headlift import __version__

        show(f"headlift {__version__}")
        return 0
    _DEFAULTS.set(_defaults(arguments))
    verb: Any = tyro.cli(
        Annotated[Reconstruct, subcommand("reconstruct")]
        | Annotated[Pose, subcommand("pose")]
        | Annotated[Generate, subcommand("generate")]
        | Annotated[Export, subcommand("export")]
        | Annotated[Edit, subcommand("edit")]
        | Annotated[Batch, subcommand("batch")]
        | Annotated[Evaluate, subcommand("evaluate")]
        | Annotated[DirectionsVerb, subcommand("directions")]
        | Annotated[Weights, subcommand("weights")]
        | Annotated[App, subcommand("app")]
        | Annotated[Doctor, subcommand("doctor")],
        args=arguments,
        prog="headlift",
        description="One photo of a face in, a 3D head out.",
        config=(OmitSubcommandPrefixes,),
    )
    if isinstance(verb, Weights | Evaluate | DirectionsVerb):
        verb = verb.verb
    return _RUNS[type(verb)](verb)


def _defaults(arguments: list[str]) -> ReconstructConfig:
    """Settings before single flags change them: those of --config, else those of --preset; with those of --method."""
    import argparse

    early = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    early.add_argument("--config", type=Path)
    early.add_argument("--preset")
    early.add_argument("--method", "--inversion.method", dest="method")
    try:
        known, _ = early.parse_known_args(arguments)
    except argparse.ArgumentError:
        return preset("standard")  # the real parser will say what is wrong
    method = known.method if known.method in get_args(Method) else None
    if known.config is not None:
        if known.preset is not None:
            raise ConfigError(
                "--config has all settings, those of its own preset; leave --preset out, and change single settings "
                "by their flags"
            )
        config = read_config(known.config)
        return with_method(config, method) if method else config
    usual: Preset = "fast" if arguments[:2] == ["evaluate", "inversion"] else "standard"
    return preset(known.preset if known.preset in get_args(Preset) else usual, method or "best")


def show(text: str) -> None:
    """A line of results, on standard output."""
    print(text)  # noqa: T201


def show_table(rows: list[list[str]]) -> None:
    """A table of results, headings first; what stands in its cells is no markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    heading, *lines = ([Text(cell) for cell in row] for row in rows)
    table = Table()
    for name in heading:
        table.add_column(name)
    for line in lines:
        table.add_row(*line)
    Console().print(table)


def warn(text: str) -> None:
    """A line that is not a result, on standard error."""
    print(f"headlift: {text}", file=sys.stderr)  # noqa: T201


def ignore(text: str) -> None:
    """A notice nobody wants."""


@contextmanager
def stop_on_interrupt(notice: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """The first ctrl-C asks the optimisation to end and keep what it has; the second one stops at once."""
    import signal
    from types import FrameType

    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        notice("stopping; what there is will be kept (ctrl-C again to stop at once).")

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


# The verbs


def run_reconstruct(verb: Reconstruct) -> int:
    from headlift.evaluate.cost import peak_memory
    from headlift.progress import StepProgress
    from headlift.run_folder import reconstruct_into

    pose = verb.settings.pose
    pose = replace(pose, face=pose.face if verb.face is None else verb.face, force=verb.force or pose.force)
    out = verb.out or output_folder(verb.photo)
    with StepProgress(verb.quiet) as progress, stop_on_interrupt(progress.note) as should_stop:
        result = reconstruct_into(
            verb.photo,
            replace(verb.settings, pose=pose),
            out,
            verb.overwrite,
            progress.show,
            should_stop,
            progress.note,
            verb.more,
        )
        ended = should_stop()
    code = 130 if ended else 0
    if verb.quiet:
        return code
    if result is None:
        show(f"{out} already holds this photo's head with these settings; --overwrite makes it anew.")
        return 0
    show(result.inversion.reason)
    show("  ".join(f"{name} {value:.1f} s" for name, value in result.seconds.items()))
    show(f"PSNR {result.check.psnr:.1f} dB over the mask;  peak memory {peak_memory():.2f} GiB")
    for complaint in result.check.complaints:
        warn(f"look closely: {complaint}.")
    show(f"Results are in {out}; open {out / 'report.html'} first.")
    return code


def run_pose(verb: Pose) -> int:
    from headlift.poses import overlay_folder, pose_folder, pose_photo

    out = verb.out or output_folder(verb.photo, "-pose")
    notice = ignore if verb.quiet else warn
    if verb.photo.is_dir():
        done, failed = pose_folder(verb.photo, out, verb.settings, verb.overwrite, notice, warn)
        if not verb.quiet:
            show(f"{done} photos done, {failed} failed; the cameras are in {out / 'dataset.json'}.")
            show(f"Overlays are in {overlay_folder(out)}.")
        return 0 if done else 2
    crop = pose_photo(verb.photo, out, verb.settings, verb.overwrite)
    if not verb.quiet:
        show_pose(crop)
        show(f"Crop, overlay and camera are in {out}.")
    return 0


def show_pose(crop: Crop) -> None:
    """Angles, residual and the verdict, one finding a line."""
    from headlift.poses import pose_line

    show(pose_line(crop))
    for finding in crop.verdict.findings:
        show(f"  {'ok  ' if finding.ok else 'POOR'}  {finding.message}")


def run_generate(verb: Generate) -> int:
    from headlift.generate import generate_into
    from headlift.progress import StepProgress

    with StepProgress(verb.quiet) as progress:
        written = generate_into(verb.out, verb.settings, verb.overwrite, progress.show)
    if not verb.quiet:
        show(f"{len(written)} files are in {verb.out}.")
    return 0


def run_export(verb: Export) -> int:
    from headlift.export.clean import Quality
    from headlift.outputs import export_head
    from headlift.progress import StepProgress

    told: list[Quality] = []
    with StepProgress(verb.quiet) as progress:
        written = export_head(verb.head, verb.out, export_settings(verb), verb.overwrite, progress.show, told.append)
    if not verb.quiet:
        for path in written:
            show(str(path))
        for line in [line for quality in told for line in quality.lines()]:
            show(line)
    return 0


def export_settings(verb: Export) -> ExportConfig:
    """The settings with what the short flags say."""
    settings = verb.settings
    mesh = replace(
        settings.mesh,
        up=verb.up or settings.mesh.up,
        scale=settings.mesh.scale if verb.scale is None else verb.scale,
    )
    return replace(settings, meshes=(*settings.meshes, *(str(path) for path in verb.mesh)), mesh=mesh)


def run_edit(verb: Edit) -> int:
    from headlift.edits import edit_head
    from headlift.progress import StepProgress

    with StepProgress(verb.quiet) as progress:
        edited = edit_head(verb.head, verb.out, verb.settings, verb.overwrite, progress.show)
    if not verb.quiet:
        for drift in edited.drift:
            show(f"identity drift {drift.value:.2f} ({drift.measure}: {drift.about}; 0 the same head, 1 another one)")
        show(f"The edited head is {edited.files[0]}; open {edited.files[1]} first.")
    return 0


def run_batch(verb: Batch) -> int:
    from headlift import batch
    from headlift.export.files import write_text
    from headlift.poses import photos_in
    from headlift.progress import StepProgress
    from headlift.values import Step

    pose = replace(verb.settings.pose, force=verb.force or verb.settings.pose.force)
    settings = replace(verb.settings, pose=pose)
    out = verb.out or output_folder(verb.folder)
    photos = len(photos_in(verb.folder))
    done = 0
    with StepProgress(verb.quiet) as progress, stop_on_interrupt(progress.note) as should_stop:

        def on_row(row: batch.Row) -> None:
            nonlocal done
            done += 1
            if verb.quiet and row.status == "failed":
                warn(f"{row.photo}: {row.message}")
            progress.show(Step("photos", done, photos))
            progress.note(f"{row.photo}: {row.status}{'; ' + row.message if row.message else ''}")

        rows = batch.run_batch(verb.folder, out, settings, verb.workers, verb.overwrite, on_row, should_stop)
        ended = should_stop()
    write_text(out / "batch.csv", batch.to_csv(rows))
    write_text(out / "batch.json", batch.to_json(rows))
    if not verb.quiet:
        show_table(batch.table(rows))
        show(f"The table is in {out / 'batch.csv'} too.")
    if ended:
        return 130
    return 0 if any(row.status in ("done", "skipped") for row in rows) else 2


def run_evaluate_prior(verb: EvaluatePrior) -> int:
    from headlift.evaluate.page import notes, table, write_page
    from headlift.evaluate.prior import Evaluation, evaluate_prior, to_json
    from headlift.export.files import write_text
    from headlift.progress import StepProgress

    def on_result(found: Evaluation) -> None:
        if verb.json is not None:
            write_text(verb.json, to_json(found))

    with StepProgress(verb.quiet) as progress, stop_on_interrupt(progress.note) as should_stop:
        found = evaluate_prior(
            verb.folder, verb.out, verb.settings, verb.workers, verb.overwrite, progress.show, should_stop, on_result
        )
    if found is None:
        return stopped()
    write_page(verb.out, found)
    if not verb.quiet:
        show_figures(table(found), notes(found), verb.out / "index.html")
    return 0


def run_evaluate_inversion(verb: EvaluateInversion) -> int:
    from headlift.evaluate.inversion import Comparison, evaluate_inversion, to_json
    from headlift.evaluate.inversion_page import notes, table, write_page
    from headlift.export.files import write_text
    from headlift.progress import StepProgress

    def on_result(found: Comparison) -> None:
        write_page(verb.out, found)
        if verb.json is not None:
            write_text(verb.json, to_json(found))

    methods = [name.strip() for name in verb.methods.split(",") if name.strip()]
    arguments = (verb.folder, verb.out, methods, verb.settings, verb.workers, verb.overwrite)
    with StepProgress(verb.quiet) as progress, stop_on_interrupt(progress.note) as should_stop:
        found = evaluate_inversion(*arguments, progress.show, should_stop, on_result)
    if found is None:
        return stopped()
    if not verb.quiet:
        show_figures(table(found, short=True), notes(found), verb.out / "index.html")
    return 0


def stopped() -> int:
    """What to say, and the exit code, when an evaluation was ended before its time."""
    warn("stopped; what is done is kept, and the same command goes on.")
    return 130


def show_figures(table: list[list[str]], notes: list[str], page: Path) -> None:
    """A table, headings first, and what it does not say."""
    show_table(table)
    for note in notes:
        show(note)
    show(f"The page is {page}.")


def run_weights_list(verb: WeightsList) -> int:
    from headlift.weights import list_weights

    rows = [["name", "what", "licence", "where"]]
    for weights in list_weights():
        missing = f"not here; headlift weights fetch {weights.name}" if weights.url else "not here"
        rows.append([weights.name, weights.about, weights.licence, str(weights.path or missing)])
    show_table(rows)
    return 0


def run_weights_import(verb: WeightsImport) -> int:
    from headlift.weights import import_official

    imported = import_official(verb.file, verb.out, verb.network, verb.overwrite)
    show(f"{imported.path}: {imported.role}, {imported.parameters:,} parameters, sha256 {imported.sha256}")
    warn(f"these weights stay under their own licence: {imported.licence}")
    return 0


def run_weights_fetch(verb: WeightsFetch) -> int:
    from headlift.weights import fetch

    show(str(fetch(verb.name, progress=sys.stderr.isatty())))
    return 0


def run_weights_verify(verb: WeightsVerify) -> int:
    from headlift.weights import verify

    found = verify(verb.file)
    size = f"{found.parameters:,} parameters, " if found.parameters else ""
    show(f"{found.path}: {found.kind}, {size}licence {found.licence}")
    show(f"sha256 {found.sha256}")
    return 0


def run_directions_list(verb: DirectionsList) -> int:
    from headlift.editing.directions import load_directions

    found = load_directions(verb.file)
    rows = [["name", "forwards", "unit", "1 is about", "correlation"]]
    for entry in found.entries:
        numbers = [f"{value:.2g}" if value == value else "" for value in (entry.std, entry.correlation)]
        rows.append([entry.name, entry.about, entry.unit, *numbers])
    show_table(rows)
    show(f"in {found.space.upper()} of the generator {found.base_sha256[:12]}; {found.source or 'fitted to its heads'}")
    return 0


def run_directions_learn(verb: DirectionsLearn) -> int:
    from headlift.direction_files import learn_into
    from headlift.editing.discover import report
    from headlift.progress import StepProgress

    with StepProgress(verb.quiet) as progress:
        found = learn_into(verb.out, verb.settings, verb.overwrite, progress.show)
    if not verb.quiet:
        show(report(found))
        show(f"Use them with: headlift edit HEAD --out DIR --directions {verb.out} --move {found.names[0]}=1")
    return 0


def run_directions_import(verb: DirectionsImport) -> int:
    from headlift.direction_files import import_into

    found = import_into(verb.file, verb.out, verb.settings, verb.overwrite)
    show(f"{verb.out}: {len(found.names)} in {found.space.upper()}: {', '.join(found.names)}")
    return 0


def run_directions_report(verb: DirectionsReport) -> int:
    import json

    from headlift.direction_files import report
    from headlift.export.files import write_text

    text, about = report(verb.file, verb.measure, verb.weights)
    if verb.json is not None:
        write_text(verb.json, json.dumps(about, indent=2) + "\n")
    show(text)
    return 0


def run_app(verb: App) -> int:
    from headlift.app.server import serve

    def ready(address: str) -> None:
        show(f"headlift is at {address}; ctrl-C ends it, and deletes what visitors made.")
        if verb.settings.browser:
            import webbrowser

            webbrowser.open(address)

    serve(verb.settings, ready)
    return 0


def run_doctor(verb: Doctor) -> int:
    from headlift.doctor import diagnose, healthy

    checks = diagnose()
    marks = ["ok" if check.ok else "!!" if check.needed else "--" for check in checks]
    rows = [[mark, check.name, check.found] for mark, check in zip(marks, checks, strict=True)]
    show_table([["", "what", "found"], *rows])
    for check in checks:
        if not check.ok:
            show(f"{check.name}: {check.remedy}")
    return 0 if healthy(checks) else 1


_RUNS: dict[type, Callable[[Any], int]] = {
    Reconstruct: run_reconstruct,
    Pose: run_pose,
    Generate: run_generate,
    Export: run_export,
    Edit: run_edit,
    Batch: run_batch,
    EvaluatePrior: run_evaluate_prior,
    EvaluateInversion: run_evaluate_inversion,
    WeightsList: run_weights_list,
    WeightsImport: run_weights_import,
    WeightsFetch: run_weights_fetch,
    WeightsVerify: run_weights_verify,
    DirectionsList: run_directions_list,
    DirectionsLearn: run_directions_learn,
    DirectionsImport: run_directions_import,
    DirectionsReport: run_directions_report,
    App: run_app,
    Doctor: run_doctor,
}
