"""What a task is. The file name is the registration: `tasks/seg.py` defines `TASK`, and that is all.

A task says what its network sees, how the network's output becomes a label on the device, how the label
becomes table columns on the host, and what those columns mean. Nothing here or in a task's file loads
torch when imported, so planning and status stay quick.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from annotator.errors import JobError, TaskNotFoundError
from annotator.job import Job, TaskOptions, parse

if TYPE_CHECKING:
    from torch import Tensor

PERSON = "person"
"""The task, and the need, that says where people are: {"boxes": (N, 4) float32, "scores": (N,) float32}."""

BOXES_COLUMN = "boxes"
"""The manifest column that holds people's boxes: a list of x1, y1, x2, y2 in oriented pixels."""

Arrays = Mapping[str, np.ndarray]
Needs = Mapping[str, Sequence[Arrays]]
"""Label arrays of the same image that a task needs, by task: one entry an input of that task."""


@dataclass(frozen=True, slots=True)
class Input:
    """One picture that a network sees, uint8 RGB (H, W, 3), and what its task must know of where it lies."""

    pixels_HWC: np.ndarray
    geometry: Any


@dataclass(frozen=True, slots=True)
class Flaw:
    """A label that breaks its task's contract: the kind of problem, its index in the table, found and expected."""

    kind: str
    at: int
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """How far two ok labels of one image are apart, as one number that is 0 when they are equal.

    measure   what the number is, unit included
    between   two rows of columns, the stored one first -> the number
    limits    by dtype of the network: what another batch or another machine may change at most
    """

    measure: str
    between: Callable[[Mapping[str, Any], Mapping[str, Any]], float]
    limits: Mapping[str, float]


def _no_check(rows: pa.Table, fingerprint: Mapping[str, Any]) -> Iterator[Flaw]:
    yield from ()


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
    row_bytes bytes that a label row typically takes, for forecasts
    float32   the network runs in float32 whatever the job's precision
    inputs    image pixels, the whole image's size, the network's -> what the network sees, none to some
    infer     the model, a batch (B, H, W, 3) uint8 RGB -> output that `decode` understands, on the device
    decode    that output, the inputs' geometries -> label tensors an input, on the device
    encode    those as arrays on the host, one entry an input -> column values; may set `status`, and `error` to what
              it left out
    load      one row's columns -> the label as arrays, in the stated unit
    resize    a loaded map, another size (Y, X) -> the map at that size; None for labels that are no maps
    draw      picture of the image, RGB uint8 of any size; one ok row -> the label drawn, of the same size
    check     label rows of any status, the record's fingerprint -> what in them breaks `fields` and `meaning`
    drift     how labels made twice are compared; None: only whether they are equal
    """

    name: str
    version: int
    options: type[TaskOptions]
    values: tuple[str, ...]
    channels: Callable[[int], str | None]
    needs: Callable[[Any], tuple[str, ...]]
    fields: Callable[[Any, int], tuple[pa.Field, ...]]
    meaning: Callable[[Any, int], Mapping[str, Any]]
    row_bytes: int
    float32: bool = False
    inputs: Callable[[np.ndarray, tuple[int, int], tuple[int, int], Any, Needs], Iterable[Input]]
    infer: Callable[[Any, Tensor, Any], Any]
    decode: Callable[[Any, Sequence[Any], Any], list[dict[str, Tensor]]]
    encode: Callable[[Sequence[Arrays], tuple[int, int], Any, Needs], dict[str, Any]]
    load: Callable[[Mapping[str, Any]], Any]
    resize: Callable[[np.ndarray, tuple[int, int]], np.ndarray] | None = None
    draw: Callable[[np.ndarray, Mapping[str, Any]], np.ndarray]
    check: Callable[[pa.Table, Mapping[str, Any]], Iterable[Flaw]] = _no_check
    drift: Drift | None = None


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

    Options that depend on the other tasks get their values here. Raises TaskNotFoundError, and JobError for a
    bad option or a task whose need is not in the job.
    """
    found = {n: (t := load_task(n), parse(t.options, o, f"tasks.{n}")) for n, o in job.tasks.items()}
    source = people_source(job)
    for name, (task, options) in found.items():
        if getattr(options, "require_person", False) is None:
            found[name] = (task, options.model_copy(update={"require_person": source is not None}))
    for name, (task, options) in found.items():
        boxes = getattr(options, "boxes", None)
        if PERSON in found and boxes in ("manifest", "labels"):
            raise JobError(
                f"tasks.{name}.boxes is {boxes!r} and the job also finds people itself; "
                "set boxes: person, or leave the task person out"
            )
        for need in task.needs(options):
            if need not in found and not (need == PERSON and source):
                raise JobError(f"tasks.{name}: needs task {need!r} in the same job; add it under tasks")
    ordered: dict[str, tuple[Task, Any]] = {}

    def visit(name: str) -> None:
        if name not in found:
            return
        task, options = found[name]
        for need in task.needs(options):
            visit(need)
        ordered.setdefault(name, found[name])

    for name in found:
        visit(name)
    return ordered


def people_source(job: Job) -> str | None:
    """Return where the job knows people from: "person" (the detector), "manifest", "labels", or None."""
    if PERSON in job.tasks:
        return PERSON
    named = {options.get("boxes") for options in job.tasks.values()}
    return next((source for source in ("manifest", "labels") if source in named), None)
