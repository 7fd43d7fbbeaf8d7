"""Small corpora and jobs to run, and label tables to compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

import annotator
from annotator.job import Sources
from annotator.storage import Storage

TASKS = ("seg", "depth", "normal")


def write_images(folder: Path, count: int, *, seed: int = 0) -> list[str]:
    """Write small pictures of many sizes, PNG and JPEG, and return their names."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for i in range(count):
        height, width = (int(n) for n in rng.integers(17, 90, 2))
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        name = f"image-{i:04d}.{'png' if i % 2 else 'jpg'}"
        assert cv2.imwrite(str(folder / name), cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))
        names.append(name)
    return names


def write_manifest(folder: Path, uris: list[str], *, name: str = "part-0.parquet", **columns: list[Any]) -> Path:
    """Write one manifest file with these uris, relative to it or not, and more columns."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"uri": uris, **columns}), folder / name, row_group_size=64)
    return folder


def make_job(
    folder: Path, checkpoints: dict[str, Path], count: int = 24, *, tasks: tuple[str, ...] = TASKS, **settings: Any
) -> annotator.Job:
    """Write a corpus of `count` images below `folder` and return a job that labels it."""
    names = write_images(folder / "images", count)
    manifest = write_manifest(folder / "manifest", [f"../images/{name}" for name in names])
    sources = Sources(roots=(str(folder / "images"),))
    defaults: dict[str, Any] = {"shard_rows": 5, "batch_size": 3, "deterministic": True, "sources": sources}
    return annotator.Job(
        manifest=str(manifest),
        output=str(folder / "labels-out"),
        tasks={task: {"checkpoint": str(checkpoints[task])} for task in tasks},
        **(defaults | settings),
    )


def table(output: str | Path, task: str) -> pa.Table:
    """Return a task's labels in manifest order, read as any stranger would."""
    labels = ds.dataset(f"{output}/labels/{task}", format="parquet").to_table()
    labels = labels.set_column(0, "shard", labels["shard"].cast(pa.string()))
    return labels.sort_by([("shard", "ascending"), ("row", "ascending")])


def file_bytes(output: str | Path, tasks: tuple[str, ...] = TASKS) -> dict[str, bytes]:
    """Return every label file by its path below the output."""
    root = Path(output)
    return {
        str(path.relative_to(root)): path.read_bytes()
        for task in tasks
        for path in sorted((root / "labels" / task).rglob("*"))
        if path.is_file()
    }


def is_whole(job: annotator.Job) -> bool:
    """Whether `annotator verify` believes the output."""
    return bool(annotator.verify(job.output, Storage(options=job.storage)).ok)
