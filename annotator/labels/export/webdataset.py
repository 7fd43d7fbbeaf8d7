"""WebDataset: tar files of samples, each the maps of an image as `<task>.png` and everything else as `json`.

Why tarfile and not `webdataset.TarWriter` (2026-11): a sample's bytes are ready, so that nothing is left for it to do,
and writing needs no package then. The tests read with `webdataset`.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from annotator.fingerprint import TaskRecord
from annotator.labels.export.core import Export, Format, Part
from annotator.labels.export.maps import OK, image_rows, map_column, row_key, stored_png, write_meaning
from annotator.labels.query import json_value


def _choose(records: Mapping[str, TaskRecord]) -> list[str]:
    return list(records)


def _write(job: Export, part: Part, tables: Iterator[pa.Table], folder: Path) -> list[str]:
    columns = {task: column for task, record in job.records.items() if (column := map_column(record))}
    name = f"{part.name}.tar"
    empty = True
    with tarfile.open(folder / name, "w") as tar:
        for row in image_rows(tables):
            key, empty = row_key(part, row), False
            for task, column in columns.items():
                _add(tar, f"{key}.{task}.png", stored_png(job, row, task, column))
            _add(tar, f"{key}.json", json.dumps(json_value(_light(row, columns))).encode())
    return [] if empty else [name]


def _light(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Return the row without its maps."""
    return {
        name: {k: v for k, v in value.items() if k != columns.get(name)} if isinstance(value, Mapping) else value
        for name, value in row.items()
    }


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


FORMAT = Format(name="webdataset", choose=_choose, statuses=OK, write=_write, finish=write_meaning)
