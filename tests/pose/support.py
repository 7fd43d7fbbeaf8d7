"""Goldens, and a network whose keypoints are where the picture's colours are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from annotator.keypoints import keypoint_set
from annotator.models.config import ModelConfig
from annotator.models.runtime import MEAN_RGB, STD_RGB

GOLDENS = Path(__file__).parent.parent / "goldens"


def golden() -> dict[str, np.ndarray]:
    """Return what the original code gave for boxes, crops and heatmaps."""
    with np.load(GOLDENS / "pose" / "pose_io.npz") as data:
        return dict(data)


class PoseOracle(nn.Module):
    """A pose network of 17 keypoints, each of which is where one of the three colours is brightest.

    Takes and gives what a Sapiens model does: normalised RGB in, heatmaps at a quarter of the input out. A
    point and its mirror image have one colour, so a mirrored picture gives mirrored and swapped heatmaps.
    """

    def __init__(self, input_hw: tuple[int, int] = (1024, 768)) -> None:
        super().__init__()
        self.config = ModelConfig(
            task="pose", embed_dim=1, num_layers=0, num_heads=1, ffn_dim=1, patch_padding=2, input_hw=input_hw,
            channels=17,
        )  # fmt: skip
        self.weight = nn.Parameter(torch.tensor(STD_RGB), requires_grad=False)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (MEAN_RGB, STD_RGB))
        height, width = image_BCHW.shape[2:]
        # corners on corners: the frame of UDP heatmaps
        colours = nn.functional.interpolate(
            (image_BCHW.float() * std + mean) / 255, (height // 4, width // 4), mode="bilinear", align_corners=True
        )
        return colours[:, colour_of()]


def colour_of() -> list[int]:
    """Return the colour (0 red, 1 green, 2 blue) of each of the 17 keypoints."""
    return [min(k, mirrored) % 3 for k, mirrored in enumerate(keypoint_set(17).flip_indices)]


def draw_blobs(size_yx: tuple[int, int], places_xy: list[tuple[float, float]], *, sigma: float) -> np.ndarray:
    """Return a black picture, RGB uint8, with a round blob in red, green and blue at three places.

    Places are OpenCV's: (0, 0) is the centre of the first pixel.
    """
    y, x = np.mgrid[: size_yx[0], : size_yx[1]]
    blobs = [np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * sigma**2)) for px, py in places_xy]
    return np.round(250 * np.stack(blobs, axis=2)).astype(np.uint8)


def gaussians(shape_hw: tuple[int, int], places_xy: np.ndarray, *, sigma: float = 6.0, height: float = 0.9) -> Any:
    """Return heatmaps (K, h, w) float32 with a Gaussian at each place, as the networks were trained to give."""
    y, x = np.mgrid[: shape_hw[0], : shape_hw[1]]
    maps = [height * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * sigma**2)) for px, py in places_xy]
    return np.stack(maps).astype(np.float32)
