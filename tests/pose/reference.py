"""The pose pipeline as the fact sheet (sapiens-v1.md 3.2, 4.4) says it: plain numpy, float64, one person at a time.

Written from the sheet, not from the package, and sharing nothing with it.
"""

from __future__ import annotations

import numpy as np

BLUR = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 2.0**2))
BLUR /= BLUR.sum()
EPS = 1.1920928955078125e-07


def crop_frame(box: np.ndarray, input_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return centre and size (x, y) of the padded box at the input's aspect."""
    x1, y1, x2, y2 = np.asarray(box, np.float64)
    w, h = (x2 - x1) * 1.25, (y2 - y1) * 1.25
    aspect = input_hw[1] / input_hw[0]
    if w > aspect * h:
        h = w / aspect
    else:
        w = aspect * h
    return np.array([(x1 + x2) / 2, (y1 + y2) / 2]), np.array([w, h])


def crop(image: np.ndarray, box: np.ndarray, input_hw: tuple[int, int]) -> np.ndarray:
    """Return the network's input, float64 (H, W, 3), sampled bilinearly from an image in a sea of black."""
    (cx, cy), (w, h) = crop_frame(box, input_hw)
    x = np.arange(input_hw[1]) * w / (input_hw[1] - 1) + cx - w / 2
    y = np.arange(input_hw[0]) * h / (input_hw[0] - 1) + cy - h / 2
    return _linear(_linear(image.astype(np.float64), y, 0), x, 1)


def _linear(image: np.ndarray, place: np.ndarray, axis: int) -> np.ndarray:
    image = np.moveaxis(image, axis, 0)
    sea = np.zeros((1, *image.shape[1:]))
    wet = np.concatenate([sea, image, sea])
    place = np.clip(place + 1, 0, len(wet) - 1)
    low = np.minimum(np.floor(place).astype(int), len(wet) - 2)
    part = (place - low).reshape(-1, *[1] * (image.ndim - 1))
    return np.asarray(np.moveaxis(wet[low] * (1 - part) + wet[low + 1] * part, 0, axis))


def blur(heatmap: np.ndarray) -> np.ndarray:
    """Return the map blurred 11 x 11, zeros around it."""
    wide = np.pad(heatmap.astype(np.float64), 5)
    rows = sum(BLUR[i] * wide[i : i + heatmap.shape[0]] for i in range(11))
    return np.asarray(sum(BLUR[i] * rows[:, i : i + heatmap.shape[1]] for i in range(11)))


def decode(heatmap: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Return one keypoint's place (x, y) in heatmap pixels, its score, and how far from singular the step was."""
    peak = int(np.argmax(heatmap))
    y, x = divmod(peak, heatmap.shape[1])
    score = float(heatmap[y, x])
    if score <= 0:
        return np.array([np.nan, np.nan]), 0.0, 1.0
    blurred = blur(heatmap)
    blurred = blurred * (score / blurred.max())
    p = np.pad(np.log(np.clip(blurred, 1e-3, 50)), 1, mode="edge")
    j, i = y + 1, x + 1
    gradient = np.array([p[j, i + 1] - p[j, i - 1], p[j + 1, i] - p[j - 1, i]]) / 2
    dxx = p[j, i + 1] - 2 * p[j, i] + p[j, i - 1]
    dyy = p[j + 1, i] - 2 * p[j, i] + p[j - 1, i]
    upper = p[j + 1, i + 1] - p[j, i + 1] - p[j + 1, i] + p[j, i]
    lower = p[j, i] - p[j, i - 1] - p[j - 1, i] + p[j - 1, i - 1]
    dxy = (upper + lower) / 2
    hessian = np.array([[dxx, dxy], [dxy, dyy]]) + EPS * np.eye(2)
    return np.array([x, y]) - np.linalg.inv(hessian) @ gradient, score, float(abs(np.linalg.det(hessian)))


def to_image(point: np.ndarray, map_hw: tuple[int, int], box: np.ndarray, input_hw: tuple[int, int]) -> np.ndarray:
    """Return the point in image pixels, by way of the input's."""
    size_input = np.array([input_hw[1], input_hw[0]])
    in_input = point * size_input / (np.array([map_hw[1], map_hw[0]]) - 1)
    centre, size = crop_frame(box, input_hw)
    return np.asarray(in_input / size_input * size + centre - size / 2)
