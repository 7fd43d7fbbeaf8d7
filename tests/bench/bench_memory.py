"""Peak memory of a worker against the size of its shards: it must not grow with them.

    python tests/bench/bench_memory.py [--images 512]

Labels the same pictures (1024x768 JPEG) with three tiny models in one process per shard size, and prints the peak
resident memory of each. The claim: 16 and 256 rows a shard differ by less than 20 %.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

SHARD_ROWS = (16, 256)
ALLOWED = 0.20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "SHARD_ROWS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        label(Path(args.one[0]), int(args.one[1]))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_corpus(folder, args.images)
        peaks = {rows: measure(folder, rows) for rows in SHARD_ROWS}
    low, high = min(peaks.values()), max(peaks.values())
    print("| shard_rows | images | peak RSS of the worker, MB |")
    print("|---|---|---|")
    for rows, peak in peaks.items():
        print(f"| {rows} | {args.images} | {peak / 2**20:.0f} |")
    print(f"\ndifference {high / low - 1:.1%}, allowed {ALLOWED:.0%}")
    sys.exit(high / low - 1 >= ALLOWED)


def make_corpus(folder: Path, count: int) -> None:
    from annotator.manifest_build import build_manifest
    from annotator.models import random_checkpoint

    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for i in range(count):
        coarse = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, (1024, 768), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / "images" / f"{i:05d}.jpg"), picture)
    build_manifest(str(folder / "images"), str(folder / "manifest"))
    for seed, task in enumerate(("seg", "depth", "normal")):
        random_checkpoint(
            folder / f"{task}.safetensors",
            task=task,
            embed_dim=32,
            num_layers=1,
            num_heads=4,
            input_hw=(128, 96),
            seed=seed,
        )


def measure(folder: Path, shard_rows: int) -> int:
    """Return the peak resident bytes of a process that labels the corpus."""
    command = [sys.executable, __file__, "--one", str(folder), str(shard_rows)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def label(folder: Path, shard_rows: int) -> None:
    import annotator
    from annotator.job import Sources

    job = annotator.Job(
        manifest=str(folder / "manifest"),
        output=str(folder / f"out-{shard_rows}"),
        sources=Sources(roots=(str(folder),)),
        tasks={t: {"checkpoint": str(folder / f"{t}.safetensors")} for t in ("seg", "depth", "normal")},
        shard_rows=shard_rows,
    )
    annotator.run(job, ray=False)
    status = Path("/proc/self/status").read_text()
    print(next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")))


if __name__ == "__main__":
    main()
