"""How results are printed: JSON for machines, a few plain lines or a table for people."""

from __future__ import annotations

import dataclasses
import json as jsonlib
import shlex
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from functools import singledispatch
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from annotator.checkup import Checkup
from annotator.estimate import CONFIDENCE, Estimate
from annotator.forecast import NOT_COVERED, Comparison, Forecast
from annotator.labels.bad_rows import BadRows
from annotator.labels.findings import TaskSample, VerifyReport
from annotator.labels.query import json_value
from annotator.labels.status import StatusReport
from annotator.manifest_build import Built
from annotator.manifest_check import ManifestCheck
from annotator.models.config import CheckpointInfo
from annotator.planning import Plan
from annotator.report import Report
from annotator.submit import Jobs, Submitted

_MAX_PROBLEMS = 20
_MAX_ROWS, _MAX_CELL, _MAX_NESTED, _MIN_CELL = 40, 60, 40, 12
_MANY_BYTES = 10 * 10**12
_NAMES = {"images_per_s": "images/s", "gpu_hours": "GPU hours", "price": "price", "bytes": "bytes of labels"}


def show(result: Any, json: bool = False) -> None:
    """Print a result on standard output."""
    if json:
        print(jsonlib.dumps(plain(result), indent=1))
    else:
        describe(result)


def plain(value: Any) -> Any:
    """Return the value as JSON has it: dataclasses as objects with their properties, enums as values."""
    if isinstance(value, pa.Table):
        return json_value(value.to_pylist())
    if hasattr(value, "to_dict"):
        return plain(value.to_dict())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        properties = [n for n, p in vars(type(value)).items() if isinstance(p, property) and not n.startswith("_")]
        names = [f.name for f in dataclasses.fields(value)] + properties
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(v) for v in value]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, np.generic):
        return value.item()
    return str(value) if isinstance(value, Path) else value


@singledispatch
def describe(result: Any) -> None:
    """Print a result for people; this one prints `name: value` lines of any dataclass."""
    for name, value in plain(result).items():
        print(f"{name}: {_words(value)}")


@describe.register
def _(report: Report) -> None:
    if report.state == "done" and not report.rounds:
        nothing = "no label row has these errors" if report.retried else "every image asked for has its labels"
        print(f"nothing to do: {nothing}")
        return
    if report.random:
        print(f"RANDOM weights: {', '.join(report.random)}; these labels mean nothing")
    if report.retried:
        _describe_retry(report)
        return
    print(f"{report.state}: {report.images} images in {report.seconds:.1f} s, {report.images_per_s:.1f} images/s")
    if report.found:
        print(f"{report.found} more were found labelled: by another driver, or by a worker that died before it told")
    _table(("task", "rows", "by status"), _status_rows(report.statuses))
    if report.errors:
        print(f"errors: {_words(report.errors)}")
    print(f"read {_bytes(report.bytes_in)}, wrote {_bytes(report.bytes_out)}, {report.shards} shards")
    for line in _pace_lines(report):
        print(line)
    if report.forecast is not None:
        _describe_comparison(report.forecast)
    stages = [(name, f"{wall:.2f}", f"{cpu:.2f}") for name, (wall, cpu) in report.stages.items()]
    _table(("stage", "wall s, all threads", "CPU s"), stages)


def _describe_retry(report: Report) -> None:
    rows = sum(n for by in report.statuses.values() for n in by.values())
    print(f"{report.state}: {report.images} images tried again, label files of {report.shards} shards replaced")
    print(f"{rows - report.bad_rows} of {rows} label rows mended; still bad: {_words(report.errors)}")
    _table(("task", "rows", "by status"), _status_rows(report.statuses))


@describe.register
def _(found: BadRows) -> None:
    if found.unreadable:
        print(f"WARNING: {found.unreadable} label files can't be read; `annotator verify` says why")
    if not found.groups:
        print("no bad row")
        return
    rows = [(g.task, g.status, g.error_class, str(g.rows)) for g in found.groups]
    _table(("task", "status", "error class", "rows"), rows)
    for group in found.groups:
        for row in group.examples:
            print(f"{group.task} {group.error_class}, {row.shard} row {row.row}, {row.uri}: {row.error}")


@describe.register
def _(plan: Plan) -> None:
    if plan.is_done:
        print("nothing to do: every image asked for has its labels")
        return
    print(f"{plan.rows_left} images in {len(plan)} shards left, of {plan.rows_total} in {plan.total}")
    print(f"tasks: {', '.join(plan.tasks)}; left: {', '.join(plan.tasks_left)}")
    if plan.forecast is not None:
        _describe_forecast(plan.forecast)
    else:
        time = "unknown before a first run; try --probe 64"
        if plan.seconds_left is not None:
            time = f"about {_duration(plan.seconds_left)} at the latest run's {plan.images_per_s:g} images/s"
        print(f"labels: about {_bytes(plan.bytes_left)}, if images are about 1024x768; time: {time}")
    if (plan.forecast.predicted["bytes"].value if plan.forecast else plan.bytes_left) > _MANY_BYTES:
        print(f"WARNING: more than {_bytes(_MANY_BYTES)} of labels; see label_size, max_label_pixels and background")


def _describe_forecast(forecast: Forecast) -> None:
    setting = forecast.setting
    workers = f"{setting.workers} worker{'s' if setting.workers > 1 else ''}"
    print(f"forecast, from {forecast.probed} of {forecast.rows} images drawn by chance: {workers} on {setting.device}")
    if forecast.errors:
        print(f"WARNING: some could not be labelled: {_words(forecast.statuses)}; errors: {_words(forecast.errors)}")
    rows = [(_NAMES[name], *_interval(name, estimate)) for name, estimate in forecast.predicted.items()]
    rows.append(("time", *_interval("time", forecast.seconds)))
    _table(("", "predicted", f"{CONFIDENCE:.0%} interval"), rows)
    print(f"a worker is ready after {forecast.start_s:.1f} s; neither that is counted, nor {', '.join(NOT_COVERED)}")
    for note in forecast.notes:
        print(f"note: {note}")


def _describe_comparison(found: Comparison) -> None:
    if found.differs:
        print(f"the forecast of {found.made} was for something else: {'; '.join(found.differs)}")
        return
    rows = [
        (
            _NAMES[name],
            *_interval(name, hit.predicted),
            _amount(name, hit.actual),
            "-" if hit.off is None else f"{hit.off:+.0%}",
            {None: "no interval", True: "yes", False: "NO"}[hit.within],
        )
        for name, hit in found.hits.items()
    ]
    _table((f"forecast of {found.made}", "predicted", f"{CONFIDENCE:.0%} interval", "was", "off by", "within"), rows)


def _interval(name: str, estimate: Estimate) -> tuple[str, str]:
    """Return an estimate for a table: its value, and the ends of its interval."""
    low, high = (None if x is None else _amount(name, x) for x in (estimate.low, estimate.high))
    ends = "unknown" if low is None and high is None else f"{low or '?'} to {high or '?'}"
    return _amount(name, estimate.value), ends


def _amount(name: str, value: float) -> str:
    if name == "bytes":
        return _bytes(round(value))
    return _duration(value) if name == "time" else f"{value:.3g}" if value < 100 else f"{value:,.0f}"


@describe.register
def _(report: StatusReport) -> None:
    rows = [
        (
            _title(t.task, t.random),
            f"{t.shards}/{t.shards_total}",
            f"{t.rows}/{t.rows_total or '?'}",
            _words(t.statuses),
        )
        for t in report.tasks
    ]
    _table(("task", "shards", "rows", "by status"), rows)
    for run in report.runs:
        rate = f", {run.images_per_s:.1f} images/s" if run.images_per_s else ""
        again = f"retry of {', '.join(run.record['retried'])}: " if run.record.get("retried") else ""
        print(f"run {run.run_id}: {again}{run.state}, last heard of {run.updated}{rate}")


@describe.register
def _(report: VerifyReport) -> None:
    rows = [
        (_title(t.task, t.random), f"{t.shards}/{t.shards_expected}", str(t.rows), _words(t.statuses))
        for t in report.tasks
    ]
    _table(("task", "shards", "rows", "by status"), rows)
    _table(("labelled anew", "rows", "equal", "worst", "limit", "of"), map(_sample_row, report.sample))
    for problem in report.problems[:_MAX_PROBLEMS]:
        print(f"{problem.kind}: {problem.where}: {problem.message}")
    if report.unused.files:
        size = _bytes(report.unused.num_bytes)
        print(f"{report.unused.files} tar files ({size}) that no label file names, the first {report.unused.paths[0]}")
    if report.ok:
        print("verified: every manifest row is labelled exactly once")
    else:
        print(f"NOT verified: {_words(report.counts)}")


@describe.register
def _(built: Built) -> None:
    for name, value in plain(built).items():
        if name != "root":
            print(f"{name}: {_words(value)}")
    if built.root == "/":
        print("they lie in folders that share none but /: name them to `annotator run`, each with --root")
    elif built.root is not None:
        print(f"they lie outside of the manifest's folder: add --root {shlex.quote(built.root)} to `annotator run`")


@describe.register
def _(check: ManifestCheck) -> None:
    print(f"{check.rows} rows in {check.files} files")
    for finding in check.problems:
        print(f"{'warning: ' if finding.warning else ''}{finding.kind}: {finding.where}: {finding.message}")
    print("ready to be labelled" if check.ok else "NOT ready: mend what is listed")


@describe.register
def _(info: CheckpointInfo) -> None:
    for name, value in plain(info).items():
        if name == "config":
            for key, setting in value.items():
                print(f"{key}: {_words(setting)}")
        else:
            print(f"{name}: {_words(value)}")
    if info.random:
        print("these weights are RANDOM: the labels they give mean nothing")


@describe.register
def _(checkup: Checkup) -> None:
    header = ("machine", "Python", "Ray", "torch", "annotator", "CPUs", "GPUs", "free for checkpoints", "for the spool")
    rows = [
        (m.host, m.python, m.ray, m.torch, m.annotator, str(m.cpus), _words(m.gpus), *map(_bytes, m.free))
        for m in checkup.machines
    ]
    _table(header, rows)
    if checkup.exclusive:
        print(f"output: of {checkup.tries} tries at once to create one object exactly one won")
    for finding in checkup.problems:
        print(f"{'warning: ' if finding.warning else ''}{finding.kind}: {finding.where}: {finding.message}")
    print("fit to run" if checkup.ok else "NOT fit to run: mend what is listed")


@describe.register
def _(submitted: Submitted) -> None:
    print(f"submitted {submitted.id}, with annotator {submitted.package}")
    for command in submitted.commands:
        print(f"  {command}")


@describe.register
def _(table: pa.Table) -> None:
    width = Console().width
    names: list[str] = table.schema.names
    more: list[str] = []
    while len(names) > 1 and sum(max(len(name), _MIN_CELL) + 2 for name in names) > width:
        names, more = names[:-1], [names[-1], *more]
    rows = table.select(range(len(names))).slice(0, _MAX_ROWS)
    columns = [[_cell(value) for value in column.to_pylist()] for column in rows.columns]
    _table(names, zip(*columns, strict=True))
    print(f"{table.num_rows} {'row' if table.num_rows == 1 else 'rows'}", end="")
    print(f", the first {_MAX_ROWS} are shown" if table.num_rows > _MAX_ROWS else "", end="")
    print(f"; not shown: {', '.join(more)[:400]}" if more else "")


def _cell(value: Any) -> str:
    """Return one value for a table: short, on one line."""
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
        return _cell(value["bytes"] if value["bytes"] is not None else value["path"])
    if isinstance(value, dict):
        return _cut("{" + ", ".join(f"{k}: {_cell(v)}" for k, v in value.items()) + "}", _MAX_NESTED)
    if isinstance(value, list):
        return _cut("[" + ", ".join(_cell(v) for v in value[:_MAX_NESTED]) + "]", _MAX_NESTED)
    return "" if value is None else _cut(" ".join(str(value).split()), _MAX_CELL)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


@describe.register
def _(found: Jobs) -> None:
    rows = [(job.id, job.status, job.started or "", job.ended or "", job.output) for job in found.jobs]
    _table(("id", "status", "started", "ended", "output"), rows)
    if not rows:
        print("no jobs of annotator on this cluster")


@describe.register(list)
@describe.register(tuple)
def _(results: Sequence[Any]) -> None:
    if not results:
        print("nothing found")
        return
    rows = [plain(result) for result in results]
    _table(tuple(rows[0]), ([_words(v) for v in row.values()] for row in rows))


def _pace_lines(report: Report) -> Iterator[str]:
    """Yield what is known of how near to the hardware's limit a run went."""
    if report.slowest:
        idle = "" if report.device_idle is None else f"; devices idle {report.device_idle:.0%} of the time"
        workers = f"{report.workers} worker{'s' if report.workers > 1 else ''}"
        yield f"{workers}, {report.cpu_s:.1f} CPU s; slowest stage: {report.slowest}{idle}"
    if report.efficiency is not None:
        yield f"efficiency {report.efficiency:.2f}: the speed as a share of that of forward passes alone"
    if report.peak_host_bytes:
        device = f", {_bytes(report.peak_device_bytes)} of its device" if report.peak_device_bytes else ""
        yield f"a worker held at most {_bytes(report.peak_host_bytes)} of memory{device}"
    if report.cost_per_million_images is not None:
        yield f"{report.cost_per_million_images:.2f} for a million images at {report.price_per_gpu_hour:g} a GPU hour"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(*header, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    if table.row_count:
        Console(markup=False, highlight=False).print(table)


def _title(task: str, random: bool) -> str:
    return f"{task} (random weights)" if random else task


def _sample_row(sample: TaskSample) -> tuple[str, ...]:
    limit = "any" if sample.limit is None else f"{sample.limit:g}"
    return sample.task, str(sample.rows), str(sample.equal), f"{sample.worst:.4g}", limit, sample.measure or ""


def _status_rows(statuses: dict[str, dict[str, int]]) -> list[tuple[str, str, str]]:
    return [(task, str(sum(by.values())), _words(by)) for task, by in statuses.items()]


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_words(v)}" for k, v in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(_words(v) for v in value) or "none"
    return "none" if value is None else str(value)


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
