"""What a bench works on: pictures and models made for the purpose, the same on every machine, and a job over them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg

from annotator.errors import JobError
from annotator.job import Job, set_key
from annotator.models.random_weights import random_checkpoint
from annotator.models.zoo import SIZES, TASK_FACTS
from annotator.preflight import has_gpu

SMALL = {
    "tiny": ((32, 1, 4), (64, 48)),
    "small": ((128, 2, 4), (512, 384)),
}
"""Models for machines without a GPU: width, layers, heads, and the input; small takes some tenths of a second."""

MODELS = (*SMALL, *SIZES, "null")
TASKS = ("seg", "depth", "normal")

_DISTINCT = 16
"""Different pictures in a corpus; more would only take longer to make."""

_QUALITY = 90
_NOISE = 5.0  # of a sensor, in grey levels: a picture of 1024x768 takes about 200 kB


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """One bench: these tasks, each with a model of this size, over so many pictures.

    checkpoints  weights by task, for tasks whose model is not to be made
    image_wh     width and height of the pictures
    settings     further keys of the job
    """

    model: str
    tasks: tuple[str, ...] = TASKS
    checkpoints: Mapping[str, str]
    images: int
    image_wh: tuple[int, int]
    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise JobError(f"--model {self.model}: expected one of {', '.join(MODELS)}")
        if self.model == "null" and "person" in self.tasks:
            raise JobError("--model null: there is no null detector; leave the task person out")


def make_setups(
    tasks: Sequence[str],
    *,
    models: Sequence[str],
    sizes: Sequence[str],
    images: int | None,
    shard_rows: int | None,
    job: Mapping[str, Any],
) -> list[Setup]:
    """Return a setup for each model and size of picture, as the command line words them.

    Without `models` those that suit the machine. Without `images` enough for a steady state. `job` holds keys of the
    job, dotted ones too.
    """
    names, checkpoints = parse_tasks(tasks or TASKS)
    settings: dict[str, Any] = {"workers": 1}
    for key, value in job.items():
        set_key(settings, key, value)
    setups = []
    for model in models or (("0.3b", "1b") if has_gpu() else ("small",)):
        count = images or (512 if has_gpu() or model in ("null", "tiny") else 48)
        rows = shard_rows or max(1, count // 16)
        for size in sizes:
            setups.append(
                Setup(
                    model=model,
                    tasks=names,
                    checkpoints=checkpoints,
                    images=count,
                    image_wh=parse_size(size),
                    settings={**settings, "shard_rows": rows},
                )
            )
    return setups


def make_job(folder: Path, setup: Setup) -> Job:
    """Write pictures, manifest and models below the folder and return the job that labels them."""
    corpus = folder / "corpus"
    names = make_pictures(corpus / "images", setup.images, setup.image_wh)
    pq.write_table(pa.table({"uri": [f"images/{name}" for name in names]}), corpus / "manifest.parquet")
    options: dict[str, dict[str, Any]] = {
        task: {"boxes": "whole_frame"} if task == "pose" else {} for task in setup.tasks
    }
    for task in setup.tasks:
        options[task]["checkpoint"] = setup.checkpoints.get(task) or make_model(folder, task, setup.model)
    return Job(manifest=str(corpus), output=str(folder / "output"), tasks=options, **dict(setup.settings))


def make_model(folder: Path, task: str, model: str) -> str:
    """Write a checkpoint with random weights of this size for a task; return its path."""
    path = folder / f"{task}.safetensors"
    if task == "person":
        random_checkpoint(path, task=task, embed_dim=192, num_layers=2, num_heads=1, input_hw=(640, 640), seed=0)
        return str(path)
    if model in SIZES:
        size = SIZES[model]
        shape, input_hw = (size.embed_dim, size.num_layers, size.num_heads), TASK_FACTS[task].input_hw
    else:
        shape, input_hw = SMALL["tiny" if model == "null" else model]
        input_hw = TASK_FACTS[task].input_hw if model == "null" else input_hw
    width, layers, heads = shape
    random_checkpoint(
        path,
        task=task,
        embed_dim=width,
        num_layers=layers,
        num_heads=heads,
        input_hw=input_hw,
        seed=0,
        null=model == "null",
    )
    return str(path)


def make_pictures(folder: Path, count: int, image_wh: tuple[int, int]) -> list[str]:
    """Write JPEGs of smooth shapes, edges and noise, as large as photographs of that size; return their names."""
    folder.mkdir(parents=True)
    names = [f"{i:06d}.jpg" for i in range(count)]
    for i, name in enumerate(names):
        if i < _DISTINCT:
            (folder / name).write_bytes(make_jpeg(image_wh, seed=i))
        else:
            shutil.copyfile(folder / names[i % _DISTINCT], folder / name)
    return names


def make_jpeg(image_wh: tuple[int, int], *, seed: int) -> bytes:
    """Return one picture as a JPEG (4:2:0, quality 90)."""
    data: bytes = simplejpeg.encode_jpeg(make_picture(image_wh, seed=seed), quality=_QUALITY, colorsubsampling="420")
    return data


def make_picture(image_wh: tuple[int, int], *, seed: int) -> np.ndarray:
    """Return one picture, uint8 RGB (Y, X, 3): coarse colours, some filled ellipses, noise."""
    rng = np.random.default_rng(seed)
    width, height = image_wh
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    picture_YXC = cv2.resize(coarse, image_wh, interpolation=cv2.INTER_CUBIC)
    for _ in range(12):
        centre = int(rng.integers(0, width)), int(rng.integers(0, height))
        axes = int(rng.integers(2, 2 + width // 6)), int(rng.integers(2, 2 + height // 6))
        colour = [int(c) for c in rng.integers(0, 256, 3)]
        cv2.ellipse(picture_YXC, centre, axes, float(rng.uniform(0, 180)), 0, 360, colour, -1)
    noise_YXC = rng.standard_normal((height, width, 3), np.float32) * _NOISE
    noisy_YXC: np.ndarray = (picture_YXC + noise_YXC).clip(0, 255).astype(np.uint8)
    return noisy_YXC


def parse_tasks(given: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return task names, and the checkpoints of those that are given as NAME=CHECKPOINT."""
    pairs = [item.partition("=") for item in given]
    return tuple(name for name, _, _ in pairs), {name: checkpoint for name, _, checkpoint in pairs if checkpoint}


def parse_size(text: str) -> tuple[int, int]:
    """Return width and height of "1024x768"; JobError for anything else."""
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise JobError(f"--image {text}: expected WIDTHxHEIGHT, such as 1024x768") from None
    if min(width, height) < 1:
        raise JobError(f"--image {text}: expected sides of one pixel or more")
    return width, height
