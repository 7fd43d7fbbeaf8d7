"""The plan: which shards lack a label file. Manifest minus commits; nothing else is asked.

A shard left over is an index into arrays, 12 bytes, so 10^9 images plan in bounded memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from annotator.forecast import Forecast
from annotator.manifest import Manifest, PinnedFile
from annotator.shards import Shard

_THREADS = 16
_FILES_AT_ONCE = 32  # folders listed before their answers are folded into arrays: bounds memory


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The shards that lack a label file of at least one task, in manifest order.

    `file_index` and `first` have one entry a shard: its file in `manifest.files` and its first row. `total`
    counts all shards, `rows_total` and `rows_left` manifest rows before `where`. `tasks_left` are the tasks
    that some shard lacks. `row_bytes` are the bytes that labels of an image typically take, `images_per_s` the
    rate of the latest run; 0 where nobody knows. `forecast` is what a probe says, where one was asked for.
    """

    manifest: Manifest
    tasks: tuple[str, ...]
    tasks_left: tuple[str, ...]
    file_index: npt.NDArray[np.int32]
    first: npt.NDArray[np.int64]
    total: int
    rows_total: int
    rows_left: int
    row_bytes: int = 0
    images_per_s: float = 0.0
    forecast: Forecast | None = None

    @property
    def bytes_left(self) -> int:
        """Bytes that the labels left to make may take."""
        return self.rows_left * self.row_bytes

    @property
    def seconds_left(self) -> float | None:
        """Seconds that the rest may take at the rate of the latest run, or None."""
        return self.rows_left / self.images_per_s if self.images_per_s else None

    def __len__(self) -> int:
        return len(self.first)

    @property
    def is_done(self) -> bool:
        return len(self) == 0

    def to_dict(self) -> dict[str, Any]:
        """Return the plan in numbers, as JSON values."""
        return {
            "manifest": self.manifest.root,
            "tasks": list(self.tasks),
            "tasks_left": list(self.tasks_left),
            "shards": self.total,
            "shards_left": len(self),
            "rows": self.rows_total,
            "rows_left": self.rows_left,
            "bytes_left": self.bytes_left,
            "seconds_left": self.seconds_left,
            "forecast": self.forecast.to_dict() if self.forecast else None,
        }

    def shards(self, seed: str, *, limit: int | None = None) -> Iterator[Shard]:
        """Yield the shards (the first `limit` of them) in an order that depends on the seed alone.

        Shuffled: spreads load over hot prefixes, gives an honest estimate of the time left, and keeps two
        drivers off each other's shards.
        """
        digest = hashlib.sha256(seed.encode()).digest()
        order = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big"))).permutation(len(self))
        return (self._shard(position) for position in islice(order, limit))

    def rows_by_file(self) -> npt.NDArray[np.int64]:
        """Return how many rows are left of each file of the manifest, before `where`."""
        rows = np.zeros(len(self.manifest.files), np.int64)
        np.add.at(rows, self.file_index, self._ends() - self.first)
        return rows

    def rows_in(self, file: int) -> npt.NDArray[np.int64]:
        """Return the rows that are left of one file, ascending, before `where`."""
        here = self.file_index == file
        spans = zip(self.first[here], self._ends()[here], strict=True)
        return np.concatenate([np.empty(0, np.int64), *(np.arange(first, end) for first, end in spans)])

    def within(self, num_rows: int) -> Plan:
        """Return what is left of the shards that hold the manifest's first `num_rows` rows."""
        rows = np.array([file.rows for file in self.manifest.files], np.int64)
        before = np.cumsum(rows) - rows
        kept = before[self.file_index] + self.first < num_rows
        return self._only(kept)

    def without(self, done: Container[Shard]) -> Plan:
        """Return what is left when these shards are done."""
        return self._only(np.array([self._shard(i) not in done for i in range(len(self))], np.bool_))

    def _only(self, kept: npt.NDArray[np.bool_]) -> Plan:
        left = replace(self, file_index=self.file_index[kept], first=self.first[kept])
        return replace(left, rows_left=int((left._ends() - left.first).sum()))

    def _ends(self) -> npt.NDArray[np.int64]:
        rows = np.array([file.rows for file in self.manifest.files], np.int64)
        last = rows[self.file_index] if len(rows) else np.empty(0, np.int64)
        return np.minimum(self.first + self.manifest.shard_rows, last)

    def _shard(self, position: int) -> Shard:
        file = self.manifest.files[int(self.file_index[position])]
        first = int(self.first[position])
        return Shard(file.key, first, min(first + self.manifest.shard_rows, file.rows))


def make_plan(manifest: Manifest, tasks: tuple[str, ...], committed: Callable[[str, str], set[Shard]]) -> Plan:
    """Return what is left to do: every shard that is not in `committed(task, file key)` of every task.

    `committed` is called from threads, once for each task and manifest file; its other entries (shards of
    another cut, say) are ignored.
    """
    indices, firsts, rows_left, total = [np.empty(0, np.int32)], [np.empty(0, np.int64)], 0, 0
    lacking: set[str] = set()
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(manifest.files), _FILES_AT_ONCE):
            batch = manifest.files[start : start + _FILES_AT_ONCE]
            answers = [[pool.submit(committed, task, file.key) for task in tasks] for file in batch]
            for index, (file, futures) in enumerate(zip(batch, answers, strict=True), start):
                first = np.arange(0, file.rows, manifest.shard_rows, dtype=np.int64)
                has = _has(file, manifest.shard_rows, [future.result() for future in futures])
                lacking.update(task for task, column in zip(tasks, has, strict=True) if not column.all())
                total += len(first)
                first = first[~has.all(axis=0)]
                indices.append(np.full(len(first), index, np.int32))
                firsts.append(first)
                rows_left += int((np.minimum(first + manifest.shard_rows, file.rows) - first).sum())
    return Plan(
        manifest=manifest,
        tasks=tasks,
        tasks_left=tuple(task for task in tasks if task in lacking),
        file_index=np.concatenate(indices),
        first=np.concatenate(firsts),
        total=total,
        rows_total=manifest.rows,
        rows_left=rows_left,
    )


def _has(file: PinnedFile, shard_rows: int, committed: list[set[Shard]]) -> npt.NDArray[np.bool_]:
    """Return whether each task (row) has each shard of a file (column)."""
    has = np.zeros((len(committed), -(-file.rows // shard_rows)), np.bool_)
    for row, shards in zip(has, committed, strict=True):
        for shard in shards:
            first = shard.first
            if first < file.rows and shard == Shard(file.key, first, min(first + shard_rows, file.rows)):
                row[first // shard_rows] |= first % shard_rows == 0
    return has
