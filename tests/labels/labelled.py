"""The output of a real run with all tasks, and ways to change a label in it without harming the file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import annotator
from annotator import png
from annotator.models import random_checkpoint
from tests.labels.make_output import Row, label_bytes
from tests.running.make import make_job

TASKS = ("seg", "depth", "normal", "person", "pose")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> annotator.Job:
    """The output of a real run: 7 pictures, 2 shards, all tasks, the same bytes from every run."""
    folder = tmp_path_factory.mktemp("made")
    for task in TASKS:
        random_checkpoint(
            folder / f"{task}.safetensors", task=task, embed_dim=32, num_layers=1, num_heads=4, input_hw=(64, 48),
            seed=1, channels=17 if task == "pose" else None,
        )  # fmt: skip
    options: dict[str, dict[str, Any]] = {task: {"require_person": False} for task in TASKS[:3]}
    options |= {"person": {"score": 0.01}, "pose": {"boxes": "person"}}  # random weights are sure of nothing
    job = make_job(folder, {task: folder / f"{task}.safetensors" for task in TASKS}, count=7, tasks=TASKS)
    job = job.model_copy(update={"tasks": {task: {**job.tasks[task], **options[task]} for task in TASKS}})
    annotator.run(job, ray=False)
    return job


@pytest.fixture
def output(made: annotator.Job, tmp_path: Path) -> Path:
    """A copy of it to tamper with."""
    return Path(shutil.copytree(made.output, tmp_path / "labels-out"))


def rewrite(output: Path, task: str, change: Callable[[Row], Row]) -> Path:
    """Change the second row of the task's first label file, and write the file as sound as any."""
    path = sorted((output / "labels" / task).rglob("*.parquet"))[0]
    rows = pq.ParquetFile(path).read().to_pylist()
    rows[1] = change(rows[1])
    path.write_bytes(label_bytes(rows, pq.read_schema(path)))
    return path


def again(change: Callable[[np.ndarray], np.ndarray], name: str) -> Callable[[Row], Row]:
    """Return a change of a row that changes its map."""

    def changed(row: Row) -> Row:
        palette = _palette() if name == "mask" else None
        data = png.encode(change(png.decode(row[name]["bytes"])), palette=palette)
        return {**row, name: {"bytes": data, "path": None}}

    return changed


def _palette() -> np.ndarray:
    return np.arange(768, dtype=np.uint8).reshape(256, 3)


def one_pixel(value: Any) -> Callable[[np.ndarray], np.ndarray]:
    def changed(stored: np.ndarray) -> np.ndarray:
        stored = stored.copy()
        stored[0, 0] = value
        return stored

    return changed


def person_with(**values: Any) -> Callable[[Row], Row]:
    return lambda row: {**row, "people": [{**row["people"][0], **values}, *row["people"][1:]]}
