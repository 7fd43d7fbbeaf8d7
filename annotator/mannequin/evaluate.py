"""How right the labels of an output are, against the truth of the pictures that were made for it.

python -m annotator.mannequin.evaluate OUTPUT FOLDER
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from annotator.errors import InvalidInputError
from annotator.keypoints import keypoint_set
from annotator.labels.maps import load_map
from annotator.labels.tables import find_records, open_labels
from annotator.mannequin import metrics
from annotator.mannequin.corpus import Truth, read_truth
from annotator.storage import Storage, normalize
from annotator.tasks.seg import GOLIATH

MATCH_IOU = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """What was measured; None where the output lacks the task. A picture without a label counts as all wrong.

    pck_10, pck_05   share of keypoints within 0.1, 0.05 of the height of the person's box; people whom the detector
                     missed count, with no keypoint right
    box_ap50         area under precision over recall, a box being right from an overlap of 0.5 on
    part_miou        mean over the classes that mannequins have and background; part_iou holds each
    normal_degrees   mean angle over people's pixels
    depth_ratio      mean error over people's pixels after the best scale and shift of each picture, as a part of
                     that of the best constant
    """

    pictures: int
    people: int
    pck_10: float | None = None
    pck_05: float | None = None
    box_ap50: float | None = None
    part_miou: float | None = None
    part_iou: dict[str, float] = field(default_factory=dict)
    normal_degrees: float | None = None
    depth_ratio: float | None = None


def label_accuracy(output: str, made: str, *, storage: Storage | None = None) -> Accuracy:
    """Return how right an output's labels are for pictures that make_images wrote into the folder `made`.

    Raises InvalidInputError if the output labels other pictures.
    """
    storage = storage or Storage()
    truths = list(read_truth(made))
    tasks = find_records(storage, normalize(output))
    found: dict[str, Any] = {}
    for task, measure in _MEASURES.items():
        if task in tasks:
            found |= measure(list(_pairs(storage, output, task, truths)))
    return Accuracy(pictures=len(truths), people=sum(len(truth.boxes_N4) for truth in truths), **found)


Pairs = Sequence[tuple[Truth, "dict[str, Any] | None"]]


def _pairs(
    storage: Storage, output: str, task: str, truths: Sequence[Truth]
) -> Iterator[tuple[Truth, dict[str, Any] | None]]:
    """Yield each picture's truth with its ok label row, None if it has none."""
    rows = {row["uri"]: row for row in open_labels(output, task, storage=storage).to_table().to_pylist()}
    if not any(truth.uri in rows for truth in truths):
        raise InvalidInputError(f"{output}: labels none of these pictures; label the folder's manifest first")
    for truth in truths:
        row = rows.get(truth.uri)
        yield truth, row if row is not None and row["status"] == "ok" else None


def _measure_pose(pairs: Pairs) -> dict[str, float]:
    errors = []
    for truth, row in pairs:
        people = [] if row is None else [p for p in row["people"] if p["keypoints"] is not None]
        boxes_N4 = np.array([p["bbox_xyxy"] for p in people], np.float32).reshape(-1, 4)
        taken = metrics.match_boxes(boxes_N4, truth.boxes_N4, MATCH_IOU).tolist()
        for n, (box_4, points_K3) in enumerate(zip(truth.boxes_N4, truth.keypoints_NK3, strict=True)):
            points_K2 = np.full((len(points_K3), 2), np.nan)
            if n in taken:
                points_K2 = _coco17(people[taken.index(n)]["keypoints"])
            errors.append(metrics.point_errors(points_K2, points_K3, box_4))
    every = np.concatenate(errors)
    return {"pck_10": metrics.share_within(every, 0.10), "pck_05": metrics.share_within(every, 0.05)}


def _coco17(points: Sequence[Sequence[float]]) -> np.ndarray:
    """Return COCO's 17 of a person's keypoints of any set, (17, 2)."""
    return np.array([list(xy) for xy in points])[list(keypoint_set(len(points)).coco17_indices)]


def _measure_person(pairs: Pairs) -> dict[str, float]:
    scores: list[float] = []
    hits: list[bool] = []
    for truth, row in pairs:
        people = [] if row is None else row["people"]
        boxes_N4 = np.array([p["bbox_xyxy"] for p in people], np.float32).reshape(-1, 4)
        scores += [p["bbox_score"] for p in people]
        hits += (metrics.match_boxes(boxes_N4, truth.boxes_N4, MATCH_IOU) >= 0).tolist()
    return {"box_ap50": metrics.average_precision(scores, hits, sum(len(truth.boxes_N4) for truth, _ in pairs))}


def _measure_seg(pairs: Pairs) -> dict[str, Any]:
    confused = np.zeros((len(GOLIATH), len(GOLIATH)), np.int64)
    for truth, row in pairs:
        found_YX = np.zeros_like(truth.parts_YX) if row is None else load_map(row, "seg", size="image")
        confused += metrics.confusion(_same(found_YX, truth), truth.parts_YX, len(GOLIATH))
    iou = metrics.class_iou(confused)
    each = {name: float(value) for (name, _), value in zip(GOLIATH, iou, strict=True) if np.isfinite(value)}
    return {"part_miou": float(np.nanmean(iou)), "part_iou": each}


def _measure_normal(pairs: Pairs) -> dict[str, float]:
    angles = []
    for truth, row in pairs:
        people_YX = truth.parts_YX > 0
        found = np.zeros((*people_YX.shape, 3)) if row is None else _same(load_map(row, "normal", size="image"), truth)
        angles.append(metrics.angles(np.nan_to_num(found[people_YX]), truth.normals_YXC[people_YX]))
    return {"normal_degrees": float(np.concatenate(angles).mean())}


def _measure_depth(pairs: Pairs) -> dict[str, float]:
    errors = []
    for truth, row in pairs:
        people_YX = truth.depth_YX > 0
        found = np.zeros(people_YX.shape) if row is None else _same(load_map(row, "depth", size="image"), truth)
        if people_YX.any():
            errors.append(metrics.depth_errors(np.nan_to_num(found[people_YX]), truth.depth_YX[people_YX]))
    ours, constant = np.sum(errors, axis=0)
    return {"depth_ratio": float(ours / constant)}


def _same(found: np.ndarray, truth: Truth) -> np.ndarray:
    """Return a map, or one of nothing where it has another size than the picture: a lost rotation, say."""
    size_yx = truth.parts_YX.shape
    return found if found.shape[:2] == size_yx else np.zeros((*size_yx, *found.shape[2:]), found.dtype)


_MEASURES = {
    "pose": _measure_pose,
    "person": _measure_person,
    "seg": _measure_seg,
    "normal": _measure_normal,
    "depth": _measure_depth,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures of an output as JSON."""
    parser = argparse.ArgumentParser(prog="python -m annotator.mannequin.evaluate", description=label_accuracy.__doc__)
    parser.add_argument("output", help="of a run")
    parser.add_argument("made", help="folder that `annotator demo make-images` wrote")
    given = parser.parse_args(arguments)
    accuracy = label_accuracy(given.output, given.made)
    print(json.dumps({name: getattr(accuracy, name) for name in Accuracy.__slots__}, indent=1))


if __name__ == "__main__":
    main()
