"""The job's tasks, opened: options, record, and the network that the device thread runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from annotator.errors import CheckpointError
from annotator.fingerprint import TaskRecord, read_task_records
from annotator.job import Job
from annotator.models import file_digest, load_network
from annotator.models.runtime import pick_device, prepare
from annotator.stages.device import Network
from annotator.storage import Storage
from annotator.tasks import PERSON, Task, resolve


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


def choose_batch_size(job: Job, device: torch.device) -> int:
    """Return images a batch. One where bytes must not depend on neighbours: kernels may round by position."""
    if job.deterministic:
        return 1
    if job.batch_size != "auto":
        return job.batch_size
    return 8 if device.type == "cuda" else 2  # reference/roofline.md: 4 to 16 is enough for every model


def build_networks(
    job: Job, tasks: Mapping[str, OpenTask], device: torch.device, batch_size: int
) -> dict[str, Network]:
    """Load the models, in the device thread; refuse weights that are not those of the record."""
    if job.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
        if device.type == "cpu":
            torch.set_num_threads(1)  # sums are split by thread, and machines differ in their number
    storage = Storage(options=job.storage)
    networks = {}
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
        model = prepare(model, dtype=dtype, device=device, compile=job.compile)
        networks[name] = Network(
            forward=partial(_forward, opened.task, model, options), decode=partial(_decode_batch, opened.task, options)
        )
        _try_out(name, opened, networks[name], device, batch_size)
    return networks


def _try_out(name: str, opened: OpenTask, network: Network, device: torch.device, batch_size: int) -> None:
    """Run one blank batch, so that a network or task that always fails ends the run and marks no image.

    On a GPU this is also where the one static shape is compiled.
    """
    whole = {"boxes": np.array([[0, 0, 32, 32]], np.float32), "scores": np.ones(1, np.float32)}
    blank_YXC = np.zeros((32, 32, 3), np.uint8)
    needs = {PERSON: [whole]}
    seen = next(iter(opened.task.inputs(blank_YXC, (32, 32), opened.input_hw, opened.options, needs)))
    images_BHW3 = torch.from_numpy(seen.pixels_HWC).to(device)[None]
    if device.type == "cuda":
        images_BHW3 = images_BHW3.repeat(batch_size, 1, 1, 1)
    try:
        with torch.inference_mode():
            network.decode(network.forward(images_BHW3), [seen.geometry])
    except torch.OutOfMemoryError:
        return  # the device thread halves its batch when it meets this
    except Exception as err:  # whatever a network raises
        raise CheckpointError(
            f"tasks.{name}: its network fails on a blank image, so on all: {type(err).__name__}: {err}; "
            "try the checkpoint with `annotator models inspect`"
        ) from err


def _forward(task: Task, model: Any, options: Any, batch_BHWC: torch.Tensor) -> Any:
    return task.infer(model, batch_BHWC, options)


def _decode_batch(task: Task, options: Any, output: Any, geometries: Sequence[Any]) -> list[dict[str, torch.Tensor]]:
    return task.decode(output, geometries, options)
