"""CPU of reading images from S3, by s3fs and by obstore where it is installed, as a Markdown table.

    python -m tests.bench.bench_fetch [--reads 1000] [--repeats 3]

Objects of 300 kB on moto, an S3 server in Python, in a process of its own: only the client's CPU is counted. One
ranged GET an object, from 16 threads, as workers do.
"""

from __future__ import annotations

import argparse
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

from annotator import fast_get
from annotator.storage import Storage
from tests.bench.bench_resume import s3_output

SIZE, OBJECTS, THREADS = 300_000, 50, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reads", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    found: dict[str, list[float]] = {"s3fs": []}
    if fast_get.is_installed():
        found["obstore"] = []
    with s3_output() as (storage, root):
        uris = [f"{root}/images/{i:03d}.jpg" for i in range(OBJECTS)]
        for uri in uris:
            storage.replace(bytes(SIZE), uri, output=root)
        for _ in range(args.repeats):
            for client, seconds in found.items():
                with mock.patch.object(fast_get, "is_installed", lambda client=client: client == "obstore"):
                    measure(storage, uris, THREADS)  # connections
                    seconds.append(measure(storage, uris, args.reads) / args.reads)
    print("| client | CPU s for 1,000 reads, median | least | most |\n|---|---|---|---|")
    for client, seconds in found.items():
        each = [1000 * s for s in seconds]
        print(f"| {client} | {statistics.median(each):.2f} | {min(each):.2f} | {max(each):.2f} |")
    if "obstore" in found:
        ratio = statistics.median(found["s3fs"]) / statistics.median(found["obstore"])
        print(f"\nobstore takes 1/{ratio:.1f} of the CPU")


def measure(storage: Storage, uris: list[str], reads: int) -> float:
    """Return the CPU seconds of this process for so many reads."""

    def read(number: int) -> int:
        return len(storage.read(uris[number % len(uris)], length=2**26))

    start = time.process_time()
    with ThreadPoolExecutor(THREADS) as pool:
        assert set(pool.map(read, range(reads))) == {SIZE}
    return time.process_time() - start


if __name__ == "__main__":
    main()
