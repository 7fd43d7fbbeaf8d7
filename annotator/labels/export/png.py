"""A tree of plain PNG files, a folder a task, and a table that says which image each is of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from annotator.errors import InvalidInputError
from annotator.fingerprint import TaskRecord
from annotator.labels.export.core import Export, Format, Part
from annotator.labels.export.maps import OK, image_rows, map_column, row_key, stored_png, write_meaning


def _choose(records: Mapping[str, TaskRecord]) -> list[str]:
    names = [name for name, record in records.items() if map_column(record)]
    if not names:
        raise InvalidInputError(f"png holds maps; the tasks are {', '.join(records)}, which have none")
    return names


def _write(job: Export, part: Part, tables: Iterator[pa.Table], folder: Path) -> list[str]:
    """Write `<task>/<part>/<key>.png`, and `index/<part>.parquet` with all other columns and the files' paths."""
    columns = {task: column for task, record in job.records.items() if (column := map_column(record))}
    index = folder / "index" / f"{part.name}.parquet"
    writer: pq.ParquetWriter | None = None
    for sub in ("index", *(f"{task}/{part.name}" for task in columns)):
        (folder / sub).mkdir(parents=True)
    for table in tables:
        paths: dict[str, list[str]] = {task: [] for task in columns}
        for row in image_rows(iter([table])):
            for task, column in columns.items():
                paths[task].append(f"{task}/{part.name}/{row_key(part, row)}.png")
                (folder / paths[task][-1]).write_bytes(stored_png(job, row, task, column))
        light = _without_maps(table, columns, paths)
        writer = writer or pq.ParquetWriter(index, light.schema, compression="zstd")
        writer.write_table(light)
    if writer is None:
        return []
    writer.close()
    return [*(f"{task}/{part.name}" for task in columns), f"index/{part.name}.parquet"]


def _without_maps(table: pa.Table, columns: Mapping[str, str], paths: Mapping[str, list[str]]) -> pa.Table:
    """Return the table with each map's path below the folder in the place of its bytes."""
    for task, column in columns.items():
        struct = table[task].combine_chunks()
        fields = [pa.field(column, pa.string()) if f.name == column else f for f in struct.type]
        values = [pa.array(paths[task]) if f.name == column else struct.field(f.name) for f in struct.type]
        at = table.schema.get_field_index(task)
        table = table.set_column(at, task, pa.StructArray.from_arrays(values, fields=fields))
    return table


FORMAT = Format(name="png", choose=_choose, statuses=OK, write=_write, finish=write_meaning)
