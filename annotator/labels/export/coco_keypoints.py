"""COCO keypoints: `keypoints.json`, an annotation a person.

`bbox` is x, y, width, height; `area` the box's, as there is no outline. `v` is 2 for every keypoint that the model
placed, 0 for one that is missing: it never says "hidden". `score` is the box's, 1 where its source gave none.
`keypoint_scores` and the category's `sigmas` are no part of COCO: for other sets than COCO's 17, give the sigmas to
`COCOeval.params.kpt_oks_sigmas`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from annotator.fingerprint import TaskRecord
from annotator.labels.export.coco import finish, write_fragment
from annotator.labels.export.core import Export, Format, Part
from annotator.labels.export.maps import LABELLED, choose_one

_DIGITS = 2
"""Decimals of a pixel: a hundredth is far below what a heatmap of 1/4 of the input tells."""


def _choose(records: Mapping[str, TaskRecord]) -> list[str]:
    return choose_one(records, "pose", "coco-keypoints")


def _write(job: Export, part: Part, tables: Iterator[pa.Table], folder: Path) -> list[str]:
    return write_fragment(job, part, tables, folder, _people)


def _people(job: Export, part: Part, row: dict[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    """Yield a person each; those without keypoints, whose boxes were of no use, are left out."""
    for person in row["pose"]["people"] or ():
        if person["error"] is not None or person["keypoints"] is None:
            continue
        x1, y1, x2, y2 = person["bbox_xyxy"]
        points: list[float] = []
        for x, y in person["keypoints"]:
            is_there = math.isfinite(x) and math.isfinite(y)
            points += [round(x, _DIGITS), round(y, _DIGITS), 2] if is_there else [0, 0, 0]
        score = person["bbox_score"]
        yield {
            "category_id": 1,
            "bbox": [round(n, _DIGITS) for n in (x1, y1, x2 - x1, y2 - y1)],
            "area": round((x2 - x1) * (y2 - y1), _DIGITS),
            "iscrowd": 0,
            "keypoints": points,
            "num_keypoints": sum(v > 0 for v in points[2::3]),
            "score": 1.0 if score is None else score,
            "keypoint_scores": [round(s, 4) for s in person["keypoint_scores"]],
        }


def _categories(job: Export) -> list[dict[str, Any]]:
    meaning = job.records["pose"].meaning
    skeleton = [[a + 1, b + 1] for a, b in meaning["skeleton"]]  # COCO counts keypoints from 1
    names = {"keypoints": meaning["keypoints"], "skeleton": skeleton, "sigmas": meaning["sigmas"]}
    return [{"id": 1, "name": "person", "supercategory": "person", **names}]


FORMAT = Format(
    name="coco-keypoints",
    choose=_choose,
    statuses=LABELLED,
    maps=False,
    write=_write,
    finish=finish("keypoints.json", _categories),
)
