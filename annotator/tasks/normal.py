"""Surface normals: the direction that the surface at each pixel faces, in camera axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from annotator.dense import (
    FRAME,
    LICENCE,
    BackgroundOptions,
    check_finite,
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
from annotator.envelope import map_fields
from annotator.geometry import Geometry, resize_to_label
from annotator.tasks import Arrays, Task

if TYPE_CHECKING:
    from torch import Tensor

AXES = "X right, Y up, Z towards the camera"
"""Inferred, the authors wrote no signs down: sapiens-v1.md 4.3."""

_EPSILON = 1e-5  # added to the length before dividing: sapiens-v1.md 4.3


class NormalOptions(BackgroundOptions):
    """Options of the normal task."""

    bits: Literal[8, 16] = Field(default=8, description="bits a component; 8 is right to half a degree")


def _channels(channels: int) -> str | None:
    return None if channels == 3 else "3 channels"


def _encoding(options: NormalOptions) -> str:
    return f"{options.bits}-bit RGB PNG; component = stored / {2**options.bits - 1} * 2 - 1"


def _fields(options: NormalOptions, channels: int) -> tuple[pa.Field, ...]:
    description = "surface normal, channels X, Y, Z; stored (0, 0, 0) where there is none"
    return map_fields(
        "normal", description, encoding=_encoding(options), unit="unit vector", frame=f"camera: {AXES} (inferred)"
    )


def _meaning(options: NormalOptions, channels: int) -> Mapping[str, Any]:
    return {
        "what": "surface normals; meaningful on people only",
        "unit": "unit vector",
        "axes": {"frame": "camera", "directions": AXES, "inferred": True},
        "map": {
            "column": "normal",
            "encoding": f"{_encoding(options)}; stored (0, 0, 0) = no normal",
            "frame": FRAME,
        },
        "background": options.background,
        "licence": LICENCE,
    }


def decode(output_CHW: Tensor, geometry: Geometry, options: NormalOptions) -> dict[str, Tensor]:
    """Return the unit normal of every pixel of the label: normal (Y, X, 3) uint8 or uint16, finite () bool.

    (0, 0, 0) never comes up: a unit vector has no three components near -1.
    Source: sapiens-v1.md 4.3: bilinear, then divided by (length + 1e-5).
    """
    import torch

    normal_CYX = resize_to_label(output_CHW, geometry)
    normal_CYX = normal_CYX / (torch.linalg.vector_norm(normal_CYX, dim=0) + _EPSILON)
    levels = 2**options.bits - 1
    stored_CYX = ((normal_CYX + 1) / 2 * levels).round().clamp(0, levels).to(torch.int32)
    dtype = torch.uint8 if options.bits == 8 else torch.uint16
    return {
        "normal": stored_CYX.permute(1, 2, 0).contiguous().to(dtype),
        "finite": torch.isfinite(output_CHW).all(),
    }


def encode(arrays: Arrays, options: NormalOptions, needed: Mapping[str, Arrays]) -> dict[str, Any]:
    """Return the columns of one row; ImageError if the network's output was not finite."""
    check_finite(arrays)
    return map_columns("normal", zero_background(arrays["normal"], options, needed))


def load(row: Mapping[str, Any]) -> np.ndarray:
    """Return the normals, float32 (Y, X, 3), channels X, Y, Z, of length about 1, NaN where there is none."""
    stored_YXC = stored_map(row, "normal")
    levels = np.float32(np.iinfo(stored_YXC.dtype).max)
    normal_YXC: np.ndarray = stored_YXC.astype(np.float32) / levels * 2 - 1
    normal_YXC[~stored_YXC.any(axis=2)] = np.nan
    return normal_YXC


def paint(map_YXC: np.ndarray) -> np.ndarray:
    """Return X, Y, Z as red, green, blue, black where there is none; uint8 RGB (Y, X, 3)."""
    rgb_YXC: np.ndarray = np.round((np.nan_to_num(map_YXC, nan=-1.0) + 1) / 2 * 255).clip(0, 255)
    return rgb_YXC.astype(np.uint8)


TASK = Task(
    name="normal",
    version=1,
    options=NormalOptions,
    values=("label_size", "max_label_pixels", "require_person", "background", "bits"),
    channels=_channels,
    needs=needs,
    fields=_fields,
    meaning=_meaning,
    row_bytes=940_000,  # of a 1024 x 768 map in 8 bits: reference/io.md, parts 4 and 5
    inputs=inputs,
    infer=infer,
    decode=each(decode),
    encode=single(encode),
    load=load,
    draw=draw_map(load, paint, over=False),
)
