"""A worker on the CPU with glibc's malloc as it is by default, and keeping what is freed (`KEEP_FREED`).

    python -m tests.bench.bench_malloc [--images 24] [--repeats 3]

One process a row, the two by turns: seg, depth and normal with the model `small` on 640x480 JPEGs, no Ray.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from annotator.bench.setup import Setup, make_job
from annotator.cluster import CALLS_PER_WORKER
from annotator.pipeline import plan_left
from annotator.preflight import preflight
from annotator.session import KEEP_FREED
from annotator.stages.times import peak_memory
from annotator.worker import Worker

SETTINGS: dict[str, dict[str, str]] = {"default": {}, "kept": KEEP_FREED}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(f"| {args.one} | {measure(args.images)} |", flush=True)
        return
    print("| malloc | s an image | CPU s an image, user | system | page faults an image | peak MB |")
    print("|---" * 6 + "|")
    clean = {name: value for name, value in os.environ.items() if name not in KEEP_FREED}
    command = [sys.executable, "-m", "tests.bench.bench_malloc", "--images", str(args.images), "--one"]
    for _ in range(args.repeats):
        for name, settings in SETTINGS.items():
            sys.stdout.flush()
            subprocess.run([*command, name], env=clean | settings, check=True)


def measure(images: int) -> str:
    """Return the cells of a row, of this process."""
    with tempfile.TemporaryDirectory(prefix="annotator-bench-") as folder:
        setup = Setup(
            model="small",
            checkpoints={},
            images=images,
            image_wh=(640, 480),
            settings={"shard_rows": 3, "workers": 1},
        )
        ready = preflight(make_job(Path(folder), setup))
        shards = list(plan_left(ready, None).shards("bench"))
        with Worker(ready.job) as worker, ThreadPoolExecutor(CALLS_PER_WORKER) as calls:
            before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
            summaries = list(calls.map(worker, shards))
            seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    assert all(summary.done for summary in summaries)
    user_s, system_s = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    faults = after.ru_minflt - before.ru_minflt
    each = " | ".join(f"{value / images:.2f}" for value in (seconds, user_s, system_s))
    return f"{each} | {faults / images:,.0f} | {peak_memory() / 2**20:.0f}"


if __name__ == "__main__":
    main()
