"""What stands behind, before and under mannequins: a wall, a floor, clutter, shadows.

Pictures here are float32 RGB (H, W, 3), 0 to 255.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

_MOST_CLUTTER = 12


def background(
    rng: np.random.Generator, size_hw: tuple[int, int], horizon: float, shadows: Sequence[np.ndarray]
) -> np.ndarray:
    """Return a room without people; `horizon` is a row of it, shadows are outlines (M, 2) in its pixels, x, y."""
    height, width = size_hw
    rows = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    columns = np.linspace(0, 1, width, dtype=np.float32)[None, :, None]
    near, far, side = (_muted(rng) for _ in range(3))
    picture = near + (far - near) * rows + (side - near) * 0.4 * columns
    if rng.random() < 0.7:
        floor = [_muted(rng), _muted(rng)]
        split = int(np.clip(horizon, 0, height))
        picture[split:] = floor[0] + (floor[1] - floor[0]) * rows[: height - split]
    picture = np.ascontiguousarray(np.broadcast_to(picture, (height, width, 3))).clip(0, 255)
    for _ in range(int(rng.integers(0, _MOST_CLUTTER))):
        draw_thing(rng, [picture])
    if rng.random() < 0.6:
        picture += _cloudy(rng, size_hw)
    _darken(picture, shadows, float(rng.uniform(0.25, 0.6)))
    if rng.random() < 0.5:  # out of focus
        picture = cv2.GaussianBlur(picture, (0, 0), float(rng.uniform(0.004, 0.015) * height))
    return np.asarray(picture)


def draw_thing(rng: np.random.Generator, canvases: Sequence[np.ndarray]) -> None:
    """Draw one thing into pictures of the same size; those of one channel, masks, get 255 where it is."""
    height, width = canvases[0].shape[:2]
    colour = tuple(_muted(rng, 1.0).tolist())
    kind = int(rng.integers(5))
    span = np.array([width, height])
    points = (rng.uniform(-0.2, 1.2, (4, 2)) * span).astype(int)
    radii = (rng.uniform(0.03, 0.28, 2) * span).astype(int)
    angle = float(rng.uniform(0, 180))
    thickness = max(1, int(rng.uniform(0.01, 0.12) * width))
    for canvas in canvases:
        ink = colour if canvas.ndim == 3 else 255
        a, b = points[0].tolist(), points[1].tolist()
        if kind == 0:
            cv2.rectangle(canvas, a, b, ink, -1)
        elif kind == 1:
            cv2.ellipse(canvas, a, radii.tolist(), angle, 0, 360, ink, -1)
        elif kind == 2:
            cv2.fillPoly(canvas, [points], ink)
        else:
            cv2.line(canvas, a, b, ink, thickness)
            if kind == 4 and canvas.ndim == 3:  # rounded, as a limb is
                light = tuple(min(255.0, c + 45) for c in colour)
                cv2.line(canvas, a, b, light, max(1, thickness // 3))


def hide(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """Put one thing before everybody, in place; return where, bool (H, W). It covers a third of the picture at most."""
    height, width = picture.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    centre = (rng.uniform(0.1, 0.9, 2) * (width, height)).astype(int)
    half = (rng.uniform(0.04, 0.16, 2) * (width, height)).astype(int)
    colour = tuple(_muted(rng, 1.0).tolist())
    ellipse = rng.random() < 0.5
    for canvas, ink in ((picture, colour), (mask, 255)):
        if ellipse:
            cv2.ellipse(canvas, centre.tolist(), half.tolist(), 0, 0, 360, ink, -1)
        else:
            cv2.rectangle(canvas, (centre - half).tolist(), (centre + half).tolist(), ink, -1)
    return mask > 0


def _muted(rng: np.random.Generator, most: float = 0.5) -> np.ndarray:
    """Return a colour, mostly a greyish one, float32 (3,); `most` is how much of its hue it may keep."""
    colour = rng.uniform(20, 240, 3)
    return np.asarray(colour.mean() + (colour - colour.mean()) * rng.uniform(0.1, most), np.float32)


def _cloudy(rng: np.random.Generator, size_hw: tuple[int, int]) -> np.ndarray:
    """Return blotches of one random size round zero."""
    height, width = size_hw
    cells = int(rng.choice([4, 8, 16, 32]))
    coarse = rng.normal(0, rng.uniform(4, 25), (cells * 4 // 3, cells, 3)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR))


def _darken(picture: np.ndarray, shadows: Sequence[np.ndarray], strength: float) -> None:
    height, width = picture.shape[:2]
    shade = np.zeros((height, width), np.float32)
    for outline in shadows:
        cv2.fillPoly(shade, [np.clip(np.round(outline), -(2**14), 2**14).astype(int)], 1.0)
    shade = cv2.GaussianBlur(shade, (0, 0), max(0.5, height / 60))
    picture *= (1 - strength * shade)[..., None]
