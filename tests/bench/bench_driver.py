"""What the driver costs a shard when the work is free, and how planning and listing scale; Markdown tables.

    python -m tests.bench.bench_driver [--shards 1000 10000 100000] [--workers 2] [--part dispatch|resume|listing]

dispatch   every shard goes through Ray to a worker that only says that it is done: time, CPU and driver memory a shard,
           from the first summary to the last; `--block` shards handed out at once, by default as many as a run would
resume     planning with all of them committed but one, on a local disk
listing    planning a million shards on a simulated store that takes 50 ms for each page of 1,000 names, with no label
           file there and with all of them, in 64 folders
Each row is a process of its own. All should grow in proportion: what is given a shard should not. Where cores are
shared with other work, wall time says little; CPU says what it costs. `all` is the CPU of Ray's processes and the
workers' as well.

Ray Data takes in ten results a second, or so, of each call that is under way; with two calls a worker, as in a job, the
bench would measure that. So a worker here has 16.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from annotator import cluster
from annotator.bench.phases import family_cpu_s
from annotator.job import Job
from annotator.manifest import Manifest, PinnedFile
from annotator.pipeline import ROUND_SHARDS
from annotator.planning import make_plan
from annotator.pool import block_size
from annotator.report import Reporter
from annotator.shards import Shard, committed, cut, label_uri
from annotator.storage import ObjectInfo, Storage
from annotator.summary import Summary
from annotator.watch import Silent

SHARD_ROWS, FILES, FOLDERS = 128, 4, 64
CALLS = 16
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
    parser.add_argument("--block", type=int, help="for dispatch: shards handed out at once")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        parts: dict[str, Callable[..., dict[str, float]]] = {"dispatch": dispatch, "resume": resume, "listing": listing}
        part, *rest = args.one
        print(json.dumps(parts[part](*rest)))
        return
    if args.part in (None, "dispatch"):
        _print_dispatch(args.shards, args.workers, args.block)
    if args.part in (None, "resume"):
        print("| committed shards | s to plan what is left | CPU s | CPU us a shard |\n|---|---|---|---|")
        for count in args.shards:
            found = _in_own_process("resume", count)
            print(f"| {count} | {found['seconds']:.2f} | {found['cpu']:.2f} | {1e6 * found['cpu'] / count:.0f} |")
        print(flush=True)
    if args.part in (None, "listing"):
        print("| shards | label files | s | CPU s | one page after the other, s | peak MB |\n|---|---|---|---|---|---|")
        for count, there in ((100_000, 100_000), (1_000_000, 0), (1_000_000, 1_000_000)):
            found = _in_own_process("listing", count, there)
            pages_s = there / PAGE_KEYS * PAGE_S
            row = (f"{found['seconds']:.1f}", f"{found['cpu']:.1f}", f"{pages_s:.0f}", f"{found['peak'] / 2**20:.0f}")
            print(f"| {count} | {there} | {' | '.join(row)} |", flush=True)


def _print_dispatch(counts: list[int], workers: int, block: int | None) -> None:
    head = ("shards", "a block", "s", "driver's peak MB", "a shard: kB", "ms", "CPU ms of the driver", "CPU ms of all")
    print(f"| {' | '.join(head)} |" + "\n" + "|---" * len(head) + "|")
    for count in counts:
        found = _in_own_process("dispatch", count, workers, block)
        each = [1e3 * found[name] / (count - 1) for name in ("seconds", "cpu", "all_cpu")]
        kb = (found["peak"] - found["before"]) / count / 1e3
        row = [count, int(found["block"]), f"{found['seconds']:.1f}", f"{found['peak'] / 2**20:.0f}", f"{kb:.2f}"]
        print(f"| {' | '.join(map(str, row))} | {' | '.join(f'{ms:.2f}' for ms in each)} |", flush=True)
    print()


def _in_own_process(*order: Any) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.bench.bench_driver", "--one", json.dumps(order)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def dispatch(count: int, workers: int, block: int | None) -> dict[str, float]:
    """Send so many shards through Ray and back into a report; return seconds, and bytes before and at the peak."""
    ours = cast(Any, cluster)
    ours._RayWorker, ours.CALLS_PER_WORKER = NullWorker, CALLS
    block = block or block_size(count, workers=workers)
    ours.block_size = lambda shards, workers: block
    shards = cut("part-0-00000000", count * SHARD_ROWS, SHARD_ROWS)
    with tempfile.TemporaryDirectory(prefix="annotator-bench-") as output:
        job = Job(manifest="/m", output=output, tasks={"seg": {}}, gpus_per_worker=0, workers=workers)
        with cluster.Cluster(job) as pool, Reporter(job, Storage(), Silent()) as reporter:
            first = (0.0, 0.0, 0.0)
            before = 0
            for number, summary in enumerate(pool.label(shards, ("seg",), last_round=False)):
                reporter.add(summary)
                if number == 0:
                    first, before = _clocks(), _memory("VmRSS")
            seconds, cpu, all_cpu = (now - then for now, then in zip(_clocks(), first, strict=True))
        if reporter.report.shards != count:
            sys.exit(f"{reporter.report.shards} of {count} shards came back")
    peak = _memory("VmHWM")
    return {"seconds": seconds, "cpu": cpu, "all_cpu": all_cpu, "before": before, "peak": peak, "block": block}


def _clocks() -> tuple[float, float, float]:
    """Return seconds of wall time, of CPU of this process, and of its descendants' too."""
    return time.perf_counter(), time.process_time(), family_cpu_s()


def resume(count: int) -> dict[str, float]:
    """Find the one shard of so many that is left; return seconds, and those of CPU."""
    manifest = _manifest(count, FILES)
    done = [shard for file in manifest.files for shard in cut(file.key, file.rows, SHARD_ROWS)][:-1]
    with tempfile.TemporaryDirectory(prefix="annotator-bench-") as output:
        for shard in done:
            path = Path(label_uri(output, "seg", shard))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        start, cpu = time.perf_counter(), time.process_time()
        plan = make_plan(manifest, ("seg",), lambda task, key: committed(Storage(), output, task, key))
        found = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
    if len(plan) != 1:
        sys.exit(f"{len(plan)} shards are left, expected 1")
    return found


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


def listing(count: int, there: int) -> dict[str, float]:
    """Plan so many shards over so many label files on a simulated store; return seconds, CPU and peak memory."""
    storage = cast(Storage, Pages(there // FOLDERS))
    manifest = _manifest(count, FOLDERS)
    start, cpu = time.perf_counter(), time.process_time()
    plan = make_plan(manifest, ("seg",), lambda task, key: committed(storage, "/out", task, key))
    round_shards = sum(1 for _ in plan.shards("a run", limit=ROUND_SHARDS))
    found = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu, "peak": _memory("VmHWM")}
    if len(plan) != manifest.rows // SHARD_ROWS - there // FOLDERS * FOLDERS or round_shards > len(plan):
        sys.exit(f"{len(plan)} shards are left")
    return found


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
