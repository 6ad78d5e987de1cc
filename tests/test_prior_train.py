"""The supervised stage on a few balls: it learns, resumes bit for bit, and leaves weights that can be used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from headlift.eg3d.camera import unproject
from headlift.eg3d.checkpoint import load_checkpoint
from headlift.errors import ConfigError
from headlift.invert.warp import pixel_centres
from headlift.prior.dataset import DEPTH_UNIT, Data, load_data
from headlift.prior.supervised import TrainConfig, Trainer, draw_batch, run, show, total
from headlift.values import Camera
from tests.helpers.ball_heads import RADIUS, write_heads

TINY = TrainConfig(
    widths="16,16,16",
    plane_channels=4,
    w_dim=16,
    hidden=16,
    features=6,
    superres="8,8",
    heads=2,
    patch=16,
    rays=32,
    others=2,
    coarse=8,
    fine=8,
    hull=24,
    steps=40,
    warmup=5,
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small only lose by threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    folder = tmp_path_factory.mktemp("heads")
    write_heads(folder, 6, side=256)
    return load_data(folder, folder / "cache", TINY.hull, TINY.box, TINY.seed)


def test_the_loss_falls(data: Data) -> None:
    trainer = Trainer(data, TINY)
    found = [trainer.take_step()["loss"] for _ in range(30)]
    assert sum(found[-5:]) < 0.7 * sum(found[:5])


@pytest.mark.parametrize("muon", [0.0, 0.3])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(data: Data, tmp_path: Path, muon: float) -> None:
    config = replace(TINY, steps=6, muon=muon)
    whole = run(data, config, tmp_path / "whole", minutes=5.0)
    run(data, config, tmp_path / "parts", minutes=0.0)
    first = Trainer(data, config)
    for _ in range(3):
        first.take_step()
    torch.save(first.state(), tmp_path / "parts" / "state.pt")
    parts = run(data, config, tmp_path / "parts", minutes=5.0)
    assert parts.step == whole.step == 6
    for network in ("generator", "ema", "light"):
        one, other = getattr(whole, network).state_dict(), getattr(parts, network).state_dict()
        for name, value in one.items():
            if not name.endswith("w_avg"):  # taken afresh at each save
                assert torch.equal(value, other[name]), (network, name)


def test_a_run_of_another_shape_is_not_gone_on_with(data: Data, tmp_path: Path) -> None:
    run(data, replace(TINY, steps=1), tmp_path, minutes=5.0)
    with pytest.raises(ConfigError, match="begun with --seed 0, not 1"):
        run(data, replace(TINY, steps=2, seed=1), tmp_path, minutes=5.0)
    assert run(data, replace(TINY, steps=2, lr=1e-3), tmp_path, minutes=5.0).step == 2


def test_muon_moves_mapping_and_backbone_and_adam_the_rest(data: Data) -> None:
    plain, both = (Trainer(data, replace(TINY, muon=muon)) for muon in (0.0, 0.5))
    stepped = {id(p) for group in both.optimiser.groups if group.muon for p in group.parameters}
    assert len(stepped) == 15  # two matrices of the mapping, five kernels, eight affine layers
    for trainer in (plain, both):
        trainer.take_step()
    with_adam = dict(plain.generator.named_parameters())
    for name, parameter in both.generator.named_parameters():
        assert torch.equal(parameter, with_adam[name]) == (id(parameter) not in stepped), name


def test_a_run_starts_from_weights_that_fit(data: Data, tmp_path: Path) -> None:
    first = run(data, replace(TINY, steps=2), tmp_path / "first", minutes=5.0)
    second = run(data, replace(TINY, steps=0), tmp_path / "second", 5.0, tmp_path / "first" / "ema.safetensors")
    for network in (second.generator, second.ema):
        for name, value in first.ema.state_dict().items():
            assert torch.equal(network.state_dict()[name], value), name
    with pytest.raises(ConfigError, match=r"decoder.net.0.weight is \[16, 4\], and \[24, 4\] is wanted"):
        run(data, replace(TINY, hidden=24), tmp_path / "third", 5.0, tmp_path / "first" / "ema.safetensors")


def test_a_state_of_before_is_refused(data: Data, tmp_path: Path) -> None:
    trainer = run(data, replace(TINY, steps=1), tmp_path, minutes=5.0)
    old = trainer.state() | {"optimiser": torch.optim.Adam(trainer.trained).state_dict()}
    torch.save(old, tmp_path / "state.pt")
    with pytest.raises(ConfigError, match="earlier headlift"):
        run(data, replace(TINY, steps=2), tmp_path, minutes=5.0)


def test_batches_depend_on_the_step_alone_and_visit_every_head(data: Data) -> None:
    one, same, other = draw_batch(data, TINY, 3), draw_batch(data, TINY, 3), draw_batch(data, TINY, 4)
    assert torch.equal(one.patch, same.patch)
    assert torch.equal(one.z, same.z)
    assert not torch.equal(one.patch, other.patch)
    # No two of the six heads have one code, and six are seen in three batches of two.
    codes = data.density.encode(data.table, None)
    seen = torch.cat([draw_batch(data, TINY, step, held_out=False).z for step in range(3)]).numpy()
    nearest = [int(np.abs(codes - z).sum(1).argmin()) for z in seen]
    assert sorted(nearest) == [0, 1, 2, 3, 4, 5]


def test_threads_that_prepare_batches_change_nothing(data: Data) -> None:
    plain, ahead = Trainer(data, TINY), Trainer(data, TINY, workers=2)
    assert [plain.take_step() for _ in range(3)] == [ahead.take_step() for _ in range(3)]


def test_the_total_is_the_weighted_sum_and_every_weight_matters(data: Data) -> None:
    terms = {name: torch.tensor(float(10**i)) for i, name in enumerate(("raw", "single", "image", "pyramid"))}
    rest = ("alpha", "light", "white", "empty", "solid", "border", "depth", "surface")
    terms |= {name: torch.tensor(1.0) for name in rest}
    weights = {"alpha": 3.0, "light_weight": 5.0, "empty": 7.0, "solid": 11.0, "depth": 13.0, "surface": 17.0}
    config = replace(TINY, pyramid=2.0, white=19.0, **weights)
    assert total(terms, config) == 1 + 10 + 100 + 2 * 1000 + 3 + 5 + 2 * 7 + 11 + 13 + 17 + 19


def test_the_light_is_learned_apart_from_the_head(data: Data) -> None:
    """The code of the light changes colours, never opacity."""
    trainer = Trainer(data, TINY)
    with torch.no_grad():
        trainer.light.basis.mul_(30)
        batch = draw_batch(data, TINY, 0)
        seen = [
            show(
                trainer.generator,
                trainer.light,
                data,
                batch,
                replace(TINY, dark=dark),
                torch.Generator().manual_seed(0),
            )
            for dark in (0.0, 1.1)
        ]
    assert not torch.allclose(seen[0].raw, seen[1].raw, atol=1e-3)
    assert torch.equal(seen[0].terms["alpha"], seen[1].terms["alpha"])


def test_a_run_leaves_weights_to_use(data: Data, tmp_path: Path) -> None:
    run(data, replace(TINY, steps=2), tmp_path, minutes=5.0)
    generator = load_checkpoint(tmp_path / "ema.safetensors", "cpu")
    assert generator.w_avg.abs().sum() > 0
    assert generator.spec.render.white_background
    assert (tmp_path / "log.jsonl").exists()


def test_known_depth_empties_the_space_before_the_surface(data: Data) -> None:
    """The balls' depth as the cameras see it."""
    camera = Camera.from_label(torch.from_numpy(data.heads.labels[:1]))
    towards = unproject(camera, pixel_centres(128)[None], torch.ones(1, 128 * 128)) - camera.origin[:, None]
    middle = (towards * -camera.origin[:, None]).sum(-1)
    root = middle.square() - (camera.origin.square().sum() - RADIUS**2)
    depth = torch.where(root > 0, middle - root.clamp_min(0).sqrt(), torch.zeros(())).reshape(128, 128)
    counts = (depth / DEPTH_UNIT).round().numpy().astype(np.uint16)
    known = replace(data, depth=np.stack([counts] * len(data.heads.images)))
    batch = draw_batch(known, TINY, 0)
    assert batch.depth.max() < 2.7
    assert batch.depth[batch.depth > 0].min() > 2.7 - RADIUS - 0.01
    config = replace(TINY, depth=20.0, surface=1.0)
    plain, told = Trainer(known, replace(config, depth=0.0, surface=0.0)), Trainer(known, config)
    without, with_depth = ([trainer.take_step()["surface"] for _ in range(25)][-1] for trainer in (plain, told))
    assert with_depth < 0.4 * without
