"""The job's tasks, opened: options, record, and the network that the device thread runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from annotator.errors import CheckpointError, JobError
from annotator.fingerprint import TaskRecord, read_task_records
from annotator.job import Job
from annotator.models import file_digest, load_network
from annotator.models.null import null_output
from annotator.models.runtime import compile_model, pick_device, prepare
from annotator.stages.device import Network, Networks
from annotator.stages.memory import keep_to_share, memory, too_large
from annotator.stages.trial import MOST_AT_ONCE, largest_batch, try_out
from annotator.storage import Storage
from annotator.tasks import PERSON, Input, Task, resolve


@dataclass(frozen=True, slots=True)
class OpenTask:
    """A task of a worker: what to do, how, and the record that its labels carry."""

    task: Task
    options: Any
    record: TaskRecord
    schema: pa.Schema
    input_hw: tuple[int, int]


def with_needs(tasks: Mapping[str, OpenTask], lacking: tuple[str, ...]) -> tuple[str, ...]:
    """Return the tasks to run for an image, in the order in which they depend on each other."""
    wanted = set(lacking)
    for name, opened in reversed(list(tasks.items())):  # a need stands before the task that has it
        if name in wanted:
            wanted.update(opened.task.needs(opened.options))
    return tuple(name for name in tasks if name in wanted)


def open_tasks(job: Job, storage: Storage, names: tuple[str, ...]) -> dict[str, OpenTask]:
    """Return these tasks of the job and all that they need, in the order in which they depend on each other."""
    records = read_task_records(storage, job.output)
    resolved = resolve(job)
    wanted = set(names)
    for name, (task, options) in reversed(list(resolved.items())):
        if name in wanted:
            wanted.update(task.needs(options))
    return {
        name: OpenTask(task, options, records[name], records[name].file_schema, _input_hw(records[name]))
        for name, (task, options) in resolved.items()
        if name in wanted
    }


def _input_hw(record: TaskRecord) -> tuple[int, int]:
    height, width = record.fingerprint["model"]["input_hw"]
    return height, width


def choose_device(job: Job) -> torch.device:
    """Return the GPU, unless there is none or the job wants none."""
    return torch.device("cpu") if job.gpus_per_worker == 0 else pick_device()


def build_networks(job: Job, tasks: Mapping[str, OpenTask], device: torch.device) -> Networks:
    """Load the models, in the device thread; refuse weights that are not those of the record.

    Raises JobError, saying what to change, when the GPU's memory does not hold all of them and one image.
    """
    if job.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
        if device.type == "cpu":
            torch.set_num_threads(1)  # sums are split by thread, and machines differ in their number
    share = job.gpus_per_worker or 1.0
    keep_to_share(device, share)
    try:
        models = _load_models(job, tasks, device)
        networks = {name: _network(opened, models[name], device) for name, opened in tasks.items()}
        seen = {name: blank_input(opened) for name, opened in tasks.items()}
        batch_size = _choose_batch_size(job, device, networks, seen)
        for name, model in models.items():
            compile_model(model, device=device, mode=job.compile)
            networks[name], batch_size = try_out(name, networks[name], seen[name], device, batch_size)
    except torch.OutOfMemoryError as err:
        dtypes = {name: str(opened.record.fingerprint["dtype"]) for name, opened in tasks.items()}
        raise JobError(too_large(dtypes, share, memory(device))) from err
    return Networks(networks, batch_size)


def _choose_batch_size(
    job: Job, device: torch.device, networks: Mapping[str, Network], seen: Mapping[str, Input]
) -> int:
    """Return images a batch. One where bytes must not depend on neighbours: kernels may round by position."""
    if job.deterministic:
        return 1
    if job.batch_size != "auto":
        return job.batch_size
    if device.type == "cpu":
        return 2  # a CPU gains nothing by more
    share = job.gpus_per_worker or 1.0
    return min(largest_batch(networks[name], seen[name], device, MOST_AT_ONCE, share) for name in networks)


def _load_models(job: Job, tasks: Mapping[str, OpenTask], device: torch.device) -> dict[str, Any]:
    storage = Storage(options=job.storage)
    models = {}
    for name, opened in tasks.items():
        options, record = opened.options, opened.record
        dtype = getattr(torch, record.fingerprint["dtype"])
        found, expected = file_digest(options.checkpoint, storage), record.fingerprint["weights"]["sha256"]
        if found != expected:
            raise CheckpointError(
                f"{options.checkpoint}: sha256 {found[:12]}..., but the run began with {expected[:12]}...; "
                "the file changed or differs between nodes"
            )
        model = load_network(
            options.checkpoint,
            task=name,
            num_heads=options.num_heads,
            patch_padding=options.patch_padding,
            input_size=options.input_size,
            storage=storage,
        )
        models[name] = prepare(model, dtype=dtype, device=device, compile="off")
    return models


def _network(opened: OpenTask, model: Any, device: torch.device) -> Network:
    """Return the model as the device thread runs it; for a null model what costs it nothing."""
    decode = partial(_decode_batch, opened.task, opened.options)
    if not getattr(model, "is_null", False):
        return Network(forward=partial(_forward, opened.task, model, opened.options), decode=decode)
    output_1Chw = null_output(model.config).to(device)
    known: dict[Any, dict[str, torch.Tensor]] = {}  # one entry an image size

    def remembered(output: Any, geometries: Sequence[Any]) -> list[dict[str, torch.Tensor]]:
        for geometry in set(geometries) - known.keys():
            known[geometry] = decode(output_1Chw, [geometry])[0]
        return [known[geometry] for geometry in geometries]

    return Network(forward=lambda batch_BHW3: None, decode=remembered)


def blank_input(opened: OpenTask) -> Input:
    """Return what the network sees of a small blank image that a person fills."""
    whole = {"boxes": np.array([[0, 0, 32, 32]], np.float32), "scores": np.ones(1, np.float32)}
    blank_YXC = np.zeros((32, 32, 3), np.uint8)
    needs = {PERSON: [whole]}
    return next(iter(opened.task.inputs(blank_YXC, (32, 32), opened.input_hw, opened.options, needs)))


def _forward(task: Task, model: Any, options: Any, batch_BHWC: torch.Tensor) -> Any:
    return task.infer(model, batch_BHWC, options)


def _decode_batch(task: Task, options: Any, output: Any, geometries: Sequence[Any]) -> list[dict[str, torch.Tensor]]:
    return task.decode(output, geometries, options)
