"""What the tasks that label every pixel share: their options, their map column, what stays unlabelled.

Nothing here loads torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
import pyarrow as pa
from pydantic import Field

from annotator import png
from annotator.envelope import Dense, Status
from annotator.errors import ImageError
from annotator.geometry import Geometry, LabelSize, cap, mask_to, stretch
from annotator.job import TaskOptions
from annotator.tasks import PERSON, Arrays, Flaw, Input, Needs

if TYPE_CHECKING:
    from torch import Tensor

FRAME = "the image after EXIF rotation, stretched to map_width x map_height; the first row is the top one"


class DenseOptions(TaskOptions):
    """What every dense task takes."""

    label_size: LabelSize = Field(
        default="image", description="size of the map: of the image, of the network's input, or of its head's output"
    )
    max_label_pixels: int = Field(
        default=2**21, ge=1, description="larger images get a smaller map of the same aspect (label_size image)"
    )

    require_person: bool | None = Field(
        default=None, description="no map, and no work, for images without people; default: when people are known"
    )

    dense: Dense = Field(
        default="parquet", description="where maps are kept: in the label files, or in tar files beside them"
    )


class BackgroundOptions(DenseOptions):
    """What a dense task takes whose labels mean something on people only."""

    background: Literal["keep", "zero"] = Field(
        default="keep", description="zero: store 0 where seg, in the same job, finds no person; files shrink"
    )


def needs(options: DenseOptions) -> tuple[str, ...]:
    """Return the tasks whose labels a dense task reads: people, and seg for the background."""
    zero = isinstance(options, BackgroundOptions) and options.background == "zero"
    return ((PERSON,) if options.require_person else ()) + (("seg",) if zero else ())


def inputs(
    pixels_YXC: np.ndarray,
    image_yx: tuple[int, int],
    input_hw: tuple[int, int],
    options: DenseOptions,
    needed: Needs,
) -> Iterable[Input]:
    """Yield the whole image stretched to the network's size; nothing when people are required and there are none."""
    if options.require_person and not len(needed[PERSON][0]["boxes"]):
        return
    yield Input(
        stretch(pixels_YXC, input_hw), Geometry(image_yx, input_hw, options.label_size, options.max_label_pixels)
    )


def infer(model: Any, images_BHW3: Tensor, options: DenseOptions) -> Tensor:
    """Return the head's raw output (B, C, h, w), float32, for uint8 RGB."""
    from annotator.models.runtime import run  # loads torch

    return run(model, images_BHW3)


def each(
    decode: Callable[[Tensor, Geometry, Any], dict[str, Tensor]],
) -> Callable[[Tensor, Sequence[Geometry], Any], list[dict[str, Tensor]]]:
    """Return a decode of batches from one of single outputs (C, h, w): maps differ in size, so they go one by one."""

    def decode_batch(output_BCHW: Tensor, geometries: Sequence[Geometry], options: Any) -> list[dict[str, Tensor]]:
        pairs = zip(output_BCHW, geometries, strict=False)  # a padded batch has more outputs than images
        return [decode(output_CHW, geometry, options) for output_CHW, geometry in pairs]

    return decode_batch


def single(
    encode: Callable[[Arrays, Any, Mapping[str, Arrays]], dict[str, Any]],
) -> Callable[[Sequence[Arrays], tuple[int, int], Any, Needs], dict[str, Any]]:
    """Return an encode for the one input, or none, that a dense task has of an image."""

    def encode_image(
        arrays: Sequence[Arrays], image_yx: tuple[int, int], options: Any, needed: Needs
    ) -> dict[str, Any]:
        if not arrays:
            return {"status": Status.NO_PERSON.value}
        return encode(arrays[0], options, {name: found[0] for name, found in needed.items() if found})

    return encode_image


def map_columns(name: str, array: np.ndarray, *, palette: np.ndarray | None = None) -> dict[str, Any]:
    """Return the values of `envelope.map_fields(name, ...)` for a map (Y, X[, C]), its PNG as bytes in any case."""
    value = {"bytes": png.encode(array, palette=palette), "path": None}
    return {name: value, "map_width": array.shape[1], "map_height": array.shape[0]}


def stored_map(row: Mapping[str, Any], name: str) -> np.ndarray:
    """Return the stored numbers of a row's map, whose PNG is there as bytes.

    Raises TypeError where the row has none, ValueError if it is damaged.
    """
    return png.decode(row[name]["bytes"])


def zero_background(stored: np.ndarray, options: BackgroundOptions, needed: Mapping[str, Any]) -> np.ndarray:
    """Return the map with 0 stored where the seg label of the same image finds no person, if asked for."""
    if options.background == "keep":
        return stored
    person_YX = mask_to(needed["seg"]["mask"], (stored.shape[0], stored.shape[1])) > 0
    return stored * (person_YX if stored.ndim == 2 else person_YX[..., None])


def is_finite(output_CHW: Tensor) -> Tensor:
    """Return whether the network's output holds no NaN and no infinity, () bool, in one pass and where it lies."""
    low, high = output_CHW.aminmax()  # NaN if there is one
    return low.isfinite() & high.isfinite()


def check_finite(arrays: Mapping[str, np.ndarray]) -> None:
    """Raise ImageError `failed`, `not_finite` when the network's output held NaN or infinity.

    Checked on the host, by the flag that `decode` left, so that the device is never waited for.
    """
    if not bool(arrays["finite"]):
        raise ImageError("failed", "not_finite", "the network's output holds NaN or infinity on this image")


def check_maps(
    rows: pa.Table,
    fingerprint: Mapping[str, Any],
    name: str,
    kind: tuple[int, int],
    check: Callable[[np.ndarray, Mapping[str, Any]], str | None],
) -> Iterator[Flaw]:
    """Yield what is wrong with the maps `name` of the ok rows: of the PNG, its size, its values.

    `kind` is bits and colour type of the PNG; `check` says what is wrong with stored numbers, given their row.
    No map is decoded before its size is known to be right: a PNG of a few bytes can claim gigabytes.
    """
    for at, row in enumerate(rows.to_pylist()):
        if row["status"] != Status.OK.value:
            continue
        data = (row[name] or {}).get("bytes") or b""
        try:
            width, height, *found = png.size_and_kind(data)
            if tuple(found) != kind:
                yield Flaw("map_encoding", at, f"PNG of {_words(found)}, expected {_words(kind)}")
                continue
            if problem := _size_problem(row, (height, width), fingerprint):
                yield Flaw("map_size", at, problem)
                continue
            stored = png.decode(data)
        except ValueError as err:
            yield Flaw("map_encoding", at, str(err))
            continue
        if problem := check(stored, row):
            yield Flaw("map_values", at, problem)


def _words(kind: Sequence[int]) -> str:
    return f"{kind[0]} bits and colour type {kind[1]}"


def _size_problem(row: Mapping[str, Any], found_yx: tuple[int, int], fingerprint: Mapping[str, Any]) -> str | None:
    """Return how the PNG's size differs from what the row says, or from what image and options make of it."""
    stated_yx = (row["map_height"], row["map_width"])
    if found_yx != stated_yx:
        return f"the PNG is {_size(found_yx)}, map_width x map_height {_size(stated_yx)}"
    options = fingerprint["options"]
    if options["label_size"] == "head":  # the network's affair
        return None
    if options["label_size"] == "input":
        expected_yx = tuple(fingerprint["model"]["input_hw"])
    elif row["height"] is None or row["width"] is None:
        return "the row has a map and no width or height"
    else:
        expected_yx = cap((row["height"], row["width"]), options["max_label_pixels"])
    if found_yx == expected_yx:
        return None
    of = f"an image of {_size((row['height'], row['width']))}"
    return f"the map is {_size(found_yx)}, expected {_size(expected_yx)} of {of}, label_size {options['label_size']}"


def _size(size_yx: Sequence[int | None]) -> str:
    return f"{size_yx[1]} x {size_yx[0]}"


def draw_map(
    load: Callable[[Mapping[str, Any]], np.ndarray], paint: Callable[[np.ndarray], np.ndarray], *, over: bool
) -> Callable[[np.ndarray, Mapping[str, Any]], np.ndarray]:
    """Return a draw: the map painted at the picture's size, laid half over it or in its place.

    Every map covers the whole image, whatever its own proportions (label_size input).
    """

    def draw(picture_YXC: np.ndarray, row: Mapping[str, Any]) -> np.ndarray:
        painted_YXC = paint(load(row))
        height, width = picture_YXC.shape[:2]
        method = cv2.INTER_AREA if height < painted_YXC.shape[0] else cv2.INTER_LINEAR
        resized_YXC: np.ndarray = cv2.resize(painted_YXC, (width, height), interpolation=method)
        if not over:
            return resized_YXC
        blended_YXC: np.ndarray = cv2.addWeighted(picture_YXC, 0.5, resized_YXC, 0.5, 0)
        return blended_YXC

    return draw
