"""A manifest of the images: whole rows of the manifest that was labelled, and where their labels are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from annotator.errors import ManifestError
from annotator.fingerprint import TaskRecord
from annotator.footer import read_footer
from annotator.labels.export.core import Done, Export, Format, Part
from annotator.manifest_build import tidy
from annotator.manifest_sample import copy_rows
from annotator.storage import ObjectInfo


def _choose(records: Mapping[str, TaskRecord]) -> list[str]:
    return list(records)


def _write(job: Export, part: Part, tables: Iterator[pa.Table], folder: Path) -> list[str]:
    """Write one manifest file; `label_shard` and `label_row` join its rows to the label tables."""
    shards: list[str] = []
    rows: list[int] = []
    for table in tables:
        shards += table["shard"].to_pylist()
        rows += table["row"].to_pylist()
    if not rows:
        return []
    file = part.file
    info = ObjectInfo(uri=file.uri, size=file.size, etag=file.etag)
    if read_footer(job.storage, info).digest != file.footer_digest:
        raise ManifestError(f"{file.uri}: changed since the first run pinned it; put the old file back to export")
    name = f"{part.name}.parquet"
    columns = {"label_shard": pa.array(shards, pa.string()), "label_row": pa.array(rows, pa.int64())}
    copy_rows(job.storage, file, np.array(rows, np.int64), str(folder / name), output=str(folder), columns=columns)
    tidy(str(folder))
    return [name]


def _finish(job: Export, parts: Mapping[str, Done]) -> None:
    """The files are the manifest."""


FORMAT = Format(name="manifest", choose=_choose, maps=False, write=_write, finish=_finish)
