"""The corpus that chaos runs label, in a bucket, and the labels of a run that nobody disturbed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import annotator
from annotator.job import StorageOptions
from annotator.models import random_checkpoint
from annotator.storage import Storage
from tests.chaos import servers
from tests.chaos.run import COUNT, SHARD_ROWS, TASKS, WORKERS, Result, disturbed, tables
from tests.chaos.servers import Server
from tests.conftest import make_bucket
from tests.running.make import make_job


@dataclass(frozen=True)
class Corpus:
    """A job that ran undisturbed, its labels, the server that holds all of it, and a folder that goes with it.

    Ray makes the folder of a cluster that is gone again when the next one starts in the same process.
    """

    job: annotator.Job
    labels: dict[str, bytes]
    server: Server
    folder: Path

    def disturb(self, seed: int, folder: Path) -> Result:
        """Label it again, into an output of its own, while what the seed says happens."""
        folder.mkdir(parents=True, exist_ok=True)
        spool = folder / "spool"
        output = f"{self.job.output}-{seed}-{os.getpid()}"
        job = self.job.model_copy(update={"output": output, "spool_dir": str(spool)})
        return disturbed(job, self.labels, self.server, folder, f"{self.folder}/{seed}", seed)


@contextmanager
def corpus() -> Iterator[Corpus]:
    """Start a server, fill it and label what it holds, in one process and in peace.

    The environment must hold the credentials of the tests' S3 servers.
    """
    with servers.running() as server, tempfile.TemporaryDirectory(prefix="chaos-") as name:
        folder = Path(name)
        weights = {task: folder / f"{task}.safetensors" for task in TASKS}
        for seed, (task, path) in enumerate(weights.items()):
            random_checkpoint(path, task=task, embed_dim=32, num_layers=2, num_heads=4, input_hw=(64, 48), seed=seed)
        job = make_job(folder, weights, COUNT, tasks=TASKS, shard_rows=SHARD_ROWS, workers=WORKERS, gpus_per_worker=0)
        options = StorageOptions(endpoint_url=server.url, region="us-east-1")
        bucket, storage = make_bucket(options), Storage(options=options)
        for part in ("images", "manifest"):
            for path in (folder / part).iterdir():
                storage.create(path, f"{bucket}/{part}/{path.name}", output=bucket)
        there = {"manifest": f"{bucket}/manifest", "output": f"{bucket}/out", "storage": options}
        job = job.model_copy(update=there)
        annotator.run(job, ray=False)
        yield Corpus(job, tables(storage, job.output), server, folder)
