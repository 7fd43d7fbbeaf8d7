"""Images a second that one worker labels on this machine's GPU, by size of model and task, as a Markdown table.

    python -m tests.bench.bench_gpu                       0.3b and 1b, seg, depth and normal, at 1024x768
    python -m tests.bench.bench_gpu --sizes 2b --batch 4
    python -m tests.bench.bench_gpu --tiny                on any machine, in a minute: that the script works, no more

The whole worker is measured: fetch from a local disk, decode, forward pass, map, PNG, commit. Weights are random, so
maps are noise: their PNGs take several times the CPU time and bytes of a trained model's, and a machine with few cores
per GPU is bound by that. What compiles and loads is done before the clock starts. Each line is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from annotator.preflight import has_gpu

TASKS = ("seg", "depth", "normal")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large everything is. `sizes` are width, layers and heads of the models by name."""

    sizes: dict[str, tuple[int, int, int]]
    input_hw: tuple[int, int]
    images: int
    shard_rows: int
    batch: int


# widths, layers and heads as released: annotator/models/zoo.py
REAL = Scale(
    sizes={"0.3b": (1024, 24, 16), "0.6b": (1280, 32, 16), "1b": (1536, 40, 24), "2b": (1920, 48, 32)},
    input_hw=(1024, 768),
    images=1024,
    shard_rows=64,
    batch=8,
)
TINY = Scale(sizes={"tiny": (32, 1, 4)}, input_hw=(64, 48), images=48, shard_rows=8, batch=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small models and pictures, on the CPU if need be")
    parser.add_argument("--sizes", nargs="+", default=["0.3b", "1b"], choices=REAL.sizes)
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    parser.add_argument("--images", type=int, help=f"default {REAL.images}")
    parser.add_argument("--batch", type=int, help=f"default {REAL.batch}")
    parser.add_argument("--one", nargs=4, metavar=("FOLDER", "TASK", "SHARD_ROWS", "BATCH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        folder, task, shard_rows, batch = args.one
        measure(Path(folder), task, int(shard_rows), int(batch))
        return
    if not args.tiny and not has_gpu():
        print("no NVIDIA GPU here, and these models would take hours on a CPU; --tiny shows that the script works")
        return
    scale = TINY if args.tiny else REAL
    images, batch = args.images or scale.images, args.batch or scale.batch
    if images < 4 * scale.shard_rows:
        parser.error(f"--images {images}: expected {4 * scale.shard_rows} or more, so that something is left to time")
    print(f"{machine()}; {images} JPEGs of {scale.input_hw[1]}x{scale.input_hw[0]}, labels of the same size\n")
    print("| model | task | images/s | batch | device busy | peak device memory, GB | dtype |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="annotator-bench-") as name:
        make_corpus(Path(name), images, scale.input_hw)
        for size in scale.sizes if args.tiny else args.sizes:
            for task in args.tasks:
                make_weights(Path(name), task, scale, size)
                found = run_one(Path(name), task, scale.shard_rows, batch)
                print(
                    f"| {size} | {task} | {found['images_per_s']:.1f} | {batch} | {found['busy']:.0%} | "
                    f"{found['peak_gb']:.1f} | {found['dtype']} |",
                    flush=True,
                )


def machine() -> str:
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{gpu}, {os.cpu_count()} CPU cores, Python {platform.python_version()}, torch {torch.__version__}"


def make_corpus(folder: Path, count: int, image_yx: tuple[int, int]) -> None:
    from annotator.manifest_build import build_manifest

    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for i in range(count):
        coarse = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, image_yx[::-1], interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / "images" / f"{i:05d}.jpg"), picture)
    build_manifest(str(folder / "images"), str(folder / "manifest"))


def make_weights(folder: Path, task: str, scale: Scale, size: str) -> None:
    from annotator.models import random_checkpoint

    width, layers, heads = scale.sizes[size]
    random_checkpoint(
        folder / "weights.safetensors",
        task=task,
        embed_dim=width,
        num_layers=layers,
        num_heads=heads,
        input_hw=scale.input_hw,
        seed=0,
    )


def run_one(folder: Path, task: str, shard_rows: int, batch: int) -> dict[str, float | str]:
    """Return what `measure` prints, from a process of its own."""
    command = [sys.executable, "-m", "tests.bench.bench_gpu", "--one", str(folder), task, str(shard_rows), str(batch)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float | str] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(folder: Path, task: str, shard_rows: int, batch: int) -> None:
    """Label the corpus with one worker and print images a second and the device's share, as JSON."""
    import torch

    import annotator
    from annotator.cluster import CALLS_PER_WORKER
    from annotator.pipeline import plan_left
    from annotator.preflight import preflight
    from annotator.worker import Worker

    with tempfile.TemporaryDirectory(dir=folder) as output:
        job = annotator.Job(
            manifest=str(folder / "manifest"),
            output=output,
            tasks={task: {"checkpoint": str(folder / "weights.safetensors")}},
            shard_rows=shard_rows,
            batch_size=batch,
        )
        ready = preflight(job)
        shards = list(plan_left(ready, None).shards("bench"))
        warm_up, timed = shards[:CALLS_PER_WORKER], shards[CALLS_PER_WORKER:]
        with Worker(ready.job) as worker, ThreadPoolExecutor(CALLS_PER_WORKER) as calls:
            summaries = list(calls.map(worker, warm_up))
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            summaries = [*summaries, *calls.map(worker, timed)]
            seconds = time.perf_counter() - start
    bad = [s.deferred or str(s.statuses) for s in summaries if s.deferred or set(s.statuses[task]) != {"ok"}]
    if bad:
        sys.exit(f"not every image was labelled: {bad[0]}")
    found = summaries[len(warm_up) :]
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    print(
        json.dumps(
            {
                "images_per_s": sum(s.rows for s in found) / seconds,
                "busy": sum(s.stages["device"][0] for s in found) / seconds,
                "peak_gb": peak / 1e9,
                "dtype": ready.job.dtype,
            }
        )
    )


if __name__ == "__main__":
    main()
