"""The probe: a few rows labelled where a worker would run, to foretell what the rest will cost.

    plan -> rows drawn by chance -> one worker, whose labels are thrown away -> forecast

The rows are copied into a manifest of their own, in a folder of the worker's machine that goes with the worker, and
labelled from there by the worker that a run would build. So the output is only read, and what is measured is as good
as in a run, but for the commit of label files.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from annotator.cluster import CALLS_PER_WORKER, Cluster
from annotator.envelope import Row
from annotator.errors import ImageError, JobError, ManifestError, StorageError
from annotator.fingerprint import TaskRecord, pin_record
from annotator.forecast import Forecast, Measured, make_forecast, make_setting, save_forecast
from annotator.job import Job
from annotator.manifest import Manifest, PinnedFile, kept_fields, local_folder, pin_manifest, read_rows, selected_rows
from annotator.planning import Plan
from annotator.preflight import Ready
from annotator.shards import Shard, cut
from annotator.stages.encode import LabelFiles, Spool
from annotator.stages.people import read_people
from annotator.storage import Storage
from annotator.summary import add_counts
from annotator.tasks import BOXES_COLUMN, people_source

if TYPE_CHECKING:
    from annotator.worker import Worker


MOST_ROWS = 4096
"""Rows of a probe at most: it holds their embedded pictures in memory, and intervals are an eighth of those of 64."""

_LOOK_S = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """What is labelled to find out: rows by manifest file, in `manifest`, which holds no other files.

    `records` are those that a run would pin, of all tasks of the job; `tasks` are to be labelled.
    """

    job: Job
    records: Mapping[str, TaskRecord]
    tasks: tuple[str, ...]
    manifest: Manifest
    rows: tuple[tuple[int, ...], ...]


def probe_left(
    ready: Ready, left: Plan, count: int, *, ray: bool, address: str | None, price_per_gpu_hour: float | None
) -> Forecast:
    """Return what labelling all that is left will take, from labelling `count` of its rows; fewer if there are.

    The forecast is left in the output's `_annotator/`, for the next run. Raises JobError for no row or too many,
    ManifestError when none passes `where`, and what a worker raises when it can't be built.
    """
    if not 1 <= count <= MOST_ROWS:
        raise JobError(f"probe is {count}; expected 1 to {MOST_ROWS}: none tell nothing, and more hardly tell more")
    storage = Storage(options=ready.job.storage)
    drawn, rows = draw(storage, ready, left, count)
    with Cluster(ready.job, address=address, local=not ray) as cluster:
        measured, workers = cluster.once(partial(measure, drawn), shards=len(left))
    digests = {name: ready.records[name].fingerprint_digest for name in left.tasks_left}
    setting = make_setting(ready.job, digests, device=measured.device, workers=workers)
    forecast = make_forecast(
        measured,
        setting,
        made=f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}",
        rows=rows,
        shards=len(left),
        price_per_gpu_hour=price_per_gpu_hour,
    )
    try:
        save_forecast(storage, ready.job.output, forecast)
    except StorageError as err:  # what was measured is worth telling all the same
        return replace(forecast, notes=(*forecast.notes, f"not saved for the next run: {err}"))
    return forecast


def draw(storage: Storage, ready: Ready, left: Plan, count: int) -> tuple[Drawn, int]:
    """Return rows drawn by chance from those that are left, each as likely as any other, and how many are left.

    The same rows each time as long as the same are left, so that two settings are compared on the same images.
    With `where` its columns are read of all files that have rows left.
    """
    files = left.manifest.files
    counts = left.rows_by_file()
    if left.manifest.where is not None:
        counts = np.array([len(_eligible(storage, left, i)) if n else 0 for i, n in enumerate(counts)], np.int64)
    total = int(counts.sum())
    if not total:
        raise ManifestError(f"{left.manifest.root}: no row that is left passes where = {left.manifest.where!r}")
    seed = int.from_bytes(hashlib.sha256(f"{left.manifest.root} {count}".encode()).digest()[:8], "big")
    chosen = np.sort(np.random.default_rng(seed).choice(total, min(count, total), replace=False))
    ends = np.cumsum(counts)
    owner = np.searchsorted(ends, chosen, side="right")
    found = {
        int(i): _eligible(storage, left, int(i))[chosen[owner == i] - (ends[i] - counts[i])] for i in np.unique(owner)
    }
    drawn = Drawn(
        job=ready.job,
        records=ready.records,
        tasks=left.tasks_left,
        manifest=replace(left.manifest, files=tuple(files[i] for i in found)),
        rows=tuple(tuple(rows.tolist()) for rows in found.values()),
    )
    return drawn, total


def _eligible(storage: Storage, left: Plan, file: int) -> npt.NDArray[np.int64]:
    """Return the rows of a file that a run would label, ascending."""
    passing = selected_rows(storage, left.manifest, left.manifest.files[file])
    rows = left.rows_in(file)
    return rows if passing is None else np.intersect1d(rows, passing, assume_unique=True)


# -- where the worker runs -------------------------------------------------------------------------


def measure(drawn: Drawn) -> Measured:
    """Label the rows on this machine's device, in a folder that is gone afterwards; say how long that took."""
    from annotator.worker import Worker  # loads torch

    with closing(Spool(drawn.job.spool_dir)) as spool, spool.folder() as folder:
        job = _own_job(drawn, folder)
        manifest = pin_manifest(job, Storage())
        for record in drawn.records.values():
            pin_record(Storage(), job.output, record)
        start = time.monotonic()
        with Worker(job, tasks=drawn.tasks) as worker:
            start_s = time.monotonic() - start
            schemas = {name: drawn.records[name].file_schema for name in drawn.tasks}
            return _label(worker, manifest, schemas, folder, start_s)


@dataclass(frozen=True, slots=True)
class _Part:
    """What came of one shard: when its rows were done, bytes of their maps, all its files."""

    done_s: list[float]
    map_bytes: list[int]
    files: LabelFiles


def _label(
    worker: Worker, manifest: Manifest, schemas: Mapping[str, pa.Schema], folder: Path, start_s: float
) -> Measured:
    """Label all rows as a run would, in so many calls at once, and add up what came of it."""
    (file,) = manifest.files
    shards = cut(file.key, file.rows, manifest.shard_rows)
    begun = time.monotonic()
    with ThreadPoolExecutor(CALLS_PER_WORKER) as calls:
        flying = [calls.submit(_label_shard, worker, schemas, folder, begun, shard) for shard in shards]
        try:
            while wait(flying, timeout=_LOOK_S).not_done:
                pass  # what Ray sends to interrupt this process wakes no wait
            parts = [part.result() for part in flying]
        finally:
            worker.stop()  # Ctrl-C must not wait for the rest
    empty = _empty_bytes(schemas, folder, shards[0])
    map_bytes = [count for part in parts for count in part.map_bytes]
    rest = sum(part.files.num_bytes - empty for part in parts) - sum(map_bytes)
    statuses: dict[str, dict[str, int]] = {}
    for part in parts:
        statuses = add_counts(statuses, {name: dict(by) for name, by in part.files.statuses.items()})
    work = worker.work()
    return Measured(
        done_s=tuple(sorted(done for part in parts for done in part.done_s)),
        row_bytes=tuple(count + rest / len(map_bytes) for count in map_bytes),
        file_bytes=empty,
        statuses=statuses,
        errors=dict(sum((by for part in parts for by in part.files.errors.values()), Counter())),
        start_s=start_s,
        device=work.device,
        batch=max(1, round(work.batch_slots / work.batches)) if work.batches else 1,
    )


def _label_shard(worker: Worker, schemas: Mapping[str, pa.Schema], folder: Path, begun: float, shard: Shard) -> _Part:
    own = folder / f"{shard.first}"
    own.mkdir()
    done_s, map_bytes = [], []
    with LabelFiles(own, shard, schemas) as files:
        for rows in worker.label_rows(shard, range(shard.first, shard.end)):
            for name, row in rows.items():
                files.append(name, row)
            done_s.append(time.monotonic() - begun)
            map_bytes.append(sum(_map_bytes(value) for row in rows.values() for value in row.values()))
    return _Part(done_s, map_bytes, files)


def _map_bytes(value: Any) -> int:
    """Return the bytes of a map, which no compression changes; 0 of any other value."""
    data = value.get("bytes") if isinstance(value, dict) else None
    return len(data) if isinstance(data, bytes) else 0


def _empty_bytes(schemas: Mapping[str, pa.Schema], folder: Path, shard: Shard) -> int:
    own = folder / "empty"
    own.mkdir()
    with LabelFiles(own, shard, schemas) as files:
        pass
    return files.num_bytes


def _own_job(drawn: Drawn, folder: Path) -> Job:
    """Return a job over the drawn rows alone, whose manifest and output lie in this folder."""
    rows = _write_manifest(drawn, folder / "manifest.parquet")
    job = drawn.job
    here = local_folder(job.manifest)  # what it holds may be read, but it is not the probe's own folder
    return job.model_copy(
        update={
            "manifest": str(folder / "manifest.parquet"),
            "output": str(folder / "output"),
            "where": None,
            "shard_rows": -(-rows // CALLS_PER_WORKER),
            "sources": job.sources.model_copy(update={"roots": (*job.sources.roots, *([here] if here else []))}),
            "tasks": {
                name: {**options, **({"boxes": "manifest"} if options.get("boxes") == "labels" else {})}
                for name, options in job.tasks.items()
            },
        }
    )


def _write_manifest(drawn: Drawn, path: Path) -> int:
    """Write the drawn rows as one manifest file, in an order by chance, boxes included; return their number."""
    job, storage = drawn.job, Storage(options=drawn.job.storage)
    names = (*job.keep_columns, *([BOXES_COLUMN] if people_source(job) == "manifest" else []))
    kept = {field.name: field for field in kept_fields(storage, drawn.manifest, names)}
    found: list[Row] = []
    boxes: list[list[list[float]] | None] = []
    for file, rows in zip(drawn.manifest.files, drawn.rows, strict=True):
        for index in rows:
            found += read_rows(storage, drawn.manifest, file, index, index + 1, tuple(kept))
            if people_source(job) == "labels":
                boxes.append(_known_boxes(storage, drawn, file, index))
    order = np.random.default_rng(0).permutation(len(found))
    columns = {name: pa.array([found[i].kept[name] for i in order], field.type) for name, field in kept.items()}
    columns["uri"] = pa.array([found[i].uri for i in order], pa.string())
    columns["image_id"] = pa.array([found[i].image_id for i in order], pa.string())
    if any(row.data is not None for row in found):
        columns["image"] = pa.array([found[i].data for i in order], pa.large_binary())
    if boxes:
        columns[BOXES_COLUMN] = pa.array([boxes[i] for i in order], pa.list_(pa.list_(pa.float32())))
    pq.write_table(pa.table(columns), path)
    return len(found)


def _known_boxes(storage: Storage, drawn: Drawn, file: PinnedFile, row: int) -> list[list[float]] | None:
    """Return the boxes that the output's person labels have for a row."""
    size = drawn.manifest.shard_rows
    first = row // size * size
    people = read_people(storage, drawn.job.output, Shard(file.key, first, min(first + size, file.rows)))[row]
    if isinstance(people, ImageError):
        return None
    return [box.tolist() for box in people[0]["boxes"]]
