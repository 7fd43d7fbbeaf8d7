"""The output of a model that costs nothing, to see how fast everything else is (`annotator bench --model null`)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from annotator.models.config import ModelConfig

_COARSE_HW = (16, 12)
_HEIGHT = 5.0  # of logits: classes are as sure of themselves as a trained network's
_GRAIN = 0.003  # of depth and normals: their PNGs become about as large as a trained network's
_SIGMA = 6.0  # of heatmaps (sapiens-v1.md 4.4)


def null_output(config: ModelConfig) -> Tensor:
    """Return a raw head output (1, C, h, w), float32, always the same, that resembles a trained network's.

    Seg: smooth logits. Depth and normals: smooth fields with some grain. Pose: one peak a keypoint.
    """
    generator = torch.Generator().manual_seed(0)
    if config.task == "pose":
        return _peaks(config.channels, config.output_hw, generator)
    coarse = torch.randn(1, config.channels, *_COARSE_HW, generator=generator)
    smooth = F.interpolate(coarse, size=config.output_hw, mode="bicubic", align_corners=False)
    if config.task == "seg":
        return smooth * _HEIGHT
    return smooth + _GRAIN * torch.randn(smooth.shape, generator=generator)


def _peaks(count: int, map_hw: tuple[int, int], generator: torch.Generator) -> Tensor:
    height, width = map_hw
    y_K, x_K = (torch.rand(count, generator=generator) * n for n in map_hw)
    down_Kh = torch.exp(-((torch.arange(height) - y_K[:, None]) ** 2) / (2 * _SIGMA**2))
    across_Kw = torch.exp(-((torch.arange(width) - x_K[:, None]) ** 2) / (2 * _SIGMA**2))
    return (down_Kh[:, :, None] * across_Kw[:, None, :])[None]
