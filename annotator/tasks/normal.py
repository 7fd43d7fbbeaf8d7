"""Surface normals: the direction that the surface at each pixel faces, in camera axes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from annotator.dense import (
    FRAME,
    BackgroundOptions,
    check_finite,
    check_maps,
    draw_map,
    each,
    infer,
    inputs,
    is_finite,
    map_columns,
    needs,
    single,
    stored_map,
    zero_background,
)
from annotator.envelope import map_fields
from annotator.geometry import Geometry, resize_to_label, vectors_to
from annotator.models.zoo import LICENCE
from annotator.tasks import Arrays, Drift, Flaw, Task

if TYPE_CHECKING:
    from torch import Tensor

AXES = "X right, Y up, Z towards the camera"
"""Inferred, the authors wrote no signs down: sapiens-v1.md 4.3."""

_EPSILON = 1e-5  # added to the length before dividing: sapiens-v1.md 4.3


_SHORT, _SHORT_SHARE = 0.99, 0.01
"""Stored vectors may be this short on this share of a map: where the network's own is nearly 0, `_EPSILON` shows."""


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
        "normal",
        description,
        dense=options.dense,
        encoding=_encoding(options),
        unit="unit vector",
        frame=f"camera: {AXES} (inferred)",
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
    length_YX = normal_CYX.square().sum(dim=0).sqrt_()  # a CPU takes 50 times as long for vector_norm
    normal_CYX = normal_CYX / length_YX.add_(_EPSILON)  # a copy: what follows is done in place
    levels = 2**options.bits - 1
    stored_CYX = normal_CYX.add_(1).div_(2).mul_(levels).round_().clamp_(0, levels).to(torch.int32)
    dtype = torch.uint8 if options.bits == 8 else torch.uint16
    return {
        "normal": stored_CYX.permute(1, 2, 0).to(dtype, memory_format=torch.contiguous_format),
        "finite": is_finite(output_CHW),
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


def check(rows: pa.Table, fingerprint: Mapping[str, Any]) -> Iterator[Flaw]:
    """Yield maps that are damaged or of the wrong size, and those whose vectors are not of length 1."""
    options = fingerprint["options"]
    problem = partial(_problem, background=options["background"])
    return check_maps(rows, fingerprint, "normal", (options["bits"], 2), problem)  # 2, RGB: PNG specification 11.2.2


def _problem(stored_YXC: np.ndarray, row: Mapping[str, Any], *, background: str) -> str | None:
    levels = np.iinfo(stored_YXC.dtype).max
    normal_YXC = stored_YXC.astype(np.float32) * np.float32(2 / levels) - 1
    length_YX = np.sqrt(np.einsum("yxc,yxc->yx", normal_YXC, normal_YXC))
    if background == "zero":
        length_YX[~stored_YXC.any(axis=2)] = 1
    rounding = 3**0.5 / levels + 1e-5  # half a step in each component, and float32's own
    longest = float(length_YX.max())
    if longest > 1 + rounding:
        return f"a vector of length {longest:.3f}, expected 1"
    short = int((length_YX < _SHORT - rounding).sum())
    if short > _SHORT_SHARE * length_YX.size:
        return f"{short} of {length_YX.size} vectors are shorter than {_SHORT}, expected length 1"
    return None


def mean_angle(old: Mapping[str, Any], new: Mapping[str, Any]) -> float:
    """Return the mean angle between two maps in degrees; 180 for other sizes or holes elsewhere."""
    old_YXC, new_YXC = load(old), load(new)
    known_YX = np.isfinite(old_YXC[..., 0])
    if old_YXC.shape != new_YXC.shape or not np.array_equal(known_YX, np.isfinite(new_YXC[..., 0])):
        return 180.0
    if not known_YX.any():
        return 0.0
    old_N3, new_N3 = (x[known_YX].astype(np.float64) for x in (old_YXC, new_YXC))
    sine_N = np.linalg.norm(np.cross(old_N3, new_N3), axis=1)  # arccos alone is blind to small angles
    return float(np.degrees(np.arctan2(sine_N, (old_N3 * new_N3).sum(axis=1))).mean())


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
    resize=vectors_to,
    draw=draw_map(load, paint, over=False),
    check=check,
    drift=Drift(measure="mean angle, degrees", between=mean_angle, limits={"float32": 0.1, "bfloat16": 3.0}),
)
