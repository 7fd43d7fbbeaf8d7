"""Preflight: everything that can be wrong with a job is said here, before any work starts.

Options, manifest, checkpoints and fingerprints are checked first and written last, so a refused job
leaves no trace in the output.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from annotator.errors import CheckpointError, JobError, ManifestError, OutputError
from annotator.fingerprint import TaskRecord, compare_record, make_record, pin_record, read_task_records
from annotator.job import Job, Released, TaskOptions
from annotator.manifest import Manifest, first_uris, forget, kept_fields, pin_manifest
from annotator.models.cache import file_digest
from annotator.models.config import read_config
from annotator.models.zoo import find_checkpoint
from annotator.stages.sources import check_sample, make_places
from annotator.storage import Storage, join, normalize
from annotator.tasks import BOXES_COLUMN, PERSON, Task, load_task, people_source, resolve

_SAMPLED_ROWS = 100
"""Rows looked at for whether any image may be read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """A job that may start: every default resolved, uris absolute, manifest and records pinned."""

    job: Job
    manifest: Manifest
    records: Mapping[str, TaskRecord]


def preflight(job: Job, *, write: bool = True) -> Ready:
    """Check a job and pin what its output will hold it to; with write=False pin nothing (a dry run).

    Raises JobError, ManifestError, CheckpointError, OutputError for what is wrong, each in one line, and
    FingerprintMismatchError when the output belongs to another job.
    """
    forget()
    storage = Storage(options=job.storage)
    roots = tuple(normalize(root) for root in job.sources.roots)  # workers have other working directories
    uris = {"manifest": normalize(job.manifest), "output": normalize(job.output)}
    job = job.model_copy(update={**uris, "sources": job.sources.model_copy(update={"roots": roots})})
    _check_output(storage, job.output)
    pinned = read_task_records(storage, job.output)
    job = _with_defaults(job, pinned)
    tasks = resolve(job)
    _check_needs(tasks)
    manifest = pin_manifest(job, storage, write=False)
    check_sample(first_uris(storage, manifest, _SAMPLED_ROWS), make_places(job.sources, job.manifest), job.manifest)
    people = _people(job, storage, manifest, pinned)
    records: dict[str, TaskRecord] = {}
    kept = kept_fields(storage, manifest, job.keep_columns)
    for name, (task, options) in tasks.items():
        config, weights, licence = _model(storage, task, options, pinned.get(name))
        _check_columns(name, task.fields(options, int(config["channels"])), kept)
        records[name] = make_record(
            task,
            options,
            config=config,
            weights=weights,
            licence=licence,
            dtype=str(job.dtype),
            decode=job.decode,
            kept=kept,
            needs={**people, **{need: record.fingerprint_digest for need, record in records.items()}},
        )
        if name in pinned:
            compare_record(job.output, pinned[name], records[name])
    if write:
        manifest = pin_manifest(job, storage)
        records = {name: pin_record(storage, job.output, record) for name, record in records.items()}
    return Ready(job=job, manifest=manifest, records=records)


def check(job: Job) -> None:
    """Raise what is wrong with a job's tasks and checkpoints, the manifest aside: before a manifest is made for it."""
    storage = Storage(options=job.storage)
    for name, (task, options) in resolve(job).items():
        uri = _find_checkpoint(name, options.checkpoint, job)
        _model(storage, task, options.model_copy(update={"checkpoint": uri}), None)


def has_gpu() -> bool:
    """Return whether this machine has an NVIDIA GPU that we may use; asks the driver's files, not torch."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1")
    return not hidden and Path("/dev/nvidiactl").exists()


def _with_defaults(job: Job, pinned: Mapping[str, TaskRecord]) -> Job:
    """Return the job with what it leaves open filled in: as the output has it, else by the machine and the tasks.

    So adding a task, or a machine without a GPU, doesn't change what the output was begun with.
    """
    gpus = job.gpus_per_worker if job.gpus_per_worker is not None else float(has_gpu())
    recorded = {r.fingerprint["dtype"] for n, r in pinned.items() if n in job.tasks and not load_task(n).float32}
    dtype = recorded.pop() if len(recorded) == 1 else "bfloat16" if gpus else "float32"
    tasks = {}
    for name, (_, options) in resolve(job).items():
        found = options.model_dump(mode="json") | {"checkpoint": _find_checkpoint(name, options.checkpoint, job)}
        before = pinned[name].fingerprint["options"] if name in pinned else {}
        if "require_person" in before and job.tasks[name].get("require_person") is None:
            found["require_person"] = before["require_person"]
        tasks[name] = found
    return job.model_copy(update={"gpus_per_worker": gpus, "dtype": job.dtype or dtype, "tasks": tasks})


def _find_checkpoint(task: str, checkpoint: str | Released, job: Job) -> str:
    if isinstance(checkpoint, str):
        return checkpoint
    storage = Storage(options=job.storage)
    return find_checkpoint(
        checkpoint.root, task=task, size=checkpoint.size, keypoints=checkpoint.keypoints, storage=storage
    )


def _people(job: Job, storage: Storage, manifest: Manifest, pinned: Mapping[str, TaskRecord]) -> dict[str, str]:
    """Return what the fingerprint says of people who come from elsewhere than a task of this job."""
    source = people_source(job)
    if source == "manifest":
        kind = kept_fields(storage, manifest, (BOXES_COLUMN,))[0].type
        if not _is_boxes(kind):
            raise ManifestError(
                f"{manifest.root}: column {BOXES_COLUMN!r} is {kind}; expected a list of 4 floats a box"
            )
        return {PERSON: "manifest"}
    if source == "labels":
        if PERSON not in pinned:
            raise JobError(
                f"tasks.pose.boxes is 'labels' and {job.output} has no person labels; label person there first, "
                "or set boxes: person and add the task"
            )
        return {PERSON: pinned[PERSON].fingerprint_digest}
    return {}


def _is_boxes(kind: pa.DataType) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(test(kind) for test in lists[:2]) or not any(test(kind.value_type) for test in lists):
        return False
    number = kind.value_type.value_type
    return bool(pa.types.is_floating(number) or pa.types.is_integer(number))


def _check_needs(tasks: Mapping[str, tuple[Task, Any]]) -> None:
    for name, (task, options) in tasks.items():
        for need in task.needs(options):
            if need == PERSON:
                continue
            theirs = tasks[need][1]
            for key in ("label_size", "max_label_pixels"):
                if getattr(options, key, None) != getattr(theirs, key, None):
                    raise JobError(
                        f"tasks.{name}.{key} is {getattr(options, key, None)!r} and tasks.{need}.{key} is "
                        f"{getattr(theirs, key, None)!r}; {name} uses the {need} map, so they must be equal"
                    )


def _check_columns(task: str, fields: Sequence[pa.Field], kept: Sequence[pa.Field]) -> None:
    """Refuse kept columns that the task's table would have twice."""
    own = {field.name for field in fields}
    names = [field.name for field in kept]
    twice = sorted({name for name in names if name in own or names.count(name) > 1})
    if twice:
        raise JobError(
            f"keep_columns: {', '.join(twice)}: named twice, or a column that {task} labels have of their own; "
            "leave it out, or rename it in the manifest"
        )


def _check_output(storage: Storage, output: str) -> None:
    """Refuse a folder whose labels/ is somebody else's."""
    if storage.exists(join(output, "_annotator", "job.json")):
        return
    stranger = next(iter(storage.list(join(output, "labels"))), None)
    if stranger is not None:
        raise OutputError(
            f"{output}: holds {stranger.uri} but no _annotator/job.json, so it is not an output of ours; "
            "name an empty or new folder"
        )


def _model(
    storage: Storage, task: Task, options: TaskOptions, pinned: TaskRecord | None
) -> tuple[dict[str, Any], dict[str, Any], str | None]:
    """Return the model's config, its weights' digest and licence; the file is only opened if its digest is new."""
    hints = {key: getattr(options, key) for key in ("num_heads", "patch_padding", "input_size")}
    assert isinstance(options.checkpoint, str)  # found by _with_defaults
    digest = file_digest(options.checkpoint, storage)
    if pinned is not None and pinned.fingerprint["weights"]["sha256"] == digest:
        given = {"input_hw" if key == "input_size" else key: value for key, value in hints.items() if value is not None}
        config = replace(read_config(pinned.fingerprint["model"]), **given)
        return config.to_dict(), pinned.fingerprint["weights"], pinned.meaning.get("licence")
    from annotator.models import inspect_checkpoint  # loads torch, which a run with nothing to do never needs

    info = inspect_checkpoint(options.checkpoint, task=task.name, storage=storage, **hints)
    if problem := task.channels(info.config.channels):
        raise CheckpointError(f"{options.checkpoint}: {info.config.channels} output channels; {problem}")
    return info.config.to_dict(), {"sha256": info.sha256, "random": info.random}, info.licence
