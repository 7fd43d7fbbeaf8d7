"""Retry: bad rows labelled again, in the label files that are there.

    label files -> shards with such rows -> workers (their rows, label files replaced) -> summaries -> report

Only what a person asked for is done again. A label file is replaced whole, if it is still the one that was read;
good rows are copied bit for bit. So it may be killed anywhere, and run beside itself and beside a run.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from annotator.cluster import Cluster
from annotator.errors import JobError, StorageError
from annotator.job import Job
from annotator.labels.bad_rows import choose_tasks, plan_bad
from annotator.labels.last_job import last_job
from annotator.pipeline import ROUND_SHARDS
from annotator.planning import Plan
from annotator.preflight import Ready, preflight
from annotator.report import Report, Reporter, Watcher, left_over
from annotator.rounds import Patience, Rounds
from annotator.shards import Shard
from annotator.storage import Storage, normalize
from annotator.watch import Silent


def retry(
    output: str,
    errors: Collection[str],
    *,
    tasks: Collection[str] = (),
    job: Job | None = None,
    ray: bool = True,
    address: str | None = None,
    watcher: Watcher | None = None,
) -> Report:
    """Label the rows again that have one of these error classes; return the report: rows tried, as they are now.

    tasks     whose label files are looked at; default all of the job's
    job       default: that of the output's newest run. Limits, storage and machines may differ from it, what
              labels depend on may not
    ray, address, watcher    as in `run`

    Other rows stay bit for bit as they are; a row that fails again says why it did this time.
    Raises what `run` raises: before any work for a job that does not fit, IncompleteRunError for shards left over.
    """
    errors = tuple(dict.fromkeys(error.strip() for error in errors if error.strip()))
    if not errors:
        raise JobError("name the error classes to try again, such as fetch_timeout; `annotator errors` lists them")
    output = normalize(output)
    job = last_job(output) if job is None else job
    if normalize(job.output) != output:
        raise JobError(f"the job's output is {job.output}, not {output}; name the job that made these labels")
    ready = preflight(job, write=False)
    storage = Storage(options=ready.job.storage)
    storage.sweep(output)
    with (
        Reporter(ready.job, storage, watcher or Silent(), records=ready.records, retried=errors) as reporter,
        Cluster(ready.job, address=address, local=not ray, redo=frozenset(errors)) as cluster,
    ):
        patience = Patience(reporter.waits)
        rounds = Rounds(patience)
        left = patience.ask(lambda: _plan(ready, storage, tasks, errors))
        reporter.planned(left)
        while rounds.go_on(len(left)):
            done: set[Shard] = set()
            shards = list(left.shards(reporter.report.run_id, limit=ROUND_SHARDS))
            for summary in cluster.label(shards, left.tasks_left, last_round=rounds.last):
                reporter.add(summary)
                rounds.add(summary)
                if summary.fatal:
                    raise StorageError(f"{summary.shard}: {summary.deferred}; what is done is kept: retry again")
                done.update([summary.shard] if summary.done else [])
            left = replace(left.without(done), rows_left=max(0, reporter.report.images_left))
            reporter.planned(left)
    if not left.is_done:
        raise left_over(left, reporter.report)
    return reporter.report


def _plan(ready: Ready, storage: Storage, tasks: Collection[str], errors: tuple[str, ...]) -> Plan:
    """Return the shards to do again. Raises JobError when some need a task that the job lacks."""
    chosen = choose_tasks(storage, ready.job.output, tasks)
    left = plan_bad(storage, ready.job.output, ready.manifest, chosen, errors)
    lacking = [name for name in left.tasks_left if name not in ready.job.tasks]
    if lacking:
        raise JobError(
            f"{ready.job.output}: has such rows of {', '.join(lacking)}, which the job does not label; "
            "name the job file that does, or the tasks to try again"
        )
    return left
