"""Body-part segmentation: which of the classes each pixel belongs to."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from annotator.dense import (
    FRAME,
    DenseOptions,
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
)
from annotator.envelope import field, map_fields
from annotator.geometry import Geometry, mask_to, resize_to_label
from annotator.models.zoo import LICENCE
from annotator.tasks import Arrays, Drift, Flaw, Task

if TYPE_CHECKING:
    from torch import Tensor

# facebookresearch/sapiens: lite/demo/classes_and_palettes.py, equal to seg/mmseg/datasets/goliath.py; colours R, G, B
GOLIATH: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("Background", (50, 50, 50)),
    ("Apparel", (255, 218, 0)),
    ("Face_Neck", (128, 200, 255)),
    ("Hair", (255, 0, 109)),
    ("Left_Foot", (189, 0, 204)),
    ("Left_Hand", (255, 0, 218)),
    ("Left_Lower_Arm", (0, 160, 204)),
    ("Left_Lower_Leg", (0, 255, 145)),
    ("Left_Shoe", (204, 0, 131)),
    ("Left_Sock", (182, 0, 255)),
    ("Left_Upper_Arm", (255, 109, 0)),
    ("Left_Upper_Leg", (0, 255, 255)),
    ("Lower_Clothing", (72, 0, 255)),
    ("Right_Foot", (204, 131, 0)),
    ("Right_Hand", (255, 0, 0)),
    ("Right_Lower_Arm", (72, 255, 0)),
    ("Right_Lower_Leg", (189, 204, 0)),
    ("Right_Shoe", (182, 255, 0)),
    ("Right_Sock", (102, 0, 204)),
    ("Right_Upper_Arm", (32, 72, 204)),
    ("Right_Upper_Leg", (0, 145, 255)),
    ("Torso", (14, 204, 0)),
    ("Upper_Clothing", (0, 128, 72)),
    ("Lower_Lip", (235, 205, 119)),
    ("Upper_Lip", (115, 227, 112)),
    ("Lower_Teeth", (157, 113, 143)),
    ("Upper_Teeth", (132, 93, 50)),
    ("Tongue", (82, 21, 114)),
)

_NUMBERS_AT_ONCE = 2**24
"""Resized logits held at once, 64 MiB of them; large maps go class by class, with the same result."""

_GROUPS = 4
"""Classes are resized in so many groups at least: the logits of all never exist at the label's size."""

_PNG = (8, 3)
"""Bits and colour type, a palette (PNG specification 11.2.2)."""

_ROUNDING = 1e-5
"""A mean of probabilities in float32 may be above 1 by this much."""


def _colours() -> np.ndarray:
    """Return a colour for every class id that 8 bits can hold, (256, 3) uint8 RGB."""
    golden = (math.sqrt(5) - 1) / 2  # steps of the golden ratio keep neighbouring hues apart
    more = [colorsys.hsv_to_rgb(golden * i % 1, 0.6, 0.9) for i in range(len(GOLIATH), 256)]
    named = np.array([colour for _, colour in GOLIATH], np.uint8)
    return np.concatenate([named, np.round(np.array(more) * 255).astype(np.uint8)])


COLOURS = _colours()


def class_names(channels: int) -> list[str]:
    """Return the names of the classes: those of the released models, or generic ones for another count."""
    if channels == len(GOLIATH):
        return [name for name, _ in GOLIATH]
    return [f"class_{i}" for i in range(channels)]


def _channels(channels: int) -> str | None:
    return None if 2 <= channels <= 256 else "2 to 256 channels, one a class (28 in the released models)"


def _fields(options: DenseOptions, channels: int) -> tuple[pa.Field, ...]:
    counts = pa.list_(pa.int32(), channels)
    return (
        *map_fields(
            "mask",
            "class id of every pixel, 0 is background",
            dense=options.dense,
            encoding="8-bit palette PNG",
            frame=FRAME,
        ),
        field("class_pixels", counts, "pixels of each class in `mask`", unit="pixel"),
        field(
            "confidence",
            pa.float32(),
            "mean probability of the winning class over the pixels that are not background; null if there are none",
            unit="probability",
        ),
    )


def _meaning(options: DenseOptions, channels: int) -> Mapping[str, Any]:
    names = class_names(channels)
    return {
        "what": "body parts; left and right are the person's own",
        "classes": [{"id": i, "name": n, "color_rgb": COLOURS[i].tolist()} for i, n in enumerate(names)],
        "background": 0,
        "person": "class id > 0",
        "map": {"column": "mask", "encoding": "8-bit palette PNG whose numbers are class ids", "frame": FRAME},
        "licence": LICENCE,
    }


def decode(output_CHW: Tensor, geometry: Geometry, options: DenseOptions) -> dict[str, Tensor]:
    """Return the most probable class of every pixel of the label, and how sure the network was.

    mask (Y, X) uint8, class_pixels (C,) int32, confidence () float32 (NaN without a person), finite () bool.
    Source: sapiens-v1.md 4.1, "full": logits resized twice, then argmax; no threshold.
    """
    import torch

    channels, height, width = (int(n) for n in output_CHW.shape)
    label_yx = geometry.label_yx((height, width))
    group = max(1, min(channels // _GROUPS, _NUMBERS_AT_ONCE // (label_yx[0] * label_yx[1])))
    best_YX = output_CHW.new_full(label_yx, -math.inf, dtype=torch.float32)
    ids_YX = torch.zeros(label_yx, dtype=torch.uint8, device=output_CHW.device)
    total_YX = torch.zeros_like(best_YX)  # of exp(logit - best), so that exp never overflows
    for first in range(0, channels, group):
        logits_CYX = resize_to_label(output_CHW[first : first + group], geometry)
        top_YX, top_id_YX = logits_CYX.max(dim=0)
        ids_YX = torch.where(top_YX > best_YX, (top_id_YX + first).to(torch.uint8), ids_YX)
        new_YX = torch.maximum(best_YX, top_YX)
        total_YX.mul_(best_YX.sub_(new_YX).exp_()).add_((logits_CYX - new_YX).exp_().sum(dim=0))
        best_YX = new_YX
    person_YX = ids_YX > 0
    return {
        "mask": ids_YX,
        "class_pixels": _count(ids_YX, channels).to(torch.int32),
        "confidence": torch.where(person_YX, 1 / total_YX, 0).sum() / person_YX.sum(),
        "finite": is_finite(output_CHW),
    }


def _count(ids_YX: Tensor, channels: int) -> Tensor:
    """Return how many pixels each class has, (C,)."""
    import torch

    if ids_YX.device.type == "cpu":
        return torch.bincount(ids_YX.flatten(), minlength=channels)
    # on a GPU bincount waits for the device, this does not
    return torch.stack([(ids_YX == i).sum() for i in range(channels)])


def encode(arrays: Arrays, options: DenseOptions, needed: Mapping[str, Arrays]) -> dict[str, Any]:
    """Return the columns of one row; ImageError if the network's output was not finite."""
    check_finite(arrays)
    confidence = float(arrays["confidence"])
    counts = arrays["class_pixels"].tolist()
    return {
        **map_columns("mask", arrays["mask"], palette=COLOURS[: len(counts)]),
        "class_pixels": counts,
        "confidence": None if math.isnan(confidence) else confidence,
    }


def load(row: Mapping[str, Any]) -> np.ndarray:
    """Return the class ids, uint8 (Y, X)."""
    return stored_map(row, "mask")


def paint(map_YX: np.ndarray) -> np.ndarray:
    """Return the class colours, uint8 RGB (Y, X, 3)."""
    return np.take(COLOURS, map_YX, axis=0)


def check(rows: pa.Table, fingerprint: Mapping[str, Any]) -> Iterator[Flaw]:
    """Yield masks that are damaged or of the wrong size, ids beyond the classes, columns that don't fit the mask."""
    problem = partial(_problem, classes=int(fingerprint["model"]["channels"]))
    return check_maps(rows, fingerprint, "mask", _PNG, problem)


def _problem(mask_YX: np.ndarray, row: Mapping[str, Any], *, classes: int) -> str | None:
    counts = np.bincount(mask_YX.ravel(), minlength=classes)
    if len(counts) > classes:
        return f"class id {len(counts) - 1}, expected 0 to {classes - 1}"
    if counts.tolist() != row["class_pixels"]:
        return "class_pixels are not the pixels of each class in the mask"
    confidence = row["confidence"]
    if (confidence is None) != (counts[0] == mask_YX.size):
        return f"confidence is {confidence}, expected null where no pixel is a person's, and only there"
    if confidence is not None and not 0 <= confidence <= 1 + _ROUNDING:
        return f"confidence {confidence}, expected 0 to 1"
    return None


def differing_pixels(old: Mapping[str, Any], new: Mapping[str, Any]) -> float:
    """Return the share of pixels whose class differs, 1 for masks of different sizes."""
    old_YX, new_YX = load(old), load(new)
    return float(np.mean(old_YX != new_YX)) if old_YX.shape == new_YX.shape else 1.0


TASK = Task(
    name="seg",
    version=1,
    options=DenseOptions,
    values=("label_size", "max_label_pixels", "require_person"),
    channels=_channels,
    needs=needs,
    fields=_fields,
    meaning=_meaning,
    row_bytes=40_000,  # of a 1024 x 768 map: reference/io.md, parts 4 and 5
    inputs=inputs,
    infer=infer,
    decode=each(decode),
    encode=single(encode),
    load=load,
    resize=mask_to,
    draw=draw_map(load, paint, over=True),
    check=check,
    drift=Drift(
        measure="share of pixels of another class",
        between=differing_pixels,
        limits={"float32": 0.002, "bfloat16": 0.05},
    ),
)
