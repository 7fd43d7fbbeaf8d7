"""How long heatmaps take to become keypoints: ours for a whole batch, the reference algorithm person by person.

The reference is what pose pipelines do on the host (sapiens-v1.md 4.4), in numpy and OpenCV: blur every
map whole, take the log of every pixel, one Newton step a keypoint. Both get the same maps and must give
the same points.
"""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

from annotator.models.heatmaps import EPS, HIGH, LOW, RADIUS, locate
from annotator.models.runtime import pick_device

MAP_HW = (256, 192)
_SIGMA = 6.0  # of the heatmaps that the models were trained to give (sapiens-v1.md 4.4)
_FAINT = 1.1 * LOW
_SIDE = 2 * RADIUS + 1


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeBench:
    """Seconds a person, best of the repeats, and how far the two results are apart in heatmap pixels."""

    device: str
    machine: str
    threads: int
    people: int
    keypoints: int
    absent: float
    ours_s: float
    reference_s: float
    max_apart_px: float

    @property
    def speedup(self) -> float:
        """How many times faster ours is."""
        return self.reference_s / self.ours_s

    @property
    def same(self) -> bool:
        """Whether both gave the same points, to a hundredth of a heatmap pixel, and the same scores."""
        return self.max_apart_px < 0.01

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**dataclasses.asdict(self), "speedup": self.speedup, "same": self.same}

    def table(self) -> str:
        """Return a Markdown table."""
        return "\n".join(
            [
                f"Decode of {self.keypoints} heatmaps of {MAP_HW[0]} x {MAP_HW[1]} a person, {self.people} people; "
                f"{self.device}, {self.threads} threads ({self.machine})",
                "",
                "| | ms a person | people/s |",
                "|---|---|---|",
                f"| ours, one batch | {1e3 * self.ours_s:.1f} | {1 / self.ours_s:.0f} |",
                f"| reference, person by person | {1e3 * self.reference_s:.1f} | {1 / self.reference_s:.1f} |",
                "",
                f"{self.speedup:.1f} times faster; largest difference {self.max_apart_px:.6f} heatmap pixels; "
                f"in {self.absent:.0%} of the maps the keypoint is absent, and they are blurred whole",
            ]
        )


def bench_decode(*, people: int = 8, keypoints: int = 308, absent: float = 0.02, repeats: int = 5) -> DecodeBench:
    """Measure both on the same heatmaps, those of a trained network in kind: see `make_heatmaps`.

    On a GPU ours works on maps that are there already, as they are in a run; the reference gets a copy on
    the host, whose time is not counted.
    """
    device = pick_device()
    maps_BKhw = make_heatmaps(people, keypoints, absent=absent)
    on_device = maps_BKhw.to(device)
    maps = maps_BKhw.numpy()
    ours_s, (points, scores) = _best(lambda: _locate(on_device), repeats)
    reference_s, expected = _best(lambda: [reference_decode(person) for person in maps], max(1, repeats // 2))
    wanted_points, wanted_scores = (np.stack(part) for part in zip(*expected, strict=True))
    there = wanted_scores > 0
    apart = np.abs(points - wanted_points)[there]
    same_scores = np.array_equal(np.where(there, wanted_scores, 0), scores)
    return DecodeBench(
        device=torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        machine=f"{platform.machine()}, torch {torch.__version__}, OpenCV {cv2.__version__}",
        threads=torch.get_num_threads(),
        people=people,
        keypoints=keypoints,
        absent=absent,
        ours_s=ours_s / people,
        reference_s=reference_s / people,
        max_apart_px=float(apart.max()) if same_scores else float("inf"),
    )


def make_heatmaps(people: int, keypoints: int, *, absent: float, seed: int = 0) -> torch.Tensor:
    """Return heatmaps (B, K, h, w) float32: a Gaussian in noise a keypoint.

    A share of `absent` peaks so low that the reference's clip may matter, and ours must blur the whole map.
    """
    rng = np.random.default_rng(seed)
    (height, width), count = MAP_HW, people * keypoints
    centres = np.stack([rng.uniform(2, width - 3, count), rng.uniform(2, height - 3, count)])
    peaks = np.where(rng.random(count) < absent, _FAINT, rng.uniform(0.2, 1.0, count))
    x, y = np.arange(width), np.arange(height)
    across = np.exp(-((x - centres[0, :, None]) ** 2) / (2 * _SIGMA**2))
    down = np.exp(-((y - centres[1, :, None]) ** 2) / (2 * _SIGMA**2))
    maps = np.empty((count, height, width), np.float32)
    for n in range(count):  # one by one: in float64 the noise of all at once would take gigabytes
        noise = rng.standard_normal(MAP_HW, np.float32) * np.float32(0.003 * peaks[n])
        maps[n] = peaks[n] * np.outer(down[n], across[n]) + noise
    return torch.from_numpy(maps).reshape(people, keypoints, height, width)


def reference_decode(maps_Khw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return one person's points (K, 2) x, y in heatmap pixels and scores (K,), as the sheet has it."""
    count, height, width = maps_Khw.shape
    index = maps_Khw.reshape(count, -1).argmax(axis=1)
    y, x = np.divmod(index, width)
    scores = maps_Khw.reshape(count, -1)[np.arange(count), index]
    logs = np.empty((count, height + 2, width + 2), np.float32)
    for k in range(count):
        padded = np.zeros((height + 2 * RADIUS, width + 2 * RADIUS), np.float32)
        padded[RADIUS:-RADIUS, RADIUS:-RADIUS] = maps_Khw[k]
        blurred = cv2.GaussianBlur(padded, (_SIDE, _SIDE), 0)[RADIUS:-RADIUS, RADIUS:-RADIUS]
        blurred = blurred * (scores[k] / blurred.max())
        logs[k] = np.pad(np.log(np.clip(blurred, LOW, HIGH)), 1, mode="edge")
    return np.stack([x, y], 1) - _newton_steps(logs, y + 1, x + 1), scores


def _newton_steps(logs: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    k = np.arange(len(logs))

    def at(dy: int, dx: int) -> np.ndarray:
        return np.asarray(logs[k, y + dy, x + dx], np.float64)

    dx, dy = (at(0, 1) - at(0, -1)) / 2, (at(1, 0) - at(-1, 0)) / 2
    dxx, dyy = at(0, 1) - 2 * at(0, 0) + at(0, -1), at(1, 0) - 2 * at(0, 0) + at(-1, 0)
    dxy = (at(1, 1) - at(0, 1) - at(1, 0) + 2 * at(0, 0) - at(0, -1) - at(-1, 0) + at(-1, -1)) / 2
    hessian = np.stack([np.stack([dxx, dxy], 1), np.stack([dxy, dyy], 1)], 1) + EPS * np.eye(2)
    return np.asarray(np.linalg.solve(hessian, np.stack([dx, dy], 1)[..., None])[..., 0])


def _locate(maps_BKhw: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    with torch.inference_mode():
        points, scores = locate(maps_BKhw)
        return points.cpu().numpy(), scores.cpu().numpy()


def _best(call: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Return the least seconds of some calls after a first one, and what the last gave."""
    result = call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result
