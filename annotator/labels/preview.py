"""A contact sheet: images and their labels side by side, as one PNG for people to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from annotator.envelope import Status
from annotator.errors import AnnotatorError, ImageError, InvalidInputError, OutputError
from annotator.fingerprint import TaskRecord, read_task_records
from annotator.job import Limits
from annotator.labels.query import columns_of, open_labels
from annotator.manifest import Manifest, read_pins, read_rows
from annotator.shards import Shard, label_uri
from annotator.stages.decode import decode
from annotator.storage import Storage, normalize
from annotator.tasks import Task, load_task
from annotator.where import parse_where

WIDTH = 2000  # pixels of a sheet, at most
MAX_TILE_WIDTH = 480
GAP = 8
LINE = 24  # height of a line of text

_INK, _PAPER, _GREY = (40, 40, 40), (255, 255, 255), (205, 205, 205)
_FONT, _SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class _Column:
    """One task of the sheet."""

    record: TaskRecord
    task: Task

    @property
    def title(self) -> str:
        return f"{self.task.name} (random weights)" if self.record.is_random else self.task.name


def contact_sheet(
    output: str,
    path: str | Path,
    *,
    limit: int = 24,
    where: str | pc.Expression | None = None,
    storage: Storage | None = None,
) -> Path:
    """Draw the first `limit` labelled images that match `where`, and return the path: a PNG, or a JPEG if so named.

    One row an image: the original, then each task's map (class colours laid half over the image). `where`
    is a filter on the columns of one task, as in `open_labels`; tasks are tried in the order of their names.
    Original images are read again; one that can't be, or a row without a map, is a grey tile that says why.
    Raises OutputError if the output has no label yet, InvalidInputError if no task has where's columns.
    """
    storage = storage or Storage()
    output = normalize(output)
    records = read_task_records(storage, output)
    if not records:
        raise OutputError(f"{output}: holds no labels yet; run the job first")
    columns = [_Column(record=record, task=load_task(name)) for name, record in records.items()]
    condition = parse_where(where).expression if isinstance(where, str) else where
    keys = _choose(storage, output, records, limit, condition)
    if not keys:
        raise OutputError(f"{output}: no label to draw" + ("" if where is None else f" matches {where}"))
    manifest = read_pins(output, storage)
    width = min(MAX_TILE_WIDTH, (WIDTH - GAP) // (1 + len(columns)) - GAP)
    strips = [_header(["image", *(c.title for c in columns)], width)]
    for key, row in keys:
        shard = _parse_key(key)
        rows = {c.task.name: _read_row(storage, label_uri(output, c.task.name, shard), row) for c in columns}
        strips.append(_strip(_read_original(storage, manifest, shard, rows, row), rows, columns, width))
    target = Path(path)
    kind = ".jpg" if target.suffix.lower() in (".jpg", ".jpeg") else ".png"
    done, encoded = cv2.imencode(kind, cv2.cvtColor(np.vstack(strips), cv2.COLOR_RGB2BGR))
    assert done, f"cv2 could not encode a {kind}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(encoded.tobytes())
    except OSError as err:
        raise OutputError(f"{target}: can't be written ({err.strerror}); name another file") from None
    return target


def _choose(
    storage: Storage, output: str, records: Mapping[str, TaskRecord], limit: int, where: pc.Expression | None
) -> list[tuple[str, int]]:
    """Return (shard, row) of the images to draw, from the first task that has where's columns and a label."""
    problem: InvalidInputError | None = None
    fitting = 0
    for task, record in records.items():
        try:
            if where is not None:
                columns_of(where, record.schema)
        except InvalidInputError as err:
            problem = err
            continue
        fitting += 1
        table = open_labels(output, task, columns=["shard", "row"], filter=where, storage=storage).head(limit)
        if len(table):
            return list(zip(table["shard"].to_pylist(), table["row"].to_pylist(), strict=True))
    if problem is not None and not fitting:
        raise problem
    return []


def _parse_key(key: str) -> Shard:
    file_key, _, span = key.rpartition("/")
    first, _, end = span.partition("-")
    return Shard(file_key, int(first), int(end))


def _read_row(storage: Storage, uri: str, row: int) -> dict[str, Any] | str:
    """Return one label row, or why there is none."""
    try:
        with storage.open(uri) as source:
            parquet = pq.ParquetFile(source, pre_buffer=False)
            for group in range(parquet.num_row_groups):
                where = np.flatnonzero(parquet.read_row_group(group, columns=["row"])["row"].to_numpy() == row)
                if len(where):
                    table = parquet.read_row_group(group).slice(int(where[0]), 1)
                    return dict(table.to_pylist()[0])
    except AnnotatorError as err:
        return f"not labelled yet ({type(err).__name__})"
    except (pa.ArrowException, OSError):
        return "label file not readable"
    return "no label row"


def _read_original(
    storage: Storage, manifest: Manifest, shard: Shard, rows: Mapping[str, dict[str, Any] | str], row: int
) -> np.ndarray | str:
    """Return the original picture, RGB uint8 (Y, X, 3), or why it can't be shown."""
    label = next((r for r in rows.values() if isinstance(r, dict)), None)
    if label is None:
        return "no label row"
    if label["status"] == Status.REJECTED.value:
        return f"{label['status']}: {label['error'] or label['error_class']}"
    was_bad = label["status"] not in (Status.OK.value, Status.NO_PERSON.value)
    reason = f"{label['status']}: {label['error']}" if was_bad else "the image can't be read any more"
    data = _read_bytes(storage, label["uri"])
    if data is None:  # embedded in the manifest, or a uri whose query was a signature
        data = _read_from_manifest(storage, manifest, shard, row)
    if not data:
        return reason
    try:
        # decoded as for the labels, so that both lie on each other
        return decode(data, Limits(), mode="fast", min_hw=(MAX_TILE_WIDTH, MAX_TILE_WIDTH)).pixels_YXC
    except ImageError as err:
        return reason if was_bad else f"{err.status}: {err}"


def _read_bytes(storage: Storage, uri: str | None) -> bytes | None:
    if uri is None:
        return None
    try:
        return storage.read(uri, length=Limits().max_bytes + 1)
    except AnnotatorError:
        return None


def _read_from_manifest(storage: Storage, manifest: Manifest, shard: Shard, row: int) -> bytes | None:
    file = next((f for f in manifest.files if f.key == shard.file_key), None)
    if file is None:
        return None
    try:
        found = next(iter(read_rows(storage, manifest, file, row, row + 1, ())), None)
    except AnnotatorError:
        return None
    return None if found is None else found.data or _read_bytes(storage, found.uri)


def _strip(
    original: np.ndarray | str, rows: Mapping[str, dict[str, Any] | str], columns: Sequence[_Column], width: int
) -> np.ndarray:
    """Return one row of the sheet: the original and a tile a task, captions below."""
    labels = [row for row in rows.values() if isinstance(row, dict)]
    box_hw, fit_hw = _sizes(_image_yx(original, labels), width)
    under = original if isinstance(original, str) else _resize(original, fit_hw)
    contents = [under]
    captions = [_name(labels[0]) if labels else "?"]
    for column in columns:
        row = rows[column.task.name]
        contents.append(_overlay(row, column, under, fit_hw))
        captions.append("" if isinstance(row, str) else row["status"])
    if all(isinstance(content, str) for content in contents):
        box_hw = 4 * LINE, width
    canvas = _canvas(len(contents), box_hw[0] + LINE + GAP, width)
    for i, (content, caption) in enumerate(zip(contents, captions, strict=True)):
        left = GAP + i * (width + GAP)
        canvas[: box_hw[0], left : left + width] = _tile(content, box_hw)
        _write(canvas, caption, left, box_hw[0] + LINE - 6, width)
    return canvas


def _header(titles: Sequence[str], width: int) -> np.ndarray:
    canvas = _canvas(len(titles), LINE + GAP, width)
    for i, title in enumerate(titles):
        _write(canvas, title, GAP + i * (width + GAP), LINE, width)
    return canvas


def _canvas(num_tiles: int, height: int, width: int) -> np.ndarray:
    return np.full((height, GAP + num_tiles * (width + GAP), 3), _PAPER, np.uint8)


def _image_yx(original: np.ndarray | str, labels: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Return the image's size; a flat one where nobody knows it, as there is little to draw then."""
    if isinstance(original, np.ndarray):
        return original.shape[0], original.shape[1]
    return next(((row["height"], row["width"]) for row in labels if row["width"] and row["height"]), (9, 16))


def _sizes(image_yx: tuple[int, int], width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return height and width of the tile, and of the image in it. Very tall ones are narrower than the tile."""
    ratio = image_yx[0] / image_yx[1]
    box_hw = round(width * min(max(ratio, 1 / 4), 4 / 3)), width
    scale = min(box_hw[0] / image_yx[0], box_hw[1] / image_yx[1])
    return box_hw, (max(1, round(image_yx[0] * scale)), max(1, round(image_yx[1] * scale)))


def _overlay(
    row: dict[str, Any] | str, column: _Column, under: np.ndarray | str, fit_hw: tuple[int, int]
) -> np.ndarray | str:
    """Return a task's label drawn at the image's size in the tile, or why there is none."""
    if isinstance(row, str):
        return row
    if row["status"] != Status.OK.value:
        return f"{row['status']}: {row['error']}" if row["error"] else str(row["status"])
    picture = np.full((*fit_hw, 3), _GREY, np.uint8) if isinstance(under, str) else under
    try:
        return column.task.draw(picture, row)
    except (TypeError, ValueError) as err:
        return f"damaged label: {err}"


def _resize(picture: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    shrinks = size_hw[0] < picture.shape[0]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(picture, size_hw[::-1], interpolation=method))


def _tile(content: np.ndarray | str, box_hw: tuple[int, int]) -> np.ndarray:
    """Return the picture in the middle of a grey tile, or the text on it."""
    tile = np.full((*box_hw, 3), _GREY, np.uint8)
    if isinstance(content, str):
        inner = box_hw[1] - 2 * GAP
        for i, line in enumerate(_wrap(content, inner)[: max(1, (box_hw[0] - GAP) // LINE)], start=1):
            _write(tile, line, GAP, GAP + LINE * i - 6, inner)
        return tile
    height, width = content.shape[:2]
    top, left = (box_hw[0] - height) // 2, (box_hw[1] - width) // 2
    tile[top : top + height, left : left + width] = content
    return tile


def _name(row: Mapping[str, Any]) -> str:
    """Return what a person would call the image: the end of its uri, else its id."""
    return str(row["uri"]).rsplit("/", 1)[-1] if row["uri"] else str(row["image_id"])


def _write(canvas: np.ndarray, text: str, left: int, baseline: int, width: int) -> None:
    """Write one line of text in place, shortened to the width."""
    text = _printable(text)
    while len(text) > 4 and _text_width(text) > width:
        text = text[: len(text) - 4] + "..."
    cv2.putText(canvas, text, (left, baseline), _FONT, _SCALE, _INK, 1, cv2.LINE_AA)


def _wrap(text: str, width: int) -> list[str]:
    """Return the text in lines of at most this many pixels, long words cut."""
    lines = [""]
    for word in _printable(text).split():
        while _text_width(word) > width:
            cut = next(i for i in range(len(word), 0, -1) if i == 1 or _text_width(word[:i]) <= width)
            lines, word = [*lines, word[:cut]], word[cut:]
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if _text_width(longer) <= width else [*lines, word]
    return [line for line in lines if line]


def _text_width(text: str) -> int:
    return int(cv2.getTextSize(text, _FONT, _SCALE, 1)[0][0])


def _printable(text: str) -> str:
    """Return the text in the characters that cv2 can draw."""
    return text.encode("ascii", "replace").decode().replace("\n", " ")
