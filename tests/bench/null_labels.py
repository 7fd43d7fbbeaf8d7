"""The outputs of the null models at the released input size, and the maps that the engine makes of them."""

from __future__ import annotations

import numpy as np
import torch

from annotator.bench.flops import released_config
from annotator.dense import BackgroundOptions, DenseOptions
from annotator.geometry import Geometry
from annotator.models.null import null_output
from annotator.tasks import depth, normal, seg

INPUT_HW = (1024, 768)
TASKS = ("seg", "depth", "normal")


def outputs() -> dict[str, torch.Tensor]:
    """Return each task's raw head output (1, C, h, w), float32."""
    return {task: null_output(released_config(task, "0.3b")) for task in TASKS}


def labels(image_yx: tuple[int, int]) -> dict[str, np.ndarray]:
    """Return each task's map of an image of this size, as it is stored."""
    geometry, raw = Geometry(image_yx, INPUT_HW), outputs()
    dense, ground = DenseOptions(checkpoint="none"), BackgroundOptions(checkpoint="none")
    return {
        "seg": seg.decode(raw["seg"][0], geometry, dense)["mask"].numpy(),
        "depth": depth.decode(raw["depth"][0], geometry, ground)["depth"].numpy(),
        "normal": normal.decode(raw["normal"][0], geometry, normal.NormalOptions(checkpoint="none"))["normal"].numpy(),
    }
