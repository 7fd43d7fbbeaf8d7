"""What the driver costs a shard when the work is free, and how listing scales; Markdown tables.

    python -m tests.bench.bench_driver [--shards 1000 10000 100000] [--workers 2] [--part dispatch|resume|listing]

dispatch   every shard goes through Ray to a worker that only says that it is done: seconds and driver memory a shard,
           from the first summary to the last, one process for each number of shards
resume     planning with all of them committed but one, on a local disk
listing    a million label files in 64 folders on a simulated store that takes 50 ms for each page of 1,000
All three should grow in proportion: the last columns should not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from annotator import cluster
from annotator.job import Job
from annotator.manifest import Manifest, PinnedFile
from annotator.planning import make_plan
from annotator.report import Reporter
from annotator.shards import Shard, committed, cut, label_uri
from annotator.storage import ObjectInfo, Storage
from annotator.summary import Summary
from annotator.watch import Silent

SHARD_ROWS, FILES = 128, 4
PAGE_S, PAGE_KEYS = 0.05, 1000


class NullWorker:
    """A worker that has nothing to do, as Ray sees it."""

    def __init__(self, *_: object) -> None: ...

    def __call__(self, batch: pa.Table) -> pa.Table:
        shard = Shard(**batch.to_pylist()[0])
        rows = shard.end - shard.first
        summary = Summary(shard=shard, created=("seg",), rows=rows, statuses={"seg": {"ok": rows}})
        return pa.table({"summary": [summary.to_json()]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--part", choices=["dispatch", "resume", "listing"])
    parser.add_argument("--workers", type=int, default=2, help="for dispatch")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(dispatch(args.one, args.workers)))
        return
    if args.part in (None, "dispatch"):
        print("| shards through Ray | seconds | driver peak MB | ms a shard | kB a shard |\n|---|---|---|---|---|")
        for count in args.shards:
            found = _in_own_process(count, args.workers)
            each_kb = (found["peak"] - found["before"]) / count / 1e3
            print(
                f"| {count} | {found['seconds']:.1f} | {found['peak'] / 2**20:.0f} | "
                f"{1e3 * found['seconds'] / (count - 1):.2f} | {each_kb:.2f} |",
                flush=True,
            )
        print()
    if args.part in (None, "resume"):
        print("| committed shards | seconds to plan | us a shard |\n|---|---|---|")
        for count in args.shards:
            seconds = resume(count)
            print(f"| {count} | {seconds:.2f} | {1e6 * seconds / count:.0f} |", flush=True)
        print()
    if args.part in (None, "listing"):
        print("| label files | folders | seconds | one page after the other |\n|---|---|---|---|")
        for count in (100_000, 1_000_000):
            print(f"| {count} | 64 | {listing(count, 64):.1f} | {count / PAGE_KEYS * PAGE_S:.0f} |", flush=True)


def _in_own_process(count: int, workers: int) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.bench.bench_driver", "--one", str(count), "--workers", str(workers)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def dispatch(count: int, workers: int) -> dict[str, float]:
    """Send so many shards through Ray and back into a report; return seconds, and bytes before and at the peak."""
    cast(Any, cluster)._RayWorker = NullWorker
    shards = cut("part-0-00000000", count * SHARD_ROWS, SHARD_ROWS)
    with tempfile.TemporaryDirectory(prefix="annotator-bench-") as output:
        job = Job(manifest="/m", output=output, tasks={"seg": {}}, gpus_per_worker=0, workers=workers)
        with cluster.Cluster(job) as pool, Reporter(job, Storage(), Silent()) as reporter:
            start = before = 0.0
            for number, summary in enumerate(pool.label(shards, ("seg",), last_round=False)):
                reporter.add(summary)
                if number == 0:
                    start, before = time.perf_counter(), _memory("VmRSS")
            seconds = time.perf_counter() - start
        if reporter.report.shards != count:
            sys.exit(f"{reporter.report.shards} of {count} shards came back")
    return {"seconds": seconds, "before": before, "peak": _memory("VmHWM")}


def resume(count: int) -> float:
    """Return the seconds it takes to find the one shard of so many that is left."""
    manifest = _manifest(count, FILES)
    done = [shard for file in manifest.files for shard in cut(file.key, file.rows, SHARD_ROWS)][:-1]
    with tempfile.TemporaryDirectory(prefix="annotator-bench-") as output:
        for shard in done:
            path = Path(label_uri(output, "seg", shard))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        start = time.perf_counter()
        plan = make_plan(manifest, ("seg",), lambda task, key: committed(Storage(), output, task, key))
        seconds = time.perf_counter() - start
    if len(plan) != 1:
        sys.exit(f"{len(plan)} shards are left, expected 1")
    return seconds


class Pages:
    """Stands for a store that lists a folder's label files page by page, each a round trip."""

    def __init__(self, each: int) -> None:
        self._each = each

    def list(self, folder: str) -> Iterator[ObjectInfo]:
        for number in range(self._each):
            if number % PAGE_KEYS == 0:
                time.sleep(PAGE_S)
            first = number * SHARD_ROWS
            name = f"{folder}/{first:012d}-{first + SHARD_ROWS:012d}.parquet"
            yield ObjectInfo(uri=name, size=1, etag=None)


def listing(count: int, folders: int) -> float:
    """Return the seconds that a plan over so many label files takes on a simulated store."""
    storage = cast(Storage, Pages(count // folders))
    manifest = _manifest(count, folders)
    start = time.perf_counter()
    plan = make_plan(manifest, ("seg",), lambda task, key: committed(storage, "/out", task, key))
    seconds = time.perf_counter() - start
    if not plan.is_done:
        sys.exit(f"{len(plan)} shards are left, expected none")
    return seconds


def _manifest(shards: int, files: int) -> Manifest:
    rows = shards // files * SHARD_ROWS
    pinned = tuple(
        PinnedFile(key=f"part-{n}", uri=f"/m/{n}.parquet", size=1, etag=None, rows=rows, footer_digest="")
        for n in range(files)
    )
    return Manifest(root="/m", shard_rows=SHARD_ROWS, where=None, files=pinned)


def _memory(field: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split(f"{field}:")[1].split()[0]) * 1024


if __name__ == "__main__":
    main()
