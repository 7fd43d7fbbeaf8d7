"""Small encoded pictures of every kind, made by Pillow, an encoder that is not ours."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
from PIL import Image

SIZE_YX = (47, 61)


def photo(size_yx: tuple[int, int] = SIZE_YX, seed: int = 0) -> np.ndarray:
    """Return smooth noise over the full range, uint8 (Y, X, 3)."""
    noise = np.random.default_rng(seed).integers(0, 256, (*size_yx, 3), np.uint8)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    stretched: np.ndarray = cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX)
    return stretched


def save(
    pixels: np.ndarray, kind: str, *, mode: str | None = None, orientation: int | None = None, **how: Any
) -> bytes:
    """Return the pixels as Pillow writes them."""
    image = Image.fromarray(pixels)
    if mode is not None:
        image = image.convert(mode)
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        how["exif"] = exif
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def frames(kind: str, **how: Any) -> bytes:
    """Return two frames; the first is `photo()`."""
    first, second = Image.fromarray(photo()), Image.fromarray(photo(seed=1))
    file = io.BytesIO()
    first.save(file, kind, save_all=True, append_images=[second], **how)
    return file.getvalue()


def one_of_each_kind() -> dict[str, bytes]:
    """Return a still picture of every kind that is read, `photo()` without loss unless the kind forbids it."""
    return {
        "jpeg": save(photo(), "JPEG", quality=95),
        "png": save(photo(), "PNG"),
        "webp": save(photo(), "WEBP", lossless=True),
        "gif": save(photo(), "GIF"),
        "bmp": save(photo(), "BMP"),
        "tiff": save(photo(), "TIFF"),
    }
