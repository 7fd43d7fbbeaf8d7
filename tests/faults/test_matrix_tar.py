"""The storage calls that commit a shard with maps in tar files, hit by every fault, in a run and in a retry.

As in test_matrix.py and test_matrix_retry.py, by their means; calls that any run makes are theirs. Label files are
compared byte for byte: what names a tar file is what was written to it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import annotator
from tests.faults import test_matrix as runs
from tests.faults import test_matrix_retry as retries
from tests.faults.inject import WRITES, Call, Fault
from tests.faults.zygote import Zygotes
from tests.labels.in_tars import in_tars
from tests.running.make import file_bytes, make_job

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def job(small_job: annotator.Job, tmp_path_factory: pytest.TempPathFactory) -> annotator.Job:
    """Six pictures in two shards, and a corpus of its own, as some pictures come and go."""
    folder = tmp_path_factory.mktemp("tar")
    weights = {"seg": Path(str(small_job.tasks["seg"]["checkpoint"]))}
    made = make_job(folder, weights, 6, tasks=("seg",), shard_rows=3, spool_dir=str(folder / "spool"))
    return in_tars(made, folder / "out")


@pytest.fixture(scope="module")
def corpus(job: annotator.Job, workers: Zygotes) -> runs.Corpus:
    with workers.one() as worker:
        calls = runs._undisturbed(worker, job)
    return runs.Corpus(job, file_bytes(job.output, ("seg",)), _of_commits(calls), Path(), (), workers)


@pytest.fixture(scope="module")
def spoiled(job: annotator.Job, corpus: runs.Corpus, tmp_path_factory: pytest.TempPathFactory) -> retries.Corpus:
    """The output with a bad row in each shard, and what a retry makes of it."""
    folder = tmp_path_factory.mktemp("retry-tar")
    return retries.make_corpus(job, folder, corpus.workers)


def _of_commits(calls: tuple[Call, ...]) -> tuple[Call, ...]:
    """Return the calls about tar files, and those that write label files."""
    return tuple(call for call in calls if "/png/" in call.uri or ("/labels/" in call.uri and call.verb in WRITES))


def test_a_shard_is_committed_by_two_calls_the_tar_file_first(corpus: runs.Corpus, spoiled: retries.Corpus) -> None:
    for calls, last in ((corpus.calls, "create"), (_of_commits(spoiled.calls), "replace_if")):
        found = [(call.verb, call.uri.split("/")[1]) for call in calls]
        assert found == [("create", "png"), (last, "labels")] * 2


@pytest.mark.parametrize("kind", [kind for kind in runs.ENDS if kind != "short"])  # short: of reads
def test_whatever_call_of_a_commit_a_fault_hits_the_next_run_gives_the_labels_of_an_undisturbed_one(
    kind: str, corpus: runs.Corpus, tmp_path: Path
) -> None:
    runs._check(corpus, tmp_path, [runs.Case(Fault(call, kind), goes_on=False) for call in corpus.calls[:2]])


@pytest.mark.parametrize("kind", retries.ENDS)
def test_whatever_call_of_a_retrys_commit_a_fault_hits_the_next_retry_mends_all(
    kind: str, spoiled: retries.Corpus, tmp_path: Path
) -> None:
    retries.check_kind(replace(spoiled, calls=_of_commits(spoiled.calls)[:2]), kind, tmp_path)
