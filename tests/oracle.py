"""Pictures whose labels are known to a fraction of a pixel, and a network that gives them.

The network is made by hand: it answers how much of one colour there is where. The picture holds one
soft-edged disk of that colour, so its centre in any label can be measured and compared with where it was
drawn, after orientation, stretching, resizing and encoding have all had their say.

Pixels are squares: pixel i covers [i, i + 1), so a centre (y, x) of an image lies at (y * Y' / Y, x * X' / X)
of a map of another size.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from annotator.images import apply_orientation
from annotator.models.config import ModelConfig
from annotator.models.runtime import MEAN_RGB, STD_RGB

DISK_RGB = (224.0, 64.0, 32.0)
GROUND_RGB = (32.0, 64.0, 160.0)
_INVERSE = {6: 8, 8: 6}  # every other orientation undoes itself


class Oracle(nn.Module):
    """A network for one dense task that marks DISK_RGB; takes and gives what a Sapiens model does.

    Output at half the input's resolution: seg two logits, class 1 where there is more disk than ground;
    depth the amount of disk, 0 to 1; normal towards the camera on the ground, to the right on the disk.
    """

    def __init__(self, task: Literal["seg", "depth", "normal"], input_hw: tuple[int, int] = (128, 96)) -> None:
        super().__init__()
        self.config = ModelConfig(
            task=task,
            embed_dim=1,
            num_layers=0,
            num_heads=1,
            ffn_dim=1,
            patch_padding=0,
            input_hw=input_hw,
            channels={"seg": 2, "depth": 1, "normal": 3}[task],
        )
        disk, ground = torch.tensor(DISK_RGB), torch.tensor(GROUND_RGB)
        way = (disk - ground) / (disk - ground).square().sum()
        self.weight = nn.Parameter(way * torch.tensor(STD_RGB), requires_grad=False)
        self.bias = nn.Parameter((way * (torch.tensor(MEAN_RGB) - ground)).sum(), requires_grad=False)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        amount_BHW = torch.einsum("bchw,c->bhw", image_BCHW.float(), self.weight.float()) + self.bias.float()
        amount_BCHW = nn.functional.avg_pool2d(amount_BHW[:, None], 2)
        if self.config.task == "depth":
            return amount_BCHW
        if self.config.task == "seg":
            return torch.cat([10 * (0.5 - amount_BCHW), 10 * (amount_BCHW - 0.5)], dim=1)
        return torch.cat([amount_BCHW, torch.zeros_like(amount_BCHW), 1 - amount_BCHW], dim=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """An encoded picture of one disk; size and centre are of the upright image."""

    data: bytes
    size_yx: tuple[int, int]
    centre_yx: tuple[float, float]


def make_picture(
    size_yx: tuple[int, int],
    centre_yx: tuple[float, float],
    *,
    radius: float,
    edge: float = 6.0,
    orientation: int = 1,
    kind: Literal["jpeg", "png"] = "png",
) -> Picture:
    """Draw and encode a picture that an EXIF-aware reader sees upright.

    `edge` is the width of the disk's soft edge in pixels; give it two or three pixels of the network's input,
    or sampling alone moves the centre by a tenth of a pixel.
    """
    y, x = np.mgrid[: size_yx[0], : size_yx[1]] + 0.5
    distance = np.hypot(y - centre_yx[0], x - centre_yx[1])
    amount_YX1 = np.clip((radius - distance) / edge + 0.5, 0, 1)[..., None]
    drawn_YXC = np.array(GROUND_RGB) * (1 - amount_YX1) + np.array(DISK_RGB) * amount_YX1
    upright_YXC = np.round(drawn_YXC).astype(np.uint8)
    stored_YXC = apply_orientation(upright_YXC, _INVERSE.get(orientation, orientation))
    options = [cv2.IMWRITE_JPEG_QUALITY, 95] if kind == "jpeg" else []
    ok, encoded = cv2.imencode(".jpg" if kind == "jpeg" else ".png", stored_YXC[..., ::-1], options)
    assert ok
    return Picture(data=with_orientation(encoded.tobytes(), orientation), size_yx=size_yx, centre_yx=centre_yx)


def with_orientation(data: bytes, orientation: int) -> bytes:
    """Return the JPEG or PNG with an EXIF orientation; the file itself for orientation 1."""
    if orientation == 1:
        return data
    exif = struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    if data.startswith(b"\xff\xd8"):
        body = b"Exif\0\0" + exif
        return data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]
    chunk = b"eXIf" + exif
    return data[:33] + struct.pack(">I", len(exif)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]


def centroid(weight_YX: np.ndarray) -> tuple[float, float]:
    """Return the centre (y, x) of what a map marks, in its own pixels."""
    weight = np.asarray(weight_YX, np.float64)
    total = weight.sum()
    assert total > 0, "the map marks nothing"
    y = (weight.sum(axis=1) * (np.arange(weight.shape[0]) + 0.5)).sum() / total
    x = (weight.sum(axis=0) * (np.arange(weight.shape[1]) + 0.5)).sum() / total
    return float(y), float(x)


def disk_of(task: str, label: np.ndarray) -> np.ndarray:
    """Return how much of the disk each pixel of a loaded label (Task.load) is, (Y, X)."""
    if task == "seg":
        return np.where(label == 1, 1.0, 0.0)
    if task == "depth":
        return np.where(label > 0.25, label, 0).astype(np.float64)  # the ground's rounding would pull the centre
    return np.where(label[..., 0] > label[..., 2], 1.0, 0.0)


def error_px(task: str, label: np.ndarray, picture: Picture) -> float:
    """Return how far, in pixels of the upright image, the label's disk is from where it was drawn."""
    size_yx, (y, x) = picture.size_yx, centroid(disk_of(task, label))
    found_yx = y * size_yx[0] / label.shape[0], x * size_yx[1] / label.shape[1]
    return float(np.hypot(found_yx[0] - picture.centre_yx[0], found_yx[1] - picture.centre_yx[1]))
