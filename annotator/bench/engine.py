"""How much of a model's speed is left when everything else is added: the bare loop, the worker, the whole job.

All three run on the same device, one after the other, each in a process of its own; the bare loop before and after the
others, so that a machine which slows down or speeds up on the way favours neither. Efficiency is the speed of
the whole job over that of the bare loop. A null model costs nothing, so what is left is the engine's own limit.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from annotator.bench.phases import Bare, Kind, Measured, mean, measure_bare, measure_job
from annotator.bench.setup import Setup, make_job

STAGES = ("fetch", "decode", "prepare", "forward", "post-process", "copy", "encode", "commit", "other")


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineBench:
    """One setup, measured; `bare` is None for a null model. `runs` holds worker and ray (or no-ray)."""

    model: str
    tasks: tuple[str, ...]
    image_wh: tuple[int, int]
    images: int
    machine: str
    bare: Bare | None
    runs: dict[Kind, Measured]

    @property
    def bare_s(self) -> float | None:
        """Seconds an image of forward passes alone, all tasks together; one input an image."""
        return sum(self.bare.seconds.values()) if self.bare else None

    @property
    def efficiency(self) -> dict[str, float]:
        """Speed of the worker and of the whole job as a share of the bare loop's."""
        bare_s = self.bare_s
        return {kind: bare_s * run.images_per_s for kind, run in self.runs.items()} if bare_s else {}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        runs = {
            kind: {**dataclasses.asdict(run), "images_per_s": run.images_per_s, "efficiency": self.efficiency.get(kind)}
            for kind, run in self.runs.items()
        }
        return {**dataclasses.asdict(self), "bare_s": self.bare_s, "runs": runs}

    def table(self) -> str:
        """Return two Markdown tables: speed and memory, and where the CPU seconds of an image go."""
        width, height = self.image_wh
        bare, pictures = self.bare, f"{self.images} JPEGs of {width}x{height}"
        how = f"batch {bare.batch_size}, {bare.dtype}, {bare.device}" if bare else "nothing to compute"
        columns = ("images/s", "efficiency", "CPU ms/image", "device idle", "kB to host/image")
        return "\n".join(
            [
                f"{self.model}: {', '.join(self.tasks)}; {pictures}; {how} ({self.machine})",
                "",
                f"| | {' | '.join(columns)} | peak host MB | peak device MB |",
                "|---|---|---|---|---|---|---|---|",
                *self._speed_rows(),
                "",
                "| CPU ms/image | " + " | ".join(STAGES) + " | outside the worker |",
                "|---" * (len(STAGES) + 2) + "|",
                *self._cpu_rows(),
            ]
        )

    def _speed_rows(self) -> Iterator[str]:
        if self.bare and self.bare_s:
            memory = f"{_mb(self.bare.peak_host_bytes)} | {_mb(self.bare.peak_device_bytes)}"
            yield f"| forward passes alone | {1 / self.bare_s:.2f} | 1 | | | | {memory} |"
        for kind, run in self.runs.items():
            efficiency = f"{self.efficiency[kind]:.2f}" if self.efficiency else "-"
            idle = "-" if run.device_idle is None else f"{run.device_idle:.0%}"
            yield (
                f"| {_NAMES[kind]} | {run.images_per_s:.2f} | {efficiency} | {1e3 * run.cpu_s:.1f} | {idle} | "
                f"{run.bytes_to_host / 1e3:.0f} | {_mb(run.peak_host_bytes)} | {_mb(run.peak_device_bytes)} |"
            )

    def _cpu_rows(self) -> Iterator[str]:
        for kind, run in self.runs.items():
            inside = [run.cpu_by_stage.get(stage, 0.0) for stage in STAGES]
            cells = [f"{1e3 * s:.2f}" for s in (*inside, max(0.0, run.cpu_s - sum(inside)))]
            yield f"| {_NAMES[kind]} | " + " | ".join(cells) + " |"


_NAMES: dict[Kind, str] = {
    "bare": "forward passes alone",
    "worker": "worker alone",
    "ray": "whole job, Ray",
    "no-ray": "whole job, no Ray",
}


def bench_engine(setup: Setup, *, ray: bool = True, folder: Path | None = None) -> EngineBench:
    """Measure a setup, in a temporary folder below `folder` that is gone afterwards.

    Raises JobError when the pictures are too few to reach a steady state.
    """
    with tempfile.TemporaryDirectory(prefix="annotator-bench-", dir=folder) as name:
        job = make_job(Path(name), setup)
        kinds: tuple[Kind, ...] = ("worker", "ray" if ray else "no-ray")
        has_model = setup.model != "null"
        before = measure_bare(_fresh(job, "bare")) if has_model else None
        runs = {kind: measure_job(kind, _fresh(job, kind)) for kind in kinds}
        after = measure_bare(_fresh(job, "bare")) if has_model else None
    return EngineBench(
        model=setup.model,
        tasks=setup.tasks,
        image_wh=setup.image_wh,
        images=setup.images,
        machine=machine(),
        bare=mean(before, after) if before and after else None,
        runs=runs,
    )


def machine() -> str:
    """Return what a figure must be read with."""
    return f"{os.cpu_count()} CPU cores, {platform.machine()}, Python {platform.python_version()}"


def _fresh(job: Any, name: str) -> Any:
    return job.model_copy(update={"output": f"{job.output}-{name}"})


def _mb(count: int) -> str:
    return f"{count / 2**20:.0f}"
