"""From a person's box to the picture that the pose network sees, and the way back (sapiens-v1.md 3.2, 4.4).

Boxes are x1, y1, x2, y2. Points are OpenCV's here, as in the models' training: the centre of the top left
pixel is (0, 0), where geometry.py has (0.5, 0.5). The first and last pixels of the input, and of the
heatmaps, lie on the edges of the crop (UDP), so a heatmap w pixels wide divides the crop into w - 1 parts.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

PADDING = 1.25  # sapiens-v1.md 3.2, step 2
_MAX_SIDE = 2**15 - 2  # OpenCV 4 keeps source coordinates in 16 bits
_MAX_NUMBER = 1e8  # beyond any image; keeps what is computed from a box finite
_MIN_SIDE = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class Crop:
    """The upright rectangle of the image, padded and of the input's aspect, that one person's input shows.

    centre_xy, size_xy   in image pixels; the rectangle may reach outside the image, where the input is black
    """

    centre_xy: tuple[float, float]
    size_xy: tuple[float, float]
    input_hw: tuple[int, int]

    @property
    def matrix(self) -> np.ndarray:
        """The affine map from image to input, float32 (2, 3) as the reference has it."""
        (height, width), (size_x, size_y), (x, y) = self.input_hw, self.size_xy, self.centre_xy
        scale_x, scale_y = (width - 1) / size_x, (height - 1) / size_y
        rows = [[scale_x, 0, scale_x * (size_x / 2 - x)], [0, scale_y, scale_y * (size_y / 2 - y)]]
        return np.array(rows, np.float32)


def box_problem(box_4: np.ndarray, image_yx: tuple[int, int]) -> str | None:
    """Return what is wrong with a box, None if it holds some of the image."""
    x1, y1, x2, y2 = (float(v) for v in box_4)
    if not np.isfinite([x1, y1, x2, y2]).all():
        return "holds NaN or infinity"
    if max(abs(v) for v in (x1, y1, x2, y2)) > _MAX_NUMBER:
        return "holds a number beyond any image"
    if x2 <= x1 or y2 <= y1 or max(x2 - x1, y2 - y1) < _MIN_SIDE:
        return "has no area; expected x1 < x2 and y1 < y2"
    if x2 <= 0 or y2 <= 0 or x1 >= image_yx[1] or y1 >= image_yx[0]:
        return f"lies outside the image of {image_yx[1]} x {image_yx[0]} pixels"
    return None


def clip_box(box_4: np.ndarray, image_yx: tuple[int, int]) -> np.ndarray:
    """Return the part of a box that is in the image, float32 (4,)."""
    limit = np.array([image_yx[1], image_yx[0]] * 2, np.float32)
    return np.clip(np.asarray(box_4, np.float32), 0, limit)


def make_crop(box_4: np.ndarray, input_hw: tuple[int, int]) -> Crop:
    """Return the crop of a box without a problem: centred on it, padded, widened or heightened to the input's aspect.

    The box as the detector gave it counts, also where it reaches outside the image: its centre is the crop's.
    """
    x1, y1, x2, y2 = (float(v) for v in box_4)
    aspect = input_hw[1] / input_hw[0]
    width, height = (x2 - x1) * PADDING, (y2 - y1) * PADDING
    if width > aspect * height:
        height = width / aspect
    else:
        width = aspect * height
    return Crop(centre_xy=((x1 + x2) / 2, (y1 + y2) / 2), size_xy=(width, height), input_hw=input_hw)


def cut(pixels_YXC: np.ndarray, crop: Crop, image_yx: tuple[int, int]) -> np.ndarray:
    """Return what the network sees of a crop, bilinear, black outside the image: uint8 (Y, X, 3) -> (H, W, 3).

    The pixels are the whole image's; a JPEG may have been decoded at a smaller scale than `image_yx`.
    """
    matrix = _from_pixels(crop.matrix, (pixels_YXC.shape[0], pixels_YXC.shape[1]), image_yx)
    if max(pixels_YXC.shape[:2]) > _MAX_SIDE:
        return _sample(pixels_YXC, matrix, crop.input_hw)
    height, width = crop.input_hw
    input_HWC: np.ndarray = cv2.warpAffine(pixels_YXC, matrix, (width, height), flags=cv2.INTER_LINEAR)
    return input_HWC


def _from_pixels(matrix: np.ndarray, pixels_yx: tuple[int, int], image_yx: tuple[int, int]) -> np.ndarray:
    """Return the map to the input from the pixels that there are; the same one where those are all."""
    if pixels_yx == image_yx:
        return matrix
    scale_x, scale_y = image_yx[1] / pixels_yx[1], image_yx[0] / pixels_yx[0]
    # corners lie on corners, while the matrix counts from the centre of the first pixel
    to_image = np.array([[scale_x, 0, (scale_x - 1) / 2], [0, scale_y, (scale_y - 1) / 2], [0, 0, 1]])
    return np.asarray(matrix @ to_image, np.float32)


def _sample(pixels_YXC: np.ndarray, matrix: np.ndarray, input_hw: tuple[int, int]) -> np.ndarray:
    """Return what cv2.warpAffine would, slower, from pixels of any size."""
    size_yx = pixels_YXC.shape[:2]
    axes = []
    for axis in (0, 1):
        scale, shift = (float(v) for v in matrix[1 - axis, [1 - axis, 2]])  # of the matrix, x comes first
        place = (np.arange(input_hw[axis]) - shift) / scale
        before = np.floor(place)
        axes.append([(before, 1 - (place - before)), (before + 1, place - before)])
    input_HWC = np.zeros((*input_hw, pixels_YXC.shape[2]), np.float64)
    for y_H, weight_H in axes[0]:
        for x_W, weight_W in axes[1]:
            weight_HW = (weight_H * _inside(y_H, size_yx[0]))[:, None] * (weight_W * _inside(x_W, size_yx[1]))
            index = np.ix_(_index(y_H, size_yx[0]), _index(x_W, size_yx[1]))
            input_HWC += weight_HW[..., None] * pixels_YXC[index]
    return np.round(input_HWC).astype(np.uint8)


def _inside(place: np.ndarray, size: int) -> np.ndarray:
    return np.asarray((place >= 0) & (place < size))


def _index(place: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(np.clip(place, 0, size - 1), np.intp)
