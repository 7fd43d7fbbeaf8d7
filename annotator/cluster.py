"""Where workers run: on Ray, or in this process.

Ray carries shard descriptors and small summaries, nothing else: one operator, a row is a shard, no image
ever in the object store (why: docs/design.md; measured on Ray 2.60).
"""

from __future__ import annotations

import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa

from annotator.errors import (
    AnnotatorError,
    IncompleteRunError,
    InvalidInputError,
    JobError,
    TransientStorageError,
    WorkerStalledError,
)
from annotator.job import Job
from annotator.metrics import WorkerMetrics
from annotator.pool import block_size, cpus_per_worker, num_workers, wait_for_node
from annotator.session import ray_session
from annotator.shards import Shard
from annotator.summary import Summary

if TYPE_CHECKING:
    from ray.data import Dataset

    from annotator.worker import Worker

T = TypeVar("T")

CALLS_PER_WORKER = 2
"""Shards in flight in one worker, so that batches fill across the edge of a shard."""

MAX_TASK_RETRIES = 2
"""How often Ray hands a block of shards to another worker when one dies; the next round comes after that."""

_STALLED_EXIT = 75
_CANCEL_S = 10.0


class Cluster:
    """Runs workers for a job; a context manager that leaves nothing behind.

    `local` keeps the worker in this process. Without `address` Ray starts on this machine, quietly, in a
    temporary folder of its own, and is gone afterwards. `redo`: as for a worker.
    """

    def __init__(
        self, job: Job, *, address: str | None = None, local: bool = False, redo: frozenset[str] = frozenset()
    ) -> None:
        self._job, self._address, self._local, self._redo = job, address, local, redo
        self._stack = ExitStack()
        self._had_nodes = False

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def label(self, shards: Sequence[Shard], tasks: tuple[str, ...], *, last_round: bool) -> Iterator[Summary]:
        """Yield a summary for each shard as it comes back; none for shards whose worker died.

        Only the models of `tasks`, and of what they need, are loaded.
        """
        if not self._local:
            # A session a round: a worker that Ray restarts while a round ends stays, and holds its CPUs for ever.
            self._stack.close()
            self._stack.enter_context(ray_session(self._address, on_cpu=not self._job.gpus_per_worker))
            if self._had_nodes:
                wait_for_node(self._job, _nodes)
            self._had_nodes = True
        order = _Order(job=self._job, tasks=tasks, last_round=last_round, redo=self._redo)
        if self._local:
            return _label_here(order, shards)
        return _label_on_ray(order, shards)

    def once(self, call: Callable[[], T], *, shards: int) -> tuple[T, int]:
        """Return call(), made where a worker of the job would run, and how many workers so many shards would get.

        On Ray it gets a worker's GPUs and share of the CPUs. Raises what it raises, if that is an error of ours, and
        IncompleteRunError when its process dies.
        """
        if self._local:
            return call(), 1
        self._stack.enter_context(ray_session(self._address, on_cpu=not self._job.gpus_per_worker))
        return _once_on_ray(self._job, call, shards)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Order:
    """What a worker is told when it is built; small, for it travels to each."""

    job: Job
    tasks: tuple[str, ...]
    last_round: bool
    redo: frozenset[str]

    def build(self) -> Worker:
        from annotator.worker import Worker  # loads torch, which a run with nothing to do never needs

        return Worker(self.job, tasks=self.tasks, last_round=self.last_round, redo=self.redo)


class _Started:
    """A worker that is built with its first shard, or a later one where storage was away just then."""

    def __init__(self, order: _Order) -> None:
        self._order = order
        self._worker: Worker | None = None
        self._refused: InvalidInputError | None = None
        self._lock = threading.Lock()

    def start(self) -> Worker:
        """Return the worker. Raises what building it raises."""
        with self._lock:
            if self._refused is not None:
                raise self._refused  # another try would load the models again, and meet the same
            try:
                self._worker = self._worker or self._order.build()
            except InvalidInputError as err:
                self._refused = err
                raise
            return self._worker

    def __call__(self, shard: Shard) -> Summary:
        """Label a shard; a start that may succeed later puts it off, any other failure of it is raised."""
        start = time.monotonic()
        try:
            worker = self.start()
        except TransientStorageError as err:
            return Summary(shard=shard, deferred=f"no worker could start: {err}", passing=True)
        summary = worker(shard)
        return replace(summary, node=socket.gethostname(), seconds=time.monotonic() - start)

    def stop(self) -> None:
        """Give up the shards in flight; nothing of them is committed."""
        if self._worker is not None:
            self._worker.stop()

    def close(self) -> None:
        """End the worker's threads and remove its spool."""
        if self._worker is not None:
            self._worker.close()


def _label_here(order: _Order, shards: Sequence[Shard]) -> Iterator[Summary]:
    started = _Started(order)
    with closing(started) as worker, ThreadPoolExecutor(CALLS_PER_WORKER) as calls:
        flying: set[Future[Summary]] = set()
        try:
            for shard in shards:
                flying.add(calls.submit(worker, shard))
                if len(flying) == CALLS_PER_WORKER:
                    done, flying = wait(flying, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while flying:
                done, flying = wait(flying, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        finally:
            worker.stop()


def _label_on_ray(order: _Order, shards: Sequence[Shard]) -> Iterator[Summary]:
    from ray.exceptions import RayError

    low, high = _workers_here(order.job, len(shards))
    try:
        with closing(_summary_texts(_dataset(order, shards, low, high))) as texts:
            for text in texts:
                summary = Summary.from_json(text)
                if summary.refused:
                    raise JobError(str(summary.deferred))
                yield summary
    except RayError as err:
        text = " ".join(str(err).split())[:400]
        raise IncompleteRunError(f"Ray gave up on this round: {text}; run again to go on") from err


def _summary_texts(dataset: Dataset) -> Generator[str, None, None]:
    """Yield summaries as they come, as JSON; closing it ends all of Ray Data's threads.

    Those of its `iter_rows` may outlive the loop, and one that then touches Ray, whose session has ended, ends the
    process (exit code 1, without a word; Ray 2.60).
    """
    import ray

    for bundle in dataset.iter_internal_ref_bundles():
        for block in bundle.block_refs:
            yield from ray.get(block)["summary"].to_pylist()


def _once_on_ray(job: Job, call: Callable[[], T], shards: int) -> tuple[T, int]:
    import ray
    from ray.exceptions import RayError, RayTaskError

    _, workers = _workers_here(job, shards)
    like_a_worker = {"num_gpus": job.gpus_per_worker or 0, "num_cpus": cpus_per_worker(job, _nodes(), workers)}
    made = ray.remote(max_retries=0, **like_a_worker)(_make).remote(call)
    try:
        return ray.get(made), workers
    except KeyboardInterrupt:
        ray.cancel(made)  # as a Ctrl-C over there: it cleans up behind itself, which a killed process can't
        ray.wait([made], timeout=_CANCEL_S)
        raise
    except RayError as err:
        if isinstance(err, RayTaskError) and isinstance(err.cause, AnnotatorError):
            raise err.cause from None
        raise IncompleteRunError(f"Ray gave up on it: {' '.join(str(err).split())[-400:]}") from err


def _make(call: Callable[[], T]) -> T:
    return call()


def _workers_here(job: Job, shards: int) -> tuple[int, int]:
    """Return the least and the most workers on the cluster that this process is connected to."""
    return num_workers(job, _nodes(), shards=shards)


def _nodes() -> list[dict[str, float]]:
    """Return what each node of the cluster has."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _dataset(order: _Order, shards: Sequence[Shard], low: int, high: int) -> Dataset:
    """Return the one operator: shard descriptors in, summaries out."""
    import ray
    from ray.data import ActorPoolStrategy

    # A block is what Ray retries as a whole; in the last round a shard that kills its worker stands alone.
    block = 1 if order.last_round else block_size(len(shards), workers=high)
    rows = [asdict(shard) for shard in shards]
    fixed = low == high
    pool = {"size": low} if fixed else {"min_size": low, "max_size": high, "initial_size": low}
    with warnings.catch_warnings():
        # The only way to bound a task's retries; Ray drops it in 2.64, and pyproject.toml stays below.
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        return ray.data.from_items(rows, override_num_blocks=-(-len(rows) // block)).map_batches(
            _RayWorker,
            fn_constructor_args=(order,),
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(
                **pool, max_concurrent_calls_per_actor=CALLS_PER_WORKER, enable_true_multi_threading=True
            ),
            num_gpus=order.job.gpus_per_worker or None,
            num_cpus=cpus_per_worker(order.job, _nodes(), high),
            max_task_retries=MAX_TASK_RETRIES,
        )


class _RayWorker:
    """The worker as Ray sees it: a table with one shard in, a table with its summary out."""

    def __init__(self, order: _Order) -> None:
        self._worker = _Started(order)
        self._metrics = WorkerMetrics()
        with suppress(AnnotatorError):  # told with the first shard: Ray would only say that an actor died, and retry
            self._worker.start()

    def __call__(self, batch: pa.Table) -> pa.Table:
        shard = Shard(**batch.to_pylist()[0])
        try:
            summary = self._worker(shard)
        except WorkerStalledError:
            os._exit(_STALLED_EXIT)  # only a new process gets a new device; Ray starts it and tries again
        except AnnotatorError as err:
            refused = isinstance(err, InvalidInputError)
            summary = Summary(shard=shard, deferred=str(err), fatal=True, refused=refused)
        self._metrics.add(summary)
        return pa.table({"summary": [summary.to_json()]})

    def __del__(self) -> None:
        self._worker.close()  # Ray lets a worker go by forgetting it
