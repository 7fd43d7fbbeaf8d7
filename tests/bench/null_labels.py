"""The outputs of the null models at the released input size, and the maps that the engine makes of them."""

from __future__ import annotations

import numpy as np
import torch

from annotator.dense import BackgroundOptions, DenseOptions
from annotator.geometry import Geometry
from annotator.models.config import ModelConfig
from annotator.models.null import null_output
from annotator.models.zoo import TASK_FACTS
from annotator.tasks import depth, normal, seg

INPUT_HW = (1024, 768)
CHANNELS = {"seg": 28, "depth": 1, "normal": 3}


def outputs() -> dict[str, torch.Tensor]:
    """Return each task's raw head output (1, C, h, w), float32."""
    found = {}
    for task, channels in CHANNELS.items():
        facts = TASK_FACTS[task]
        found[task] = null_output(
            ModelConfig(
                task=task,
                embed_dim=32,
                num_layers=1,
                num_heads=4,
                ffn_dim=128,
                patch_padding=facts.patch_padding,
                input_hw=INPUT_HW,
                channels=channels,
                deconv_channels=facts.deconv_channels,
                conv_channels=facts.conv_channels,
            )
        )
    return found


def labels(image_yx: tuple[int, int]) -> dict[str, np.ndarray]:
    """Return each task's map of an image of this size, as it is stored."""
    geometry, raw = Geometry(image_yx, INPUT_HW), outputs()
    dense, ground = DenseOptions(checkpoint="none"), BackgroundOptions(checkpoint="none")
    return {
        "seg": seg.decode(raw["seg"][0], geometry, dense)["mask"].numpy(),
        "depth": depth.decode(raw["depth"][0], geometry, ground)["depth"].numpy(),
        "normal": normal.decode(raw["normal"][0], geometry, normal.NormalOptions(checkpoint="none"))["normal"].numpy(),
    }
