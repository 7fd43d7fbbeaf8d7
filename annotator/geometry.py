"""The two pixel frames, image (Y, X) and network input (H, W), and the only ways between them.

All dense tasks see the whole image stretched to the input, aspect ratio not kept (sapiens-v1.md 3.1).
Pixels are squares: pixel i covers [i, i + 1) of its axis, so a point p of an axis with n pixels lies at
p * m / n on an axis with m. OpenCV's INTER_LINEAR and torch's align_corners=False both work that way.
"""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

LabelSize = Literal["image", "input", "head"]

_STRETCHED: dict[int, dict[tuple[int, int], np.ndarray]] = {}
"""By `id` of an image's pixels, which is its own until it is gone, and with it the entry."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """How one image relates to the network's input and to its dense labels.

    image_yx          height, width of the whole image after orientation
    input_hw          height, width of the network's input
    label_size        dense labels have the size of the image, of the input, or of the head's output
    max_label_pixels  a larger image gets a smaller label of the same aspect (only for label_size image)
    """

    image_yx: tuple[int, int]
    input_hw: tuple[int, int]
    label_size: LabelSize = "image"
    max_label_pixels: int = 2**21

    def label_yx(self, head_hw: tuple[int, int]) -> tuple[int, int]:
        """Return height and width of a dense label, given the size of the head's output."""
        if self.label_size == "head":
            return head_hw
        return self.input_hw if self.label_size == "input" else cap(self.image_yx, self.max_label_pixels)


def cap(size_yx: tuple[int, int], max_pixels: int) -> tuple[int, int]:
    """Return the largest size of the same aspect, within a pixel a side, that has at most `max_pixels`."""
    height, width = size_yx
    if height * width <= max_pixels:
        return size_yx
    scale = math.sqrt(max_pixels / (height * width))
    height, width = max(1, int(height * scale)), max(1, int(width * scale))
    return min(height, max_pixels // width or 1), min(width, max_pixels // height or 1)


def stretch(pixels_YXC: np.ndarray, input_hw: tuple[int, int]) -> np.ndarray:
    """Return the image at the network's size, as the models were trained and evaluated on; not to be written to.

    Shapes: uint8 (Y, X, 3) -> uint8 (H, W, 3).   Source: sapiens-v1.md 3.1: bilinear, no antialiasing.
    Several tasks see the same: it is worked out once and kept while the image is, so what is written to the image
    after that is not seen.
    """
    known = _STRETCHED.get(id(pixels_YXC))
    if known is None:
        known = _STRETCHED[id(pixels_YXC)] = {}
        weakref.finalize(pixels_YXC, _STRETCHED.pop, id(pixels_YXC), None)
    if input_hw not in known:
        height, width = input_hw
        known[input_hw] = cv2.resize(pixels_YXC, (width, height), interpolation=cv2.INTER_LINEAR)
    return known[input_hw]


def resize_to_label(output_CHW: Tensor, geometry: Geometry) -> Tensor:
    """Resize a head's output to the label's size, by way of the network's input size.

    Shapes: (C, h, w) -> (C, Y, X), float32.   Units: unchanged; unit vectors need normalising afterwards.
    Source: sapiens-v1.md 4.1, "full": bilinear to the input, then bilinear to the image.
    """
    import torch.nn.functional as F

    head_hw = (int(output_CHW.shape[-2]), int(output_CHW.shape[-1]))
    label_yx = geometry.label_yx(head_hw)
    steps = [label_yx] if geometry.label_size == "head" else [geometry.input_hw, label_yx]
    map_BCYX = output_CHW.float()[None]
    for size in steps:
        if tuple(map_BCYX.shape[-2:]) != size:
            map_BCYX = F.interpolate(map_BCYX, size=size, mode="bilinear", align_corners=False)
    return map_BCYX[0]


def mask_to(mask_YX: np.ndarray, size_yx: tuple[int, int]) -> np.ndarray:
    """Return a mask or class map of another dense label of the same image, at this label's size (nearest)."""
    height, width = size_yx
    if mask_YX.shape == (height, width):
        return mask_YX
    resized_YX: np.ndarray = cv2.resize(mask_YX, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return resized_YX


def values_to(map_YXC: np.ndarray, size_yx: tuple[int, int]) -> np.ndarray:
    """Return a float32 map (Y, X) or (Y, X, C) at another size: bilinear between the values that there are.

    A pixel whose nearest one has no value, NaN, has none either; others leave it out of their mean.
    """
    if map_YXC.shape[:2] == size_yx:
        return map_YXC
    known_YX = ~np.isnan(map_YXC if map_YXC.ndim == 2 else map_YXC[..., 0])
    height, width = size_yx
    sums_YXC = cv2.resize(np.nan_to_num(map_YXC), (width, height), interpolation=cv2.INTER_LINEAR)
    weights_YX = cv2.resize(known_YX.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    # the nearest pixel weighs a quarter at least; the division is for those next to unknown ones
    weights_YX[mask_to(known_YX.astype(np.uint8), size_yx) == 0] = np.nan
    resized_YXC: np.ndarray = sums_YXC / (weights_YX if map_YXC.ndim == 2 else weights_YX[..., None])
    return resized_YXC


def vectors_to(map_YXC: np.ndarray, size_yx: tuple[int, int]) -> np.ndarray:
    """Return a map of unit vectors (Y, X, C), float32, at another size: bilinear, of length 1 again, NaN as before."""
    if map_YXC.shape[:2] == size_yx:
        return map_YXC
    resized_YXC = values_to(map_YXC, size_yx)
    lengths_YX1 = np.linalg.norm(resized_YXC, axis=2, keepdims=True)
    unit_YXC: np.ndarray = resized_YXC / np.maximum(lengths_YX1, np.finfo(np.float32).tiny)
    return unit_YXC
