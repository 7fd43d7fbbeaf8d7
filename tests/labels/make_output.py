"""Small outputs made by hand, and the ways in which they get damaged.

`make_output` writes what a run would have written, without models, Ray or a worker: a manifest, its pins,
task records, label files with maps that a formula fills. Nothing here goes through the code under test.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from annotator.envelope import IMAGE, ROW_GROUP_ROWS
from annotator.fingerprint import TaskRecord, make_record, pin_record
from annotator.job import Job
from annotator.manifest import Manifest, PinnedFile, pin_manifest, selected_rows
from annotator.png import encode
from annotator.shards import Shard, cut, label_uri
from annotator.storage import Storage, join
from annotator.tasks import load_task

CHANNELS = {"seg": 28, "depth": 1, "normal": 3}
MAP_YX = (12, 9)

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Output:
    """An output made by hand."""

    uri: str
    storage: Storage
    manifest: Manifest
    records: Mapping[str, TaskRecord]

    def shards(self) -> list[Shard]:
        return [shard for file in self.manifest.files for shard in cut(file.key, file.rows, self.manifest.shard_rows)]

    def label(self, task: str, index: int = 0) -> str:
        """Return the uri of the label file of the shard with this index."""
        return label_uri(self.uri, task, self.shards()[index])

    def path(self, task: str, index: int = 0) -> Path:
        """Return it as a path; for local outputs."""
        return Path(self.label(task, index))

    def rewrite(self, task: str, index: int, change: Callable[[list[Row]], list[Row]]) -> None:
        """Write a label file again with other rows."""
        rows = pq.ParquetFile(self.path(task, index)).read().to_pylist()
        self.path(task, index).write_bytes(label_bytes(change(rows), self.records[task].file_schema))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to make: rows of each manifest file, and what differs from plain rows with status ok."""

    rows: Sequence[int] = (40, 7)
    shard_rows: int = 16
    tasks: Sequence[str] = ("seg", "depth", "normal")
    where: str | None = None
    skip: Sequence[tuple[str, int]] = ()  # (task, index of the shard) to leave out
    status: Callable[[str, int], str] = field(default=lambda _task, _row: "ok")
    uri: Callable[[int, int], str | None] = field(default=lambda file, row: f"images/{file}-{row}.jpg")
    embed: Callable[[int, int], bytes | None] | None = None
    random: bool = False


def make_output(root: str, storage: Storage | None = None, plan: Plan | None = None, **changes: Any) -> Output:
    """Write manifest and output below `root` (a folder or an s3:// uri) and return the output."""
    storage, plan = storage or Storage(), replace(plan or Plan(), **changes)
    output = join(root, "labels-out")
    for number, rows in enumerate(plan.rows):
        data = _parquet(_manifest_table(plan, number, rows))
        storage.replace(data, join(root, "manifest", f"part-{number}.parquet"), output=output)
    job = Job(
        manifest=join(root, "manifest"),
        output=output,
        tasks={name: {"checkpoint": f"{name}.safetensors"} for name in plan.tasks},
        where=plan.where,
        shard_rows=plan.shard_rows,
        storage=storage.options,
    )
    manifest = pin_manifest(job, storage)
    records = {name: pin_record(storage, output, record) for name, record in make_records(plan.tasks, plan).items()}
    made = Output(uri=output, storage=storage, manifest=manifest, records=records)
    for task in plan.tasks:
        for index, shard in enumerate(made.shards()):
            if (task, index) not in plan.skip:
                write_shard(made, plan, task, shard)
    return made


def make_records(tasks: Sequence[str], plan: Plan | None = None, **changes: Any) -> dict[str, TaskRecord]:
    """Return task records; `changes` go into options (checkpoint, bits ...) or replace dtype and decode."""
    settings = {key: changes.pop(key, default) for key, default in (("dtype", "float32"), ("decode", "exact"))}
    digest = changes.pop("sha256", "5eed" * 16)
    records: dict[str, TaskRecord] = {}
    for name in tasks:
        task = load_task(name)
        records[name] = make_record(
            task,
            task.options(checkpoint=f"{name}.safetensors", **changes),
            config={"task": name, "embed_dim": 32, "input_hw": (64, 48), "channels": CHANNELS[name]},
            weights={"sha256": digest, "random": plan is not None and plan.random},
            kept=(),
            needs={need: made.fingerprint_digest for need, made in records.items()},
            **settings,
        )
    return records


def write_shard(made: Output, plan: Plan, task: str, shard: Shard) -> None:
    """Write one label file where its shard says."""
    number, file = next((i, f) for i, f in enumerate(made.manifest.files) if f.key == shard.file_key)
    rows = [label_row(made, plan, task, shard, number, row) for row in _rows(made, file, shard)]
    data = label_bytes(rows, made.records[task].file_schema)
    made.storage.create(data, label_uri(made.uri, task, shard), output=made.uri)


def label_row(made: Output, plan: Plan, task: str, shard: Shard, file: int, row: int) -> Row:
    """Return the label row of one image; all tasks of an image share envelope and size."""
    status, uri = plan.status(task, row), plan.uri(file, row)
    bad = status not in ("ok", "no_person")
    found = {
        "shard": shard.key,
        "row": row,
        "image_id": f"image-{file}-{row}",
        "uri": uri and join(made.manifest.root, uri),
        "width": None if status == "unreadable" else MAP_YX[1],
        "height": None if status == "unreadable" else MAP_YX[0],
        "status": status,
        "error_class": "corrupt" if bad else None,
        "error": "JPEG ends after 17 bytes; expected an end marker" if bad else None,
    }
    return found | (map_columns(task, expected_map(task, row)) if status == "ok" else {})


def expected_map(task: str, row: int) -> np.ndarray:
    """Return the map of a row as `load_map` should give it: class ids, depth, unit normals."""
    y, x = np.mgrid[: MAP_YX[0], : MAP_YX[1]]
    if task == "seg":
        return np.asarray((x + y + row) % CHANNELS["seg"], np.uint8)
    if task == "depth":
        return np.asarray(1.0 + 0.5 * (x + y * 9 + row), np.float32)
    normals = np.stack([x - 4.0, y - 6.0, np.full(MAP_YX, 5.0)], axis=-1)
    return np.asarray(normals / np.linalg.norm(normals, axis=-1, keepdims=True), np.float32)


def map_columns(task: str, value: np.ndarray) -> Row:
    """Return a map in the columns of DESIGN section 4."""
    size = {"map_width": value.shape[1], "map_height": value.shape[0]}
    if task == "seg":
        pixels = np.bincount(value.ravel(), minlength=CHANNELS["seg"]).tolist()
        palette = np.arange(768, dtype=np.uint8).reshape(256, 3)
        return size | {"mask": _image(encode(value, palette=palette)), "class_pixels": pixels, "confidence": 0.75}
    if task == "depth":
        stored = np.round((value - value.min() + 0.5) / 0.5).astype(np.uint16)
        return size | {"depth": _image(encode(stored)), "depth_offset": float(value.min() - 0.5), "depth_scale": 0.5}
    return size | {"normal": _image(encode(np.round((value + 1) / 2 * 255).astype(np.uint8)))}


def label_bytes(rows: list[Row], schema: pa.Schema, *, row_group_rows: int = ROW_GROUP_ROWS) -> bytes:
    """Return rows as a label file, written as DESIGN section 4 says: PNGs plain, checksums, page index."""
    return table_bytes(pa.Table.from_pylist(rows, schema=schema), row_group_rows=row_group_rows)


def table_bytes(table: pa.Table, *, row_group_rows: int = ROW_GROUP_ROWS) -> bytes:
    """Return a table of label rows as a label file."""
    sink, schema = io.BytesIO(), table.schema
    plain = {f"{f.name}.bytes" for f in schema if f.type == IMAGE}
    # "column" for flat ones, "column.list.element" for lists: asked of Parquet itself
    probe = io.BytesIO()
    pq.write_table(schema.empty_table(), probe)
    layout = pq.ParquetFile(probe).schema
    leaves = [layout.column(i).path for i in range(len(layout.names))]
    scalars = [leaf for leaf in leaves if leaf not in plain]
    with pq.ParquetWriter(
        sink,
        schema,
        compression={leaf: "NONE" if leaf in plain else "ZSTD" for leaf in leaves},
        use_dictionary=scalars,
        write_statistics=scalars,
        write_page_index=True,
        write_page_checksum=True,
    ) as writer:
        for first in range(0, len(table), row_group_rows):
            writer.write_table(table.slice(first, row_group_rows))
    return sink.getvalue()


def flip_byte(path: Path, inside: bytes) -> None:
    """Flip one bit in the middle of the only place where these bytes occur."""
    data = bytearray(path.read_bytes())
    at = bytes(data).index(inside) + len(inside) // 2
    data[at] ^= 0x10
    path.write_bytes(bytes(data))


def _image(png: bytes) -> dict[str, bytes | None]:
    return {"bytes": png, "path": None}


def _rows(made: Output, file: PinnedFile, shard: Shard) -> list[int]:
    chosen = selected_rows(made.storage, made.manifest, file)
    rows = range(shard.first, shard.end)
    return list(rows) if chosen is None else [row for row in rows if row in set(chosen.tolist())]


def _manifest_table(plan: Plan, number: int, rows: int) -> pa.Table:
    columns: dict[str, list[Any]] = {
        "image_id": [f"image-{number}-{row}" for row in range(rows)],
        "size": list(range(rows)),
    }
    if plan.embed is not None:
        columns["image"] = [{"bytes": plan.embed(number, row), "path": None} for row in range(rows)]
        return pa.table({**columns, "image": pa.array(columns["image"], IMAGE)})
    return pa.table({**columns, "uri": pa.array([plan.uri(number, row) for row in range(rows)], pa.string())})


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=8)
    return sink.getvalue()
