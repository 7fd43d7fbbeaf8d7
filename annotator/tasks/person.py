"""Who is in the picture: person boxes and scores, from the detector that Sapiens pose was published with.

Boxes that other tasks see are as the detector gives them and may reach out of the image, as in the reference;
the label's are clipped to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from annotator.envelope import Status, field
from annotator.job import TaskOptions
from annotator.models.zoo import DETECTOR_LICENCE
from annotator.people import box_difference, check_people, numbers, outside
from annotator.tasks import Arrays, Drift, Flaw, Input, Needs, Task

if TYPE_CHECKING:
    from torch import Tensor

BOX = pa.list_(pa.float32(), 4)
BOX_FRAME = "pixels of the image after EXIF rotation: x1, y1, x2, y2, clipped to it"

_PAD = 114  # of the canvas: sapiens-v1.md 5.1
_COLOUR = (255, 200, 0)
_ROUNDING = 1e-5  # of scores in float32


class PersonOptions(TaskOptions):
    """What finding people takes; defaults as in the reference's pose scripts (sapiens-v1.md 5.3)."""

    score: float = Field(default=0.3, ge=0, le=1, description="a box counts above this score")
    nms_iou: float = Field(default=0.3, ge=0, le=1, description="boxes that overlap a better one by more are dropped")
    max_people: int = Field(default=20, ge=1, le=100, description="the best boxes of a crowd; more are only counted")


@dataclass(frozen=True, slots=True)
class Letterbox:
    """An image fitted into the top left of a canvas: both sizes, and canvas pixels an image pixel."""

    image_yx: tuple[int, int]
    input_hw: tuple[int, int]
    scale_xy: tuple[float, float]


def _channels(channels: int) -> str | None:
    return None if channels >= 1 else "1 channel or more, person first"


def _needs(options: PersonOptions) -> tuple[str, ...]:
    return ()


def _fields(options: PersonOptions, channels: int) -> tuple[pa.Field, ...]:
    box = field("bbox_xyxy", BOX, "x1, y1, x2, y2", unit="pixel", frame=BOX_FRAME)
    score = field("bbox_score", pa.float32(), "the detector's confidence, 0 to 1", unit="probability")
    person = pa.struct([box, score])
    return (
        field("people_found", pa.int32(), "people found, those beyond max_people included"),
        field("people", pa.list_(person), "best first", frame=BOX_FRAME, unit="pixel"),
    )


def _meaning(options: PersonOptions, channels: int) -> Mapping[str, Any]:
    return {
        "what": "boxes round people",
        "bbox_xyxy": BOX_FRAME,
        "bbox_score": "the detector's confidence, 0 to 1",
        "licence": DETECTOR_LICENCE,
    }


def inputs(
    pixels_YXC: np.ndarray,
    image_yx: tuple[int, int],
    input_hw: tuple[int, int],
    options: PersonOptions,
    needed: Needs,
) -> Iterable[Input]:
    """Yield the image fitted into the detector's canvas, aspect kept, small ones enlarged (sapiens-v1.md 5.1)."""
    height, width = image_yx
    ratio = min(max(input_hw) / max(height, width), min(input_hw) / min(height, width))
    fit_hw = max(1, int(height * ratio + 0.5)), max(1, int(width * ratio + 0.5))
    canvas_HWC = np.full((*input_hw, 3), _PAD, np.uint8)
    canvas_HWC[: fit_hw[0], : fit_hw[1]] = cv2.resize(pixels_YXC, fit_hw[::-1], interpolation=cv2.INTER_LINEAR)
    yield Input(canvas_HWC, Letterbox(image_yx, input_hw, (fit_hw[1] / width, fit_hw[0] / height)))


def infer(model: Any, images_BHW3: Tensor, options: PersonOptions) -> Any:
    """Return class logits and side distances of each level, for uint8 RGB."""
    from annotator.models.boxes import normalise_detector  # loads torch

    return model(normalise_detector(images_BHW3, next(model.parameters()).dtype))


def decode(output: Any, geometries: Sequence[Letterbox], options: PersonOptions) -> list[dict[str, Tensor]]:
    """Return each image's people: boxes (N, 4) and scores (N,) float32, best first, and people_found () int64."""
    from annotator.models.boxes import find_people

    logits, distances = output
    return [
        find_people(
            [level[i] for level in logits],
            [level[i] for level in distances],
            geometry.input_hw,
            geometry.scale_xy,
            geometry.image_yx,
            score=options.score,
            nms_iou=options.nms_iou,
            max_people=options.max_people,
        )
        for i, geometry in enumerate(geometries)
    ]


def encode(
    arrays: Sequence[Arrays], image_yx: tuple[int, int], options: PersonOptions, needed: Needs
) -> dict[str, Any]:
    """Return the columns of one row; `no_person` and an empty list where nobody was found."""
    boxes = clip(arrays[0]["boxes"], image_yx)
    scores = arrays[0]["scores"]
    people = [{"bbox_xyxy": box, "bbox_score": float(score)} for box, score in zip(boxes, scores, strict=True)]
    status = Status.OK if people else Status.NO_PERSON
    found = int(arrays[0]["people_found"])
    return {"status": status.value, "error": left_out(found, len(people)), "people_found": found, "people": people}


def left_out(found: int, kept: int) -> str | None:
    """Return what the row of a crowd says; None where nobody was left out."""
    return f"{found} people, the best {kept} kept (max_people)" if found > kept else None


def clip(boxes_N4: np.ndarray, image_yx: tuple[int, int]) -> np.ndarray:
    """Return boxes x1, y1, x2, y2 with what reaches out of the image cut off, float32 (N, 4)."""
    height, width = image_yx
    limit_4 = np.array([width, height, width, height], np.float32)
    clipped_N4: np.ndarray = np.clip(boxes_N4.astype(np.float32), 0, limit_4)
    return clipped_N4


def load(row: Mapping[str, Any]) -> np.ndarray:
    """Return the people as float32 (N, 5): x1, y1, x2, y2 in image pixels, score."""
    people = [[*person["bbox_xyxy"], person["bbox_score"]] for person in row["people"] or []]
    found_N5: np.ndarray = np.array(people, np.float32).reshape(-1, 5)
    return found_N5


def draw(picture_YXC: np.ndarray, row: Mapping[str, Any]) -> np.ndarray:
    """Return the picture with the boxes drawn."""
    drawn_YXC: np.ndarray = picture_YXC.copy()
    scale_xy = np.array([drawn_YXC.shape[1] / row["width"], drawn_YXC.shape[0] / row["height"]])
    for person in load(row):
        (x1, y1), (x2, y2) = (np.round(person[i : i + 2] * scale_xy).astype(int).tolist() for i in (0, 2))
        cv2.rectangle(drawn_YXC, (x1, y1), (x2, y2), _COLOUR, 2)
    return drawn_YXC


def check(rows: pa.Table, fingerprint: Mapping[str, Any]) -> Iterator[Flaw]:
    """Yield rows with too many or few people, boxes outside the image, scores that the options rule out."""
    least = fingerprint["options"]["score"]

    def rules(people: pa.StructArray, row_N: np.ndarray, size_N2: np.ndarray) -> Iterator[tuple[np.ndarray, str]]:
        score_N = pc.struct_field(people, "bbox_score").to_numpy(zero_copy_only=False)
        yield outside(numbers(pc.struct_field(people, "bbox_xyxy"), 4), size_N2), "a box is not inside the image"
        yield ~((score_N >= least - _ROUNDING) & (score_N <= 1 + _ROUNDING)), f"a bbox_score is not from {least:g} to 1"
        worse_N = np.zeros(len(people), bool)
        worse_N[1:] = (np.diff(score_N) > 0) & (np.diff(row_N) == 0)
        yield worse_N, "people are not sorted by bbox_score, the best first"

    return check_people(rows, fingerprint["options"]["max_people"], rules)


TASK = Task(
    name="person",
    version=1,
    options=PersonOptions,
    values=("score", "nms_iou", "max_people"),
    channels=_channels,
    needs=_needs,
    fields=_fields,
    meaning=_meaning,
    row_bytes=300,
    float32=True,  # half precision moves a side of 300 pixels by four
    inputs=inputs,
    infer=infer,
    decode=decode,
    encode=encode,
    load=load,
    draw=draw,
    check=check,
    drift=Drift(measure="1 - mean IoU of the boxes", between=box_difference, limits={"float32": 0.02}),
)
