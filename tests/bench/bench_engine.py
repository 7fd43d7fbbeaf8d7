"""The engine against its targets, as ratios within one run on this machine; exit code 1 if one is missed.

    python -m tests.bench.bench_engine [--images 2048] [--repeats 3] [--part efficiency|null]

efficiency   speed of the whole job on Ray over that of forward passes alone, with models that take 0.1 s an image or
             more on this CPU: at least 0.90. The device's own work after the forward pass is part of what it costs.
null         CPU seconds an image of the whole job with models that cost nothing, over those of a bare loop in one
             process that reads, decodes, resizes, encodes and writes the same maps (bare_loop.py): at most 1.6; and
             over those of the same work as the reference's demo scripts do it (demo_script.py): at most 1/5.

The three of `null` take turns, so that what else the machine does falls on all of them. CPU of the job is that of all
its processes, Ray's among them, in the steady state.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from annotator.bench.engine import bench_engine
from annotator.bench.phases import measure_job
from annotator.bench.setup import Setup, make_job

EFFICIENCY, OVER_BARE, OVER_DEMO = 0.90, 1.6, 1 / 5
IMAGE_WH = (1024, 768)
MODEL_IMAGE_WH = (640, 480)
DEMO_IMAGES, BARE_IMAGES = 64, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2048, help="for the null models")
    parser.add_argument("--model-images", type=int, default=96, help="for the models that take time")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--part", choices=["efficiency", "null"])
    parser.add_argument("--no-ray", action="store_true", help="the whole job in one process")
    args = parser.parse_args()
    kept = []
    if args.part in (None, "efficiency"):
        kept.append(efficiency(args.model_images, args.repeats, ray=not args.no_ray))
    if args.part in (None, "null"):
        kept.append(null(args.images, args.repeats, ray=not args.no_ray))
    sys.exit(not all(kept))


def efficiency(images: int, repeats: int, *, ray: bool) -> bool:
    """Print the engine's tables for the model `small`, then the efficiency; return whether it is enough."""
    setup = Setup(
        model="small",
        checkpoints={},
        images=images,
        image_wh=MODEL_IMAGE_WH,
        settings={"shard_rows": 8, "workers": 1},
    )
    found = []
    for _ in range(repeats):
        result = bench_engine(setup, ray=ray)
        print(result.table(), "\n", flush=True)
        found.append(list(result.efficiency.values())[-1])
        print(f"forward passes alone: {result.bare_s:.2f} s an image\n")
    return _judge("efficiency of the whole job", found, EFFICIENCY, at_least=True)


def null(images: int, repeats: int, *, ray: bool) -> bool:
    """Print CPU milliseconds an image of job, bare loop and demo scripts, and the ratios; return whether they do."""
    over_bare, over_demo = [], []
    with tempfile.TemporaryDirectory(prefix="annotator-bench-") as name:
        folder = Path(name)
        job = make_job(
            folder,
            Setup(
                model="null",
                checkpoints={},
                images=images,
                image_wh=IMAGE_WH,
                settings={"shard_rows": 64, "workers": 1},
            ),
        )
        print("| CPU ms/image | whole job | bare loop | demo scripts |\n|---|---|---|---|")
        for repeat in range(repeats):
            bare_s = _script("bare_loop", folder, min(images, BARE_IMAGES))
            demo_s = _script("demo_script", folder, min(images, DEMO_IMAGES))
            with tempfile.TemporaryDirectory(dir=folder) as output:
                one = job.model_copy(update={"output": output})
                job_s = measure_job("ray" if ray else "no-ray", one).cpu_s
            print(f"| run {repeat + 1} | {1e3 * job_s:.1f} | {1e3 * bare_s:.1f} | {1e3 * demo_s:.1f} |", flush=True)
            over_bare.append(job_s / bare_s)
            over_demo.append(job_s / demo_s)
    print()
    kept = [
        _judge("CPU of the job over that of a bare loop", over_bare, OVER_BARE, at_least=False),
        _judge("CPU of the job over that of the demo scripts", over_demo, OVER_DEMO, at_least=False),
    ]
    return all(kept)


def _script(module: str, folder: Path, images: int) -> float:
    """Return CPU seconds an image of a script, from a process of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = [sys.executable, "-m", f"tests.bench.{module}", str(folder / "corpus"), out, "--images", str(images)]
        return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def _judge(what: str, found: list[float], target: float, *, at_least: bool) -> bool:
    middle = statistics.median(found)
    kept = middle >= target if at_least else middle <= target
    spread = f"{min(found):.3f} to {max(found):.3f}"
    print(
        f"{what}: {middle:.3f} ({spread} in {len(found)} runs); target {'>=' if at_least else '<='} {target:.2f}: "
        f"{'kept' if kept else 'MISSED'}",
        flush=True,
    )
    return kept


if __name__ == "__main__":
    main()
