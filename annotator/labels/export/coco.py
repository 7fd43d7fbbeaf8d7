"""What the COCO formats share: ids, images, and one JSON file made of the fragments that parts leave.

A fragment is two files of JSON lines, images and annotations; the JSON file is those of all parts in order. An image's
id is the number of its row among all rows of the manifest, from 1; an annotation's is 4096 times that, and its number.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from annotator.errors import InvalidInputError
from annotator.labels.export.core import Done, Export, Part
from annotator.labels.export.maps import described, image_rows

Annotate = Callable[[Export, Part, dict[str, Any], Path], Iterable[dict[str, Any]]]
"""Gives the annotations of a label row, without ids; may write files below the folder."""

MAX_ANNOTATIONS = 4096
"""Of one image: ids of annotations stay far below 2^53, which pycocotools' float64 holds."""


def write_fragment(job: Export, part: Part, tables: Iterator[pa.Table], folder: Path, annotate: Annotate) -> list[str]:
    """Write a part's images and annotations as JSON lines and return the fragment's folder."""
    name = fragment(part.name)
    (folder / name).mkdir(parents=True)
    with (folder / name / "images").open("w") as images, (folder / name / "annotations").open("w") as annotations:
        for row in image_rows(tables):
            image_id = part.first_id + row["row"]
            images.write(json.dumps(_image(image_id, row)) + "\n")
            for number, found in enumerate(annotate(job, part, row, folder)):
                if number >= MAX_ANNOTATIONS:
                    raise InvalidInputError(
                        f"{row['image_id']}: more than {MAX_ANNOTATIONS} annotations; leave the image out by `where`"
                    )
                both = {"id": image_id * MAX_ANNOTATIONS + number, "image_id": image_id}
                annotations.write(json.dumps(both | found) + "\n")
    return [name]


def fragment(part: str) -> str:
    """Return where a part's fragment lies below the export's folder."""
    return f"_export/fragments/{part}"


def _image(image_id: int, row: Mapping[str, Any]) -> dict[str, Any]:
    name = row["uri"] or row["image_id"]
    place = {"annotator_shard": row["shard"], "annotator_row": row["row"], "annotator_image_id": row["image_id"]}
    return {"id": image_id, "file_name": name, "width": row["width"], "height": row["height"], **place}


def write_json(job: Export, parts: Iterable[str], name: str, categories: list[dict[str, Any]]) -> None:
    """Write the JSON file of all fragments, line by line, under a temporary name first."""
    path, parts = job.out / name, list(parts)
    temporary = path.with_name(f".{name}.{uuid.uuid4().hex[:8]}")
    task, meaning = next(iter(described(job).items()))
    info = {"description": f"{task} labels of {job.output}", "annotator": meaning}
    licence = {"id": 1, "name": meaning.get("licence", ""), "url": ""}
    head = {"info": info, "licenses": [licence], "categories": categories}
    try:
        with temporary.open("w") as file:
            file.write(json.dumps(head)[:-1])
            for key in ("images", "annotations"):
                file.write(f',\n"{key}": [')
                separator = "\n"
                for part in parts:
                    with (job.out / fragment(part) / key).open() as lines:
                        for line in lines:
                            file.write(separator + line.rstrip("\n"))
                            separator = ",\n"
                file.write("\n]")
            file.write("}\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def class_categories(job: Export) -> list[dict[str, Any]]:
    """Return the classes of seg labels, the background left out, as COCO categories; ids are the class ids."""
    meaning = job.records["seg"].meaning
    found = [c for c in meaning["classes"] if c["id"] != meaning["background"]]
    return [{"id": c["id"], "name": c["name"], "supercategory": "person", "color": c["color_rgb"]} for c in found]


def finish(
    name: str, categories: Callable[[Export], list[dict[str, Any]]]
) -> Callable[[Export, Mapping[str, Done]], None]:
    """Return what ends an export: it writes one JSON file of this name."""
    return lambda job, parts: write_json(job, parts, name, categories(job))
