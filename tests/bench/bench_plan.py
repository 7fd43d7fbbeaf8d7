"""Plan a manifest of a million rows (or `--rows`): seconds and peak memory, as a row of a Markdown table.

    python -m tests.bench.bench_plan [--rows 1000000] [--files 1]

Target: below 5 s and 500 MB for a million rows. The process is a fresh one, so its peak is the plan's.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def make_manifest(folder: Path, rows: int, files: int) -> None:
    """Write a manifest with uris of 60 characters, by the means a user has."""
    from annotator.manifest_build import build_manifest

    listing = folder / "list.txt"
    with listing.open("w") as out:
        out.writelines(f"s3://corpus/images/{n % 1000:03d}/{n:032x}.jpg\n" for n in range(rows))
    build_manifest(str(listing), str(folder / "manifest"), rows_per_file=-(-rows // files))


def measure(folder: Path) -> None:
    """Plan the manifest in this process and print seconds, peak MB and shards."""
    start = time.perf_counter()
    from annotator.job import Job
    from annotator.manifest import pin_manifest
    from annotator.planning import make_plan
    from annotator.shards import committed
    from annotator.storage import Storage

    storage, output = Storage(), str(folder / "out")
    job = Job(manifest=str(folder / "manifest"), output=output, tasks={"seg": {}, "depth": {}})
    manifest = pin_manifest(job, storage)
    plan = make_plan(manifest, tuple(job.tasks), lambda task, key: committed(storage, output, task, key))
    shards = sum(1 for _ in plan.shards("bench"))
    status = Path("/proc/self/status").read_text()  # getrusage would count the parent's memory before exec
    peak_mb = int(status.split("VmHWM:")[1].split()[0]) / 1024
    print(f"{time.perf_counter() - start:.2f} {peak_mb:.0f} {shards}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=1)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure is not None:
        measure(args.measure)
        return
    with tempfile.TemporaryDirectory(prefix="annotator-bench-") as name:
        start = time.perf_counter()
        make_manifest(Path(name), args.rows, args.files)
        build_s = time.perf_counter() - start
        command = [sys.executable, "-m", "tests.bench.bench_plan", "--measure", name]
        seconds, peak_mb, shards = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    print("| rows | files | shards | build s | plan s | peak MB |\n|---|---|---|---|---|---|")
    print(f"| {args.rows} | {args.files} | {shards} | {build_s:.1f} | {seconds} | {peak_mb} |")


if __name__ == "__main__":
    main()
