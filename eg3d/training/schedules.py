"""What changes in the course of adversarial training, as functions of the real images seen so far.

Constants are those of EG3D's released configuration (Chan et al., CVPR 2022, supplement section 3), counted in single
images; `headlift.eg3d.training.step.AdversarialConfig` holds them.
"""

from __future__ import annotations


def blur_sigma(images: int, start: float, fade: float) -> float:
    """Width of the blur on what the discriminator sees, pixels: from `start` linearly to 0 over `fade` images."""
    return start * max(0.0, 1 - images / fade) if fade > 0 else 0.0


def neural_resolution(images: int, initial: int, final: int | None, fade: float) -> int:
    """Side of the rendered feature map, pixels: from `initial` linearly to `final` over `fade` images.

    Without `final` it stays; without a fade it is the final one at once.
    """
    if final is None:
        return initial
    share = min(1.0, images / fade) if fade > 0 else 1.0
    return round(initial * (1 - share) + final * share)


def swap_probability(images: int, final: float, fade: float) -> float:
    """How often a head is conditioned on another camera than the one that sees it: from 1 linearly to `final`.

    EG3D section 4.4: always at first, so that the volume cannot hide behind the camera; then only so often.
    """
    share = min(1.0, images / fade) if fade > 0 else 1.0
    return (1 - share) + final * share


def ema_decay(images: int, batch: int, half_life: float, rampup: float | None) -> float:
    """What the running mean of the weights keeps in a step of `batch` images.

    `half_life` images forget half of it. With `rampup` the half-life is at most that share of the images seen, so that
    the mean follows quickly at first (Karras et al. 2020, "Training Generative Adversarial Networks with Limited
    Data", appendix B).
    """
    if rampup is not None:
        half_life = min(half_life, images * rampup)
    return float(0.5 ** (batch / max(half_life, 1e-8)))


def lazy_adam(lr: float, betas: tuple[float, float], every: int | None) -> tuple[float, tuple[float, float]]:
    """Learning rate and betas of Adam when a regulariser takes a step of its own every `every` steps.

    With c = every / (every + 1): c lr and betas^c, so that k main steps and one of the regulariser move the weights as
    far as k steps of both together would (Karras et al. 2020, "Analyzing and Improving", appendix B). None: no such
    regulariser, nothing changes.
    """
    if every is None:
        return lr, betas
    c = every / (every + 1)
    return lr * c, (betas[0] ** c, betas[1] ** c)
