"""When a run goes on, waits, turns to last rounds, and ends."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotator import rounds
from annotator.errors import TransientStorageError
from annotator.rounds import Patience, Rounds
from annotator.shards import Shard
from annotator.summary import Summary

AWAY = Summary(shard=Shard("a-1", 0, 5), deferred="503 SlowDown", passing=True)
LONE = Summary(shard=Shard("a-1", 0, 5), deferred="fetch_timeout", passing=True, lone=True)
BUG = Summary(shard=Shard("a-1", 0, 5), deferred="KeyError: 'x'")


class Clock:
    """Pauses that take no time, but by this clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.pauses: list[float] = []
        self.told: list[str] = []
        monkeypatch.setattr(rounds, "time", self)
        self.patience = Patience(lambda seconds, why: self.told.append(why))

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.pauses.append(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_run_goes_on_while_it_gains_and_ends_when_nothing_is_left(clock: Clock) -> None:
    run = Rounds(clock.patience)
    assert [run.go_on(left) for left in (9, 4, 1, 0)] == [True, True, True, False]
    assert (run.last, clock.pauses) == (False, [])


def test_a_round_that_gained_nothing_begins_last_rounds_which_end_when_they_gain_nothing(clock: Clock) -> None:
    run = Rounds(clock.patience)
    run.go_on(9)
    run.add(BUG)
    found = [(run.go_on(left), run.last) for left in (9, 5, 5)]
    assert found == [(True, True), (True, True), (False, True)]
    assert clock.pauses == []


def test_trouble_of_storage_is_waited_for_ten_minutes_in_growing_pauses_before_last_rounds(clock: Clock) -> None:
    run = Rounds(clock.patience)
    run.go_on(9)
    while not run.last:
        run.add(AWAY)
        run.add(BUG)
        assert run.go_on(9)
    assert sum(clock.pauses) == rounds.PATIENCE_S == 600
    assert clock.pauses[:6] == [5, 5, 10, 20, 40, 60]
    assert max(clock.pauses) == 60
    assert set(clock.told) == {"503 SlowDown"}
    run.add(AWAY)
    assert not run.go_on(9)


def test_a_few_images_are_waited_for_two_minutes_since_the_last_gain(clock: Clock) -> None:
    """A round takes 15 s here, as their attempts do; that counts."""
    run = Rounds(clock.patience)
    run.go_on(9)
    clock.now += 7200
    run.go_on(8)
    start = clock.now
    while not run.last:
        clock.now += 15
        run.add(LONE)
        assert run.go_on(8)
    assert clock.pauses == [5, 5, 10, 20, 5]
    assert clock.now - start == 120 + 15
    assert rounds.LONE_PATIENCE_S == 120


def test_an_image_that_takes_minutes_to_fail_is_tried_once_more_before_the_last_round(clock: Clock) -> None:
    """Four attempts of 30 s at a host that never answers: the round in vain was wait enough."""
    run = Rounds(clock.patience)
    run.go_on(9)
    run.add(LONE)
    assert (run.go_on(1), run.last) == (True, False)
    clock.now += 122
    run.add(LONE)
    assert (run.go_on(1), run.last, clock.pauses) == (True, True, [])


def test_one_shard_that_storage_fails_as_a_whole_is_waited_for_whatever_the_others_lack(clock: Clock) -> None:
    run = Rounds(clock.patience)
    run.go_on(9)
    while not run.last:
        for summary in (LONE, AWAY, LONE):
            run.add(summary)
        clock.now += 600
        assert run.go_on(9)
    assert sum(clock.pauses) == rounds.PATIENCE_S


def test_a_gain_gives_patience_back(clock: Clock) -> None:
    run = Rounds(clock.patience)
    for left in (9, 9, 9, 8, 8):
        run.go_on(left)
        run.add(AWAY)
    assert clock.pauses == [5, 5, 5]


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans(), st.booleans()), max_size=300))
def test_whatever_happens_a_run_without_gain_ends(course: list[tuple[int, bool, bool, bool]]) -> None:
    """At most 15 pauses, one last round and the end."""
    with pytest.MonkeyPatch.context() as patch:
        run = Rounds(Clock(patch).patience)
        left, idle = sys.maxsize, 0
        for fewer, away, lone, bug in course:
            idle = 0 if fewer else idle + 1
            left = max(0, left - fewer)
            if not run.go_on(left):
                break
            assert idle <= 16
            for summary in [AWAY] * away + [LONE] * lone + [BUG] * bug:
                run.add(summary)


def test_a_question_is_asked_until_storage_is_back(clock: Clock) -> None:
    faults = [TransientStorageError("reset"), TransientStorageError("reset")]

    def ask() -> int:
        if faults:
            raise faults.pop()
        return 7

    assert clock.patience.ask(ask) == 7
    assert (clock.pauses, clock.told) == ([5, 5], ["reset", "reset"])


def test_storage_that_stays_away_is_told_of_after_ten_minutes(clock: Clock) -> None:
    def ask() -> None:
        raise TransientStorageError("reset")

    with pytest.raises(TransientStorageError):
        clock.patience.ask(ask)
    assert sum(clock.pauses) == 600
