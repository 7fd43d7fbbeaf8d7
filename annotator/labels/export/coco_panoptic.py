"""COCO panoptic: `panoptic.json` and a PNG an image, for panopticapi and what reads its format.

A segment is a class in an image, its id the class id, so a pixel is (class id, 0, 0); 0 is unlabelled, the background.
All classes are "stuff": seg labels do not tell people apart. pycocotools itself has no panoptic format; it
reads that of `coco-segmentation`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from annotator import png
from annotator.fingerprint import TaskRecord
from annotator.labels.export.coco import class_categories, finish, write_fragment
from annotator.labels.export.coco_segmentation import seg_map
from annotator.labels.export.core import Export, Format, Part
from annotator.labels.export.maps import LABELLED, choose_one, row_key


def _choose(records: Mapping[str, TaskRecord]) -> list[str]:
    return choose_one(records, "seg", "coco-panoptic")


def _write(job: Export, part: Part, tables: Iterator[pa.Table], folder: Path) -> list[str]:
    name = _folder(part)
    (folder / name).mkdir(parents=True)
    return [*write_fragment(job, part, tables, folder, _segments), name]


def _folder(part: Part) -> str:
    return f"panoptic/{part.name}"


def _segments(job: Export, part: Part, row: dict[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the one annotation of an image that has a map, its picture written."""
    if row["seg"]["mask"] is None:
        return
    mask_YX = seg_map(job, row)
    name = f"{part.name}/{row_key(part, row)}.png"
    segments_YX3 = np.zeros((*mask_YX.shape, 3), np.uint8)
    segments_YX3[..., 0] = mask_YX
    (folder / "panoptic" / name).write_bytes(png.encode(segments_YX3))
    yield {"file_name": name, "segments_info": [_segment(mask_YX, found) for found in np.unique(mask_YX) if found]}


def _segment(mask_YX: np.ndarray, found: np.integer[Any]) -> dict[str, Any]:
    ys, xs = np.nonzero(mask_YX == found)
    left, top = int(xs.min()), int(ys.min())
    return {
        "id": int(found),
        "category_id": int(found),
        "area": len(xs),
        "bbox": [left, top, int(xs.max()) - left + 1, int(ys.max()) - top + 1],
        "iscrowd": 0,
    }


def _categories(job: Export) -> list[dict[str, Any]]:
    return [{**category, "isthing": 0} for category in class_categories(job)]


FORMAT = Format(
    name="coco-panoptic",
    choose=_choose,
    statuses=LABELLED,
    write=_write,
    finish=finish("panoptic.json", _categories),
)
