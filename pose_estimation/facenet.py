"""The one place where facenet-pytorch is imported: its face detector, and its network for who a face belongs to."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from headlift.errors import UNREADABLE, WeightsError
from headlift.pose_estimation.warp import resize

IDENTITY_SIDE = 160
"""Side of the faces that the identity network takes, pixels."""
EMBEDDING = 512
"""Length of its vectors."""


@functools.cache
def mtcnn(smallest: int) -> Any:
    """The detector for faces of at least so many pixels (weights inside the wheel)."""
    from facenet_pytorch.models.mtcnn import MTCNN

    return MTCNN(keep_all=True, min_face_size=smallest, thresholds=[0.6, 0.7, 0.8], device="cpu").eval()


@functools.cache
def identity_network(weights: Path) -> torch.nn.Module:
    """InceptionResnetV1 (FaceNet, Schroff et al. 2015) with the published weights of facenet-pytorch.

    Raises:
        WeightsError: the file holds something else.
    """
    from facenet_pytorch.models.inception_resnet_v1 import InceptionResnetV1

    network = InceptionResnetV1(pretrained=None)
    try:
        stored = torch.load(weights, map_location="cpu", weights_only=True)
        network.load_state_dict({k: v for k, v in stored.items() if not k.startswith("logits.")})
    except UNREADABLE as error:
        raise WeightsError(f"{weights} does not hold the weights of InceptionResnetV1 ({str(error)[:200]}).") from None
    return network.eval().requires_grad_(False)


@torch.no_grad()
def embedding(face: UInt8[np.ndarray, "h w 3"], network: torch.nn.Module) -> Float[np.ndarray, " 512"]:
    """Who a face belongs to: a vector of length 1; the cosine of two says how alike they are. `face` is cut to it."""
    small = resize(face, (IDENTITY_SIDE, IDENTITY_SIDE)).astype(np.float32)
    scaled = (torch.from_numpy(small).permute(2, 0, 1)[None] - 127.5) / 128
    vector: Float[np.ndarray, " 512"] = network(scaled)[0].numpy()
    return vector
