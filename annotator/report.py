"""The report of a run: what a person sees while it goes on, and what is kept of it.

Everything is added up from the workers' summaries. `_annotator/runs/<run id>.json` is rewritten every
30 seconds, so `annotator status` knows about a run from any machine.
"""

from __future__ import annotations

import json
import secrets
import socket
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any, Protocol

from annotator.errors import BudgetExceededError, IncompleteRunError, StorageError, redact
from annotator.fingerprint import TaskRecord
from annotator.forecast import Actual, Comparison, Forecast, compare, make_setting, read_forecast
from annotator.job import Job
from annotator.pace import Pace, slowest
from annotator.planning import Plan
from annotator.storage import Storage, join
from annotator.summary import Summary, add_counts

RECORD_EVERY_S = 30.0

_MIN_BUDGET_ROWS = 1000
"""Rows seen before the failure budget is judged: one bad shard must not end a run."""


def new_run_id() -> str:
    """Return a run id that sorts by time and that two drivers never share."""
    return f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S.%fZ}-{secrets.token_hex(3)}"


@dataclass(kw_only=True, slots=True)
class Report:
    """What a run did. `state` is running | done | incomplete | interrupted | failed.

    random      tasks whose weights are random, so that their labels mean nothing
    retried     error classes that `annotator retry` took up; then rows tried again are counted, as they are now
    images      manifest rows labelled by this run (each counted once, whatever the number of tasks)
    found       manifest rows whose labels turned out to be there: another driver made them, or a worker of
                this run that died before it could tell; they are in no other count
    statuses    label rows by status, by task, of the files this run created
    errors      label rows by error class
    stages      (wall, CPU) seconds, wall summed over threads; copy, forward and post-process are the device's
    images_per_s  since the first shard came back
    workers     processes that labelled a shard, in the round that had most
    cpu_s       of the workers, from their start, threads of libraries included
    device_idle   share of the time, each worker's first shard left out, in which devices had nothing to do
    efficiency  speed as a share of that of forward passes alone, which each worker measured when it started
    slowest     the stage that holds the run up
    devices     what the workers compute on
    gpu_hours   of all workers, each from when it was ready to its last shard; one without a GPU counts as one
    cost_per_million_images   at `price_per_gpu_hour` and the present speed, in the price's currency
    forecast    how far off the output's latest forecast was (`annotator plan --probe`); None without one
    deferred    why shards were put off, by shard key; emptied when a later round does them
    """

    run_id: str
    state: str = "running"
    random: tuple[str, ...] = ()
    retried: tuple[str, ...] = ()
    started: str = ""
    seconds: float = 0.0
    images: int = 0
    found: int = 0
    images_left: int = 0
    shards: int = 0
    shards_left: int = 0
    rounds: int = 0
    statuses: dict[str, dict[str, int]] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    bytes_in: int = 0
    bytes_out: int = 0
    stages: dict[str, tuple[float, float]] = field(default_factory=dict)
    deferred: dict[str, str] = field(default_factory=dict)
    images_per_s: float = 0.0
    workers: int = 0
    cpu_s: float = 0.0
    bytes_to_host: int = 0
    peak_host_bytes: int = 0
    peak_device_bytes: int = 0
    device_idle: float | None = None
    efficiency: float | None = None
    slowest: str | None = None
    devices: tuple[str, ...] = ()
    gpu_hours: float = 0.0
    price_per_gpu_hour: float | None = None
    cost_per_million_images: float | None = None
    forecast: Comparison | None = None

    @property
    def bad_rows(self) -> int:
        """Label rows that are neither ok nor no_person."""
        return sum(n for by in self.statuses.values() for s, n in by.items() if s not in ("ok", "no_person"))

    def add(self, summary: Summary) -> None:
        """Take a worker's summary in."""
        if summary.deferred is not None:
            self.deferred[summary.shard.key] = summary.deferred
            return
        self.deferred.pop(summary.shard.key, None)
        if not summary.created and not summary.retried:
            self.found += summary.shard.end - summary.shard.first
            return
        self.images += summary.rows
        self.shards += bool(summary.created)
        self.statuses = add_counts(self.statuses, summary.statuses)
        self.errors = dict(sorted((Counter(self.errors) + Counter(summary.errors)).items()))
        self.bytes_in += summary.bytes_in
        self.bytes_out += summary.bytes_out
        for name, (wall, cpu) in summary.stages.items():
            before = self.stages.get(name, (0.0, 0.0))
            self.stages[name] = (before[0] + wall, before[1] + cpu)

    def measure(self, pace: Pace, gpus_per_worker: float) -> None:
        """Take in how fast the run goes; a worker without a GPU is priced as one."""
        self.workers, self.cpu_s, self.bytes_to_host = pace.workers, round(pace.cpu_s, 3), pace.bytes_to_host
        self.peak_host_bytes, self.peak_device_bytes = pace.peak_host_bytes, pace.peak_device_bytes
        self.device_idle, self.efficiency = pace.idle, pace.efficiency
        self.stages |= pace.device_stages
        self.devices, self.gpu_hours = pace.devices, pace.worker_s / 3600 * (gpus_per_worker or 1)
        self.slowest = slowest(self.stages, self.device_idle)
        if self.price_per_gpu_hour is not None and self.images_per_s:
            price_s = self.price_per_gpu_hour / 3600 * (gpus_per_worker or 1) * self.workers
            self.cost_per_million_images = round(price_s / self.images_per_s * 1e6, 2)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        names = [name for name in self.__slots__ if isinstance(name, str)]
        return {name: getattr(self, name) for name in names} | {"forecast": self.forecast and asdict(self.forecast)}


def left_over(left: Plan, report: Report) -> IncompleteRunError:
    """Return the error that says which shards were not done, and why."""
    names = [shard.key for shard in left.shards(report.run_id, limit=5)]
    reasons = [f"{key}: {report.deferred.get(key, 'its worker died')}" for key in names]
    more = f" and {len(left) - len(names)} more" if len(left) > len(names) else ""
    state, again = ("left as they were", "retry") if report.retried else ("left over", "run")
    return IncompleteRunError(f"{len(left)} shards are {state}: {'; '.join(reasons)}{more}; {again} again to go on")


class Watcher(Protocol):
    """Somebody who looks on: the terminal, a log, a test."""

    def planned(self, plan: Plan, report: Report) -> None:
        """A round begins."""

    def progressed(self, report: Report) -> None:
        """A shard came back."""

    def waiting(self, seconds: float, why: str) -> None:
        """Storage is in trouble, and the run waits for so long."""

    def ended(self, report: Report) -> None:
        """The run is over, whatever the reason."""


class Reporter:
    """Keeps the report, its record in storage and the watcher up to date. Use as a context manager."""

    def __init__(
        self,
        job: Job,
        storage: Storage,
        watcher: Watcher,
        *,
        records: Mapping[str, TaskRecord] | None = None,
        retried: tuple[str, ...] = (),
        price_per_gpu_hour: float | None = None,
    ) -> None:
        self._records = records or {}
        started = f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}"
        self.report = Report(
            run_id=new_run_id(),
            started=started,
            random=tuple(name for name, record in self._records.items() if record.is_random),
            retried=retried,
            price_per_gpu_hour=price_per_gpu_hour,
        )
        self._job, self._storage, self._watcher = job, storage, watcher
        self._start = time.monotonic()
        self._pace = Pace()
        self._forecast: Forecast | None = None
        self._recorded: float | None = None
        self._first: tuple[float, int] | None = None  # seconds and images when the first shard came back

    def planned(self, plan: Plan) -> None:
        """A round begins with this much left."""
        if self.report.rounds and not self.report.retried:
            self.report.found += max(0, self.report.images_left - plan.rows_left)
        self.report.images_left, self.report.shards_left = plan.rows_left, len(plan)
        if not plan.is_done:
            if not self.report.rounds and not self.report.retried:
                with suppress(StorageError):  # it only informs
                    self._forecast = read_forecast(self._storage, self._job.output)
            self.report.rounds += 1
            self._pace.next_round()
            self._watcher.planned(plan, self.report)
            self._record(force=True)

    def add(self, summary: Summary) -> None:
        """Take a summary in. Raises BudgetExceededError when bad rows are clearly beyond the job's budget."""
        report = self.report
        report.add(summary)
        report.seconds = time.monotonic() - self._start
        report.images_per_s = round(self._rate(), 2)
        if summary.work is not None:
            self._pace.add(summary.work)
            report.measure(self._pace, self._job.gpus_per_worker or 0)
        if summary.done:
            report.shards_left -= 1
            report.images_left -= summary.images
        self._watcher.progressed(report)
        self._record()
        self._check_budget()

    def waits(self, seconds: float, why: str) -> None:
        """Storage is in trouble, and the run waits for so long before it goes on."""
        self._watcher.waiting(seconds, redact(why))

    def _rate(self) -> float:
        """Return images a second, the start of Ray and the loading of models left out where that can be told."""
        report = self.report
        if self._first is None:
            self._first = report.seconds, report.images
            return report.images / report.seconds if report.seconds else 0.0
        seconds, images = report.seconds - self._first[0], report.images - self._first[1]
        return images / seconds if seconds > 0 else 0.0

    def _check_budget(self) -> None:
        rows = sum(n for by in self.report.statuses.values() for n in by.values())
        budget = 1.0 if self.report.retried else self._job.failure_budget  # rows tried again were bad before
        if rows >= _MIN_BUDGET_ROWS and _lower_bound(self.report.bad_rows, rows) > budget:
            raise BudgetExceededError(
                f"{self.report.bad_rows} of {rows} label rows are bad ({self.report.errors}), clearly more than "
                f"failure_budget = {budget:g}; everything good is committed. Look at the rows' `error`, then raise "
                "failure_budget or mend the input, and run again"
            )

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        report = self.report
        report.seconds = time.monotonic() - self._start
        if kind is None:
            report.state = "done" if not report.shards_left else "incomplete"
        else:
            report.state = "interrupted" if issubclass(kind, KeyboardInterrupt) else "failed"
        if self._forecast is not None and report.images:
            report.forecast = compare(self._forecast, self._actual())
        try:
            if self._recorded is not None:  # a run that found nothing to do leaves nothing behind
                self._record(force=True)
        finally:
            self._watcher.ended(report)

    def _actual(self) -> Actual:
        """Return what this run took, in the terms of a forecast."""
        report = self.report
        digests = {name: self._records[name].fingerprint_digest for name in report.statuses}
        device = " and ".join(report.devices)
        return Actual(
            setting=make_setting(self._job, digests, device=device, workers=report.workers),
            rows=report.images,
            shards=report.shards,
            worker_s=self._pace.worker_s,
            bytes_out=report.bytes_out,
            price_per_gpu_hour=report.price_per_gpu_hour,
        )

    def _record(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if not force and self._recorded is not None and now - self._recorded < RECORD_EVERY_S:
            return
        self._recorded = now
        record = self.report.to_dict() | {
            "job": json.loads(redact(self._job.model_dump_json())),
            "host": socket.gethostname(),
            "updated": f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}",
        }
        uri = join(self._job.output, "_annotator", "runs", f"{self.report.run_id}.json")
        with suppress(StorageError):  # it only informs: labels matter more, and the next one comes in 30 s
            self._storage.replace((json.dumps(record, indent=1) + "\n").encode(), uri, output=self._job.output)


def _lower_bound(bad: int, rows: int) -> float:
    """Return the lower end of the 99.9 % confidence interval of the bad share.

    Source: Wilson, "Probable inference", JASA 22 (1927), with z = 3.09.
    """
    z2, share = 3.09**2, bad / rows
    middle = share + z2 / (2 * rows)
    spread = (z2 * (share * (1 - share) / rows + z2 / (4 * rows**2))) ** 0.5
    return float((middle - spread) / (1 + z2 / rows))
