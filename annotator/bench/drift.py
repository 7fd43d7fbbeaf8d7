"""How far labels move when the network runs in bfloat16, compiled, or on pictures decoded at a reduced scale.

Every variant labels the same pictures as float32 without compilation, one at a time, and is compared with it by the
task's own measure, `Task.drift`; its limit for the network's dtype is the gate. Random weights answer less smoothly
than trained ones: classes all but tie, so they drift more. Give your own with `--task seg=weights.pth`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from annotator.bench.setup import make_jpeg, make_model
from annotator.errors import JobError
from annotator.job import Limits, parse
from annotator.models import load_network
from annotator.models.runtime import compile_model, pick_device, prepare
from annotator.stages.decode import Image, Mode, decode
from annotator.tasks import PERSON, Task, load_task

FAST_MIN_HW = (1024, 1024)  # as in a worker

Row = Mapping[str, Any]

_MODES: tuple[Mode, Mode] = ("exact", "fast")

_STEADY = ("seg", "depth", "normal")
"""Tasks that are judged with random weights too; the peaks of a random pose network are noise, and jump."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drifted:
    """One variant of one task against float32: means over the pictures, and the worst of them by the task's measure.

    limit  of the task for this variant; None where nothing is judged: a variant of another fingerprint, whose
           labels never mix with the first, or random weights that answer with noise
    """

    task: str
    variant: str
    measures: dict[str, float]
    measure: str
    worst: float
    limit: float | None

    @property
    def ok(self) -> bool:
        """Whether the worst picture is within the limit."""
        return self.limit is None or self.worst <= self.limit


def bench_drift(
    tasks: Sequence[str],
    checkpoints: Mapping[str, str],
    *,
    model: str,
    images: int,
    image_wh: tuple[int, int],
    pictures: Sequence[bytes] = (),
    compiled: bool = True,
) -> list[Drifted]:
    """Return each variant of each task; on `pictures` (encoded images) where there are any, else on made ones."""
    pictures = pictures or [make_jpeg(image_wh, seed=seed) for seed in range(images)]
    found = []
    with tempfile.TemporaryDirectory(prefix="annotator-bench-") as folder:
        for name in tasks:
            checkpoint = checkpoints.get(name) or make_model(Path(folder), name, model)
            judged = name in checkpoints or name in _STEADY
            found += _of_task(load_task(name), checkpoint, pictures, compiled=compiled, judged=judged)
    return found


def read_pictures(folder: str, most: int) -> list[bytes]:
    """Return the first images of a local folder, encoded. Raises JobError if there are none."""
    paths = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not paths:
        raise JobError(f"--pictures {folder}: no .jpg, .jpeg or .png below it")
    return [path.read_bytes() for path in paths[:most]]


def _of_task(task: Task, checkpoint: str, pictures: Sequence[bytes], *, compiled: bool, judged: bool) -> list[Drifted]:
    boxes = {"boxes": "whole_frame"} if "boxes" in task.options.model_fields else {}
    options = parse(task.options, {"checkpoint": checkpoint, **boxes}, f"tasks.{task.name}")
    exact, fast = ([_decode(data, mode) for data in pictures] for mode in _MODES)

    def rows(images: Sequence[Image], dtype: torch.dtype, *, compiled: bool = False) -> list[Row]:
        return _label(task, options, images, dtype, compiled=compiled)

    variants: dict[str, tuple[list[Row], str | None]] = {}
    if not task.float32:
        variants["bfloat16"] = rows(exact, torch.bfloat16), "bfloat16"
    if compiled:
        variants["float32, compiled"] = rows(exact, torch.float32, compiled=True), "float32"
        if not task.float32 and pick_device().type == "cuda":
            variants["bfloat16, compiled"] = rows(exact, torch.bfloat16, compiled=True), "bfloat16"
    if any(f.pixels_YXC.shape != e.pixels_YXC.shape for f, e in zip(fast, exact, strict=True)):
        variants["float32, decode: fast"] = rows(fast, torch.float32), None
    reference = rows(exact, torch.float32)
    return [
        _compare(task, name, reference, found, dtype if judged else None) for name, (found, dtype) in variants.items()
    ]


def _decode(data: bytes, mode: Mode) -> Image:
    return decode(data, Limits(), mode=mode, min_hw=FAST_MIN_HW)


def _label(task: Task, options: Any, images: Sequence[Image], dtype: torch.dtype, *, compiled: bool) -> list[Row]:
    """Return the columns of each picture, and its size, as a worker would store them."""
    device = pick_device()
    network = load_network(options.checkpoint, task=task.name)
    network = prepare(network, dtype=dtype, device=device, compile="off")
    if compiled:
        compile_model(network, device=device, mode="auto" if device.type == "cuda" else "max")
    found: list[Row] = []
    for image in images:
        image_yx = (image.height, image.width)
        needs = {PERSON: [{"boxes": np.array([[0, 0, *image_yx[::-1]]], np.float32), "scores": np.ones(1, np.float32)}]}
        arrays = []
        for one in task.inputs(image.pixels_YXC, image_yx, network.config.input_hw, options, needs):
            batch_BHW3 = torch.from_numpy(one.pixels_HWC).to(device)[None]
            with torch.inference_mode():
                label = task.decode(task.infer(network, batch_BHW3, options), [one.geometry], options)[0]
            arrays.append({name: value.cpu().numpy() for name, value in label.items()})
        size = {"height": image.height, "width": image.width, "status": "ok"}
        found.append(size | task.encode(arrays, image_yx, options, needs))
    return found


def _compare(task: Task, variant: str, reference: list[Row], found: list[Row], dtype: str | None) -> Drifted:
    pairs = list(zip(reference, found, strict=True))
    measures = _MEASURES.get(task.name, lambda old, new: {})
    each = [measures(task.load(old), task.load(new)) for old, new in pairs]
    assert task.drift is not None, f"{task.name} has no drift"
    return Drifted(
        task=task.name,
        variant=variant,
        measures={name: float(np.nanmean([one[name] for one in each])) for name in each[0]},
        measure=task.drift.measure,
        worst=max(task.drift.between(old, new) for old, new in pairs),
        limit=None if dtype is None else task.drift.limits[dtype],
    )


def _seg(old_YX: np.ndarray, new_YX: np.ndarray) -> dict[str, float]:
    """Return pixel agreement and the mean IoU of the classes that either has."""
    ious = []
    for i in np.union1d(old_YX, new_YX):
        a_YX, b_YX = old_YX == i, new_YX == i
        ious.append((a_YX & b_YX).sum() / (a_YX | b_YX).sum())
    return {"pixel agreement": float(np.mean(old_YX == new_YX)), "mIoU": float(np.mean(ious))}


def _normal(old_YXC: np.ndarray, new_YXC: np.ndarray) -> dict[str, float]:
    old, new = (v / np.linalg.norm(v, axis=2, keepdims=True) for v in (old_YXC, new_YXC))
    angles = np.degrees(2 * np.arcsin(np.clip(np.linalg.norm(old - new, axis=2) / 2, 0, 1)))
    return _spread("degrees", angles)


def _depth(old_YX: np.ndarray, new_YX: np.ndarray) -> dict[str, float]:
    return _spread("of the range", np.abs(old_YX - new_YX) / (np.nanmax(old_YX) - np.nanmin(old_YX)))


def _pose(old: np.ndarray, new: np.ndarray) -> dict[str, float]:
    return _spread("pixels", np.linalg.norm(old["keypoints"] - new["keypoints"], axis=2))


def _spread(unit: str, apart: np.ndarray) -> dict[str, float]:
    return {f"mean, {unit}": float(np.nanmean(apart)), f"95 % within, {unit}": float(np.nanpercentile(apart, 95))}


_MEASURES: dict[str, Callable[[Any, Any], dict[str, float]]] = {
    "seg": _seg,
    "normal": _normal,
    "depth": _depth,
    "pose": _pose,
}


def table(found: Sequence[Drifted]) -> str:
    """Return a Markdown table."""
    rows = [
        f"| {d.task} | {d.variant} | {'; '.join(f'{name} {value:.4g}' for name, value in d.measures.items())} | "
        f"{d.measure}: {d.worst:.4g} | {_limit(d)} |"
        for d in found
    ]
    header = "| task | variant | mean of the pictures | worst picture | limit | within |"
    return "\n".join([header, "|---" * 6 + "|", *rows])


def _limit(drifted: Drifted) -> str:
    if drifted.limit is None:
        return "- | -"
    return f"{drifted.limit:g} | {'yes' if drifted.ok else 'NO'}"
