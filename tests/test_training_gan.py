"""Adversarial training: its loss terms by hand, its schedules, and a tiny GAN that learns, resumes and divides."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from headlift.eg3d.training import schedules
from headlift.eg3d.training.adversarial import blur, discriminator_loss, generator_loss, r1_loss
from headlift.eg3d.training.augment import AugmentConfig
from headlift.eg3d.training.losses import smooth_density_loss
from headlift.eg3d.training.ranks import Ranks
from headlift.eg3d.training.step import AdversarialConfig, Draws
from headlift.errors import ConfigError
from tests.helpers.tiny_gan import CONFIG, reals, same, trainer

SOFTPLUS_1, SOFTPLUS_MINUS_1 = math.log1p(math.e), math.log1p(1 / math.e)


def test_the_logistic_losses_by_hand() -> None:
    fake, real = torch.tensor([[1.0], [-1.0]]), torch.tensor([[0.0], [1.0]])
    assert generator_loss(fake).item() == pytest.approx((SOFTPLUS_MINUS_1 + SOFTPLUS_1) / 2, rel=1e-6)
    expected = (SOFTPLUS_1 + SOFTPLUS_MINUS_1) / 2 + (math.log(2) + SOFTPLUS_MINUS_1) / 2
    assert discriminator_loss(fake, real).item() == pytest.approx(expected, rel=1e-6)


def test_the_generator_keeps_a_slope_where_it_is_seen_through() -> None:
    logit = torch.tensor([[-20.0]], requires_grad=True)
    generator_loss(logit).backward()
    assert logit.grad is not None
    assert logit.grad.item() == pytest.approx(-1.0, abs=1e-6)


def test_r1_by_hand_on_both_pictures() -> None:
    """logit = 3 sum(image) + sum(raw^2) / 2: gradients 3 and raw."""
    image = torch.zeros(2, 3, 2, 2, requires_grad=True)
    raw = torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1).repeat(1, 3, 1, 1).requires_grad_()
    logits = 3 * image.sum(dim=(1, 2, 3), keepdim=True) + raw.square().sum(dim=(1, 2, 3), keepdim=True) / 2
    loss = r1_loss(logits.reshape(2, 1), image, raw, gamma=5.0)
    # |3|^2 over 12 numbers, raw^2 over 3 numbers: 108 + 3 and 108 + 12; the mean of both, times 5 / 2
    assert loss.item() == pytest.approx(2.5 * (111 + 120) / 2)
    loss.backward()
    assert raw.grad is not None
    assert raw.grad[1].flatten().tolist() == pytest.approx([2.5 / 2 * 2 * 2.0] * 3)


def test_the_densitys_smoothness_by_hand() -> None:
    sigma, moved = torch.tensor([[1.0, -2.0]]), torch.tensor([[1.5, -5.0]])
    assert smooth_density_loss(sigma, moved).item() == pytest.approx((0.5 + 3.0) / 2)


def test_the_blur_by_hand() -> None:
    image = torch.zeros(1, 1, 9, 9)
    image[..., 4, 4] = 1
    # sigma 1: taps 2^-(0, 1, 4, 9) on each side
    taps = torch.tensor([2.0**-9, 2.0**-4, 0.5, 1.0, 0.5, 2.0**-4, 2.0**-9])
    taps /= taps.sum()
    assert torch.allclose(blur(image, 1.0)[0, 0, 1:8, 1:8], torch.outer(taps, taps), atol=1e-7)
    assert torch.equal(blur(image, 0.2), image)
    assert torch.allclose(blur(torch.full((1, 3, 8, 8), 0.7), 10.0), torch.full((1, 3, 8, 8), 0.7))


def test_schedules_at_their_ends() -> None:
    assert [schedules.blur_sigma(n, 10.0, 200.0) for n in (0, 100, 200, 500)] == [10.0, 5.0, 0.0, 0.0]
    assert schedules.blur_sigma(0, 10.0, 0.0) == 0
    assert [schedules.neural_resolution(n, 64, 128, 1000.0) for n in (0, 500, 1000, 2000)] == [64, 96, 128, 128]
    assert schedules.neural_resolution(10**6, 64, None, 1000.0) == 64
    assert [schedules.swap_probability(n, 0.5, 1000.0) for n in (0, 500, 1000, 2000)] == [1.0, 0.75, 0.5, 0.5]
    assert schedules.ema_decay(10**6, 32, 32.0, None) == pytest.approx(0.5)
    assert schedules.ema_decay(0, 32, 10_000.0, 0.05) == 0  # at first the mean is the network itself
    assert schedules.ema_decay(6400, 32, 10_000.0, 0.05) == pytest.approx(0.5 ** (32 / 320))
    assert schedules.ema_decay(10**7, 32, 10_000.0, 0.05) == pytest.approx(0.5 ** (32 / 10_000))


def test_the_correction_for_lazy_regularisation() -> None:
    lr, betas = schedules.lazy_adam(0.002, (0.0, 0.99), 16)
    assert lr == pytest.approx(0.002 * 16 / 17)
    assert betas == (0.0, pytest.approx(0.99 ** (16 / 17)))
    assert schedules.lazy_adam(0.002, (0.0, 0.99), None) == (0.002, (0.0, 0.99))
    run = trainer(CONFIG)
    assert run.generator_optimiser.param_groups[0]["lr"] == pytest.approx(CONFIG.generator_lr * 2 / 3)  # every 2
    assert run.discriminator_optimiser.param_groups[0]["lr"] == pytest.approx(CONFIG.discriminator_lr * 3 / 4)


def test_published_defaults() -> None:
    c = AdversarialConfig()
    assert (c.generator_lr, c.discriminator_lr, c.betas, c.epsilon) == (0.0025, 0.002, (0.0, 0.99), 1e-8)
    assert (c.r1_every, c.density_every, c.density_weight, c.density_distance) == (16, 4, 0.25, 0.004)
    assert (c.blur_sigma, c.blur_fade_kimg, c.swap, c.ema_kimg, c.ema_rampup) == (10.0, 200.0, 0.5, 10.0, 0.05)


def test_random_numbers_belong_to_the_image_not_to_the_chunk() -> None:
    device = torch.device("cpu")
    whole, part = Draws((0, 1), 6, slice(0, 6), device), Draws((0, 1), 6, slice(2, 4), device)
    assert torch.equal(whole.normal(5)[2:4], part.normal(5))
    assert torch.equal(whole.uniform(2, 3)[2:4], part.uniform(2, 3))
    assert not torch.equal(
        Draws((0, 2), 6, slice(0, 6), device).normal(5), Draws((0, 1), 6, slice(0, 6), device).normal(5)
    )


def test_a_tiny_gan_takes_its_phases_and_changes_both_networks() -> None:
    run = trainer(replace(CONFIG, augment="ada", augment_p=0.5))
    before = {k: v.clone() for k, v in run.generator.state_dict().items()}
    judge = {k: v.clone() for k, v in run.discriminator.state_dict().items()}
    found = [run.take_step(reals(run)) for _ in range(4)]
    assert all(math.isfinite(value) for step in found for value in step.values())
    assert ["r1" in step for step in found] == [True, False, False, True]  # every 3
    assert ["density" in step for step in found] == [True, False, True, False]  # every 2
    assert not torch.equal(run.generator.w_avg, before["backbone.mapping.w_avg"])
    assert torch.equal(run.ema.w_avg, run.generator.w_avg)
    changed = [k for k, p in run.generator.named_parameters() if not torch.equal(p, before[k])]
    assert {"decoder.net.0.weight", "backbone.mapping.fc0.weight", "superresolution.block1.conv1.weight"} <= set(
        changed
    )
    assert not same(run.discriminator.state_dict(), judge)
    assert not same(run.ema.state_dict(), run.generator.state_dict())


def test_the_discriminator_learns_to_tell() -> None:
    run = trainer(replace(CONFIG, gamma=0.1, blur_sigma=0.0, discriminator_lr=0.02, hold_kimg=1.0))
    found = [run.take_step(reals(run)) for _ in range(20)]
    assert found[-1]["real"] - found[-1]["fake"] > 0.5 > found[0]["real"] - found[0]["fake"]


def test_the_generator_waits_while_it_is_held() -> None:
    run = trainer(replace(CONFIG, hold_kimg=CONFIG.batch / 1000))
    before = {k: p.clone() for k, p in run.generator.named_parameters()}
    assert "loss_g" not in run.take_step(reals(run))
    assert all(torch.equal(p, before[k]) for k, p in run.generator.named_parameters())
    assert "loss_g" in run.take_step(reals(run))


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    config = replace(CONFIG, augment="ada", augment_p=0.2, style_mixing=0.5, neural_final=10, neural_fade_kimg=0.02)
    whole = trainer(config)
    for _ in range(5):
        whole.take_step(reals(whole))
    first = trainer(config)
    for _ in range(2):
        first.take_step(reals(first))
    torch.save(first.state(), tmp_path / "state.pt")
    second = trainer(config, seed=1)
    second.load(torch.load(tmp_path / "state.pt", weights_only=True))
    logs = [second.take_step(reals(second)) for _ in range(3)]
    assert second.step == whole.step == 5
    assert logs[-1]["neural"] == second.ema.spec.neural_resolution == 10
    for name in ("generator", "discriminator", "ema"):
        assert same(getattr(whole, name).state_dict(), getattr(second, name).state_dict()), name
    assert whole.augment_p == second.augment_p


@pytest.mark.parametrize(("name", "other"), [("batch", 8), ("chunk", 2), ("seed", 5), ("noise_mode", "none")])
def test_a_run_keeps_what_makes_it_that_run(name: str, other: int | str) -> None:
    state = trainer(CONFIG).state()
    changed = trainer(replace(CONFIG, **{"chunk": 4, name: other}))
    with pytest.raises(ConfigError, match=rf"--{name.replace('_', '-')} .*not {other}"):
        changed.load(state)
    same_chunk = trainer(replace(CONFIG, chunk=4))
    same_chunk.load(state)


def test_the_chunk_in_force_goes_by_the_processes_and_is_kept() -> None:
    alone, half = trainer(CONFIG), trainer(CONFIG, ranks=Ranks())
    half.chunk = 2  # what each of two processes takes
    with pytest.raises(ConfigError, match="--chunk 2, not 4"):
        alone.load(half.state())


def test_a_run_is_taken_up_with_the_configurations_settings() -> None:
    first = trainer(replace(CONFIG, augment="ada", augment_p=0.3))
    first.take_step(reals(first))
    chosen = replace(CONFIG, betas=(0.5, 0.9), epsilon=1e-5, generator_lr=0.1, density_weight=0.0, gamma=0.0)
    for augment, p in (("none", 0.0), ("fixed", 0.2), ("ada", 0.3)):
        second = trainer(replace(chosen, augment=augment))
        second.load(first.state())
        assert second.augment_p == pytest.approx(p), augment
        for optimiser in (second.generator_optimiser, second.discriminator_optimiser):
            assert all(g["betas"] == (0.5, 0.9) and g["eps"] == 1e-5 for g in optimiser.param_groups)
        assert second.generator_optimiser.param_groups[0]["lr"] == 0.1


def test_a_run_from_before_the_chunk_was_written_down_goes_on() -> None:
    state = trainer(CONFIG).state()
    del state["chunk"], state["neural_initial"]
    trainer(CONFIG).load(state)


def test_the_running_mean_renders_at_the_side_that_training_has_reached() -> None:
    config = replace(CONFIG, neural_final=12, neural_fade_kimg=2 * CONFIG.batch / 1000)
    run = trainer(config)
    sides = []
    for _ in range(3):
        run.take_step(reals(run))
        sides.append(run.ema.spec.neural_resolution)
    assert sides == [10, 12, 12]
    # Whoever takes it up builds the generator from the running mean's file: the schedule goes on, not anew.
    taken = trainer(config)
    taken.generator.spec = run.ema.spec
    taken.load(run.state() | {"images": CONFIG.batch})
    assert taken.course.neural == taken.ema.spec.neural_resolution == 10


def test_a_chunk_of_one_image_is_refused_where_images_need_each_other() -> None:
    alone = replace(CONFIG, chunk=1)
    trainer(alone)
    trainer(replace(alone, swap=0.0, swap_fade_kimg=0.0), conditioned=True)
    with pytest.raises(ConfigError, match="swap"):
        trainer(alone, conditioned=True)
    with pytest.raises(ConfigError, match="noise"):
        trainer(alone, label_noise=1.0)


def test_all_noise_belongs_to_the_step() -> None:
    """That of the super-resolution, too: whatever else was drawn before, a step shows the same heads."""
    shown = []
    for seed in (0, 1):
        run = trainer(replace(CONFIG, bf16=False))
        superres = run.generator.superresolution
        superres.spec = replace(superres.spec, noise_mode="random")
        with torch.no_grad():
            for name, parameter in run.generator.named_parameters():
                if name.endswith("noise_strength"):
                    parameter.fill_(0.5)
        torch.manual_seed(seed)
        shown.append(run._fake(reals(run)[0].fake_labels[0], run._chunk(0, slice(0, 4)))[0])
    assert torch.equal(*shown)


def test_chunks_give_the_gradients_of_one_larger_batch() -> None:
    """With groups of one image and no swap nothing ties the images of a chunk together."""
    config = replace(CONFIG, bf16=False, swap=0.0, swap_fade_kimg=0.0, augment="fixed", augment_p=0.4, betas=(0.0, 0.0))
    config = replace(config, density_every=1, r1_every=1, epsilon=1e-3, noise_mode="none")
    large, parts = (trainer(replace(config, chunk=chunk), group=1) for chunk in (4, 2))
    one, other = large.take_step(reals(large)), parts.take_step(reals(parts))
    assert one == pytest.approx(other, rel=1e-3, abs=1e-4)
    for name in ("generator", "discriminator", "ema"):
        old, new = getattr(large, name).state_dict(), getattr(parts, name).state_dict()
        for key, value in old.items():
            assert torch.allclose(value, new[key], atol=2e-5), (name, key)


def test_two_processes_take_the_step_of_one_with_twice_the_batch(tmp_path: Path) -> None:
    """Two gloo ranks with two images each, against one process that takes the same two chunks one after the other."""
    script = Path(__file__).parent / "helpers" / "tiny_gan.py"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"rank{i}.pt", weights_only=True) for i in range(2)]
    alone = trainer(replace(CONFIG, chunk=2, augment="ada", augment_p=0.3))
    logs = [alone.take_step(reals(alone)) for _ in range(2)]
    for name in ("generator", "discriminator", "ema"):
        assert same(ranks[0][name], ranks[1][name]), name
        for key, value in getattr(alone, name).state_dict().items():
            assert torch.allclose(value, ranks[0][name][key], rtol=1e-4, atol=1e-5), (name, key)
    assert ranks[0]["log"] == ranks[1]["log"]
    assert ranks[0]["log"] == pytest.approx(logs[-1], rel=1e-4, abs=1e-5)


def test_gradients_that_are_no_numbers_become_zero() -> None:
    from headlift.eg3d.training.ranks import gather_gradients

    parameter = torch.nn.Parameter(torch.zeros(4))
    parameter.grad = torch.tensor([float("nan"), float("inf"), -float("inf"), 2.0])
    gather_gradients([parameter, torch.nn.Parameter(torch.zeros(1))], Ranks())
    assert parameter.grad.tolist() == [0.0, 1e5, -1e5, 2.0]


def test_the_blur_meets_real_raw_pictures_and_on_demand_the_others() -> None:
    run = trainer(CONFIG)
    (real,), label = reals(run), reals(run)[0].fake_labels[0]
    raws = [replace(run._chunk(0, slice(0, 4)), course=replace(run.course, sigma=sigma)) for sigma in (0.0, 2.0)]
    assert torch.equal(blur(run._real_pair(real, raws[0])[1], 2.0), run._real_pair(real, raws[1])[1])
    raws = [replace(run._chunk(0, slice(0, 4)), course=replace(run.course, sigma=sigma)) for sigma in (0.0, 2.0)]
    assert torch.equal(run._fake(label, raws[0])[1], run._fake(label, raws[1])[1])
    both = trainer(replace(CONFIG, blur_fake_raw=True))
    raws = [replace(both._chunk(0, slice(0, 4)), course=replace(both.course, sigma=sigma)) for sigma in (0.0, 2.0)]
    assert torch.equal(blur(both._fake(label, raws[0])[1], 2.0), both._fake(label, raws[1])[1])


def test_swapped_poses_and_masks() -> None:
    """A generator that is conditioned on cameras sees the neighbour's when swapped; one channel more is opacity."""
    run = trainer(replace(CONFIG, bf16=False), conditioned=True)
    chunk = run._chunk(0, slice(0, 4))
    label = reals(run)[0].label
    swapped, _ = run._codes(label, chunk)
    chunk = replace(run._chunk(0, slice(0, 4)), course=replace(chunk.course, swap=0.0))
    own, _ = run._codes(label, chunk)
    neighbours, _ = run._codes(label.roll(1, 0), replace(run._chunk(0, slice(0, 4)), course=chunk.course))
    assert not torch.allclose(swapped, own)
    assert torch.equal(swapped, neighbours)
    masked = trainer(CONFIG, channels=7)
    assert math.isfinite(masked.take_step(reals(masked))["loss_d"])


def test_what_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="chunks of 3"):
        trainer(replace(CONFIG, chunk=3))
    with pytest.raises(ConfigError, match="5 channels"):
        trainer(CONFIG, channels=5)


def test_augmentation_starts_as_published() -> None:
    kinds = {kind: trainer(replace(CONFIG, augment=kind)).augment_p for kind in ("none", "ada", "fixed")}
    assert kinds == {"none": 0.0, "ada": 0.0, "fixed": 0.2}
    assert AugmentConfig().flip == 0
