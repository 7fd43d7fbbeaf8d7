"""Pose: where each person's keypoints are, 17, 133 or 308 of them.

One network input a person: the box, padded, at the input's aspect. Where boxes come from is the job's
choice, never a guess; the crops of all people of all images fill the same batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from annotator.crop import Crop, box_problem, clip_box, cut, make_crop
from annotator.envelope import Status, field
from annotator.errors import ImageError
from annotator.job import TaskOptions
from annotator.keypoints import COUNTS, keypoint_set
from annotator.models.zoo import LICENCE
from annotator.people import check_people, keypoint_difference, numbers, outside
from annotator.tasks import PERSON, Arrays, Drift, Flaw, Input, Needs, Task
from annotator.tasks.person import left_out

if TYPE_CHECKING:
    from torch import Tensor, nn

BOX_FRAME = "pixels of the image after EXIF rotation, from its top left corner"
POINT_FRAME = "pixels of the image after EXIF rotation; the centre of the top left pixel is (0, 0)"
DRAWN_SCORE = 0.3  # sapiens-v1.md 4.4: for drawing only
_BOX_COLOUR = (255, 255, 255)

_ASK = (
    "boxes is missing; say where people's boxes come from: 'person' (and add the task person to the job, "
    "with a detector's checkpoint), 'manifest' (a column boxes in the manifest), 'labels' (person labels "
    "that this output has already), or 'whole_frame' (one person a picture)"
)


class PoseOptions(TaskOptions):
    """What pose takes."""

    boxes: Literal["person", "manifest", "labels", "whole_frame"] = Field(
        description="where boxes come from: the task person of this job, the manifest's column `boxes`, "
        "the output's person labels, or the whole frame as one person"
    )
    flip_test: bool = Field(
        default=False, description="average with the mirrored picture: as the published accuracies, at twice the cost"
    )
    max_people: int = Field(default=100, ge=1, description="at most so many people an image, the best by box score")

    @model_validator(mode="before")
    @classmethod
    def _ask_for_boxes(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("boxes") is None:
            raise ValueError(_ASK)
        return data


@dataclass(frozen=True, kw_only=True, slots=True)
class _Person:
    """One box as it was given; `problem` says why it can't be cropped."""

    box_4: np.ndarray
    score: float | None
    problem: str | None


def _channels(channels: int) -> str | None:
    return None if channels in COUNTS else "17, 133 or 308 channels, one a keypoint"


def _needs(options: PoseOptions) -> tuple[str, ...]:
    return () if options.boxes == "whole_frame" else (PERSON,)


def _fields(options: PoseOptions, channels: int) -> tuple[pa.Field, ...]:
    point = pa.list_(pa.float32(), 2)
    person = [
        field(
            "bbox_xyxy",
            pa.list_(pa.float32(), 4),
            "x1, y1, x2, y2, clipped to the image; as it was given where `error` says it is of no use",
            unit="pixel",
            frame=BOX_FRAME,
        ),
        field("bbox_score", pa.float32(), "of the detector; null if the box's source gave none"),
        field("keypoints", pa.list_(point, channels), "x, y; NaN where missing", unit="pixel", frame=POINT_FRAME),
        field("keypoint_scores", pa.list_(pa.float32(), channels), "the heatmap's peak, 0 where missing"),
        field("whole_frame", pa.bool_(), "true if the box is the whole image because the job asked for that"),
        field("error", pa.string(), "why this person has no keypoints; null if it has"),
    ]
    return (
        field("people_found", pa.int32(), "boxes before max_people; the whole frame counts as one"),
        field("people", pa.list_(pa.struct(person)), "in the order of their source, a detector's best first"),
    )


def _meaning(options: PoseOptions, channels: int) -> Mapping[str, Any]:
    found = keypoint_set(channels)
    return {
        "what": "keypoints of people; left and right are the person's own",
        "keypoint_set": found.title,
        "keypoints": list(found.names),
        "swaps": list(found.flip_indices),
        "skeleton": [list(link) for link in found.skeleton],
        "sigmas": list(found.sigmas),
        "coco17_indices": list(found.coco17_indices),
        "frames": {"keypoints": POINT_FRAME, "bbox_xyxy": BOX_FRAME},
        "keypoint_scores": "the heatmap's peak, nominally 0 to 1, may be above; it is not COCO's visibility flag. "
        "0 with NaN coordinates: the peak was not positive, the keypoint is missing",
        "crop": "from the box before it was clipped, padded by 1.25, at the aspect of the network's input",
        "boxes": options.boxes,
        "licence": LICENCE,
    }


def _people(options: PoseOptions, needed: Needs, image_yx: tuple[int, int]) -> list[_Person]:
    """Return every box that the source gave, in its order."""
    if options.boxes == "whole_frame":
        box_4 = np.array([0, 0, image_yx[1], image_yx[0]], np.float32)
        return [_Person(box_4=box_4, score=None, problem=None)]
    boxes, scores = _boxes(needed)
    return [
        _Person(
            box_4=box_4,
            score=float(score) if np.isfinite(score) else None,
            problem=box_problem(box_4, image_yx),
        )
        for box_4, score in zip(boxes, scores, strict=True)
    ]


def _boxes(needed: Needs) -> tuple[np.ndarray, np.ndarray]:
    found = needed[PERSON][0]
    boxes_N4 = np.asarray(found["boxes"], np.float32).reshape(-1, 4)
    return boxes_N4, np.asarray(found["scores"], np.float32).reshape(len(boxes_N4))


def _chosen(people: Sequence[_Person], options: PoseOptions) -> list[_Person]:
    """Return the best people by score, at most `max_people`, in their order; unknown scores come last."""
    order = sorted(range(len(people)), key=lambda i: -np.inf if (s := people[i].score) is None else s, reverse=True)
    return [people[i] for i in sorted(order[: options.max_people])]


def inputs(
    pixels_YXC: np.ndarray, image_yx: tuple[int, int], input_hw: tuple[int, int], options: PoseOptions, needed: Needs
) -> Iterable[Input]:
    """Yield one input a person whose box is of use, none if there is nobody."""
    for person in _chosen(_people(options, needed, image_yx), options):
        if person.problem is None:
            crop = make_crop(person.box_4, input_hw)
            yield Input(cut(pixels_YXC, crop, image_yx), crop)


def infer(model: nn.Module, images_BHW3: Tensor, options: PoseOptions) -> Tensor:
    """Return heatmaps (B, K, h, w), float32; with flip_test the mean with those of the mirrored pictures.

    Source: sapiens-v1.md 4.4: swap lists, no shift.
    """
    from annotator.models.heatmaps import average_mirrored
    from annotator.models.runtime import run

    maps_BKhw = run(model, images_BHW3)
    if not options.flip_test:
        return maps_BKhw
    # a second pass, not a batch twice as large: compiled networks know one shape
    mirrored_BKhw = run(model, images_BHW3.flip(2))
    return average_mirrored(maps_BKhw, mirrored_BKhw, keypoint_set(maps_BKhw.shape[1]).flip_indices)


def decode(output_BCHW: Tensor, crops: Sequence[Crop], options: PoseOptions) -> list[dict[str, Tensor]]:
    """Return each person's keypoints, (K, 3) float32: x, y in image pixels, score; (NaN, NaN, 0) where missing.

    Output that no crop belongs to, the padding of a batch, is left out.
    """
    import torch

    from annotator.models.heatmaps import locate

    points_BK2, scores_BK = locate(output_BCHW[: len(crops)])
    height, width = output_BCHW.shape[2:]
    frames = [  # pixels of the image per pixel of the heatmap, and where the heatmap's first pixel lies
        (size_x / max(1, width - 1), size_y / max(1, height - 1), x - size_x / 2, y - size_y / 2)
        for (size_x, size_y), (x, y) in ((crop.size_xy, crop.centre_xy) for crop in crops)
    ]
    frames_B14 = torch.tensor(frames, dtype=torch.float64)[:, None]
    if points_BK2.is_cuda:  # from pinned memory, or the host would wait for the forward pass
        frames_B14 = frames_B14.pin_memory().to(points_BK2.device, non_blocking=True)
    points_BK2 = points_BK2 * frames_B14[..., :2] + frames_B14[..., 2:]
    points_BK3 = torch.cat([points_BK2, scores_BK[..., None]], dim=2).float()
    return [{"points": person_K3} for person_K3 in points_BK3]


def encode(arrays: Sequence[Arrays], image_yx: tuple[int, int], options: PoseOptions, needed: Needs) -> dict[str, Any]:
    """Return the columns of one row; status `no_person` if the source knows of nobody.

    A box of no use is its person's `error`, and so are heatmaps that hold NaN or infinity.
    Raises ImageError if that befell everybody the network saw.
    """
    found = _people(options, needed, image_yx)
    if not found:
        return {"status": Status.NO_PERSON.value, "people_found": 0, "people": []}
    results = iter(arrays)
    people = [
        _encode(person, None if person.problem else next(results)["points"], options, image_yx)
        for person in _chosen(found, options)
    ]
    if arrays and not any(_is_sound(a["points"]) for a in arrays):
        raise ImageError("failed", "not_finite", "the heatmaps of every person hold NaN or infinity")
    return {"error": left_out(len(found), len(people)), "people_found": len(found), "people": people}


def _is_sound(points_K3: np.ndarray) -> bool:
    """Return whether every keypoint has a finite score, and a finite place or score 0."""
    scores_K = points_K3[:, 2]
    return bool(np.isfinite(scores_K).all() and (np.isfinite(points_K3[:, :2]).all(axis=1) | (scores_K == 0)).all())


def _encode(
    person: _Person, points_K3: np.ndarray | None, options: PoseOptions, image_yx: tuple[int, int]
) -> dict[str, Any]:
    """Return one entry of `people`; `points_K3` is None for a person who was not cropped."""
    error = f"box {person.problem}" if points_K3 is None else None
    if points_K3 is not None and not _is_sound(points_K3):
        error, points_K3 = "the network's output holds NaN or infinity on this person", None
    box_4 = person.box_4 if person.problem else clip_box(person.box_4, image_yx)
    return {
        "bbox_xyxy": box_4.tolist(),
        "bbox_score": person.score,
        "keypoints": None if points_K3 is None else points_K3[:, :2].tolist(),
        "keypoint_scores": None if points_K3 is None else points_K3[:, 2].tolist(),
        "whole_frame": options.boxes == "whole_frame",
        "error": error,
    }


def load(row: Mapping[str, Any]) -> np.ndarray:
    """Return the people as a structured array (N,): bbox_xyxy (4,), bbox_score, keypoints (K, 2), keypoint_scores (K,).

    All float32; NaN where the label has null, score 0 for the keypoints of a person with an `error` (object).
    Also whole_frame (bool).
    """
    people = row["people"]
    counts = {len(p["keypoints"]) for p in people if p["keypoints"] is not None}
    count = counts.pop() if counts else 0
    kinds = [
        ("bbox_xyxy", np.float32, 4),
        ("bbox_score", np.float32),
        ("keypoints", np.float32, (count, 2)),
        ("keypoint_scores", np.float32, (count,)),
        ("whole_frame", np.bool_),
        ("error", np.object_),
    ]
    loaded = np.zeros(len(people), kinds)
    for i, person in enumerate(people):
        points = person["keypoints"]
        loaded[i] = (
            person["bbox_xyxy"],
            np.nan if person["bbox_score"] is None else person["bbox_score"],
            np.full((count, 2), np.nan) if points is None else [list(xy) for xy in points],
            np.zeros(count) if points is None else person["keypoint_scores"],
            person["whole_frame"],
            person["error"],
        )
    return loaded


def draw(picture_YXC: np.ndarray, row: Mapping[str, Any]) -> np.ndarray:
    """Return a copy of the row's image, RGB uint8 at any size, with its boxes and skeletons.

    Keypoints that score less than DRAWN_SCORE are left out.
    """
    drawn_YXC = np.array(picture_YXC, np.uint8)
    height, width = picture_YXC.shape[:2]
    scale_xy = np.array([width / row["width"], height / row["height"]])
    thickness = max(1, round(min(height, width) / 160))
    for person in load(row):
        box_4 = person["bbox_xyxy"] * np.tile(scale_xy, 2)
        if np.isfinite(box_4).all():
            x1, y1, x2, y2 = np.clip(np.round(box_4), -(2**15), 2**15).astype(int).tolist()
            cv2.rectangle(drawn_YXC, (x1, y1), (x2, y2), _BOX_COLOUR, max(1, thickness // 2))
        if person["error"] is None:
            points_K2 = (person["keypoints"] + 0.5) * scale_xy - 0.5
            _draw_person(drawn_YXC, points_K2, person["keypoint_scores"], thickness)
    return drawn_YXC


def _draw_person(drawn_YXC: np.ndarray, points_K2: np.ndarray, scores_K: np.ndarray, thickness: int) -> None:
    """Draw one skeleton in place."""
    found = keypoint_set(len(points_K2))
    seen = {
        k: tuple(np.clip(np.round(points_K2[k]), -(2**15), 2**15).astype(int).tolist())
        for k in np.flatnonzero((scores_K >= DRAWN_SCORE) & np.isfinite(points_K2).all(axis=1)).tolist()
    }
    for (a, b), colour in zip(found.skeleton, found.skeleton_colors_rgb, strict=True):
        if a in seen and b in seen:
            cv2.line(drawn_YXC, seen[a], seen[b], colour, thickness, cv2.LINE_AA)
    for k, place in seen.items():
        cv2.circle(drawn_YXC, place, thickness, found.colors_rgb[k], -1, cv2.LINE_AA)


def check(rows: pa.Table, fingerprint: Mapping[str, Any]) -> Iterator[Flaw]:
    """Yield rows with too many or few people, boxes outside the image, keypoints that are no numbers."""
    return check_people(rows, fingerprint["options"]["max_people"], _broken_rules)


def _broken_rules(people: pa.StructArray, row_N: np.ndarray, size_N2: np.ndarray) -> Iterator[tuple[np.ndarray, str]]:
    is_sound_N, has_points_N, has_scores_N = (
        test(pc.struct_field(people, name)).to_numpy(zero_copy_only=False)
        for test, name in ((pc.is_null, "error"), (pc.is_valid, "keypoints"), (pc.is_valid, "keypoint_scores"))
    )
    yield (has_points_N != is_sound_N) | (has_scores_N != is_sound_N), "keypoints of a person with an error, or none"
    boxes_N4 = numbers(pc.struct_field(people, "bbox_xyxy"), 4)
    yield is_sound_N & outside(boxes_N4, size_N2), "a box is not inside the image"
    score = pc.struct_field(people, "bbox_score")
    yield pc.invert(pc.is_finite(score)).fill_null(False).to_numpy(zero_copy_only=False), "a bbox_score is no number"
    broken_N = np.zeros(len(people), bool)
    at_M = np.flatnonzero(has_points_N & has_scores_N)
    people = people.take(pa.array(at_M))
    points, scores = (pc.struct_field(people, name) for name in ("keypoints", "keypoint_scores"))
    count = points.type.list_size
    xy_MK2 = numbers(points.flatten(), 2).reshape(len(at_M), count, 2)
    score_MK = numbers(scores, count)
    is_found_MK = np.isfinite(xy_MK2).all(axis=2) & (score_MK > 0)
    is_missing_MK = np.isnan(xy_MK2).all(axis=2) & (score_MK == 0)
    broken_N[at_M] = ~((is_found_MK | is_missing_MK) & np.isfinite(score_MK)).all(axis=1)
    yield broken_N, "a keypoint is neither at a finite place with a score above 0 nor missing (NaN, score 0)"


TASK = Task(
    name="pose",
    version=1,
    options=PoseOptions,
    values=("boxes", "flip_test", "max_people"),
    channels=_channels,
    needs=_needs,
    fields=_fields,
    meaning=_meaning,
    row_bytes=3_000,  # one person with 308 keypoints
    inputs=inputs,
    infer=infer,
    decode=decode,
    encode=encode,
    load=load,
    draw=draw,
    check=check,
    drift=Drift(
        measure="mean distance of sure keypoints as a share of the box's longer side",
        between=keypoint_difference,
        limits={"float32": 0.002, "bfloat16": 0.03},
    ),
)
