"""The house rules that a machine can hold: who imports whom, what is packaged, what a light import costs."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Set
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BASE = {"errors", "config", "values"}
ALLOWED = {
    "errors": set(),
    "config": {"errors"},
    "values": set(),
    "photo": BASE,
    "eg3d": BASE,
    "pose_estimation": BASE | {"eg3d.camera"},
    "invert": BASE | {"eg3d"},
    "export": BASE | {"eg3d"},
    "editing": BASE | {"eg3d", "invert", "export", "pose_estimation"},
    "weights": BASE | {"eg3d"},
    "device": {"errors"},
    "evaluate": BASE
    | {
        "eg3d",
        "pose_estimation",
        "invert",
        "export",
        "editing",
        "weights",
        "device",
        "workers",
        "__version__",
        "photo",
        "poses",
    },
    "head": BASE | {"eg3d", "invert", "weights", "export.files"},
}
EG3D_THIRD_PARTY = {"torch", "numpy", "jaxtyping", "safetensors"}
SKIPPED = {"build", "out", "dist", "tests"}
"""Folders that are no part of the package, beside the hidden ones."""


@cache
def modules() -> dict[str, Path]:
    """Dotted name inside the package -> file, for each Python file that is not a test."""
    tops = [path for path in ROOT.iterdir() if path.name not in SKIPPED and path.suffix != ".egg-info"]
    folders = [path for path in tops if path.is_dir() and not path.name.startswith(".")]
    files = [path for path in tops if path.suffix == ".py"] + [path for top in folders for path in top.rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}


@cache
def imports(path: Path) -> frozenset[str]:
    """Every module that a file imports, at the top or inside a function, except for type checking only."""
    tree = ast.parse(path.read_text())
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return frozenset(names)


def within(name: str, allowed: set[str]) -> bool:
    return any(name == a or name.startswith(a + ".") for a in allowed)


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_imports_point_one_way(part: str) -> None:
    checked = 0
    for name, path in modules().items():
        if not within(name, {part}):
            continue
        checked += 1
        for imported in imports(path):
            if imported == "headlift" or imported.startswith("headlift."):
                inner = imported.removeprefix("headlift").lstrip(".")
                assert within(inner, ALLOWED[part] | {part}), f"{name} must not import {imported}"
    assert checked, f"no module belongs to {part}"


def test_nothing_imports_the_prior_or_the_benchmarks() -> None:
    for name, path in modules().items():
        if within(name, {"prior", "benchmarks"}):
            continue
        for imported in imports(path):
            assert not within(imported, {"headlift.benchmarks"}), f"{name} imports {imported}"
            assert not within(imported, {"headlift.prior"}) or within(imported, {"headlift.prior.data"}), (
                f"{name} imports {imported}"
            )


def test_the_app_is_the_command_lines_alone_and_its_logic_knows_no_gradio() -> None:
    for name, path in modules().items():
        found = imports(path)
        if not within(name, {"app", "cli"}):
            assert not any(within(imported, {"headlift.app"}) for imported in found), f"{name} imports the app"
        if name not in ("app.page", "app.server", "doctor"):
            assert not within_root("gradio", found), f"{name} imports gradio"


def test_eg3d_needs_torch_numpy_jaxtyping_and_safetensors_alone() -> None:
    for name, path in modules().items():
        if within(name, {"eg3d"}):
            roots = {imported.split(".")[0] for imported in imports(path)}
            extra = roots - EG3D_THIRD_PARTY - {"headlift"} - set(sys.stdlib_module_names)
            assert not extra, f"{name} imports {extra}"


def test_third_party_packages_are_imported_by_their_owners_alone() -> None:
    heavy = {"mediapipe": 1, "facenet_pytorch": 1, "lpips": 1, "mcubes": 1, "av": 1}
    for package, most in heavy.items():
        users = [
            name for name, path in modules().items() if within_root(package, imports(path)) and "benchmarks" not in name
        ]
        light = [n for n in users if not n.startswith("doctor")]
        assert len(light) <= most, f"{package} is imported in {light}"


def within_root(package: str, names: Set[str]) -> bool:
    return any(name.split(".")[0] == package for name in names)


def test_package_list_is_the_folders() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {
        "headlift" + "".join(f".{p}" for p in path.parent.relative_to(ROOT).parts)
        for path in modules().values()
        if path.name == "__init__.py"
    }
    assert set(settings["packages"]) == folders


@pytest.mark.parametrize("light", ["headlift", "headlift.cli", "headlift.config", "headlift.errors"])
def test_light_modules_do_not_load_torch(light: str) -> None:
    code = f"import {light}, sys; sys.exit(int('torch' in sys.modules or 'numpy' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
