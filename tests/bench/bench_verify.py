"""Verify an output of a million rows (or `--rows`): seconds and rows a second, as rows of a Markdown table.

    python -m tests.bench.bench_verify [--rows 1000000] [--task seg] [--deep] [--keep FOLDER]

Target: minutes. Maps are small (9 x 12), so this is the cost of rows and files; of large maps add the time to read
them. The output is made by hand, without a model, and takes a minute to write.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from annotator.labels.verify import verify
from annotator.shards import Shard
from annotator.storage import Storage
from tests.labels.make_output import Output, Plan, label_row, make_output, table_bytes

SHARD_ROWS, FILES = 128, 4


def make(root: str, rows: int, task: str) -> Output:
    """Write an output whose shards all hold the same images, but for their numbers."""
    plan = Plan(rows=[rows // FILES] * FILES, shard_rows=SHARD_ROWS, tasks=(task,))
    num_shards = FILES * -(-plan.rows[0] // SHARD_ROWS)
    output = make_output(root, plan=plan, skip=[(task, i) for i in range(num_shards)])
    first = output.shards()[0]
    images = [label_row(output, plan, task, first, 0, row) for row in range(SHARD_ROWS)]
    table = pa.Table.from_pylist(images, schema=output.records[task].file_schema)
    for index, shard in enumerate(output.shards()):
        path = output.path(task, index)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(table_bytes(_renumbered(table, shard)))
    return output


def _renumbered(table: pa.Table, shard: Shard) -> pa.Table:
    rows = np.arange(shard.first, shard.end)
    keys = pa.array([shard.key] * len(rows)).dictionary_encode()
    table = table.slice(0, len(rows)).set_column(0, table.schema.field(0), keys)
    return table.set_column(1, table.schema.field(1), pa.array(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--task", default="seg")
    parser.add_argument("--deep", action="store_true")
    parser.add_argument("--keep", help="a folder to make the output in, and to leave it; used again if it is there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="annotator-bench-") as folder:
        uri = f"{args.keep or folder}/labels-out"
        if not Path(uri).exists():
            make(args.keep or folder, args.rows, args.task)
        start = time.perf_counter()
        report = verify(uri, Storage(), deep=args.deep)
        seconds = time.perf_counter() - start
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        size = sum(path.stat().st_size for path in Path(uri, "labels").rglob("*.parquet"))
    assert report.ok, report.counts
    rows = sum(task.rows for task in report.tasks)
    print("| rows | label files | MB | deep | processors | s | rows/s | CPU s | peak MB of the largest process |")
    print("|---|---|---|---|---|---|---|---|---|")
    cells: list[object] = [rows, sum(task.shards for task in report.tasks), size // 10**6, "yes" if args.deep else "no"]
    cells += [os.cpu_count(), f"{seconds:.0f}", f"{rows / seconds:.0f}"]
    cells += [f"{sum(u.ru_utime + u.ru_stime for u in used):.0f}", max(u.ru_maxrss for u in used) // 1024]
    print(f"| {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    main()
