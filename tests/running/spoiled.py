"""An output with bad rows whose pictures come back, and what it should be then."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

import annotator
from annotator.report import Report
from tests.running.make import file_bytes, make_job, table

COUNT = 17
MISSING = ("image-0003.png", "image-0004.jpg", "image-0011.png")
EMPTY = ("image-0001.png", "image-0012.jpg")
TASKS = ("seg", "depth")


@dataclass(frozen=True)
class Corpus:
    """A job over pictures some of which are away, or empty, for now; and the files of a run that found them all."""

    job: annotator.Job
    images: Path
    good: dict[str, bytes] = field(repr=False)
    undisturbed: dict[str, bytes] = field(repr=False)

    def spoil(self) -> None:
        for name in MISSING:
            (self.images / name).unlink(missing_ok=True)
        for name in EMPTY:
            (self.images / name).write_bytes(b"")

    def restore(self, names: Collection[str]) -> None:
        for name in names:
            (self.images / name).write_bytes(self.good[name])

    def retry(self, *errors: str, **options: Any) -> Report:
        return annotator.retry(self.job.output, errors, ray=False, **options)

    def files(self) -> dict[str, bytes]:
        return file_bytes(self.job.output, TASKS)

    def differing(self, expected: dict[str, bytes]) -> list[str]:
        """Return the label files that are not as expected, or there in one of them only."""
        found = self.files()
        return sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoints: dict[str, Path]) -> Corpus:
    """17 pictures in 4 shards and two tasks; 3 are missing and 2 empty while they are labelled."""
    folder = tmp_path_factory.mktemp("corpus")
    job = make_job(folder, tiny_checkpoints, COUNT, tasks=TASKS)
    good = {path.name: path.read_bytes() for path in (folder / "images").iterdir()}
    whole = job.model_copy(update={"output": str(folder / "undisturbed")})
    annotator.run(whole, ray=False)
    made = Corpus(job, folder / "images", good, file_bytes(whole.output, TASKS))
    made.spoil()
    annotator.run(job, ray=False)
    return made


@pytest.fixture
def corpus(labelled: Corpus, tmp_path: Path) -> Corpus:
    """The same, in a copy of the output."""
    labelled.spoil()
    output = tmp_path / "labels-out"
    shutil.copytree(labelled.job.output, output)
    return replace(labelled, job=labelled.job.model_copy(update={"output": str(output)}))


def rows_of(job: annotator.Job, task: str, names: Collection[str], *, others: bool = False) -> list[dict[str, Any]]:
    """Return the label rows of these pictures, or of all others."""
    rows = table(job.output, task).to_pylist()
    return [row for row in rows if (str(row["uri"]).rsplit("/", 1)[-1] in names) is not others]
