"""Random rows labelled anew with the checkpoint, and compared with what is stored.

The only check that sees labels which were never the model's: well formed, and wrong.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from annotator.envelope import Status
from annotator.fingerprint import TaskRecord
from annotator.job import Job
from annotator.labels.findings import TaskSample
from annotator.labels.last_job import last_job
from annotator.labels.scan import Complain, open_checked
from annotator.shards import Shard, label_uri
from annotator.storage import Storage
from annotator.tars import with_maps, with_maps_type
from annotator.tasks import load_task

Drawn = Mapping[Shard, Mapping[int, frozenset[str]]]
"""Rows to label anew, by shard, each with the tasks that have a sound label of it."""

PASSING = frozenset({"fetch_timeout", "out_of_memory"})
"""Error classes that another try may not meet: they say nothing of the label."""

DEADLY = frozenset({"decoder_crashed", "decoder_timeout"})
"""Error classes of images that are not decoded again: they would take this process with them."""

_EXACT = ("image_id", "uri", "width", "height", "status", "error_class")


class Draw:
    """Draws rows by chance from all that are added, each with the same chance, holding a few times `num` of them.

    Every manifest row has a fixed random number for each seed; the rows with the lowest are drawn. So the order in
    which label files are read does not matter, and all tasks of a row are drawn together.
    """

    def __init__(self, num: int, seed: int) -> None:
        self._num, self._seed = num, seed
        self._lowest: dict[tuple[float, Shard, int], set[str]] = {}

    def add(self, task: str, shard: Shard, rows: np.ndarray) -> None:
        """Take in the rows that a sound label file holds."""
        if not self._num:
            return
        digest = hashlib.sha256(f"{self._seed} {shard.key}".encode()).digest()
        chance = np.random.default_rng(list(digest)).random(shard.end - shard.first)[rows - shard.first]
        for i in np.argsort(chance)[: self._num]:
            self._lowest.setdefault((float(chance[i]), shard, int(rows[i])), set()).add(task)
        if len(self._lowest) > 2 * self._num + 1000:
            self._lowest = {key: self._lowest[key] for key in heapq.nsmallest(self._num, self._lowest)}

    def rows(self) -> Drawn:
        """Return what was drawn."""
        drawn: dict[Shard, dict[int, frozenset[str]]] = {}
        for key in sorted(heapq.nsmallest(self._num, self._lowest), key=lambda key: key[1:]):
            drawn.setdefault(key[1], {})[key[2]] = frozenset(self._lowest[key])
        return drawn


@dataclass(slots=True)
class _Tally:
    rows: int = 0
    equal: int = 0
    worst: float = 0.0
    worst_row: str | None = None


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How a row compares: whether it is equal, how far apart the labels are, what is wrong."""

    equal: bool
    drift: float = 0.0
    problem: str | None = None


def relabel(
    storage: Storage, output: str, records: Mapping[str, TaskRecord], drawn: Drawn, complain: Complain
) -> tuple[TaskSample, ...]:
    """Label the drawn rows anew as the output's latest run did, and complain of each that differs too much.

    Returns how each task's rows compare; a task that the latest run's job lacks has none. Raises CheckpointError when
    weights are gone or are others, OutputError when no run left its job, StorageError when storage is gone.
    """
    from annotator.worker import Worker  # loads torch

    job = last_job(output, storage).model_copy(update={"storage": storage.options})
    tasks = tuple(name for name in records if name in job.tasks)
    tallies = {name: _Tally() for name in records}
    with Worker(job, tasks=tasks) as worker:
        for shard, wanted in drawn.items():
            stored = {task: _stored(storage, output, task, shard, rows) for task, rows in _by_task(wanted)}
            deadly = {n for rows in stored.values() for n, row in rows.items() if row["error_class"] in DEADLY}
            safe = [row for row in wanted if row not in deadly]
            for row, fresh in zip(safe, worker.label_rows(shard, safe), strict=True):
                for task in (t for t in tasks if t in wanted[row]):
                    outcome = _compare(job, records[task], stored[task][row], fresh[task])
                    if outcome is None:
                        continue
                    _count(tallies[task], outcome, f"{shard} row {row}")
                    if outcome.problem is not None:
                        where = label_uri(output, task, shard)
                        complain("sample", where, f"row {row}: {outcome.problem}", task=task)
    return tuple(_summary(records[name], tally, job) for name, tally in tallies.items())


def _by_task(wanted: Mapping[int, frozenset[str]]) -> list[tuple[str, list[int]]]:
    """Return the tasks that have labels of these rows, each with its rows."""
    tasks = sorted(frozenset[str]().union(*wanted.values()))
    return [(task, [row for row, sound in wanted.items() if task in sound]) for task in tasks]


def _stored(storage: Storage, output: str, task: str, shard: Shard, rows: Collection[int]) -> dict[int, dict[str, Any]]:
    """Return these label rows of a shard, by number, with their maps."""
    found: dict[int, dict[str, Any]] = {}
    with open_checked(storage, storage.info(label_uri(output, task, shard))) as parquet:
        for group in range(parquet.num_row_groups):
            numbers = parquet.read_row_group(group, columns=["row"])["row"].to_pylist()
            if not set(rows).isdisjoint(numbers):
                table = parquet.read_row_group(group)
                table = with_maps(storage, output, table.filter(pc.is_in(table["row"], value_set=pa.array(rows))))
                found |= {row["row"]: row for row in table.to_pylist()}
    return found


def _compare(job: Job, record: TaskRecord, stored: Mapping[str, Any], made: Mapping[str, Any]) -> _Outcome | None:
    """Return how a stored row compares with one made anew; None where passing trouble, then or now, forbids it."""
    schema = pa.schema([f.with_type(with_maps_type(f.type)) for f in record.schema])
    fresh = pa.Table.from_pylist([made], schema=schema).to_pylist()[0]  # rounded as it would be stored
    if {stored["error_class"], fresh["error_class"]} & PASSING:
        return None
    for name in _EXACT:
        if stored[name] != fresh[name]:
            return _Outcome(False, problem=f"{name} is {stored[name]!r}, labelled anew {fresh[name]!r}")
    is_ok = stored["status"] == Status.OK.value
    if not is_ok or _text(stored) == _text(fresh):
        return _Outcome(True)
    drift = load_task(record.task).drift
    value = drift.between(stored, fresh) if drift is not None else 0.0
    limit = _limit(record, job)
    if limit is None or (value <= limit and not job.deterministic):
        return _Outcome(False, value)
    measure = f"{drift.measure} {value:.4g}, " if drift is not None else ""
    if job.deterministic:
        hint = "expected the same bytes, for the job is deterministic; other hardware or libraries may round otherwise"
    else:
        hint = f"expected up to {limit:g} ({record.fingerprint['dtype']})"
    return _Outcome(False, value, f"{measure}{hint}")


def _text(row: Mapping[str, Any]) -> str:
    """Return all values of a row as text: NaN equals NaN there."""
    return json.dumps(row, default=repr)


def _limit(record: TaskRecord, job: Job) -> float | None:
    drift = load_task(record.task).drift
    if job.deterministic:
        return 0.0
    return None if drift is None else drift.limits[record.fingerprint["dtype"]]


def _count(tally: _Tally, outcome: _Outcome, where: str) -> None:
    tally.rows += 1
    tally.equal += outcome.equal
    if outcome.drift > tally.worst:
        tally.worst, tally.worst_row = outcome.drift, where


def _summary(record: TaskRecord, tally: _Tally, job: Job) -> TaskSample:
    drift = load_task(record.task).drift
    return TaskSample(
        task=record.task,
        rows=tally.rows,
        equal=tally.equal,
        measure=None if drift is None else drift.measure,
        worst=tally.worst,
        limit=_limit(record, job),
        worst_row=tally.worst_row,
    )
