"""Two workers against one on this machine, with a model that takes the time; a Markdown table.

    python -m tests.bench.bench_workers [--images 48] [--repeats 2]

Each worker computes in one thread, so two of them should label twice as many images a second: at least 1.8 times. They
take turns, and a run is measured in its steady state. Where other work takes part of the cores, wall time can't show
it. So the table says as well how many cores all processes of the job had, and how many seconds of CPU an image took:
where these are the same for one worker and two, they do not get into each other's way, and the speed-up is that of the
cores that they got. The last line says what it would be with a core for each.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path

from annotator.bench.phases import Measured, measure_job
from annotator.bench.setup import Setup, make_job

TARGET = 1.8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # Ray hands it on; by itself it would give a lone worker a thread a core
    setup = Setup(
        model="small",
        tasks=("seg",),
        checkpoints={},
        images=args.images,
        image_wh=(640, 480),
        settings={"shard_rows": 2, "batch_size": 1},
    )
    print("| workers | images/s | cores had by all | CPU s an image, the model | CPU s an image, all |")
    print("|---|---|---|---|---|")
    runs: dict[int, list[Measured]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory(prefix="annotator-bench-") as name:
        job = make_job(Path(name), setup)
        for _ in range(args.repeats):
            for workers, found in runs.items():
                with tempfile.TemporaryDirectory(dir=name) as output:
                    one = measure_job("ray", job.model_copy(update={"output": output, "workers": workers}))
                found.append(one)
                row = (one.images_per_s, _cores(one), _model_s(one), one.cpu_s)
                print(f"| {workers} | {' | '.join(f'{value:.3f}' for value in row)} |", flush=True)
    alone, both = (statistics.median(one.images_per_s for one in found) for found in runs.values())
    cores = [statistics.median(map(_cores, found)) for found in runs.values()]
    model = [statistics.median(map(_model_s, found)) for found in runs.values()]
    cpu = [statistics.median(one.cpu_s for one in found) for found in runs.values()]
    print(f"\nspeed-up {both / alone:.2f} with {cores[1] / cores[0]:.2f} times the cores; target {TARGET}")
    print(f"images a second of CPU: {1 / cpu[0]:.2f} with one worker, {1 / cpu[1]:.2f} with two")
    print(f"speed-up with a core for each worker, by CPU: {_by(cpu):.2f}, by the model's {_by(model):.2f}")


def _by(cpu: list[float]) -> float:
    return 2 * cpu[0] / cpu[1]


def _cores(run: Measured) -> float:
    return run.cpu_s * run.images_per_s


def _model_s(run: Measured) -> float:
    return run.cpu_by_stage["forward"] + run.cpu_by_stage["post-process"]


if __name__ == "__main__":
    main()
