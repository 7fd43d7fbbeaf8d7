"""The worker: one shard in, its label files committed, a summary out. No Ray in here.

Every image has a thread that fetches, decodes, waits for the device and encodes, in plain sequence; a
window of such threads over the shard's rows, in row order, is all the concurrency there is. It bounds
memory by the images in flight, whatever the size of a shard. The device thread takes images of all
shards in flight, so two calls at once keep it busy across the edge of a shard.
"""

from __future__ import annotations

import os
import threading
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from annotator.envelope import Row, Status
from annotator.errors import (
    ImageError,
    InvalidInputError,
    StorageError,
    TransientStorageError,
    WorkerStalledError,
    redact,
)
from annotator.job import Job
from annotator.manifest import Manifest, read_pin, read_rows
from annotator.shards import Shard, label_uri
from annotator.stages.decode import Image, decode, decode_isolated
from annotator.stages.device import Device
from annotator.stages.encode import LabelWriter, Spool
from annotator.stages.fetch import fetch
from annotator.stages.networks import build_networks, choose_batch_size, choose_device, open_tasks, with_needs
from annotator.stages.people import Found, people_of_boxes, read_people
from annotator.stages.times import StageTimes
from annotator.storage import Storage
from annotator.summary import Summary
from annotator.tasks import BOXES_COLUMN, PERSON, Arrays, people_source

STALL_S = 1800.0
"""A shard without a finished image for so long is stuck: compiling the largest model takes a third of it."""

FAST_MIN_HW = (1024, 1024)
"""What `decode: fast` never goes below: the largest released input. Not the job's own largest input, for then
a label would depend on the tasks that ran beside it."""

_ERROR_CHARS = 500


@dataclass(frozen=True, slots=True)
class _Labelled:
    """One image's label rows by task, and the passing faults among them."""

    rows: dict[str, dict[str, Any]]
    transient: ImageError | None
    bytes_in: int


class _Deferred(Exception):
    """The shard is not committed this time; the message says why."""


class Worker:
    """Labels shards with the job's tasks; build once per process, call from one or two threads.

    tasks        names of the tasks to label, default all of the job's; what they need runs, but is not committed
    last_round   decode each image in a process of its own, and let lone passing faults become rows

    Raises CheckpointError when weights are missing or are not those that the output's record names.
    """

    def __init__(self, job: Job, *, tasks: tuple[str, ...] = (), last_round: bool = False) -> None:
        self._job = job
        self._last_round = last_round
        self._storage = Storage(options=job.storage)
        self._images = Storage(options=job.storage, attempts=job.limits.attempts, timeout_s=job.limits.fetch_timeout_s)
        self._names = tasks or tuple(job.tasks)
        self._tasks = open_tasks(job, self._storage, self._names)
        self._spool = Spool(job.spool_dir)  # before the models: where it can't be, nothing need be loaded
        device = choose_device(job)
        batch_size = choose_batch_size(job, device)
        build = partial(build_networks, job, self._tasks, device, batch_size)
        self._device = Device(build, device=device, batch_size=batch_size)
        self._window = min(64, max(8, 4 * batch_size))
        self._pool = ThreadPoolExecutor(2 * self._window, thread_name_prefix="image")
        # bounds full-size pictures in memory; enough that a detector's batches can fill
        self._pictures = threading.BoundedSemaphore(max(os.cpu_count() or 1, 2 * batch_size))
        self._busy_s = 0.0
        self._stopping = False

    def close(self) -> None:
        """End the threads and remove the spool."""
        self._pool.shutdown(cancel_futures=True)
        self._device.close()
        self._spool.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, shard: Shard) -> Summary:
        """Label a shard and commit what it lacks; say how it went.

        Whatever keeps a shard from being committed is told in the summary (`deferred`), never raised.
        Raises WorkerStalledError when this process must be replaced.
        """
        try:
            return self._label(shard)
        except WorkerStalledError:
            raise
        except (_Deferred, TransientStorageError) as err:
            return Summary(shard=shard, deferred=_one_line(err))
        except (StorageError, InvalidInputError) as err:
            return Summary(shard=shard, deferred=_one_line(err), fatal=True)
        except Exception as err:  # a bug of ours must cost this shard a round, and be told, not the whole run
            return Summary(shard=shard, deferred=_one_line(f"{type(err).__name__}: {err}"))

    def stop(self) -> None:
        """Give up the shards in flight once the images in flight are done; nothing of them is committed."""
        self._stopping = True

    def _label(self, shard: Shard) -> Summary:
        output, times = self._job.output, StageTimes()
        uris = {name: label_uri(output, name, shard) for name in self._names}
        existed = tuple(name for name, uri in uris.items() if self._storage.exists(uri))
        lacking = tuple(name for name in uris if name not in existed)
        if not lacking:
            return Summary(shard=shard, existed=existed)
        statuses: dict[str, Counter[str]] = {name: Counter() for name in lacking}
        errors: dict[str, Counter[str]] = {name: Counter() for name in lacking}
        bytes_in = 0
        created: list[str] = []
        with self._spool.folder() as folder:
            with ExitStack() as stack:
                writers = {
                    name: stack.enter_context(LabelWriter(folder / f"{name}.parquet", self._tasks[name].schema))
                    for name in lacking
                }
                for labelled in self._labelled(shard, lacking, times):
                    bytes_in += labelled.bytes_in
                    for name in lacking:
                        row = labelled.rows[name]
                        writers[name].append(row)
                        statuses[name][row["status"]] += 1
                        errors[name].update([row["error_class"]] if row["error_class"] else [])
            rows = {name: writer.rows for name, writer in writers.items()}
            bytes_out = sum(writer.path.stat().st_size for writer in writers.values())
            with times.stage("commit"):
                for name, writer in writers.items():
                    if self._storage.create(writer.path, uris[name], output=output):
                        created.append(name)
        return Summary(
            shard=shard,
            created=tuple(created),
            existed=tuple(name for name in uris if name not in created),
            rows=max(rows.values()),
            statuses={name: dict(statuses[name]) for name in created},
            errors=dict(sum((errors[name] for name in created), Counter())),
            bytes_in=bytes_in,
            bytes_out=bytes_out,
            stages={**times.seconds(), "device": (self._take_busy_s(), 0.0)},
        )

    def _labelled(self, shard: Shard, lacking: tuple[str, ...], times: StageTimes) -> Iterator[_Labelled]:
        """Yield the labels of a shard's rows in row order, a bounded window of images in flight."""
        manifest, rows = self._rows(shard)
        window: deque[Future[_Labelled]] = deque()
        allowed = max(2, (shard.end - shard.first) * 5 // 100)  # DESIGN 2.6
        faults = num_rows = 0
        try:
            for row, known in rows:
                if self._stopping:
                    raise _Deferred("the run was stopped")
                num_rows += 1
                window.append(self._pool.submit(self._label_image, shard, row, known, lacking, times))
                if len(window) < self._window:
                    continue
                labelled = _wait(window.popleft(), shard)
                faults += self._count_fault(labelled, faults, allowed)
                yield labelled
            while window:
                labelled = _wait(window.popleft(), shard)
                faults += self._count_fault(labelled, faults, allowed)
                yield labelled
        finally:
            for future in window:
                future.cancel()
        _check_count(manifest, shard, num_rows)

    def _rows(self, shard: Shard) -> tuple[Manifest, Iterator[tuple[Row, dict[str, Found]]]]:
        """Return the shard's manifest and its rows, each with the labels that come with it: people, or none."""
        manifest, pin = read_pin(self._storage, self._job.output, shard.file_key)
        source = people_source(self._job)
        kept = self._job.keep_columns
        columns = (*kept, BOXES_COLUMN) if source == "manifest" and BOXES_COLUMN not in kept else kept
        rows = read_rows(self._storage, manifest, pin, shard.first, shard.end, columns)
        if source == "manifest":
            return manifest, ((row, {PERSON: people_of_boxes(row.kept[BOXES_COLUMN])}) for row in rows)
        if source == "labels":
            people = read_people(self._storage, self._job.output, shard)
            return manifest, ((row, {PERSON: people[row.index]}) for row in rows)
        return manifest, ((row, {}) for row in rows)

    def _count_fault(self, labelled: _Labelled, faults: int, allowed: int) -> int:
        """Return 1 for a passing fault, else 0; raise _Deferred when the shard had better wait."""
        if labelled.transient is None:
            return 0
        if not self._last_round or faults + 1 > allowed:
            raise _Deferred(f"{labelled.transient.error_class}: {_one_line(labelled.transient)}")
        return 1

    def _label_image(
        self, shard: Shard, row: Row, known: dict[str, Found], lacking: tuple[str, ...], times: StageTimes
    ) -> _Labelled:
        """Take one image all the way; what fails becomes its rows. `known` holds labels that came with it."""
        base = {
            "shard": shard.key,
            "row": row.index,
            "image_id": row.image_id,
            "uri": redact(row.uri) if row.uri is not None else None,
            **{name: row.kept[name] for name in self._job.keep_columns},
        }
        wanted = with_needs(self._tasks, lacking)
        bytes_in = 0
        try:
            with times.stage("fetch"):
                data = fetch(row, self._images, self._job.limits)
            bytes_in = len(data)
            with self._pictures:
                image = self._decode(data, times)
                outcomes = self._submit(image, wanted, known, times)
        except ImageError as err:
            rows = {name: {**base, **_error(err)} for name in lacking}
            return _Labelled(rows, err if err.transient else None, bytes_in)
        image_yx = (image.height, image.width)
        base |= {"height": image.height, "width": image.width, "error": image.note}
        del image  # the pixels are not needed while the device works
        found = {name: self._collect(outcome, times) for name, outcome in outcomes.items()}
        rows = {name: {**base, **self._encode(name, image_yx, found, times)} for name in lacking}
        passing = (err for err in found.values() if isinstance(err, ImageError) and err.transient)
        return _Labelled(rows, next(passing, None), bytes_in)

    def _decode(self, data: bytes, times: StageTimes) -> Image:
        """Return the picture, decoded once for all tasks."""
        with times.stage("decode"):
            decoder = decode_isolated if self._last_round else decode
            return decoder(data, self._job.limits, mode=self._job.decode, min_hw=FAST_MIN_HW)

    def _submit(
        self, image: Image, wanted: tuple[str, ...], known: dict[str, Found], times: StageTimes
    ) -> dict[str, Found | list[Future[Arrays]]]:
        """Enqueue what each network shall see. People are waited for, as others see crops of them, or nothing."""
        outcomes: dict[str, Found | list[Future[Arrays]]] = dict(known)
        for name in wanted:
            opened = self._tasks[name]
            needs: dict[str, list[Arrays]] = {}
            if PERSON in opened.task.needs(opened.options):
                people = outcomes[PERSON] = self._collect(outcomes[PERSON], times)
                if isinstance(people, ImageError):
                    outcomes[name] = people
                    continue
                needs[PERSON] = people
            futures = []
            image_yx = (image.height, image.width)
            inputs = iter(opened.task.inputs(image.pixels_YXC, image_yx, opened.input_hw, opened.options, needs))
            while True:
                with times.stage("prepare"):
                    one = next(inputs, None)
                if one is None:
                    break
                with times.stage("wait"):
                    futures.append(self._device.submit(name, one.pixels_HWC, one.geometry))
            outcomes[name] = futures
        return outcomes

    def _collect(self, outcome: Found | list[Future[Arrays]], times: StageTimes) -> Found:
        """Return a task's label arrays, one entry an input, or why the model failed on this image."""
        if isinstance(outcome, ImageError):
            return outcome
        with times.stage("wait"):
            try:
                return [x.result(timeout=STALL_S) if isinstance(x, Future) else x for x in outcome]
            except ImageError as err:
                return err
            except FutureTimeoutError:
                raise WorkerStalledError(f"the device gave no result in {STALL_S:.0f} s") from None

    def _encode(
        self, name: str, image_yx: tuple[int, int], found: Mapping[str, Found], times: StageTimes
    ) -> dict[str, Any]:
        """Return a task's columns for one image, status included."""
        opened, needs = self._tasks[name], {}
        for need in (*opened.task.needs(opened.options), name):
            outcome = found[need]
            if isinstance(outcome, ImageError):
                return _error(outcome)
            needs[need] = outcome
        arrays = needs.pop(name)
        with times.stage("encode"):
            try:
                columns = opened.task.encode(arrays, image_yx, opened.options, needs)
            except ImageError as err:
                return _error(err)
        return {"status": Status.OK.value, "error_class": None, **columns}

    def _take_busy_s(self) -> float:
        """Return the seconds the device thread worked since this was last asked."""
        busy_s, self._busy_s = self._device.busy_s - self._busy_s, self._device.busy_s
        return busy_s


def _wait(future: Future[_Labelled], shard: Shard) -> _Labelled:
    try:
        return future.result(timeout=STALL_S)
    except FutureTimeoutError:
        raise WorkerStalledError(f"{shard}: no image finished in {STALL_S:.0f} s") from None


def _check_count(manifest: Manifest, shard: Shard, num_rows: int) -> None:
    expected = shard.end - shard.first
    if num_rows > expected or (manifest.where is None and num_rows < expected):
        raise _Deferred(f"{shard}: the manifest gave {num_rows} rows, {expected} expected")


def _error(err: ImageError) -> dict[str, Any]:
    return {"status": err.status, "error_class": err.error_class, "error": _one_line(err)}


def _one_line(err: BaseException | str) -> str:
    return redact(" ".join(str(err).split()))[:_ERROR_CHARS]
