"""How fast a run goes is worked out from what workers say of themselves."""

from __future__ import annotations

import pytest

from annotator.pace import Pace, slowest
from annotator.report import Report
from annotator.show import describe
from annotator.summary import Work
from annotator.watch import Lines


def work(worker: str, seconds: float, *, busy_s: float = 0.0, bare_s: float = 0.0, cpu_s: float = 1.0) -> Work:
    return Work(
        worker=worker,
        seconds=seconds,
        cpu_s=cpu_s,
        stages={"copy": (0.0, 0.1), "forward": (busy_s, 0.2)},
        bare_s=bare_s,
        bytes_to_host=int(100 * seconds),
        peak_host_bytes=int(10 * seconds),
        peak_device_bytes=0,
    )


def test_a_worker_counts_from_its_first_summary_to_its_last() -> None:
    """In 10 s it was busy for 9 and did what alone takes 8; what was before its first summary does not count."""
    pace = Pace()
    pace.add(work("a", 5, busy_s=1, bare_s=1))
    assert pace.idle is None and pace.efficiency is None
    pace.add(work("a", 15, busy_s=10, bare_s=9))
    assert pace.idle == pytest.approx(0.1)
    assert pace.efficiency == pytest.approx(0.8)


def test_workers_add_up_in_any_order() -> None:
    """One of two works all the time, the other half of it; the latest summary of each comes first."""
    pace = Pace()
    for told in (work("a", 20, busy_s=20), work("b", 20, busy_s=10), work("b", 0), work("a", 0)):
        pace.add(told)
    assert pace.workers == 2
    assert pace.idle == pytest.approx(0.25)
    assert pace.cpu_s == pytest.approx(2)
    assert pace.bytes_to_host == 4000
    assert pace.peak_host_bytes == 200
    assert pace.device_stages["forward"][0] == pytest.approx(30)


def test_each_round_has_workers_of_its_own() -> None:
    """Two workers for 20 s, then one in the process of the first of them for 5: two at most, 45 s, 1 + 1 CPU s."""
    pace = Pace()
    for told in (work("a", 20), work("b", 20)):
        pace.add(told)
    pace.next_round()
    pace.add(work("a", 5))
    assert (pace.workers, pace.worker_s, pace.cpu_s) == (2, 45, 2)


def test_without_a_bare_loop_there_is_no_efficiency() -> None:
    pace = Pace()
    pace.add(work("a", 0))
    pace.add(work("a", 10, busy_s=5))
    assert pace.efficiency is None


@pytest.mark.parametrize(
    ("stages", "idle", "expected"),
    [
        ({"fetch": (9, 1), "decode": (5, 5), "forward": (2, 2), "wait": (99, 0)}, 0.5, "fetch"),
        ({"fetch": (9, 1), "forward": (5, 2), "post-process": (6, 2)}, 0.05, "post-process"),
        ({"decode": (5, 5), "encode": (6, 6)}, None, "encode"),
        ({"wait": (5, 5)}, None, None),
        ({}, 0.0, None),
    ],
)
def test_the_slowest_stage(stages: dict[str, tuple[float, float]], idle: float | None, expected: str | None) -> None:
    """A device that works nine tenths of the time holds the run up; else the host's longest stage, waiting aside."""
    assert slowest(stages, idle) == expected


def test_a_million_images_cost_what_the_gpus_cost_meanwhile() -> None:
    """2 workers of 1 GPU at 3.60 an hour, 10 images a second: 100,000 s of 2 GPUs, 200."""
    pace = Pace()
    pace.add(work("a", 0))
    pace.add(work("b", 0))
    report = Report(run_id="x", images_per_s=10.0, price_per_gpu_hour=3.6)
    report.measure(pace, gpus_per_worker=1)
    assert report.cost_per_million_images == pytest.approx(200)
    report.measure(pace, gpus_per_worker=0.5)
    assert report.cost_per_million_images == pytest.approx(100)


def test_a_report_and_the_progress_say_what_holds_the_run_up(capsys: pytest.CaptureFixture[str]) -> None:
    pace = Pace()
    pace.add(work("a", 0))
    pace.add(work("a", 10, busy_s=9.5, bare_s=9))
    report = Report(run_id="x", state="done", rounds=1, images_per_s=10.0, price_per_gpu_hour=3.6)
    report.measure(pace, gpus_per_worker=1)
    describe(report)
    Lines().progressed(report)
    printed = capsys.readouterr()
    assert "1 worker, 1.0 CPU s; slowest stage: forward; devices idle 5% of the time" in printed.out
    assert "efficiency 0.90" in printed.out
    assert "100.00 for a million images at 3.6 a GPU hour" in printed.out
    assert "10.0 images/s, slowest: forward" in printed.err
