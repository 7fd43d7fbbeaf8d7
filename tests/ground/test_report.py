"""The report adds up, and a budget ends a run on evidence only."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotator.errors import BudgetExceededError
from annotator.job import Job
from annotator.manifest import Manifest, PinnedFile
from annotator.planning import Plan, make_plan
from annotator.report import Reporter, _lower_bound, new_run_id
from annotator.shards import Shard
from annotator.storage import Storage
from annotator.summary import Summary
from annotator.watch import Silent


def summary(index: int, *, ok: int, bad: int) -> Summary:
    shard = Shard("f-00000000", index * 100, index * 100 + ok + bad)
    return Summary(
        shard=shard,
        created=("seg",),
        rows=ok + bad,
        statuses={"seg": {"ok": ok, "unreadable": bad}},
        errors={"not_found": bad},
        stages={"fetch": (1.5, 0.5)},
    )


def reporter(folder: Path, budget: float) -> Reporter:
    job = Job(manifest="m", output=str(folder), tasks={"seg": {}}, failure_budget=budget)
    return Reporter(job, Storage(), Silent())


def test_summaries_add_up(tmp_path: Path) -> None:
    with reporter(tmp_path, 1.0) as found:
        for i in range(5):
            found.add(summary(i, ok=90, bad=10))
        found.add(Summary(shard=Shard("f-00000000", 900, 1000), deferred="timed out"))
        found.add(summary(9, ok=100, bad=0))
        report = found.report
        assert (report.images, report.bad_rows, report.shards) == (600, 50, 6)
        assert report.statuses == {"seg": {"ok": 550, "unreadable": 50}}
        assert report.errors == {"not_found": 50}
        assert report.stages["fetch"] == (9.0, 3.0)
        assert report.deferred == {}  # done in the end


def test_what_others_committed_is_found_and_in_no_other_count(tmp_path: Path) -> None:
    """A shard that was there already; one that a stopped worker labelled too late; one whose worker died untold."""
    there, late = (Shard("f-00000000", first, first + 100) for first in (0, 100))
    with reporter(tmp_path, 1.0) as found:
        found.planned(plan_of(400))
        found.add(Summary(shard=there, existed=("seg",)))
        found.add(Summary(shard=late, existed=("seg",), rows=100))
        found.add(summary(2, ok=90, bad=10))
        assert (found.report.images_left, found.report.shards_left) == (100, 1)
        found.planned(plan_of(0))
        report = found.report
        assert (report.images, report.found, report.shards, report.images_left) == (100, 300, 1, 0)
        assert report.statuses == {"seg": {"ok": 90, "unreadable": 10}}


def plan_of(rows: int) -> Plan:
    """Return a plan with so many rows left, in shards of 100."""
    file = PinnedFile(key="f-00000000", uri="f", size=1, etag=None, rows=rows, footer_digest="")
    manifest = Manifest(root="m", shard_rows=100, where=None, files=(file,))
    return make_plan(manifest, ("seg",), lambda task, key: set())


def test_one_bad_shard_does_not_end_a_run(tmp_path: Path) -> None:
    with reporter(tmp_path, 0.01) as found:
        found.add(summary(0, ok=0, bad=100))


def test_a_corpus_clearly_beyond_the_budget_does(tmp_path: Path) -> None:
    with pytest.raises(BudgetExceededError, match="everything good is committed"), reporter(tmp_path, 0.01) as found:
        for i in range(200):
            found.add(summary(i, ok=95, bad=5))
    assert found.report.images < 2500


def test_a_corpus_at_the_budget_runs_to_its_end(tmp_path: Path) -> None:
    with reporter(tmp_path, 0.05) as found:
        for i in range(200):
            found.add(summary(i, ok=95, bad=5))


@given(st.integers(1, 10**6), st.floats(0, 1))
def test_the_bound_is_below_the_share_and_inside_0_to_1(rows: int, share: float) -> None:
    bad = round(rows * share)
    assert -1e-9 <= _lower_bound(bad, rows) <= bad / rows + 1e-9


@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_summaries_survive_the_hop_through_ray(first: int, rows: int) -> None:
    made = Summary(shard=Shard("a-1", first, first + rows), created=("seg",), rows=rows, statuses={"seg": {"ok": rows}},
                   errors={"x": 1}, bytes_in=1, bytes_out=2, stages={"fetch": (0.5, 0.25)})  # fmt: skip
    assert Summary.from_json(made.to_json()) == made


def test_run_ids_sort_by_time_and_differ() -> None:
    ids = [new_run_id() for _ in range(50)]
    assert len(set(ids)) == 50
    assert sorted(i[:23] for i in ids) == [i[:23] for i in ids]
