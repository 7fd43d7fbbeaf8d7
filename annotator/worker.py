"""The worker: one shard in, its label files committed, a summary out. No Ray in here.

Every image has a thread that fetches, decodes, waits for the device and encodes, in plain sequence; a
window of such threads over the shard's rows, in row order, is all the concurrency there is. It bounds
memory by the images in flight, whatever the size of a shard. The device thread takes images of all
shards in flight, so two calls at once keep it busy across the edge of a shard.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from annotator import png
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
from annotator.stages.decode import CRASHES, Image, decode, decode_isolated
from annotator.stages.device import Device
from annotator.stages.encode import LabelFiles, Spool, Spooled
from annotator.stages.fetch import Fetcher
from annotator.stages.mend import UnmendableError, mend, rows_to_mend
from annotator.stages.networks import build_networks, choose_device, open_tasks, with_needs
from annotator.stages.people import Found, people_of_boxes, read_people
from annotator.stages.stragglers import DeferredError, LoneFaultError, Stragglers, allowed_faults
from annotator.stages.times import StageTimes, peak_memory
from annotator.storage import Storage, join
from annotator.summary import Summary, Work
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


class Worker:
    """Labels shards with the job's tasks; build once per process, call from one or two threads.

    tasks        names of the tasks to label, default all of the job's; what they need runs, but is not committed
    last_round   decode each image in a process of its own, and let lone passing faults become rows
    redo         error classes: label only rows that have one of them, in label files that are there

    Raises CheckpointError when weights are missing or are not those that the output's record names.
    """

    def __init__(
        self,
        job: Job,
        *,
        tasks: tuple[str, ...] = (),
        last_round: bool = False,
        redo: frozenset[str] = frozenset(),
    ) -> None:
        self._job = job
        self._last_round, self._redo = last_round or not CRASHES.isdisjoint(redo), redo
        self._storage = Storage(options=job.storage)
        self._names = tasks or tuple(job.tasks)
        self._tasks = open_tasks(job, self._storage, self._names)
        self._spool = Spool(job.spool_dir)  # before the models: where it can't be, nothing need be loaded
        png.same_bytes(job.deterministic)
        device = choose_device(job)
        build = partial(build_networks, job, self._tasks, device)
        try:
            self._device = Device(build, device=device)
        except BaseException:
            self._spool.close()
            raise
        self._fetch = Fetcher(job)
        batch_size = self._device.batch_size
        self._window = min(64, max(8, 4 * batch_size))
        self._pool = ThreadPoolExecutor(2 * self._window, thread_name_prefix="image")
        # bounds full-size pictures in memory; enough that a detector's batches can fill
        self._pictures = threading.BoundedSemaphore(max(os.cpu_count() or 1, 2 * batch_size))
        self._stopping = False
        self._ready = time.monotonic()

    def close(self) -> None:
        """End the threads and remove the spool. A device that hangs is left behind."""
        self._device.close()  # first: images in flight may wait for it
        self._pool.shutdown(cancel_futures=True)
        self._fetch.close()
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
        except (DeferredError, UnmendableError) as err:
            return Summary(shard=shard, deferred=_one_line(err))
        except TransientStorageError as err:
            return Summary(shard=shard, deferred=_one_line(err), passing=True, lone=isinstance(err, LoneFaultError))
        except (StorageError, InvalidInputError) as err:
            return Summary(shard=shard, deferred=_one_line(err), fatal=True)
        except Exception as err:  # a bug of ours must cost this shard a round, and be told, not the whole run
            return Summary(shard=shard, deferred=_one_line(f"{type(err).__name__}: {err}"))

    def stop(self) -> None:
        """Give up the shards in flight once the images in flight are done; nothing of them is committed."""
        self._stopping = True

    def _label(self, shard: Shard) -> Summary:
        times = StageTimes()
        uris = {name: label_uri(self._job.output, name, shard) for name in self._names}
        again = {name: rows_to_mend(self._storage, uris[name], self._redo) for name in uris if self._redo}
        lacking = tuple(name for name in uris if (again[name] if self._redo else not self._storage.exists(uris[name])))
        if not lacking:
            return Summary(shard=shard, existed=tuple(uris), retried=bool(self._redo))
        bytes_in = rows = 0
        created: list[str] = []
        with self._spool.folder() as folder:
            with LabelFiles(folder, shard, {name: self._tasks[name].schema for name in lacking}) as files:
                only = frozenset[int]().union(*again.values()) if self._redo else None
                for labelled in self._labelled(shard, lacking, times, only):
                    bytes_in += labelled.bytes_in
                    rows += 1
                    with times.stage("encode"):
                        for name in lacking:
                            if not self._redo or labelled.rows[name]["row"] in again[name]:
                                files.append(name, labelled.rows[name])
            with times.stage("commit"):
                for name in lacking:
                    if self._commit(name, files.spooled(name), uris[name]):
                        created.append(name)
            bytes_out = files.num_bytes
        told = lacking if self._redo else created
        return Summary(
            shard=shard,
            created=tuple(created),
            existed=tuple(name for name in uris if name not in created),
            retried=bool(self._redo),
            rows=rows,
            statuses={name: dict(files.statuses[name]) for name in told},
            errors=dict(sum((files.errors[name] for name in told), Counter())),
            bytes_in=bytes_in,
            bytes_out=bytes_out,
            stages=times.seconds(),
            work=self.work(),
        )

    def _commit(self, name: str, made: Spooled, uri: str) -> bool:
        """Publish a task's label file, or put its rows in the place of bad ones; return whether this wrote anything."""
        output = self._job.output
        if made.tar is not None:  # first: whoever sees a label file finds its maps
            self._storage.create(made.tar, join(output, made.tar_path), output=output)
        if self._redo:
            return mend(self._storage, uri, self._tasks[name].record, made.label, output=output)
        return self._storage.create(made.label, uri, output=output)

    def label_rows(self, shard: Shard, rows: Collection[int]) -> Iterator[dict[str, dict[str, Any]]]:
        """Yield label rows by task, made anew for these manifest rows of a shard, in row order; commits nothing.

        A passing fault is a row as well (`fetch_timeout`). Raises StorageError when storage is gone, and
        TransientStorageError when the manifest lacks one of the rows.
        """
        try:
            for labelled in self._labelled(shard, self._names, StageTimes(), frozenset(rows)):
                yield labelled.rows
        except DeferredError as err:
            raise TransientStorageError(str(err)) from None

    def _labelled(
        self, shard: Shard, lacking: tuple[str, ...], times: StageTimes, only: frozenset[int] | None = None
    ) -> Iterator[_Labelled]:
        """Yield the labels of a shard's rows in row order, a bounded window of images in flight.

        `only` takes these rows alone; nothing hangs on their passing faults, so none puts the shard off.
        """
        manifest, rows = self._rows(shard)
        window: deque[Future[_Labelled]] = deque()
        allowed = allowed_faults(shard.end - shard.first) if only is None else len(only)
        stragglers = Stragglers(allowed, forgiven=self._last_round or only is not None)
        num_rows = 0
        try:
            for row, known in rows:
                if only is not None and row.index not in only:
                    continue
                if self._stopping:
                    raise DeferredError("the run was stopped")
                num_rows += 1
                window.append(self._pool.submit(self._label_image, shard, row, known, lacking, times))
                if len(window) < self._window:
                    continue
                labelled = _wait(window.popleft(), shard)
                stragglers.add(labelled.transient)
                yield labelled
            while window:
                labelled = _wait(window.popleft(), shard)
                stragglers.add(labelled.transient)
                yield labelled
        finally:
            for future in window:
                future.cancel()
        _check_count(manifest, shard, num_rows, only)
        stragglers.end()

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
                data = self._fetch(row)
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
        rows = {name: _with_notes(base, self._encode(name, image_yx, found, times)) for name in lacking}
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

    def work(self) -> Work:
        """Return what this worker as a whole has done so far."""
        return Work(
            worker=f"{socket.gethostname()}/{os.getpid()}",
            seconds=time.monotonic() - self._ready,
            cpu_s=time.process_time(),
            peak_host_bytes=peak_memory(),
            **asdict(self._device.work()),
        )


def _wait(future: Future[_Labelled], shard: Shard) -> _Labelled:
    try:
        return future.result(timeout=STALL_S)
    except FutureTimeoutError:
        raise WorkerStalledError(f"{shard}: no image finished in {STALL_S:.0f} s") from None


def _check_count(manifest: Manifest, shard: Shard, num_rows: int, only: frozenset[int] | None) -> None:
    expected = shard.end - shard.first if only is None else len(only)
    may_be_fewer = only is None and manifest.where is not None
    if num_rows > expected or (num_rows < expected and not may_be_fewer):
        raise DeferredError(f"{shard}: the manifest gave {num_rows} rows, {expected} expected")


def _with_notes(base: Mapping[str, Any], columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of a decoded image; what its task left out is told beside what decoding did."""
    notes = (base["error"], columns.get("error")) if columns["error_class"] is None else (columns["error"],)
    return {**base, **columns, "error": "; ".join(filter(None, notes)) or None}


def _error(err: ImageError) -> dict[str, Any]:
    return {"status": err.status, "error_class": err.error_class, "error": _one_line(err)}


def _one_line(err: BaseException | str) -> str:
    return redact(" ".join(str(err).split()))[:_ERROR_CHARS]
