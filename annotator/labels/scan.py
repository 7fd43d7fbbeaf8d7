"""Many label files at once: a bounded parallel map, which files there should be, how one is opened."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from annotator.errors import InvalidInputError, NotFoundError
from annotator.fingerprint import TaskRecord
from annotator.manifest import Manifest, PinnedFile, selected_rows
from annotator.shards import Shard, parse_label_uri
from annotator.storage import ObjectInfo, Storage, join

T = TypeVar("T")
R = TypeVar("R")

WHOLE_BYTES = 16 * 2**20
"""Label files up to this size are read whole, in one request; larger ones row group by row group."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelFile:
    """A label file of an output, and what it must be.

    rows    those it must hold, in order; None where `where` can't be evaluated
    schema  of its columns, metadata included
    """

    output: str
    info: ObjectInfo
    shard: Shard
    record: TaskRecord
    rows: np.ndarray | None
    schema: pa.Schema


class Complain(Protocol):
    """Takes a problem: its kind, the uri, found and expected, the task if one is concerned."""

    def __call__(self, kind: str, where: str, message: str, *, task: str = "") -> None: ...


def label_files(
    storage: Storage, output: str, manifest: Manifest, records: Mapping[str, TaskRecord], complain: Complain
) -> Iterator[LabelFile]:
    """Yield the label files of this output's shards, by task and place; complain of whatever else is under labels/."""
    files = {file.key: file for file in manifest.files}
    schemas = {task: record.file_schema for task, record in records.items()}
    unknown: set[str] = set()

    @lru_cache(maxsize=2)  # the listing is sorted, so the label files of one manifest file follow each other
    def selected(key: str) -> np.ndarray | None:
        try:
            return selected_rows(storage, manifest, files[key])
        except (InvalidInputError, NotFoundError) as err:
            if key not in unknown:
                complain("manifest", files[key].uri, str(err))
            unknown.add(key)
            return None

    prefix = join(output, "labels") + "/"
    for info in storage.list(join(output, "labels")):
        task = info.uri.removeprefix(prefix).partition("/")[0]
        shard = parse_label_uri(output, task, info.uri)
        record = records.get(task)
        if shard is None or record is None or not is_cut(manifest, files.get(shard.file_key), shard):
            reason = _foreign_because(task, record, shard, files)
            complain("foreign_file", info.uri, reason, task=task if record else "")
            continue
        rows: np.ndarray | None = np.arange(shard.first, shard.end)
        if manifest.where is not None:
            rows = selected(shard.file_key)
            rows = None if rows is None else rows[(rows >= shard.first) & (rows < shard.end)]
        yield LabelFile(output=output, info=info, shard=shard, record=record, rows=rows, schema=schemas[task])


def _foreign_because(task: str, record: TaskRecord | None, shard: Shard | None, files: dict[str, PinnedFile]) -> str:
    if record is None:
        reason = f"the output has no record of a task {task!r}"
    elif shard is None:
        reason = "label files are called <task>/<manifest file key>/<first>-<end>.parquet"
    elif shard.file_key not in files:
        reason = f"no manifest file is pinned under the key {shard.file_key}"
    else:
        reason = f"{shard} is not among the shards of its manifest file, of {files[shard.file_key].rows} rows"
    return f"{reason}; move it away, readers of the folder take it for labels"


def map_bounded(call: Callable[[T], R], items: Iterable[T], *, threads: int | None = None) -> Iterator[tuple[T, R]]:
    """Yield (item, call(item)) in order, at most a few items per thread ahead of the reader.

    The default is for work that waits for storage half of the time.
    """
    threads = threads or min(32, 4 * (os.cpu_count() or 1))
    waiting: deque[tuple[T, Future[R]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append((item, pool.submit(call, item)))
            if len(waiting) >= 4 * threads:
                item, future = waiting.popleft()
                yield item, future.result()
        while waiting:
            item, future = waiting.popleft()
            yield item, future.result()


@contextmanager
def open_checked(storage: Storage, info: ObjectInfo) -> Iterator[pq.ParquetFile]:
    """Open a label file so that every page is compared with its checksum when it is read."""
    small = info.size <= WHOLE_BYTES
    data: Any = pa.BufferReader(storage.read(info.uri)) if small else storage.open(info.uri, info)
    with data as source:
        yield pq.ParquetFile(source, page_checksum_verification=True)


def is_cut(manifest: Manifest, file: PinnedFile | None, shard: Shard) -> bool:
    """Return whether the shard is one of those that the pinned manifest file is cut into."""
    if file is None or shard.first >= file.rows or shard.first % manifest.shard_rows:
        return False
    return shard.end == min(shard.first + manifest.shard_rows, file.rows)
