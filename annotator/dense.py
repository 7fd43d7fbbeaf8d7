"""What the tasks that label every pixel share: their options, their map column, what stays unlabelled.

Nothing here loads torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field

from annotator import png
from annotator.errors import ImageError
from annotator.geometry import LabelSize, mask_to
from annotator.job import TaskOptions

LICENCE = "the Sapiens weights released by Meta are CC BY-NC 4.0: non-commercial use only"  # sapiens-v1.md 8.4

FRAME = "the image after EXIF rotation, stretched to map_width x map_height; the first row is the top one"


class DenseOptions(TaskOptions):
    """What every dense task takes."""

    label_size: LabelSize = Field(
        default="image", description="size of the map: of the image, of the network's input, or of its head's output"
    )
    max_label_pixels: int = Field(
        default=2**21, ge=1, description="larger images get a smaller map of the same aspect (label_size image)"
    )


class BackgroundOptions(DenseOptions):
    """What a dense task takes whose labels mean something on people only."""

    background: Literal["keep", "zero"] = Field(
        default="keep", description="zero: store 0 where seg, in the same job, finds no person; files shrink"
    )


def background_needs(options: BackgroundOptions) -> tuple[str, ...]:
    """Return the tasks whose labels the background rule reads."""
    return ("seg",) if options.background == "zero" else ()


def map_columns(name: str, array: np.ndarray, *, palette: np.ndarray | None = None) -> dict[str, Any]:
    """Return the values of `envelope.map_fields(name, ...)` for a map (Y, X[, C])."""
    value = {"bytes": png.encode(array, palette=palette), "path": None}
    return {name: value, "map_width": array.shape[1], "map_height": array.shape[0]}


def stored_map(row: Mapping[str, Any], name: str) -> np.ndarray:
    """Return the stored numbers of a row's map; TypeError where the row has none, ValueError if it is damaged."""
    return png.decode(row[name]["bytes"])


def zero_background(stored: np.ndarray, options: BackgroundOptions, needed: Mapping[str, Any]) -> np.ndarray:
    """Return the map with 0 stored where the seg label of the same image finds no person, if asked for."""
    if options.background == "keep":
        return stored
    person_YX = mask_to(needed["seg"]["mask"], (stored.shape[0], stored.shape[1])) > 0
    return stored * (person_YX if stored.ndim == 2 else person_YX[..., None])


def check_finite(arrays: Mapping[str, np.ndarray]) -> None:
    """Raise ImageError `failed`, `not_finite` when the network's output held NaN or infinity.

    Checked on the host, by the flag that `decode` left, so that the device is never waited for.
    """
    if not bool(arrays["finite"]):
        raise ImageError("failed", "not_finite", "the network's output holds NaN or infinity on this image")
