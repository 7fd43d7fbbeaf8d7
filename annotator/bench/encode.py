"""What the maps of one image cost as PNG: ours beside OpenCV's default settings, CPU time and bytes.

The maps are of 1024x768, as a trained network gives them in kind (`null_output`), or with the noise of an untrained
one, which is the worst case. Both encoders run on one thread.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

from annotator import png
from annotator.bench.flops import released_config
from annotator.geometry import Geometry
from annotator.models.null import null_output
from annotator.tasks import load_task
from annotator.tasks.seg import COLOURS

IMAGE_YX = (768, 1024)
TASKS = ("seg", "depth", "normal")
MOST_TIME, MOST_BYTES = 1 / 2.5, 1.1
"""What ours may take of OpenCV's, all three maps together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """One map: milliseconds of CPU, median of the repeats, and bytes."""

    ours_ms: float
    opencv_ms: float
    ours_bytes: int
    opencv_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeBench:
    """The maps of one image by task, smooth or noisy, and whether each came back as it was."""

    maps: dict[str, Encoded]
    noisy: bool
    exact: bool

    @property
    def time_ratio(self) -> float:
        """CPU time of ours over OpenCV's, all maps together."""
        return sum(m.ours_ms for m in self.maps.values()) / sum(m.opencv_ms for m in self.maps.values())

    @property
    def bytes_ratio(self) -> float:
        """Bytes of ours over OpenCV's, all maps together."""
        return sum(m.ours_bytes for m in self.maps.values()) / sum(m.opencv_bytes for m in self.maps.values())

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**dataclasses.asdict(self), "time_ratio": self.time_ratio, "bytes_ratio": self.bytes_ratio}

    def table(self) -> str:
        """Return a Markdown table."""
        rows = [
            f"| {task} | {m.ours_ms:.2f} | {m.opencv_ms:.2f} | {m.ours_bytes / 1e3:.0f} | {m.opencv_bytes / 1e3:.0f} |"
            for task, m in self.maps.items()
        ]
        kind = "noisy" if self.noisy else "smooth"
        return "\n".join(
            [
                f"PNG of {kind} maps of {IMAGE_YX[1]}x{IMAGE_YX[0]}, one thread, median of the repeats",
                "",
                "| map | ours, CPU ms | OpenCV, CPU ms | ours, kB | OpenCV, kB |",
                "|---|---|---|---|---|",
                *rows,
                "",
                f"CPU 1/{1 / self.time_ratio:.1f} of OpenCV's (target: at most 1/{1 / MOST_TIME:.1f}), bytes "
                f"{self.bytes_ratio:.2f} times (target: at most {MOST_BYTES})",
            ]
        )


def bench_encode(*, repeats: int = 5, noisy: bool = False) -> EncodeBench:
    """Measure the encoding of one image's maps, as jobs do it that are not deterministic."""
    threads = cv2.getNumThreads()
    png.same_bytes(False)
    cv2.setNumThreads(1)
    try:
        measured = {task: _measure(task, array, repeats) for task, array in make_maps(noisy=noisy).items()}
    finally:
        cv2.setNumThreads(threads)
    maps = {task: encoded for task, (encoded, _) in measured.items()}
    return EncodeBench(maps=maps, noisy=noisy, exact=all(exact for _, exact in measured.values()))


def make_maps(*, noisy: bool = False) -> dict[str, np.ndarray]:
    """Return one map a task, as it is stored."""
    return {task: _make_map(task, noisy=noisy) for task in TASKS}


def encode_map(task: str, array: np.ndarray) -> bytes:
    """Return the map as a label row holds it."""
    return png.encode(array, palette=COLOURS[:28] if task == "seg" else None)


def encode_opencv(array: np.ndarray) -> bytes:
    """Return the map as OpenCV writes it when it is told nothing."""
    data: bytes = cv2.imencode(".png", array if array.ndim == 2 else array[..., ::-1])[1].tobytes()
    return data


def _make_map(task: str, *, noisy: bool) -> np.ndarray:
    config, found = released_config(task, "0.3b"), load_task(task)
    output_1Chw = null_output(config)
    if noisy:
        output_1Chw = output_1Chw + torch.randn(output_1Chw.shape, generator=torch.Generator().manual_seed(1)) / 10
    label = found.decode(output_1Chw, [Geometry(IMAGE_YX, config.input_hw)], found.options(checkpoint="none"))[0]
    array: np.ndarray = label["mask" if task == "seg" else task].numpy()
    return array


def _measure(task: str, array: np.ndarray, repeats: int) -> tuple[Encoded, bool]:
    ours_ms, ours = _median_ms(lambda: encode_map(task, array), repeats)
    opencv_ms, theirs = _median_ms(lambda: encode_opencv(array), repeats)
    encoded = Encoded(ours_ms=ours_ms, opencv_ms=opencv_ms, ours_bytes=len(ours), opencv_bytes=len(theirs))
    return encoded, np.array_equal(png.decode(ours), array)


def _median_ms(call: Callable[[], bytes], repeats: int) -> tuple[float, bytes]:
    result, taken = call(), []
    for _ in range(repeats):
        start = time.thread_time()
        result = call()
        taken.append(1e3 * (time.thread_time() - start))
    return statistics.median(taken), result
