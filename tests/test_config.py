"""Settings: published defaults, presets, and TOML there and back."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import get_args

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from headlift.config import TUNING_STEPS, Method, ReconstructConfig, from_table, preset, read_config, to_table
from headlift.errors import ConfigError


def test_the_defaults_are_the_published_ones() -> None:
    config = ReconstructConfig().inversion
    assert (config.latent.steps, config.latent.lr) == (500, 0.01)
    assert (config.latent.rampup, config.latent.rampdown) == (0.05, 0.25)
    assert (config.latent.w_noise, config.latent.w_noise_ramp, config.latent.noise_reg) == (0.05, 0.75, 1e5)
    assert (config.latent.w_stats_samples, config.latent.w_stats_seed) == (600, 123)
    assert (config.tuning.steps, config.tuning.lr, config.tuning.mse, config.tuning.perceptual) == (350, 3e-4, 1, 1)


@pytest.mark.parametrize("method", get_args(Method))
def test_thorough_takes_twice_the_steps_of_standard(method: Method) -> None:
    def steps(table: dict[str, object]) -> list[int]:
        inner = [n for part in table.values() if isinstance(part, dict) for n in steps(part)]
        return inner + [n for name, n in table.items() if name == "steps" or name in TUNING_STEPS]  # type: ignore[misc]

    standard, thorough = (steps(asdict(preset(name, method).inversion)) for name in ("standard", "thorough"))
    assert [2 * n for n in standard] == thorough


@pytest.mark.parametrize("name", ["fast", "standard", "thorough"])
def test_presets_survive_toml(tmp_path: Path, name: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(tomli_w.dumps(to_table(preset(name))))  # type: ignore[arg-type]
    assert read_config(path) == preset(name)  # type: ignore[arg-type]


@given(
    steps=st.integers(1, 5000),
    lr=st.floats(1e-6, 1.0),
    seed=st.integers(0, 2**31),
    formats=st.lists(st.sampled_from(["glb", "ply", "obj", "stl"]), max_size=4),
)
def test_any_settings_survive_a_table(steps: int, lr: float, seed: int, formats: list[str]) -> None:
    base = ReconstructConfig()
    latent = replace(base.inversion.latent, steps=steps, lr=lr)
    config = replace(base, seed=seed, mesh_formats=tuple(formats), inversion=replace(base.inversion, latent=latent))
    assert from_table(to_table(config)) == config


def test_a_setting_without_a_value_stays_without_one() -> None:
    config = replace(preset("standard"), preset="fast")
    assert config.inversion.latent.neural_resolution is None
    assert preset("fast").inversion.latent.neural_resolution is not None
    assert from_table(to_table(config)) == config


def test_a_table_needs_to_name_only_what_differs() -> None:
    config = from_table({"preset": "fast", "inversion": {"tuning": {"lr": 1}}})
    assert config.inversion.tuning.lr == 1.0
    assert config.inversion.latent == preset("fast").inversion.latent


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"colour": 1}, "colour"),
        ({"inversion": {"latent": {"step": 1}}}, "inversion.latent.step"),
        ({"inversion": 3}, "is a table"),
        ({"preset": "slow"}, "slow"),
        ({"preset": 3}, "3"),
        ({"seed": "one"}, "seed"),
        ({"pose": {"force": 2}}, "force"),
        ({"inversion": {"latent": {"space": "z"}}}, "space"),
    ],
)
def test_what_is_wrong_is_named(table: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        from_table(table)
