"""What `verify` finds: kinds of problem, the ledger that counts them, the report."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from annotator.fingerprint import TaskRecord
from annotator.labels.check_tars import UnusedTars
from annotator.manifest import Manifest
from annotator.shards import Shard, labels_folder

KINDS = {
    "missing_shard": "no label file yet; running the job again writes it",
    "foreign_file": "under labels/, but no label file of this output: unknown task, manifest file or shard",
    "unreadable": "not a Parquet file, cut short, or with pages that don't decode",
    "checksum": "bytes of a page, or of a map in a tar file, are not those that were written",
    "schema": "names, types or order of the columns are not those of the task's record",
    "fingerprint": "made with another fingerprint, or carries none",
    "metadata": "the right fingerprint, but what else the file says of itself is not what the task's record says",
    "row_groups": "row groups larger than readers of one map count on",
    "statistics": "the footer rules out values that are there, so filters would miss rows",
    "wrong_shard": "the `shard` column names another shard: a file that was moved or copied",
    "wrong_rows": "rows missing, twice, out of order, or not of this shard",
    "image_id": "null or empty",
    "status": "none of the known ones",
    "map": "an `ok` row without a map, or another row with one",
    "tar": "a map is not where its row says: the tar file is gone, cut short, or holds something else there",
    "manifest": "the manifest file can't be read, so the rows that `where` selects are not known",
    # with deep
    "map_encoding": "a map is no PNG, damaged, or not of the task's kind of PNG",
    "map_size": "a map's size is not what its row says, or not what image and options make of it",
    "map_values": "class ids out of range, vectors not of length 1, columns that don't fit the map",
    "people": "a box outside the image, keypoints or scores that are no numbers, or too many or few people",
    # with sample
    "sample": "labelled anew, the row is another one, or further from it than the precision explains",
}
"""Every kind of problem, and what it means."""

MAX_LISTED = 50
"""Problems of one kind that a report lists for one task; the rest are only counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is wrong: `kind` to group by, `where` the file or folder, `message` found and expected."""

    kind: str
    where: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskCount:
    """What one task's labels hold: label files, their rows, rows by status."""

    task: str
    shards: int
    shards_expected: int
    rows: int
    statuses: dict[str, int]
    random: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSample:
    """How the rows of one task that were labelled anew compare with those that are stored.

    rows      compared; of those drawn the rest met passing trouble or ended a decoder, or the latest job lacks the task
    equal     of them, equal in every column
    measure   what `worst` and `limit` are; `worst` is the largest of all rows, `worst_row` its shard and row
    """

    task: str
    rows: int
    equal: int
    measure: str | None
    worst: float
    limit: float | None
    worst_row: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyReport:
    """What `verify` found. `counts` has every problem by kind, `problems` the first ones of each kind.

    `sample` is empty unless rows were labelled anew. `unused` are tar files that no label file names (`dense: tar`):
    left over from workers that were killed or came second, or about to be named by a run. Nothing is wrong with that.
    """

    output: str
    tasks: tuple[TaskCount, ...]
    problems: tuple[Problem, ...]
    counts: dict[str, int]
    sample: tuple[TaskSample, ...] = ()
    unused: UnusedTars = field(default_factory=UnusedTars)

    @property
    def ok(self) -> bool:
        """Whether the output is complete and nothing is wrong with it."""
        return not self.counts


@dataclass(slots=True)
class _Tally:
    rows: int = 0
    statuses: Counter[str] = field(default_factory=Counter)


class Ledger:
    """What was found so far: one byte a shard, counts, and the first problems of each kind and task."""

    def __init__(self, manifest: Manifest, records: dict[str, TaskRecord]) -> None:
        self._manifest = manifest
        sizes = {file.key: -(-file.rows // manifest.shard_rows) for file in manifest.files}
        self._seen = {task: {key: np.zeros(size, dtype=bool) for key, size in sizes.items()} for task in records}
        self._tallies = {task: _Tally() for task in records}
        self._random = {task: record.is_random for task, record in records.items()}
        self._counts: Counter[str] = Counter()
        self._listed: Counter[tuple[str, str]] = Counter()
        self._problems: list[Problem] = []
        self.shards_expected = sum(sizes.values())

    def add(self, kind: str, where: str, message: str, *, task: str = "", count: int = 1) -> None:
        """Take in a problem that stands for `count` of its kind."""
        assert kind in KINDS, kind
        self._counts[kind] += count
        self._listed[task, kind] += 1
        if self._listed[task, kind] <= MAX_LISTED:
            self._problems.append(Problem(kind=kind, where=where, message=message))

    def see(self, task: str, shard: Shard, rows: int, statuses: Counter[str]) -> None:
        """Take in what the label file of a shard holds."""
        self._seen[task][shard.file_key][shard.first // self._manifest.shard_rows] = True
        self._tallies[task].rows += rows
        self._tallies[task].statuses += statuses

    def add_missing(self, output: str) -> None:
        """Add one problem for each task that lacks shards, naming the first."""
        step = self._manifest.shard_rows
        for task, seen in self._seen.items():
            missing = {file: ~seen[file.key] for file in self._manifest.files if not seen[file.key].all()}
            if missing:
                file, where = next(iter(missing.items()))
                first = int(where.argmax()) * step
                shard = Shard(file.key, first, min(first + step, file.rows))
                count = sum(int(m.sum()) for m in missing.values())
                message = f"{count} of {self.shards_expected} shards, the first is {shard}; run the job again"
                self.add("missing_shard", labels_folder(output, task), message, task=task, count=count)

    def report(self, output: str, sample: tuple[TaskSample, ...], unused: UnusedTars) -> VerifyReport:
        """Return everything that was taken in."""
        tasks = (
            TaskCount(
                task=task,
                shards=sum(int(seen.sum()) for seen in self._seen[task].values()),
                shards_expected=self.shards_expected,
                rows=tally.rows,
                statuses=dict(sorted(tally.statuses.items())),
                random=self._random[task],
            )
            for task, tally in self._tallies.items()
        )
        return VerifyReport(
            output=output,
            tasks=tuple(tasks),
            problems=tuple(sorted(self._problems, key=lambda p: (p.kind, p.where))),
            counts=dict(sorted(self._counts.items())),
            sample=sample,
            unused=unused,
        )
