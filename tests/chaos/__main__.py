"""`python -m tests.chaos --seeds 20`: disturbed runs, one a seed, and a Markdown table of what came of them."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import traceback
from pathlib import Path

from tests.chaos.corpus import corpus
from tests.chaos.run import COUNT, KINDS, TASKS, Result, again
from tests.conftest import NO_AWS_ACCOUNT, S3_ENVIRONMENT

HEADER = ("seed", *KINDS, "rows in", "rows out", "differences", "executions", "runs", "s")


def row(result: Result) -> str:
    counts = [result.events[kind] for kind in KINDS]
    executions = f"{result.executions} ({result.bound})"
    runs = result.events["driver killed"] + len(result.exits)
    cells = (
        result.seed, *counts, COUNT * len(TASKS), result.rows, result.differences, executions, runs,
        f"{result.seconds:.0f}",
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first one")
    options = parser.parse_args()
    failed = 0
    os.environ.update(NO_AWS_ACCOUNT | S3_ENVIRONMENT)
    with corpus() as found, tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}", flush=True)
        for seed in range(options.first, options.first + options.seeds):
            try:
                result = found.disturb(seed, Path(folder, str(seed)))
                print(row(result), flush=True)
                problems = result.problems
            except Exception:  # one seed must not hide what the others find
                problems = [traceback.format_exc()]
            failed += bool(problems)
            if problems:
                text = "\n".join(problems)
                print(f"seed {seed}: {text}\nagain: {again(seed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
