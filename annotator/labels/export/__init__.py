"""Labels in the formats of other tools: one file a format, and the core that they share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from annotator.errors import InvalidInputError
from annotator.labels.export import (
    coco_keypoints,
    coco_panoptic,
    coco_segmentation,
    core,
    huggingface,
    manifest,
    png,
    webdataset,
)
from annotator.labels.export.core import Exported, Progress
from annotator.storage import Storage

FormatName = Literal[
    "coco-keypoints", "coco-segmentation", "coco-panoptic", "webdataset", "png", "huggingface", "manifest"
]

_MODULES = (coco_keypoints, coco_segmentation, coco_panoptic, webdataset, png, huggingface, manifest)
FORMATS = {module.FORMAT.name: module.FORMAT for module in _MODULES}


def export(
    output: str,
    out: str | Path,
    format: FormatName,
    *,
    tasks: Sequence[str] | None = None,
    where: str | None = None,
    storage: Storage | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Write labels for other tools into a local folder, which is new, or holds this very export: then it goes on.

    `tasks`: by default all that the format takes. `where` is a filter on the columns of one task (the first, by name,
    that has them), or on those of several with the task's name before them:
    `"seg.confidence > 0.9 and pose.people_found == 1"`. Images go in that all the tasks have labelled by now: with
    `webdataset` and `png` those with status ok, with COCO also those without people, with `huggingface` and `manifest`
    all. Memory holds a few row groups, whatever the number of images.
    What is finished stays after a kill; a second call does what is missing, or whose labels changed since.
    Raises OutputError if the folder holds anything else, InvalidInputError for tasks that the format can't take, an
    unknown column in `where`, or a package that is not installed.
    """
    if format not in FORMATS:
        raise InvalidInputError(f"no export format {format!r}; expected {', '.join(FORMATS)}")
    return core.export(output, out, FORMATS[format], tasks=tasks, where=where, storage=storage, progress=progress)
