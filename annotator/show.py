"""How results are printed: JSON for machines, a few plain lines or a table for people."""

from __future__ import annotations

import dataclasses
import json as jsonlib
from collections.abc import Iterable, Sequence
from enum import Enum
from functools import singledispatch
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from annotator.labels.status import StatusReport
from annotator.labels.verify import VerifyReport
from annotator.manifest_check import ManifestCheck
from annotator.models.config import CheckpointInfo
from annotator.planning import Plan
from annotator.report import Report

_MAX_PROBLEMS = 20
_MANY_BYTES = 10 * 10**12


def show(result: Any, json: bool = False) -> None:
    """Print a result on standard output."""
    if json:
        print(jsonlib.dumps(plain(result), indent=1))
    else:
        describe(result)


def plain(value: Any) -> Any:
    """Return the value as JSON has it: dataclasses as objects with their properties, enums as values."""
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
        print("nothing to do: every image asked for has its labels")
        return
    if report.random:
        print(f"RANDOM weights: {', '.join(report.random)}; these labels mean nothing")
    print(f"{report.state}: {report.images} images in {report.seconds:.1f} s, {report.images_per_s:.1f} images/s")
    _table(("task", "rows", "by status"), _status_rows(report.statuses))
    if report.errors:
        print(f"errors: {_words(report.errors)}")
    print(f"read {_bytes(report.bytes_in)}, wrote {_bytes(report.bytes_out)}, {report.shards} shards")
    stages = [(name, f"{wall:.2f}", f"{cpu:.2f}") for name, (wall, cpu) in report.stages.items()]
    _table(("stage", "wall s, all threads", "CPU s"), stages)


@describe.register
def _(plan: Plan) -> None:
    if plan.is_done:
        print("nothing to do: every image asked for has its labels")
        return
    print(f"{plan.rows_left} images in {len(plan)} shards left, of {plan.rows_total} in {plan.total}")
    print(f"tasks: {', '.join(plan.tasks)}; left: {', '.join(plan.tasks_left)}")
    time = "unknown before a first run; try --limit"
    if plan.seconds_left is not None:
        time = f"about {_duration(plan.seconds_left)} at the latest run's {plan.images_per_s:g} images/s"
    print(f"labels: about {_bytes(plan.bytes_left)}, if images are about 1024x768; time: {time}")
    if plan.bytes_left > _MANY_BYTES:
        print(f"WARNING: more than {_bytes(_MANY_BYTES)} of labels; see label_size, max_label_pixels and background")


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
        print(f"run {run.run_id}: {run.state}, last heard of {run.updated}{rate}")


@describe.register
def _(report: VerifyReport) -> None:
    rows = [
        (_title(t.task, t.random), f"{t.shards}/{t.shards_expected}", str(t.rows), _words(t.statuses))
        for t in report.tasks
    ]
    _table(("task", "shards", "rows", "by status"), rows)
    for problem in report.problems[:_MAX_PROBLEMS]:
        print(f"{problem.kind}: {problem.where}: {problem.message}")
    if report.ok:
        print("verified: every manifest row is labelled exactly once")
    else:
        print(f"NOT verified: {_words(report.counts)}")


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


@describe.register(list)
@describe.register(tuple)
def _(results: Sequence[Any]) -> None:
    if not results:
        print("nothing found")
        return
    rows = [plain(result) for result in results]
    _table(tuple(rows[0]), ([_words(v) for v in row.values()] for row in rows))


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(*header, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    if table.row_count:
        Console(markup=False, highlight=False).print(table)


def _title(task: str, random: bool) -> str:
    return f"{task} (random weights)" if random else task


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
