"""Decide what is left of an output with 4,000 finished shards (or `--shards`): seconds, as a row of a Markdown table.

    python -m tests.bench.bench_resume [--shards 4000] [--tasks 2] [--s3]

Target: below 5 s. With --s3 the output is on moto, an S3 server in Python, started for the purpose.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from annotator.errors import StorageError
from annotator.job import StorageOptions
from annotator.manifest import Manifest, PinnedFile
from annotator.planning import make_plan
from annotator.shards import committed, cut, label_uri
from annotator.storage import Storage

SHARD_ROWS, FILES = 128, 4
TASKS = ("seg", "depth", "normal", "pose", "person")


@contextmanager
def s3_output() -> Iterator[tuple[Storage, str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(AWS_ACCESS_KEY_ID="bench", AWS_SECRET_ACCESS_KEY="bench")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        import boto3

        url = f"http://127.0.0.1:{port}"
        client = boto3.client("s3", endpoint_url=url, region_name="us-east-1")
        client.create_bucket(Bucket="bench")
        yield Storage(StorageOptions(endpoint_url=url, region="us-east-1")), "s3://bench/out"
    finally:
        server.terminate()
        server.wait()


@contextmanager
def local_output() -> Iterator[tuple[Storage, str]]:
    with tempfile.TemporaryDirectory(prefix="annotator-bench-") as folder:
        yield Storage(), folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=4000)
    parser.add_argument("--tasks", type=int, default=2)
    parser.add_argument("--s3", action="store_true")
    args = parser.parse_args()
    rows = args.shards * SHARD_ROWS // FILES
    files = tuple(
        PinnedFile(key=f"part-{n}", uri=f"/m/{n}.parquet", size=1, etag=None, rows=rows, footer_digest="")
        for n in range(FILES)
    )
    manifest = Manifest(root="/m", shard_rows=SHARD_ROWS, where=None, files=files)
    tasks = TASKS[: args.tasks]
    with s3_output() if args.s3 else local_output() as (storage, output):
        done = [shard for file in files for shard in cut(file.key, file.rows, SHARD_ROWS)][:-1]
        uris = [label_uri(output, task, shard) for task in tasks for shard in done]
        with ThreadPoolExecutor(16) as pool:
            if not all(pool.map(lambda uri: storage.create(b"x", uri, output=output), uris)):
                raise StorageError("the output was not empty")
        start = time.perf_counter()
        plan = make_plan(manifest, tasks, lambda task, key: committed(storage, output, task, key))
        seconds = time.perf_counter() - start
    print("| store | finished shards | tasks | left | plan s |\n|---|---|---|---|---|")
    print(f"| {'S3 (moto)' if args.s3 else 'local'} | {len(done)} | {len(tasks)} | {len(plan)} | {seconds:.2f} |")


if __name__ == "__main__":
    main()
