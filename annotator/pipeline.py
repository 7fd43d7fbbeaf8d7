"""The flow, on one page.

    manifest -> plan -> workers over shards (fetch, decode, infer, encode, commit) -> summaries -> report

A run plans, executes what is left and plans again, until nothing is left or two rounds gained nothing.
The plan is what the pinned manifest holds minus what lies under labels/; there is no other ledger, so a
run that was killed anywhere goes on with the same command.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from annotator.cluster import Cluster
from annotator.errors import JobError, StorageError
from annotator.job import Job
from annotator.labels.status import last_rate
from annotator.logs import log_shard
from annotator.metrics import Measured
from annotator.planning import Plan, make_plan
from annotator.preflight import Ready, preflight
from annotator.probing import probe_left
from annotator.report import Report, Reporter, Watcher, left_over
from annotator.rounds import Patience, Rounds
from annotator.shards import committed
from annotator.storage import Storage
from annotator.summary import Summary
from annotator.tasks import load_task
from annotator.watch import Silent

ROUND_SHARDS = 100_000
"""Shards a round takes on at most: bounds the driver's memory; the next round takes the next ones."""


def plan(
    job: Job,
    *,
    limit: int | None = None,
    probe: int | None = None,
    price_per_gpu_hour: float | None = None,
    ray: bool = True,
    address: str | None = None,
) -> Plan:
    """Return what a run of this job would do, with a forecast of bytes and time; without `probe` writes nothing.

    limit     keep the first shards that hold that many rows
    probe     label so many of the rows left, drawn by chance, where a worker would run (`ray`, `address`: as in `run`),
              throw the labels away, and foretell from them images/s, GPU hours, price and bytes (`Plan.forecast`)
    price_per_gpu_hour   what the forecast's price is worked out from

    Raises what `run` would raise before it starts; JobError for a price without a probe.
    """
    if price_per_gpu_hour is not None and probe is None:
        raise JobError("price_per_gpu_hour tells nothing without a probe, which measures the hours; add --probe 64")
    ready = preflight(job, write=False)
    left = plan_left(ready, limit)
    rate = last_rate(Storage(options=job.storage), ready.job.output)
    left = replace(left, row_bytes=sum(load_task(name).row_bytes for name in left.tasks_left), images_per_s=rate)
    if probe is None or left.is_done:
        return left
    forecast = probe_left(ready, left, probe, ray=ray, address=address, price_per_gpu_hour=price_per_gpu_hour)
    return replace(left, forecast=forecast)


def run(
    job: Job,
    *,
    ray: bool = True,
    address: str | None = None,
    limit: int | None = None,
    watcher: Watcher | None = None,
    price_per_gpu_hour: float | None = None,
) -> Report:
    """Label what the job's output lacks; return the report of this run.

    ray       run the workers on Ray (a cluster at `address`, else one of our own that is gone afterwards);
              False: one worker in this process
    limit     take only the first shards that hold so many manifest rows
    watcher   is told of the progress
    price_per_gpu_hour   what the report works out the cost of a million images from

    Raises InvalidInputError or FingerprintMismatchError before any work; IncompleteRunError when shards are
    left over, BudgetExceededError, or StorageError when storage is gone. What is committed stays, always.
    """
    ready = preflight(job)
    storage = Storage(options=ready.job.storage)
    storage.sweep(ready.job.output)
    watcher = _watcher(watcher, ray=ray)
    with (
        Reporter(ready.job, storage, watcher, records=ready.records, price_per_gpu_hour=price_per_gpu_hour) as reporter,
        Cluster(ready.job, address=address, local=not ray) as cluster,
    ):
        patience = Patience(reporter.waits)
        rounds = Rounds(patience)
        while True:
            left = patience.ask(lambda: plan_left(ready, limit))
            reporter.planned(left)
            if not rounds.go_on(len(left)):
                break
            for summary in execute(cluster, left, reporter.report.run_id, last_round=rounds.last):
                reporter.add(summary)
                log_shard(reporter.report.run_id, summary)
                rounds.add(summary)
                if summary.fatal:
                    raise StorageError(f"{summary.shard}: {summary.deferred}; what is done is committed: run again")
    if not left.is_done:
        raise left_over(left, reporter.report)
    return reporter.report


def _watcher(watcher: Watcher | None, *, ray: bool) -> Watcher:
    """Return the watcher, or nobody; on Ray, Prometheus looks on as well."""
    watcher = watcher or Silent()
    return Measured(watcher) if ray else watcher


def plan_left(ready: Ready, limit: int | None) -> Plan:
    """Return the shards that lack a label file of any task, fresh from storage."""
    storage, output = Storage(options=ready.job.storage), ready.job.output
    left = make_plan(ready.manifest, tuple(ready.job.tasks), lambda t, key: committed(storage, output, t, key))
    return left if limit is None else left.within(limit)


def execute(cluster: Cluster, left: Plan, seed: str, *, last_round: bool) -> Iterator[Summary]:
    """Yield a summary for each shard of a round, as workers finish them, in an order shuffled by `seed`."""
    shards = list(left.shards(seed, limit=ROUND_SHARDS))
    yield from cluster.label(shards, left.tasks_left, last_round=last_round)
