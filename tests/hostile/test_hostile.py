"""All odd files in one corpus, end to end: every row is there, says what the page says, and disturbs nobody."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from annotator.errors import ImageError
from annotator.images import probe
from tests.bench.fuzz import make_file
from tests.hostile.kinds import all_kinds
from tests.hostile.label import job_of
from tests.hostile.page import expectations
from tests.running.make import TASKS, is_whole, table, write_images, write_manifest

ROOT = Path(__file__).resolve().parents[2]
NUM_GOOD, NUM_MUTANTS = 24, 150
OWN = ("shard", "row", "uri")  # what a row of one corpus can't share with the other's
MORE_BYTES = 100 * 2**20
"""What the odd files may add to the peak: the largest that is decoded takes 10,000 pixels, the bombs would take
2.7 GB; the rest is what allocators keep."""


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Two corpora of the same good images, one with odd files among them, and what labelling each took."""

    clean: Path
    dirty: Path
    clean_bytes: int
    dirty_bytes: int
    checkpoints: list[str]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoints: dict[str, Path]) -> Iterator[Labelled]:
    clean, dirty = tmp_path_factory.mktemp("clean"), tmp_path_factory.mktemp("dirty")
    checkpoints = [str(tiny_checkpoints[task]) for task in TASKS]
    for folder in (clean, dirty):
        names = write_images(folder / "images", NUM_GOOD)
        names = among(names, write_odd(folder / "images")) if folder == dirty else names
        write_manifest(folder / "manifest", [f"../images/{name}" for name in names])
    peaks = [label(folder, checkpoints) for folder in (clean, dirty)]
    yield Labelled(clean=clean, dirty=dirty, clean_bytes=peaks[0], dirty_bytes=peaks[1], checkpoints=checkpoints)


def write_odd(folder: Path) -> list[str]:
    """Write every odd file, named .jpg whatever it is, and return the names: kind, dash, number."""
    names = []
    for kind, files in all_kinds().items():
        for number, data in enumerate(files):
            names.append(f"{kind}-{number}.jpg")
            (folder / names[-1]).write_bytes(data)
    for number, data in enumerate(mutants()):
        names.append(f"mutant-{number}.jpg")
        (folder / names[-1]).write_bytes(data)
    return names


def mutants() -> list[bytes]:
    """Return randomly damaged files; none claims so many pixels that it is slow to label."""
    return [data for _, data in (make_file(0, number) for number in range(NUM_MUTANTS)) if is_small(data)]


def is_small(data: bytes) -> bool:
    try:
        header = probe(data)
    except ImageError:
        return True
    return header.width * header.height < 10**6


def among(good: list[str], odd: list[str]) -> list[str]:
    """Return both, the good ones spread evenly."""
    step = -(-len(odd) // len(good))
    return [name for i, one in enumerate(good) for name in (*odd[i * step : (i + 1) * step], one)]


def label(folder: Path, checkpoints: list[str]) -> int:
    """Label a corpus in a process of its own; return its peak memory in bytes."""
    command = [sys.executable, "-m", "tests.hostile.label", str(folder), *checkpoints]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout.split()[-1])


def rows(folder: Path, task: str) -> dict[str, dict[str, Any]]:
    """Return label rows by the name of their file."""
    return {Path(row["uri"]).name: row for row in table(folder / "labels-out", task).to_pylist()}


def odd_rows(folder: Path, task: str) -> dict[str, list[dict[str, Any]]]:
    """Return the label rows of odd files by kind."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, row in rows(folder, task).items():
        if not name.startswith(("image-", "mutant-")):
            found.setdefault(name.rsplit("-", 1)[0], []).append(row)
    return found


@pytest.mark.parametrize("task", TASKS)
def test_every_row_is_accounted_for(labelled: Labelled, task: str) -> None:
    total = NUM_GOOD + sum(len(files) for files in all_kinds().values()) + len(mutants())
    labels = table(labelled.dirty / "labels-out", task)
    assert labels["row"].to_pylist() == list(range(total))
    assert {kind: len(found) for kind, found in odd_rows(labelled.dirty, task).items()} == {
        kind: len(files) for kind, files in all_kinds().items()
    }
    assert is_whole(job_of(labelled.dirty, labelled.checkpoints))


@pytest.mark.parametrize("task", TASKS)
def test_every_row_says_what_the_page_says(labelled: Labelled, task: str) -> None:
    expected = expectations()
    found = {
        kind: {(row["status"], row["error_class"]) for row in some}
        for kind, some in odd_rows(labelled.dirty, task).items()
    }
    assert found == {kind: {(e.status, e.error_class)} for kind, e in expected.items()}


def test_a_bad_row_says_why_in_words(labelled: Labelled) -> None:
    bad = [row for some in odd_rows(labelled.dirty, "seg").values() for row in some if row["status"] != "ok"]
    assert [row for row in bad if not row["error"] or row["mask"] is not None] == []


def test_a_labelled_row_says_what_was_tolerated_or_left_out(labelled: Labelled) -> None:
    said = {
        kind: {row["error"] for row in some}
        for kind, some in odd_rows(labelled.dirty, "seg").items()
        if some[0]["status"] == "ok"
    }
    assert said == {kind: {e.said} for kind, e in expectations().items() if e.status == "ok"}


@pytest.mark.parametrize("task", TASKS)
def test_randomly_damaged_files_are_rows_too(labelled: Labelled, task: str) -> None:
    found = [row["status"] for name, row in rows(labelled.dirty, task).items() if name.startswith("mutant-")]
    assert len(found) == len(mutants()) > 100
    assert set(found) == {"ok", "unreadable"}


@pytest.mark.parametrize("task", TASKS)
def test_neighbours_have_the_labels_they_would_have_without(labelled: Labelled, task: str) -> None:
    """Bit for bit: the job is deterministic."""
    clean, dirty = rows(labelled.clean, task), rows(labelled.dirty, task)
    assert len(clean) == NUM_GOOD
    for name, row in clean.items():
        assert row["status"] == "ok"
        assert {k: v for k, v in dirty[name].items() if k not in OWN} == {
            k: v for k, v in row.items() if k not in OWN
        }, name


def test_odd_files_do_not_cost_memory(labelled: Labelled) -> None:
    assert labelled.dirty_bytes - labelled.clean_bytes < MORE_BYTES
