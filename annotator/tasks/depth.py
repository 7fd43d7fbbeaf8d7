"""Relative depth of every pixel, in 16 bits with the offset and scale of each image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pyarrow as pa

from annotator.dense import (
    FRAME,
    BackgroundOptions,
    check_finite,
    check_maps,
    draw_map,
    each,
    infer,
    inputs,
    map_columns,
    needs,
    single,
    stored_map,
    zero_background,
)
from annotator.envelope import field, map_fields
from annotator.geometry import Geometry, resize_to_label, values_to
from annotator.models.zoo import LICENCE
from annotator.tasks import Arrays, Drift, Flaw, Task

if TYPE_CHECKING:
    from torch import Tensor

_STEPS = 65534
"""Stored numbers are 1 to 65535; 0 says that there is no depth."""

_PNG = (16, 0)
"""Bits and colour type, gray (PNG specification 11.2.2)."""

_GREY = 100  # background of the reference's pictures: sapiens-v1.md 4.2


def _channels(channels: int) -> str | None:
    return None if channels == 1 else "1 channel"


def _fields(options: BackgroundOptions, channels: int) -> tuple[pa.Field, ...]:
    value = "depth_offset + depth_scale * stored"
    return (
        *map_fields(
            "depth",
            f"relative depth = {value}; stored 0 where there is none; larger is farther",
            dense=options.dense,
            encoding="16-bit gray PNG",
            unit="relative",
            frame=FRAME,
        ),
        field("depth_offset", pa.float32(), f"depth = {value}", unit="relative"),
        field("depth_scale", pa.float32(), f"depth = {value}", unit="relative"),
    )


def _meaning(options: BackgroundOptions, channels: int) -> Mapping[str, Any]:
    return {
        "what": "relative depth; larger is farther; meaningful on people only, the background was not trained",
        "unit": "relative: about 0 at the nearest and 1 at the farthest point of the person, not clamped; "
        "scale and shift differ from image to image",
        "map": {
            "column": "depth",
            "encoding": "16-bit gray PNG; depth = depth_offset + depth_scale * stored; stored 0 = no depth",
            "frame": FRAME,
        },
        "background": options.background,
        "licence": LICENCE,
    }


def decode(output_CHW: Tensor, geometry: Geometry, options: BackgroundOptions) -> dict[str, Tensor]:
    """Return the depth of every pixel of the label, in steps of its own range.

    depth (Y, X) uint16 of 1 to 65535, depth_offset and depth_scale () float32, finite () bool. A step is
    1/65534 of the image's range, so the rounding is off by half of that at most.
    Source: sapiens-v1.md 4.2: bilinear, raw values.
    """
    import torch

    depth_YX = resize_to_label(output_CHW, geometry)[0]
    low, high = torch.aminmax(depth_YX)
    scale = (high - low) / _STEPS
    scale = torch.where(scale > 0, scale, 1)  # a flat map: any scale serves
    steps_YX = ((depth_YX - low) / scale).round().clamp(0, _STEPS) + 1
    return {
        "depth": steps_YX.to(torch.int32).to(torch.uint16),
        "depth_offset": low - scale,
        "depth_scale": scale,
        "finite": torch.isfinite(high - low),
    }


def encode(arrays: Arrays, options: BackgroundOptions, needed: Mapping[str, Arrays]) -> dict[str, Any]:
    """Return the columns of one row; ImageError if the network's output was not finite."""
    check_finite(arrays)
    return {
        **map_columns("depth", zero_background(arrays["depth"], options, needed)),
        "depth_offset": float(arrays["depth_offset"]),
        "depth_scale": float(arrays["depth_scale"]),
    }


def load(row: Mapping[str, Any]) -> np.ndarray:
    """Return the relative depth, float32 (Y, X), NaN where there is none."""
    stored_YX = stored_map(row, "depth")
    depth_YX = row["depth_offset"] + row["depth_scale"] * stored_YX.astype(np.float64)
    return np.where(stored_YX > 0, depth_YX, np.nan).astype(np.float32)


def paint(map_YX: np.ndarray) -> np.ndarray:
    """Return a picture of the depth, near bright and far dark, grey where there is none; uint8 RGB (Y, X, 3)."""
    known_YX = np.isfinite(map_YX)
    if not known_YX.any():
        return np.full((*map_YX.shape, 3), _GREY, np.uint8)
    low, high = np.percentile(map_YX[known_YX], (1, 99))  # a few wild pixels must not flatten the rest
    near_YX = 1 - (np.where(known_YX, map_YX, high) - low) / max(high - low, np.finfo(np.float32).tiny)
    grey_YX = np.round(near_YX.clip(0, 1) * 255).astype(np.uint8)
    rgb_YXC: np.ndarray = cv2.cvtColor(cv2.applyColorMap(grey_YX, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    rgb_YXC[~known_YX] = _GREY
    return rgb_YXC


def check(rows: pa.Table, fingerprint: Mapping[str, Any]) -> Iterator[Flaw]:
    """Yield maps that are damaged or of the wrong size, offsets and scales of no use, holes where none may be."""
    problem = partial(_problem, background=fingerprint["options"]["background"])
    return check_maps(rows, fingerprint, "depth", _PNG, problem)


def _problem(stored_YX: np.ndarray, row: Mapping[str, Any], *, background: str) -> str | None:
    offset, scale = row["depth_offset"], row["depth_scale"]
    if offset is None or scale is None or not (math.isfinite(offset) and math.isfinite(scale) and scale > 0):
        return f"depth_offset {offset} and depth_scale {scale}, expected finite numbers and a scale above 0"
    holes = stored_YX.size - cv2.countNonZero(stored_YX)
    if holes and background == "keep":
        return f"{holes} pixels without depth, expected none, for the background was kept"
    return None


def relative_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> float:
    """Return the mean difference as a share of the old map's range; 1 for other sizes or holes elsewhere."""
    old_YX, new_YX = load(old), load(new)
    known_YX = np.isfinite(old_YX)
    if old_YX.shape != new_YX.shape or not np.array_equal(known_YX, np.isfinite(new_YX)):
        return 1.0
    if not known_YX.any():
        return 0.0
    mean = float(np.abs(old_YX - new_YX)[known_YX].mean(dtype=np.float64))
    extent = float(np.ptp(old_YX[known_YX]))
    return mean / extent if extent else float(mean > 0)


TASK = Task(
    name="depth",
    version=1,
    options=BackgroundOptions,
    values=("label_size", "max_label_pixels", "require_person", "background"),
    channels=_channels,
    needs=needs,
    fields=_fields,
    meaning=_meaning,
    row_bytes=860_000,  # of a 1024 x 768 map: reference/io.md, parts 4 and 5
    inputs=inputs,
    infer=infer,
    decode=each(decode),
    encode=single(encode),
    load=load,
    resize=values_to,
    draw=draw_map(load, paint, over=False),
    check=check,
    drift=Drift(
        measure="mean difference as a share of the map's range",
        between=relative_difference,
        limits={"float32": 0.001, "bfloat16": 0.03},
    ),
)
