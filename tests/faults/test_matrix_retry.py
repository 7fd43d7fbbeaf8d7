"""Every storage call of a retry on a local disk, hit by every fault: whole files at any moment, and the next one mends.

Kills are real ones, as in test_matrix.py.
"""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

import annotator
from tests.faults.inject import WRITES, Call, Fault
from tests.faults.zygote import Outcome, Zygote, Zygotes
from tests.running.make import file_bytes, make_job

pytestmark = pytest.mark.slow

MISSING = ("image-0001.png", "image-0004.jpg")  # one in each shard
ERRORS = ("not_found", "fetch_timeout")  # what they are, and what a fault of storage may make of them

# How a retry may end that met this fault; "done" also where rows stayed bad.
ENDS = {
    "before": {"killed"},
    "after": {"killed"},
    "half": {"killed"},
    "unlinked": {"killed"},
    "linked": {"killed"},
    "passing": {"done"},
    "lost": {"done"},
    "staying": {"done", "TransientStorageError", "IncompleteRunError"},
    "lost_staying": {"done", "TransientStorageError", "IncompleteRunError"},
    "full": {"done", "StorageError"},  # done: it was the run record, which only informs
    "read_only": {"done", "StorageError", "AccessError"},
}
ON_WRITES = {"after", "half", "unlinked", "linked", "lost", "lost_staying", "full", "read_only"}


@dataclass(frozen=True)
class Corpus:
    """A job whose output `spoiled` has a bad row in each shard, the label files without any, and a retry's calls."""

    job: annotator.Job
    spoiled: Path
    before: dict[str, bytes]
    mended: dict[str, bytes]
    calls: tuple[Call, ...]
    workers: Zygotes


@pytest.fixture(scope="module")
def corpus(small_job: annotator.Job, workers: Zygotes, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("retry")
    weights = {"seg": Path(str(small_job.tasks["seg"]["checkpoint"]))}
    job = make_job(folder, weights, 6, tasks=("seg",), shard_rows=3, spool_dir=str(folder / "spool"))
    found = make_corpus(job, folder, workers)
    annotator.run(job, ray=False)
    assert file_bytes(job.output, ("seg",)) == found.mended
    return found


def make_corpus(job: annotator.Job, folder: Path, workers: Zygotes) -> Corpus:
    """Run a job, some of whose pictures are away, and retry it, in outputs below `folder`."""
    images = Path(job.manifest).parent / "images"
    spoiled, mended = (job.model_copy(update={"output": str(folder / name)}) for name in ("spoiled", "mended"))
    for name in MISSING:
        (images / name).rename(folder / name)
    annotator.run(spoiled, ray=False)
    for name in MISSING:
        (folder / name).rename(images / name)
    shutil.copytree(spoiled.output, mended.output)
    with workers.one() as worker:
        outcome = worker.run(mended, verify=True, retry=ERRORS)
    assert (outcome.ended, outcome.is_whole) == ("done", True), outcome.message
    before, after = (file_bytes(found.output, ("seg",)) for found in (spoiled, mended))
    return Corpus(job, Path(spoiled.output), before, after, outcome.calls, workers)


def test_a_retry_replaces_each_file_once(corpus: Corpus) -> None:
    writes = Counter(call.verb for call in corpus.calls if call.verb in WRITES and "/labels/" in call.uri)
    assert writes == {"replace_if": 2}


@pytest.mark.parametrize("kind", ENDS)
def test_whatever_call_a_fault_hits_files_are_whole_and_the_next_retry_mends_all(
    kind: str, corpus: Corpus, tmp_path: Path
) -> None:
    check_kind(corpus, kind, tmp_path)


def check_kind(corpus: Corpus, kind: str, tmp_path: Path) -> None:
    """Have one kind of fault hit every call that it can hit; fail with all that went wrong."""
    calls = [call for call in corpus.calls if kind not in ON_WRITES or call.verb in WRITES]
    cases = [(Fault(call, kind), tmp_path / str(number)) for number, call in enumerate(calls)]
    answers = corpus.workers.map(lambda worker, case: _try(worker, corpus, *case), cases)
    ended = Counter(outcome.ended for outcome, _ in answers)
    print(kind, len(cases), ", ".join(f"{n} {name}" for name, n in sorted(ended.items())))
    assert [f"{case[0]}: {problem}" for case, (_, problem) in zip(cases, answers, strict=True) if problem] == []


def _try(worker: Zygote, corpus: Corpus, fault: Fault, folder: Path) -> tuple[Outcome, str]:
    """Return how the disturbed retry ended, and what is wrong with it or with what the next one left, or nothing."""
    job = corpus.job.model_copy(update={"output": str(folder / "out"), "spool_dir": str(folder / "spool")})
    shutil.copytree(corpus.spoiled, job.output)
    outcome = worker.run(job, fault, retry=ERRORS, verify=True)
    if not outcome.was_hit or outcome.ended not in ENDS[fault.kind] or outcome.is_whole is False:
        return outcome, f"hit: {outcome.was_hit}, {outcome.ended}, whole: {outcome.is_whole}: {outcome.message}"
    found = file_bytes(job.output, ("seg",))
    known = {name: (corpus.before[name], corpus.mended[name]) for name in corpus.before}
    wrong = [name for name in {*found, *known} if found.get(name) not in known.get(name, ())]
    if wrong and "/images/" not in fault.call.uri:  # a picture that can't be read changes what its row says
        return outcome, f"neither as before nor mended: {wrong}"
    last = worker.run(job, retry=ERRORS, verify=True)
    if (last.ended, last.is_whole) != ("done", True):
        return outcome, f"the next retry ended with {last.ended}, whole: {last.is_whole}: {last.message}"
    found = file_bytes(job.output, ("seg",))
    wrong = [name for name in {*found, *corpus.mended} if found.get(name) != corpus.mended.get(name)]
    shutil.rmtree(folder)
    return outcome, f"not mended: {wrong}" if wrong else ""
