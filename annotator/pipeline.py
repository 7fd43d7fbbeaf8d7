"""The flow, on one page.

    manifest -> plan -> workers over shards (fetch, decode, infer, encode, commit) -> summaries -> report

A run plans, executes what is left and plans again, until nothing is left or two rounds gained nothing.
The plan is what the pinned manifest holds minus what lies under labels/; there is no other ledger, so a
run that was killed anywhere goes on with the same command.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

from annotator.cluster import Cluster
from annotator.errors import IncompleteRunError, StorageError, TransientStorageError
from annotator.job import Job
from annotator.labels.status import last_rate
from annotator.planning import Plan, make_plan
from annotator.preflight import Ready, preflight
from annotator.report import Report, Reporter, Watcher
from annotator.shards import committed
from annotator.storage import Storage
from annotator.summary import Summary
from annotator.tasks import load_task
from annotator.watch import Silent

ROUND_SHARDS = 100_000
"""Shards a round takes on at most: bounds the driver's memory; the next round takes the next ones."""

PATIENCE_S, PAUSE_S = 600.0, 5.0
"""How long, and in which steps, a run that has begun waits for storage that is away."""


def plan(job: Job, *, limit: int | None = None) -> Plan:
    """Return what a run of this job would do, with a forecast of bytes and time; writes nothing.

    `limit` keeps the first shards that hold that many rows. Raises what `run` would raise before it starts.
    """
    ready = preflight(job, write=False)
    left = plan_left(ready, limit)
    rate = last_rate(Storage(options=job.storage), ready.job.output)
    return replace(left, row_bytes=sum(load_task(name).row_bytes for name in left.tasks_left), images_per_s=rate)


def run(
    job: Job, *, ray: bool = True, address: str | None = None, limit: int | None = None, watcher: Watcher | None = None
) -> Report:
    """Label what the job's output lacks; return the report of this run.

    ray       run the workers on Ray (a cluster at `address`, else one of our own that is gone afterwards);
              False: one worker in this process
    limit     take only the first shards that hold so many manifest rows
    watcher   is told of the progress

    Raises InvalidInputError or FingerprintMismatchError before any work; IncompleteRunError when shards are
    left over, BudgetExceededError, or StorageError when storage is gone. What is committed stays, always.
    """
    ready = preflight(job)
    storage = Storage(options=ready.job.storage)
    storage.sweep(ready.job.output)
    with ExitStack() as stack:
        random = tuple(name for name, record in ready.records.items() if record.is_random)
        reporter = stack.enter_context(Reporter(ready.job, storage, watcher or Silent(), random=random))
        cluster: Cluster | None = None
        before, fruitless, put_off, last_round = sys.maxsize, 0, 0, False
        while True:
            left = _plan_patiently(ready, limit)
            reporter.planned(left)
            fruitless = 0 if len(left) < before else fruitless + 1
            if left.is_done or (last_round and fruitless):
                break
            # A round that only put shards off may have been an outage, whose end the plan above has waited for.
            before, last_round = len(left), last_round or fruitless > bool(put_off)
            put_off = 0
            cluster = cluster or stack.enter_context(Cluster(ready.job, address=address, local=not ray))
            for summary in execute(cluster, left, reporter.report.run_id, last_round=last_round):
                reporter.add(summary)
                put_off += not summary.done
                if summary.fatal:
                    raise StorageError(f"{summary.shard}: {summary.deferred}; what is done is committed: run again")
    if not left.is_done:
        raise _incomplete(left, reporter.report)
    return reporter.report


def plan_left(ready: Ready, limit: int | None) -> Plan:
    """Return the shards that lack a label file of any task, fresh from storage."""
    storage, output = Storage(options=ready.job.storage), ready.job.output
    left = make_plan(ready.manifest, tuple(ready.job.tasks), lambda t, key: committed(storage, output, t, key))
    return left if limit is None else left.within(limit)


def _plan_patiently(ready: Ready, limit: int | None) -> Plan:
    """Return `plan_left`, however often storage is away: without it there is nothing else to do."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return plan_left(ready, limit)
        except TransientStorageError:
            if time.monotonic() > end:
                raise
            time.sleep(PAUSE_S)


def execute(cluster: Cluster, left: Plan, seed: str, *, last_round: bool) -> Iterator[Summary]:
    """Yield a summary for each shard of a round, as workers finish them, in an order shuffled by `seed`."""
    shards = list(left.shards(seed, limit=ROUND_SHARDS))
    yield from cluster.label(shards, left.tasks_left, last_round=last_round)


def _incomplete(left: Plan, report: Report) -> IncompleteRunError:
    names = [shard.key for shard in left.shards(report.run_id, limit=5)]
    reasons = [f"{key}: {report.deferred.get(key, 'its worker died')}" for key in names]
    more = f" and {len(left) - len(names)} more" if len(left) > len(names) else ""
    return IncompleteRunError(f"{len(left)} shards are left over: {'; '.join(reasons)}{more}; run again to go on")
