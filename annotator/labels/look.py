"""What there is to look at: images chosen by their labels, read again, and each task's label drawn on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pyarrow.compute as pc

from annotator.envelope import Row, Status
from annotator.errors import AnnotatorError, ImageError, InvalidInputError, NotFoundError, OutputError
from annotator.fingerprint import TaskRecord
from annotator.job import Job, Limits
from annotator.labels.find import read_label
from annotator.labels.join import join
from annotator.labels.last_job import last_job
from annotator.labels.maps import stored_value
from annotator.labels.scan import map_bounded
from annotator.labels.tables import columns_of, find_records, open_labels
from annotator.manifest import Manifest, read_pins, read_rows
from annotator.shards import Shard, label_uri
from annotator.stages.decode import decode
from annotator.stages.fetch import Fetcher
from annotator.storage import Storage, normalize
from annotator.tasks import Task, load_task
from annotator.where import parse_where

PICTURE_SIDE = 480
"""Originals are decoded no smaller than this, where they are not smaller themselves."""

GREY = (205, 205, 205)  # behind a label whose image can't be shown

_THREADS = 8

HOW_DRAWN = {
    "person": "a box round each person",
    "pose": "a box and a skeleton a person; keypoints that score less than 0.3 are left out",
    "seg": "each class in its colour, half over the image",
    "depth": "near is bright, far is dark, grey is none; each image has its own range",
    "normal": "red, green, blue are X right, Y up, Z towards the camera; black is none",
}
"""What colours mean, by task, in the order in which tasks stand side by side: people first, then their pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One task of the output."""

    record: TaskRecord
    task: Task

    @property
    def title(self) -> str:
        return f"{self.task.name} (random weights)" if self.record.is_random else self.task.name

    @property
    def how_drawn(self) -> str:
        return HOW_DRAWN.get(self.task.name, str(self.record.meaning.get("what", "")))

    @property
    def classes(self) -> list[dict[str, Any]]:
        """The classes of a map: id, name and color_rgb; none for other tasks."""
        return list(self.record.meaning.get("classes", ()))

    def draw(
        self, label: dict[str, Any] | str, picture: np.ndarray | str, size_hw: tuple[int, int]
    ) -> np.ndarray | str:
        """Return a label drawn at this size, RGB uint8, on the picture if there is one; or why there is none."""
        if isinstance(label, str):
            return label
        if label["status"] != Status.OK.value:
            return f"{label['status']}: {label['error']}" if label["error"] else str(label["status"])
        under = np.full((*size_hw, 3), GREY, np.uint8) if isinstance(picture, str) else resize(picture, size_hw)
        try:
            return self.task.draw(under, label)
        except (TypeError, ValueError) as err:
            return f"damaged label: {err}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """One image: its label row of each task, or why there is none, and the picture, or why that can't be shown."""

    shard: Shard
    row: int
    labels: Mapping[str, dict[str, Any] | str]
    picture: np.ndarray | str

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [label for label in self.labels.values() if isinstance(label, dict)]

    @property
    def name(self) -> str:
        """What a person would call the image: the end of its uri, else its id."""
        row = next(iter(self.rows), None)
        if row is None:
            return f"{self.shard.file_key} row {self.row}"
        return str(row["uri"]).rsplit("/", 1)[-1] if row["uri"] else str(row["image_id"])

    @property
    def size_yx(self) -> tuple[int, int]:
        """Height and width of the picture, or the image's; a flat one's where nobody knows it: little is drawn then."""
        if isinstance(self.picture, np.ndarray):
            return self.picture.shape[0], self.picture.shape[1]
        return next(((row["height"], row["width"]) for row in self.rows if row["width"] and row["height"]), (9, 16))


def look(
    output: str, *, limit: int, where: str | pc.Expression | None, storage: Storage | None
) -> tuple[list[Column], Iterator[Shown]]:
    """Return the output's tasks, and the first `limit` labelled images that match `where`, read as they are needed.

    `where` is a filter on the columns of one task, as in `open_labels`, tasks tried in the order of their names; or on
    columns of several with the task's name before them, as in `join`. Images are read again by the manifest's uris as
    they were written, under the rules of the run that read them first.
    Raises OutputError if there is nothing to draw, InvalidInputError if no task has where's columns.
    """
    storage = storage or Storage()
    output = normalize(output)
    records = find_records(storage, output)
    keys = _choose(storage, output, records, limit, where)
    if not keys:
        raise OutputError(f"{output}: no label to draw" + ("" if where is None else f" matches {where}"))
    manifest = read_pins(output, storage)
    known = [name for name in HOW_DRAWN if name in records]
    columns = [Column(record=records[name], task=load_task(name)) for name in dict.fromkeys([*known, *records])]
    return columns, _read(storage, output, manifest, list(records), keys)


def resize(picture: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Return the picture at this size."""
    method = cv2.INTER_AREA if size_hw[0] < picture.shape[0] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(picture, size_hw[::-1], interpolation=method))


def _choose(
    storage: Storage, output: str, records: Mapping[str, TaskRecord], limit: int, where: str | pc.Expression | None
) -> list[tuple[Shard, int]]:
    """Return the places of the images to show: from the first task that has where's columns and a label."""
    condition = parse_where(where).expression if isinstance(where, str) else where
    problem: InvalidInputError | None = None
    fitting = 0
    for task, record in records.items():
        try:
            if condition is not None:
                columns_of(condition, record.schema)
        except InvalidInputError as err:
            problem = err
            continue
        fitting += 1
        table = open_labels(output, task, columns=["shard", "row"], filter=condition, storage=storage).head(limit)
        if len(table):
            return _places(table.to_pylist())
    if problem is None or fitting:
        return []
    named = set(records)
    if isinstance(where, str):
        named &= {leaf.split(".")[0] for leaf in parse_where(where).leaves if "." in leaf}
    if not named:
        raise problem
    rows: list[dict[str, Any]] = []
    for batch in join(output, sorted(named), columns=["shard", "row"], filter=condition, storage=storage):
        rows += batch.to_pylist()
        if len(rows) >= limit:
            break
    return _places(rows[:limit])


def _places(rows: list[dict[str, Any]]) -> list[tuple[Shard, int]]:
    return [(_parse_key(row["shard"]), row["row"]) for row in rows]


def _parse_key(key: str) -> Shard:
    file_key, _, span = key.rpartition("/")
    first, _, end = span.partition("-")
    return Shard(file_key, int(first), int(end))


# -- reading -------------------------------------------------------------------------------------


def _read(
    storage: Storage, output: str, manifest: Manifest, tasks: list[str], keys: list[tuple[Shard, int]]
) -> Iterator[Shown]:
    fetcher = Fetcher(_job(storage, output, manifest))

    def read(key: tuple[Shard, int]) -> Shown:
        shard, row = key
        labels = {task: _read_row(storage, output, task, shard, row) for task in tasks}
        found = next((label for label in labels.values() if isinstance(label, dict)), None)
        picture = "no label row" if found is None else _read_picture(storage, manifest, fetcher, shard, row, found)
        return Shown(shard=shard, row=row, labels=labels, picture=picture)

    try:
        for _, shown in map_bounded(read, keys, threads=_THREADS):
            yield shown
    finally:
        fetcher.close()


def _job(storage: Storage, output: str, manifest: Manifest) -> Job:
    """Return the job whose rules say where images may be read from: the last run's, else the defaults."""
    try:
        job = last_job(output, storage)
    except OutputError:  # no run left a record: what the manifest's own folder holds may be shown
        job = Job(manifest=manifest.root, output=output, tasks={"seg": {}})
    return job.model_copy(update={"manifest": manifest.root, "storage": storage.options})


def _read_row(storage: Storage, output: str, task: str, shard: Shard, row: int) -> dict[str, Any] | str:
    """Return one label row, or why there is none."""
    try:
        found = read_label(storage, output, task, shard, row)
        return {name: stored_value(value, output, storage) for name, value in found.items()}
    except OutputError as err:
        return str(err).removeprefix(f"{label_uri(output, task, shard)}: ")
    except (ValueError, NotFoundError) as err:
        return f"damaged label: {err}"


def _read_picture(
    storage: Storage, manifest: Manifest, fetcher: Fetcher, shard: Shard, row: int, label: Mapping[str, Any]
) -> np.ndarray | str:
    """Return the original picture, RGB uint8 (Y, X, 3), or why it can't be shown."""
    was_bad = label["status"] not in (Status.OK.value, Status.NO_PERSON.value)
    known = f"{label['status']}: {label['error'] or label['error_class']}"
    if label["status"] == Status.REJECTED.value:
        return known
    try:
        data = fetcher(_manifest_row(storage, manifest, shard, row, label))
        # decoded as for the labels, so that both lie on each other
        return decode(data, Limits(), mode="fast", min_hw=(PICTURE_SIDE, PICTURE_SIDE)).pixels_YXC
    except ImageError as err:
        return known if was_bad else f"can't be shown: {err}"
    except AnnotatorError as err:  # credentials, or a storage that is away
        return f"can't be shown: {err}"


def _manifest_row(storage: Storage, manifest: Manifest, shard: Shard, row: int, label: Mapping[str, Any]) -> Row:
    """Return the manifest's row, whose uri is as it was written; if the manifest is gone, what the label says of it."""
    file = next((f for f in manifest.files if f.key == shard.file_key), None)
    try:
        if file is not None:
            return next(iter(read_rows(storage, manifest, file, row, row + 1)))
    except AnnotatorError:  # gone or changed: the label's own uri may lead to the image all the same
        file = None
    return Row(index=row, image_id=label["image_id"], uri=label["uri"], kept={})
