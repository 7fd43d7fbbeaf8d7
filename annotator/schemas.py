"""The published contracts: a job as JSON Schema, a task's label columns. `schemas/` holds what this gives."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from annotator.envelope import label_schema
from annotator.job import Job
from annotator.tasks import Task, load_task, task_names

_EXAMPLE_CHANNELS = {"seg": 28, "normal": 3, "depth": 1, "person": 1, "pose": 308}  # as released (fact sheet 2.1)
_EXAMPLE_OPTIONS = {"pose": {"boxes": "person"}}


def schema(what: str = "job") -> dict[str, Any]:
    """Return the JSON Schema of a job, or a task's label columns with their types, units and frames.

    Raises TaskNotFoundError if `what` is neither "job" nor a task's name.
    """
    return job_schema() if what == "job" else label_columns(what)


def job_schema() -> dict[str, Any]:
    """Return the JSON Schema of a job file, the options of every known task included."""
    found = Job.model_json_schema()
    found["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    found["title"] = "annotator job"
    tasks: dict[str, Any] = {}
    for name in task_names():
        options = load_task(name).options.model_json_schema()
        found["$defs"].update(options.pop("$defs", {}))
        tasks[name] = options
    found["properties"]["tasks"] |= {"properties": tasks, "additionalProperties": {"type": "object"}}
    return found


def example_schema(task: str) -> pa.Schema:
    """Return the schema of a task's label files with the released heads and default options."""
    found, options, channels = _example(task)
    return label_schema(found.fields(options, channels), record={})


def label_columns(task: str) -> dict[str, Any]:
    """Return a task's label table as its Parquet files have it with the released heads and default options."""
    found, options, channels = _example(task)
    arrow = example_schema(task)
    columns = []
    for column in arrow:
        metadata = {k.decode(): v.decode() for k, v in (column.metadata or {}).items()}
        columns.append({"name": column.name, "type": str(column.type), **metadata})
    return {
        "task": task,
        "version": found.version,
        "columns": columns,
        "meaning": dict(found.meaning(options, channels)),
        "huggingface": json.loads((arrow.metadata or {})[b"huggingface"]),
    }


def _example(task: str) -> tuple[Task, Any, int]:
    """Return a task, its default options, and the channels of the released head."""
    found = load_task(task)
    options = found.options.model_validate({"checkpoint": "", **_EXAMPLE_OPTIONS.get(task, {})})
    return found, options, _EXAMPLE_CHANNELS.get(task, 1)
