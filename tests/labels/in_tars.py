"""The same pictures labelled twice: maps in the label files, and in tar files."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import annotator
from annotator.models import random_checkpoint
from tests.running.make import make_job

TASKS = ("seg", "depth", "normal")


@dataclass(frozen=True)
class Pair:
    """Two jobs over 7 pictures in 2 shards, one picture of them empty: maps in tar files, and in the label files."""

    tar: annotator.Job
    plain: annotator.Job

    @property
    def picture(self) -> Path:
        """The picture that was empty."""
        return Path(self.tar.manifest).parent / "images" / "image-0003.png"

    @contextmanager
    def empty_picture(self) -> Iterator[None]:
        """Have it empty, as it was when it was labelled."""
        good = self.picture.read_bytes()
        self.picture.write_bytes(b"")
        try:
            yield
        finally:
            self.picture.write_bytes(good)


def in_tars(job: annotator.Job, output: Path) -> annotator.Job:
    """Return the job with all maps in tar files, and another output."""
    tasks = {task: {**options, "dense": "tar"} for task, options in job.tasks.items()}
    return job.model_copy(update={"tasks": tasks, "output": str(output)})


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    size: dict[str, Any] = {"embed_dim": 16, "num_layers": 1, "num_heads": 2, "input_hw": (32, 32), "seed": 0}
    checkpoints = {task: folder / f"{task}.safetensors" for task in TASKS}
    for task, path in checkpoints.items():
        random_checkpoint(path, task=task, **size)
    plain = make_job(folder, checkpoints, 7)
    plain = plain.model_copy(update={"tasks": {**plain.tasks, "depth": {**plain.tasks["depth"], "background": "zero"}}})
    pair = Pair(in_tars(plain, folder / "in-tars"), plain)
    with pair.empty_picture():
        for job in (pair.tar, pair.plain):
            annotator.run(job, ray=False)
    return pair


@pytest.fixture
def output(pair: Pair, tmp_path: Path) -> Path:
    """A copy of the output with tar files, to do things to."""
    return Path(shutil.copytree(pair.tar.output, tmp_path / "out"))
