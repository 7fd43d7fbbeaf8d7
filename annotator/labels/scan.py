"""Many label files at once: a bounded parallel map, which files there should be, how one is opened."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from annotator.manifest import Manifest, PinnedFile
from annotator.shards import Shard
from annotator.storage import ObjectInfo, Storage

T = TypeVar("T")
R = TypeVar("R")

WHOLE_BYTES = 16 * 2**20
"""Label files up to this size are read whole, in one request; larger ones row group by row group."""


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
