"""How near to a GPU's limit the engine runs: each task alone and all together, as a Markdown table.

    python -m tests.bench.bench_gpu                            0.3b and 1b at 1024x768, about 20 minutes
    python -m tests.bench.bench_gpu --sizes 2b --images 512
    python -m tests.bench.bench_gpu --tiny                     on any machine, in minutes: that the script works

Each line is `annotator bench` with that model: forward passes alone, then the whole job through Ray, on the same GPU.
Efficiency is the second over the first; utilisation is the whole job's operations a second over what the GPU reaches
with large products of matrices (PEAK_TFLOPS), and that of forward passes alone beside it. Targets: 0.90 and 0.60.
Weights are random, so maps are noise: their PNGs take more CPU time and bytes than a trained model's.
"""

from __future__ import annotations

import argparse
import os
import platform

from annotator.bench.engine import EngineBench, bench_engine
from annotator.bench.flops import PEAK_TFLOPS, forward_tflop, released_config
from annotator.bench.setup import Setup
from annotator.models.zoo import SIZES
from annotator.preflight import has_gpu

ALONE = ("seg", "depth", "normal", "pose")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small models and pictures, on the CPU if need be")
    parser.add_argument("--sizes", nargs="+", default=["0.3b", "1b"], choices=SIZES)
    parser.add_argument("--images", type=int, default=1024)
    args = parser.parse_args()
    if not args.tiny and not has_gpu():
        print("no NVIDIA GPU here, and these models would take hours on a CPU; --tiny shows that the script works")
        return
    sizes = ["tiny"] if args.tiny else args.sizes
    images, image_wh = (32, (96, 64)) if args.tiny else (args.images, (1024, 768))
    print(f"{machine()}; {images} JPEGs of {image_wh[0]}x{image_wh[1]}, labels of the same size\n")
    columns = ("images/s", "efficiency", "utilisation", "forward alone: images/s", "utilisation", "device idle")
    print(f"| model | tasks | {' | '.join(columns)} | batch | CPU ms/image | peak device GB |")
    print("|---" * (len(columns) + 5) + "|")
    for size in sizes:
        for tasks in [(task,) for task in ALONE] + [ALONE]:
            setup = Setup(
                model=size,
                tasks=tasks,
                checkpoints={},
                images=images,
                image_wh=image_wh,
                settings={"workers": 1, "shard_rows": max(2, images // 16)},
            )
            print(row(bench_engine(setup)), flush=True)


def row(result: EngineBench) -> str:
    """Return a line of the table."""
    assert result.bare is not None and result.bare_s
    run = result.runs["ray"]
    released = result.model in SIZES
    tflop = sum(forward_tflop(released_config(task, result.model)) for task in result.tasks) if released else 0.0
    cells = (
        f"{run.images_per_s:.1f}",
        f"{result.efficiency['ray']:.2f}",
        f"{run.images_per_s * tflop / PEAK_TFLOPS:.2f}",
        f"{1 / result.bare_s:.1f}",
        f"{tflop / result.bare_s / PEAK_TFLOPS:.2f}",
        "-" if run.device_idle is None else f"{run.device_idle:.0%}",
        str(result.bare.batch_size),
        f"{1e3 * run.cpu_s:.0f}",
        f"{run.peak_device_bytes / 1e9:.1f}",
    )
    return f"| {result.model} | {', '.join(result.tasks)} | {' | '.join(cells)} |"


def machine() -> str:
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{gpu}, {os.cpu_count()} CPU cores, Python {platform.python_version()}, torch {torch.__version__}"


if __name__ == "__main__":
    main()
