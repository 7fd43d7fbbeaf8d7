"""COCO segmentation: `segmentation.json`, an annotation for each class in an image, its region as compressed RLE.

A region is all pixels of the class, of all people: seg labels do not tell people apart. Masks are at the size of the
image, where class ids of a smaller map are those of the nearest pixel. `score` is the image's `confidence`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from annotator.errors import InvalidInputError
from annotator.fingerprint import TaskRecord
from annotator.labels.export.coco import class_categories, finish, write_fragment
from annotator.labels.export.core import Export, Format, Part
from annotator.labels.export.maps import LABELLED, choose_one
from annotator.labels.maps import load_map


def _choose(records: Mapping[str, TaskRecord]) -> list[str]:
    try:
        import pycocotools  # noqa: F401
    except ImportError:
        raise InvalidInputError("coco-segmentation needs pycocotools; install annotator[export]") from None
    return choose_one(records, "seg", "coco-segmentation")


def _write(job: Export, part: Part, tables: Iterator[pa.Table], folder: Path) -> list[str]:
    return write_fragment(job, part, tables, folder, _regions)


def _regions(job: Export, part: Part, row: dict[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    from pycocotools import mask as rle

    if row["seg"]["mask"] is None:
        return
    mask_YX = seg_map(job, row)
    for found in np.unique(mask_YX[mask_YX > 0]).tolist():
        region = rle.encode(np.asfortranarray(mask_YX == found, np.uint8))
        yield {
            "category_id": found,
            "segmentation": {"size": list(region["size"]), "counts": region["counts"].decode("ascii")},
            "area": int(rle.area(region)),
            "bbox": rle.toBbox(region).tolist(),
            "iscrowd": 0,
            "score": row["seg"]["confidence"],
        }


def seg_map(job: Export, row: Mapping[str, Any]) -> np.ndarray:
    """Return the class ids of an image at its size, uint8 (Y, X)."""
    return load_map(row, "seg", job.output, size="image", storage=job.storage)


FORMAT = Format(
    name="coco-segmentation",
    choose=_choose,
    statuses=LABELLED,
    write=_write,
    finish=finish("segmentation.json", class_categories),
)
