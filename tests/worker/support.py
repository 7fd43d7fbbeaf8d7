"""Small corpora for the worker, models that count or fail, faults on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import annotator
from annotator.errors import (
    StorageError,
)
from annotator.manifest import read_pins
from annotator.models import load_model
from annotator.preflight import preflight
from annotator.shards import Shard, cut
from annotator.stages import networks, trial
from annotator.stages.device import Network
from annotator.storage import Storage
from annotator.summary import Summary
from annotator.worker import Worker
from tests.running.make import table

POISON_RGB = (255, 0, 255)


def shards_of(job: annotator.Job) -> list[Shard]:
    """Return every shard of a job that preflight has pinned."""
    manifest = read_pins(job.output, Storage())
    return [shard for file in manifest.files for shard in cut(file.key, file.rows, manifest.shard_rows)]


@contextmanager
def working(job: annotator.Job, *, last_round: bool = False) -> Iterator[Callable[[Shard], Summary]]:
    """Yield a worker for a job, built as a run would."""
    with Worker(preflight(job).job, last_round=last_round) as worker:
        yield worker


def label_all(job: annotator.Job, *, last_round: bool = False) -> list[Summary]:
    with working(job, last_round=last_round) as worker:
        return [worker(shard) for shard in shards_of(job)]


def rows_by_name(job: annotator.Job, task: str = "seg") -> dict[str, dict[str, Any]]:
    """Return a task's label rows by the last part of their uri."""
    return {str(row["uri"]).rsplit("/", 1)[-1]: row for row in table(job.output, task).to_pylist()}


def png(height: int, width: int, rgb: tuple[int, int, int] = (10, 20, 30)) -> bytes:
    ok, data = cv2.imencode(".png", np.full((height, width, 3), rgb[::-1], np.uint8))
    assert ok
    return bytes(data.tobytes())


BAD = {  # file name -> what it holds, and the status and class of its row
    "missing.jpg": (None, "unreadable", "not_found"),
    "empty.jpg": (b"", "unreadable", "empty"),
    "text.jpg": (b"<html><body>404 Not Found</body></html>", "unreadable", "unsupported_format"),
    "corrupt.png": (png(40, 40)[:60], "unreadable", "corrupt"),
    "heavy.png": (png(30, 30) + bytes(60_000), "rejected", "too_many_bytes"),
    "huge.png": (png(300, 400), "rejected", "too_many_pixels"),
    "folder.png": ("a folder", "unreadable", "not_found"),
}


LIMITS = {"max_bytes": 50_000, "max_pixels": 100_000}


def write_bad(folder: Path) -> list[str]:
    for name, (data, _, _) in BAD.items():
        if isinstance(data, bytes):
            (folder / name).write_bytes(data)
        elif data is not None:
            (folder / name).mkdir()
    return [f"../images/{name}" for name in BAD]


def label_rows(job: annotator.Job, task: str = "seg") -> list[dict[str, Any]]:
    """Return a task's label rows in manifest order, labelling them if nobody has."""
    label_all(job)
    return [dict(row) for row in table(job.output, task).to_pylist()]


def map_of(task: str) -> str:
    return "mask" if task == "seg" else task


class Counting(torch.nn.Module):
    """A real model that counts the images it is shown, and fails on any batch with a picture of POISON_RGB."""

    seen: dict[str, int]

    def __init__(self, model: Any, task: str) -> None:
        super().__init__()
        self.model, self.task, self.config = model, task, model.config

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        red, green = image_BCHW[:, 0].amin(dim=(1, 2)), image_BCHW[:, 1].amax(dim=(1, 2))
        if bool(((red > 2.2) & (green < -1.9)).any()):  # (255 - 123.7) / 58.4 and (0 - 116.3) / 57.1
            raise RuntimeError("an assertion on the device")
        Counting.seen[self.task] = Counting.seen.get(self.task, 0) + len(image_BCHW)
        output: torch.Tensor = self.model(image_BCHW)
        return output


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Return how many images each task's model was shown, filled as workers work.

    What a worker tries a network on when it starts is not counted.
    """
    real, real_try_out = load_model, trial.try_out
    Counting.seen = {}

    def try_out(name: str, *rest: Any) -> tuple[Network, int]:
        before = Counting.seen.get(name)
        tried = real_try_out(name, *rest)
        del Counting.seen[name]
        Counting.seen.update({} if before is None else {name: before})
        return tried

    def load(uri: str, **options: Any) -> Counting:
        return Counting(real(uri, **options), options["task"])

    monkeypatch.setattr(networks, "load_network", load)
    monkeypatch.setattr(networks, "try_out", try_out)
    return Counting.seen


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> dict[str, StorageError]:
    """Return faults by the end of the uri whose read gives them; to be filled."""
    found: dict[str, StorageError] = {}
    real = Storage.read

    def read(self: Storage, uri: str, *, length: int | None = None) -> bytes:
        for end, fault in found.items():
            if uri.endswith(end):
                raise fault
        return real(self, uri, length=length)

    monkeypatch.setattr(Storage, "read", read)
    return found
