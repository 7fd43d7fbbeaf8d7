"""What a task is. The file name is the registration: `tasks/seg.py` defines `TASK`, and that is all.

A task says what its network sees, how the network's output becomes a label on the device, how the label
becomes table columns on the host, and what those columns mean. Nothing here or in a task's file loads
torch when imported, so planning and status stay quick.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from annotator.errors import JobError, TaskNotFoundError
from annotator.job import Job, TaskOptions, parse

if TYPE_CHECKING:
    from torch import Tensor

    from annotator.geometry import Geometry

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One kind of label; see `tasks/seg.py` for the pattern.

    name      folder under `labels/`
    version   of everything below that changes values; part of the fingerprint
    options   the task's own options
    values    names of the options that change label values; part of the fingerprint
    channels  checks a head's channel count; returns what is expected when it is wrong, else None
    needs     the tasks whose labels of the same image this one reads
    fields    the task's columns, for these options and this channel count
    meaning   units, axes, taxonomy, licence: published with every label
    decode    network output (C, h, w), float, on the device -> label tensors on the device
    encode    those tensors as arrays on the host, and those of the tasks it needs -> column values
    load      one row's columns -> the map (Y, X[, C]) in the stated unit
    paint     the map -> RGB uint8 (Y, X, 3) for people to look at
    """

    name: str
    version: int
    options: type[TaskOptions]
    values: tuple[str, ...]
    channels: Callable[[int], str | None]
    needs: Callable[[Any], tuple[str, ...]]
    fields: Callable[[Any, int], tuple[pa.Field, ...]]
    meaning: Callable[[Any, int], Mapping[str, Any]]
    decode: Callable[[Tensor, Geometry, Any], dict[str, Tensor]]
    encode: Callable[[Arrays, Any, Mapping[str, Arrays]], dict[str, Any]]
    load: Callable[[Mapping[str, Any]], np.ndarray]
    paint: Callable[[np.ndarray], np.ndarray]


def task_names() -> list[str]:
    """Return the names of the tasks in this package, sorted."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def load_task(name: str) -> Task:
    """Return the task called `name`, or that of your own module ("my_lab.hands").

    Raises TaskNotFoundError, naming the nearest known task.
    """
    module = name if "." in name else f"{__name__}.{name}"
    try:
        task = importlib.import_module(module).TASK
    except ModuleNotFoundError as err:
        if err.name is None or not module.startswith(err.name):
            raise
        near = difflib.get_close_matches(name, task_names(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known tasks: {', '.join(task_names())}"
        raise TaskNotFoundError(f"no task {name!r}; {hint}") from None
    assert isinstance(task, Task), f"{module}.TASK is not a Task"
    return task


def resolve(job: Job) -> dict[str, tuple[Task, Any]]:
    """Return task and checked options by name, in the order in which they depend on each other.

    Raises TaskNotFoundError, and JobError for a bad option or a task whose need is not in the job.
    """
    found = {n: (t := load_task(n), parse(t.options, o, f"tasks.{n}")) for n, o in job.tasks.items()}
    for name, (task, options) in found.items():
        for need in task.needs(options):
            if need not in found:
                raise JobError(f"tasks.{name}: needs task {need!r} in the same job; add it under tasks")
    ordered: dict[str, tuple[Task, Any]] = {}

    def visit(name: str) -> None:
        task, options = found[name]
        for need in task.needs(options):
            visit(need)
        ordered.setdefault(name, found[name])

    for name in found:
        visit(name)
    return ordered
