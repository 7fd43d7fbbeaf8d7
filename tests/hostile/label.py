"""Label a corpus in a process of its own, and tell the most memory that it took.

python -m tests.hostile.label FOLDER SEG DEPTH NORMAL     where FOLDER holds manifest/; prints bytes
"""

from __future__ import annotations

import sys
from pathlib import Path

import annotator
from annotator.job import Limits, Sources
from tests.hostile.kinds import MAX_BYTES
from tests.running.make import TASKS


def job_of(folder: Path, checkpoints: list[str]) -> annotator.Job:
    """Return the job that labels the corpus of a folder."""
    return annotator.Job(
        manifest=str(folder / "manifest"),
        output=str(folder / "labels-out"),
        sources=Sources(roots=(str(folder),)),
        tasks={task: {"checkpoint": path} for task, path in zip(TASKS, checkpoints, strict=True)},
        shard_rows=32,
        deterministic=True,
        limits=Limits.model_validate({"max_bytes": MAX_BYTES}),
    )


def main() -> None:
    annotator.run(job_of(Path(sys.argv[1]), sys.argv[2:]), ray=False)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    print(next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")))


if __name__ == "__main__":
    main()
