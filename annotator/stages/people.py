"""People who are known before any network runs: boxes of the manifest, or person labels that are committed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from annotator.envelope import Status
from annotator.errors import ImageError, NotFoundError, TransientStorageError
from annotator.shards import Shard, label_uri
from annotator.storage import Storage
from annotator.tasks import PERSON, Arrays

Found = list[Arrays] | ImageError
"""A task's label arrays of one image, one entry an input of its network, or why there are none."""


def people_of_boxes(boxes: Sequence[Any] | None, scores: Sequence[float] | None = None) -> list[Arrays]:
    """Return the label arrays of a person task that found these boxes; scores are NaN where nobody gave any.

    A box that is not four numbers becomes NaN, which is that person's error later, not the image's.
    """
    found = [box if box is not None and len(box) == 4 and None not in box else [np.nan] * 4 for box in boxes or ()]
    return [
        {
            "boxes": np.array(found, np.float32).reshape(-1, 4),
            "scores": np.full(len(found), np.nan, np.float32) if scores is None else np.array(scores, np.float32),
        }
    ]


def read_people(storage: Storage, output: str, shard: Shard) -> dict[int, Found]:
    """Return people by row from the output's person labels of this shard.

    Raises TransientStorageError when they are not there yet: the shard comes up again.
    """
    uri = label_uri(output, PERSON, shard)
    try:
        with storage.open(uri) as file:
            table = pq.read_table(file, columns=["row", "status", "error", "people"])
    except NotFoundError:
        raise TransientStorageError(
            f"{uri}: no person labels yet; run the task person over all of the manifest"
        ) from None
    except pa.ArrowException as err:
        raise TransientStorageError(f"{uri}: unreadable: {err}; run `annotator verify`") from None
    people: dict[int, Found] = {}
    for row in table.to_pylist():
        if row["status"] in (Status.OK.value, Status.NO_PERSON.value):
            boxes = [person["bbox_xyxy"] for person in row["people"]]
            people[row["row"]] = people_of_boxes(boxes, [person["bbox_score"] for person in row["people"]])
        else:
            people[row["row"]] = ImageError(
                Status.FAILED.value, "no_person_label", f"person labels say: {row['error']}"
            )
    return people
