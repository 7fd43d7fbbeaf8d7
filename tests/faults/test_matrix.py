"""Every storage call of a small run on a local disk, hit by every fault: what the next run makes of it.

The calls are those that an undisturbed run made, so a new one is covered the day it is written. Each case is a
process of its own, and a kill is a real one. `pytest tests/faults/test_matrix.py -rP` prints what befell whom.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc
import pytest

import annotator
from tests.faults.inject import WRITES, Call, Fault
from tests.faults.zygote import Outcome, Zygote, Zygotes
from tests.running.make import file_bytes, is_whole, table

pytestmark = pytest.mark.slow

STORAGE_ERRORS = {"StorageError", "TransientStorageError", "AccessError", "NotFoundError"}  # exit code 4

# How a run may end that met this fault; docs/reliability.md says it in words.
ENDS = {
    "before": {"killed"},
    "after": {"killed"},
    "half": {"killed"},
    "unlinked": {"killed"},
    "linked": {"killed"},
    "passing": {"done"},
    "short": {"done"},
    "lost": {"done"},
    "staying": {"done", "TransientStorageError"},  # done: the shard was put off and came up again
    "lost_staying": {"done", "TransientStorageError"},
    "forbidden": {"done", "StorageError", "AccessError"},  # done: it was an image, and became a row
    "missing": {"done", "StorageError", "NotFoundError", "ManifestError", "OutputError"},
    "full": {"StorageError"},
    "read_only": {"StorageError", "AccessError"},
}
VERBS = {  # all others hit every call; a kill after a call that wrote nothing is one before the next call
    **dict.fromkeys(("after", "half", "unlinked", "linked", "lost", "lost_staying", "full", "read_only"), WRITES),
    "short": ("read", "open"),
}
ROW_CLASS = {"forbidden": "forbidden", "missing": "not_found"}
RUN_RECORD = "/_annotator/runs/"  # it only informs: a run goes on without it


@dataclass(frozen=True)
class Corpus:
    """A job that ran undisturbed, the label files it wrote, and the calls of storage that it made.

    `half_done` is its output with a shard missing; `more_calls` are those of a run that goes on from there.
    """

    job: annotator.Job
    files: dict[str, bytes]
    calls: tuple[Call, ...]
    half_done: Path
    more_calls: tuple[Call, ...]
    workers: Zygotes


@dataclass(frozen=True)
class Case:
    """One fault, in a first run or in one that goes on."""

    fault: Fault
    goes_on: bool

    def __str__(self) -> str:
        return f"{self.fault}{' of a run that goes on' if self.goes_on else ''}"


@pytest.fixture(scope="module")
def corpus(small_job: annotator.Job, workers: Zygotes) -> Corpus:
    folder = Path(small_job.output).parent
    half_done, goes_on = folder / "half-done", folder / "goes-on"
    with workers.one() as worker:
        calls = _undisturbed(worker, small_job)
        files = file_bytes(small_job.output, ("seg",))
        for output in (half_done, goes_on):
            shutil.copytree(small_job.output, output)
            (output / sorted(files)[1]).unlink()
        more_calls = _undisturbed(worker, small_job.model_copy(update={"output": str(goes_on)}))
    assert len(files) == 2 and file_bytes(goes_on, ("seg",)) == files
    return Corpus(small_job, files, calls, half_done, more_calls, workers)


def _undisturbed(worker: Zygote, job: annotator.Job) -> tuple[Call, ...]:
    outcome = worker.run(job, verify=True)
    assert (outcome.ended, outcome.is_whole) == ("done", True), outcome.message
    return outcome.calls


def test_the_calls_of_a_run_are_the_same_each_time(corpus: Corpus, tmp_path: Path) -> None:
    """Else a fault would wait for a call that never comes. 6 pictures, 2 label files, and what leads to them."""
    with corpus.workers.one() as worker:
        again = _undisturbed(worker, corpus.job.model_copy(update={"output": str(tmp_path / "again")}))
    assert sorted(again) == sorted(corpus.calls)
    kinds = Counter((call.verb, call.uri.split("/")[1]) for call in corpus.calls if call.uri != "OUT")
    assert (kinds["read", "images"], kinds["create", "labels"]) == (6, 2)


def test_the_labels_are_those_of_a_run_that_nothing_was_done_to(corpus: Corpus, tmp_path: Path) -> None:
    job = corpus.job.model_copy(update={"output": str(tmp_path / "plain")})
    annotator.run(job, ray=False)
    assert file_bytes(job.output, ("seg",)) == corpus.files


@pytest.mark.parametrize("kind", ENDS)
def test_whatever_call_a_fault_hits_the_next_run_gives_the_labels_of_an_undisturbed_one(
    kind: str, corpus: Corpus, tmp_path: Path
) -> None:
    verbs = VERBS.get(kind)
    calls = [call for call in corpus.calls if verbs is None or call.verb in verbs]
    _check(corpus, tmp_path, [Case(Fault(call, kind), goes_on=False) for call in calls])


@pytest.mark.parametrize("kind", ["missing", "lost_staying"])
def test_a_wrong_answer_does_not_make_a_run_forget_what_is_done(kind: str, corpus: Corpus, tmp_path: Path) -> None:
    """A record or label file is there, and storage says that it is not."""
    calls = [call for call in corpus.more_calls if call.verb in VERBS.get(kind, (call.verb,))]
    _check(corpus, tmp_path, [Case(Fault(call, kind), goes_on=True) for call in calls])


def _check(corpus: Corpus, folder: Path, cases: list[Case]) -> None:
    """Run each case; fail with all that went wrong. Prints how the runs ended."""
    numbered = list(enumerate(cases))
    answers = corpus.workers.map(lambda worker, item: _try(worker, corpus, folder / str(item[0]), item[1]), numbered)
    problems = [f"{case}: {problem}" for case, (_, problem) in zip(cases, answers, strict=True) if problem]
    ended = Counter(outcome.ended for outcome, _ in answers)
    print(cases[0].fault.kind, len(cases), ", ".join(f"{n} {name}" for name, n in sorted(ended.items())))
    assert problems == []


def _try(worker: Zygote, corpus: Corpus, folder: Path, case: Case) -> tuple[Outcome, str]:
    """Return how the disturbed run ended, and what is wrong with it or with what the next run left, or nothing."""
    job = corpus.job.model_copy(update={"output": str(folder / "out"), "spool_dir": str(folder / "spool")})
    if case.goes_on:
        shutil.copytree(corpus.half_done, job.output)
    outcome = worker.run(job, case.fault, verify=True)
    if problem := _problem_of_end(case, outcome) or _problem_of_files(job, corpus, case, whole=False):
        return outcome, problem
    last = outcome if outcome.ended == "done" else worker.run(job, verify=True)
    if (last.ended, last.is_whole) != ("done", True):
        return outcome, f"the next run ended with {last.ended}, whole: {last.is_whole}: {last.message}"
    if any(call.verb == "create" and "/labels/" in call.uri for call in last.calls) and os.listdir(folder / "spool"):
        return outcome, f"left in the spool: {os.listdir(folder / 'spool')}"
    problem = _problem_of_files(job, corpus, case, whole=True)
    shutil.rmtree(folder)
    return outcome, problem


def _problem_of_end(case: Case, outcome: Outcome) -> str:
    if not outcome.was_hit:
        return "the call was not made"
    if outcome.ended not in ({"done", "killed"} if RUN_RECORD in case.fault.call.uri else ENDS[case.fault.kind]):
        return f"ended with {outcome.ended}: {outcome.message}"
    if outcome.ended in STORAGE_ERRORS and outcome.exit_code != 4:
        return f"exit code {outcome.exit_code}"
    if outcome.ended not in ("done", "killed") and ("\n" in outcome.message or len(outcome.message) < 30):
        return f"no clear line: {outcome.message}"
    return ""


def _problem_of_files(job: annotator.Job, corpus: Corpus, case: Case, *, whole: bool) -> str:
    """Return how the label files differ from those of the undisturbed run; some may be missing unless `whole`."""
    found = file_bytes(job.output, ("seg",))
    if "/images/" in case.fault.call.uri and case.fault.kind in ROW_CLASS:
        return _problem_of_row(job, corpus, case)
    wrong = [name for name, data in found.items() if corpus.files.get(name) != data]
    wrong += [name for name in corpus.files if whole and name not in found]
    return f"label files differ: {wrong}" if wrong else ""


def _problem_of_row(job: annotator.Job, corpus: Corpus, case: Case) -> str:
    """The picture that could not be had is a row that says so, and no other row is changed."""
    expected, found = table(corpus.job.output, "seg"), table(job.output, "seg")
    name = case.fault.call.uri.rsplit("/", 1)[1]
    there = [bool(ends) for ends in pc.ends_with(found["uri"], pattern=name).to_pylist()]
    rows = [row for row, its in zip(found.to_pylist(), there, strict=True) if its]
    told = [(row["status"], row["error_class"]) for row in rows]
    others = [not its for its in there]
    if told != [("unreadable", ROW_CLASS[case.fault.kind])]:
        return f"the row says {told}"
    return "" if found.filter(others).equals(expected.filter(others)) else "other rows changed"


def test_a_half_written_file_is_found_by_whom_looks_for_it(corpus: Corpus, tmp_path: Path) -> None:
    """The matrix would notice: a label file that is cut short is neither equal nor whole."""
    job = corpus.job.model_copy(update={"output": str(tmp_path / "cut")})
    shutil.copytree(corpus.job.output, job.output)
    path = Path(job.output, sorted(corpus.files)[0])
    path.write_bytes(path.read_bytes()[:-100])
    case = Case(Fault(corpus.calls[0], "before"), goes_on=False)
    assert "differ" in _problem_of_files(job, corpus, case, whole=True)
    assert not is_whole(job)
