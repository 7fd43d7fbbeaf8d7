"""Trouble that passes: storage away, credentials expired, disks full or read-only. One clear line, then go on."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import annotator
from annotator import rounds
from annotator.cluster import Cluster
from annotator.errors import IncompleteRunError, TransientStorageError
from annotator.job import StorageOptions
from annotator.planning import Plan
from annotator.report import Report
from annotator.storage import Storage
from annotator.summary import Summary
from annotator.watch import Silent
from tests.records.faulty import FaultyServer
from tests.running.command import Cli, Typed, cli, is_one_line
from tests.running.make import file_bytes, is_whole, make_job

__all__ = ["cli"]

COUNT = 12


@pytest.fixture
def job(tmp_path: Path, tiny_checkpoints: dict[str, Path]) -> annotator.Job:
    """12 pictures in 4 shards, one task."""
    return make_job(tmp_path, tiny_checkpoints, COUNT, tasks=("seg",), shard_rows=3, spool_dir=str(tmp_path / "spool"))


def run(cli: Cli, job: annotator.Job, path: Path) -> Typed:
    """Run the job as a person does."""
    path.write_text(yaml.safe_dump(job.model_dump(mode="json", exclude_defaults=True)))
    return cli("run", path, "--no-ray", "--quiet")


# -- S3 -------------------------------------------------------------------------------------------


class AtPlan(Silent):
    """A watcher that does something once, when the first round is planned and its worker is not yet there."""

    def __init__(self, do: Callable[[], object]) -> None:
        self._do: Callable[[], object] | None = do

    def planned(self, plan: Plan, report: Report) -> None:
        do, self._do = self._do, None
        if do is not None:
            do()


class AtFirstShard(Silent):
    """A watcher that does something once, when the first shard is done."""

    def __init__(self, do: Callable[[], object]) -> None:
        self._do: Callable[[], object] | None = do

    def progressed(self, report: Report) -> None:
        do, self._do = self._do, None
        if do is not None:
            do()


@pytest.fixture
def behind_proxy(
    job: annotator.Job, moto_s3: StorageOptions, s3_bucket: str, tmp_path: Path
) -> Iterator[tuple[FaultyServer, annotator.Job]]:
    """The job with its pictures and its output in a bucket, by way of a server that fails when told to."""
    storage = Storage(options=moto_s3)
    for folder in ("images", "manifest"):
        for path in (tmp_path / folder).iterdir():
            storage.create(path, f"{s3_bucket}/{folder}/{path.name}", output=s3_bucket)
    with FaultyServer(str(moto_s3.endpoint_url)).running() as server:
        options = StorageOptions(endpoint_url=server.url, region="us-east-1")
        there = {"manifest": f"{s3_bucket}/manifest", "output": f"{s3_bucket}/out", "storage": options}
        yield server, job.model_copy(update=there)


@pytest.mark.s3
@pytest.mark.slow
@pytest.mark.parametrize("when", [AtPlan, AtFirstShard])
def test_an_outage_of_storage_costs_time_and_no_rows(
    when: Callable[[Callable[[], object]], Silent], behind_proxy: tuple[FaultyServer, annotator.Job]
) -> None:
    """Away for 8 s while the worker starts, or after the first of 4 shards: longer than all attempts at a call take."""
    server, job = behind_proxy
    with ExitStack() as stack:

        def end_later() -> None:
            stack.enter_context(server.away())
            timer = threading.Timer(8, stack.close)
            timer.daemon = True
            timer.start()

        report = annotator.run(job, ray=False, watcher=when(end_later))
    assert (report.state, report.images, report.errors, report.bad_rows) == ("done", COUNT, {}, 0)
    assert report.seconds > 8
    assert is_whole(job)


@pytest.mark.s3
@pytest.mark.slow
def test_throttled_pictures_become_no_rows_though_all_else_works(
    behind_proxy: tuple[FaultyServer, annotator.Job],
) -> None:
    """The listing between rounds says nothing of them; the run waits all the same, and says so."""
    server, job = behind_proxy
    told: list[str] = []

    class Told(Silent):
        def waiting(self, seconds: float, why: str) -> None:
            told.append(why)

    server.choose = lambda method, path: "slow_down" if "/images/" in path and not told else None
    report = annotator.run(job, ray=False, watcher=Told())
    assert (report.state, report.images, report.errors, report.rounds) == ("done", COUNT, {}, 2)
    [why] = told
    assert "fetch_timeout" in why and "SlowDown" in why
    assert is_whole(job)


def test_shards_that_are_put_off_are_waited_for_before_the_last_rounds(
    job: annotator.Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round without gain may have been an outage, and the last rounds are slow and turn passing faults into rows."""
    last_rounds: list[bool] = []
    label = Cluster.label

    def watched(self: Cluster, *args: Any, last_round: bool) -> Iterator[Summary]:
        last_rounds.append(last_round)
        return label(self, *args, last_round=last_round)

    def away(self: Storage, source: object, uri: str, *, output: str) -> bool:
        if "/labels/" in uri:
            raise TransientStorageError(f"{uri}: 503 SlowDown")
        return create(self, source, uri, output=output)  # type: ignore[arg-type]

    create = Storage.create
    monkeypatch.setattr(Cluster, "label", watched)
    monkeypatch.setattr(Storage, "create", away)
    monkeypatch.setattr(rounds, "PATIENCE_S", 0.02)
    monkeypatch.setattr(rounds, "FIRST_PAUSE_S", 0.01)
    with pytest.raises(IncompleteRunError, match="4 shards are left over"):
        annotator.run(job, ray=False)
    assert last_rounds == [False, False, False, True]


@pytest.mark.s3
def test_a_server_that_stays_away_ends_the_run_with_one_line_and_the_next_run_goes_on(
    behind_proxy: tuple[FaultyServer, annotator.Job], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten minutes by default; none here."""
    server, job = behind_proxy
    monkeypatch.setattr(rounds, "PATIENCE_S", 0.0)
    with server.away():
        told = run(cli, job, tmp_path / "job.yaml")
    assert (told.code, is_one_line(told.err)) == (4, True)
    assert "Could not connect" in told.err and "after 4 attempts" in told.err
    assert run(cli, job, tmp_path / "job.yaml").code == 0
    assert is_whole(job)


@pytest.mark.s3
def test_credentials_that_expire_amid_a_run_end_it_with_one_line_and_the_next_run_goes_on(
    behind_proxy: tuple[FaultyServer, annotator.Job], cli: Cli, tmp_path: Path
) -> None:
    """From the second label file on, every request is answered with ExpiredToken."""
    server, job = behind_proxy
    puts = 0

    def choose(method: str, path: str) -> str | None:
        nonlocal puts
        puts += method == "PUT" and "/labels/" in path
        return "expired" if puts > 1 else None

    server.choose = choose
    told = run(cli, job, tmp_path / "job.yaml")
    assert (told.code, is_one_line(told.err)) == (4, True)
    assert "ExpiredToken" in told.err and "renew" in told.err and "run again" in told.err
    server.choose = lambda method, path: None
    assert len(list(Storage(options=job.storage).list(f"{job.output}/labels"))) == 1
    assert run(cli, job, tmp_path / "job.yaml").code == 0
    assert is_whole(job)


# -- disks ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Disk:
    """A disk of its own, as large as it is told to be."""

    path: Path

    def resize(self, size: str) -> None:
        _mount("-o", f"remount,size={size}", str(self.path))

    def protect(self, *, on: bool) -> None:
        _mount("-o", f"remount,{'ro' if on else 'rw'}", str(self.path))


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk in memory; only root may have one, and not in every container."""
    path = tmp_path / "disk"
    path.mkdir()
    try:
        _mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path))
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("may not mount a disk in memory here; test_matrix.py covers the same answers of the system")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_disk_ends_the_run_with_one_line_and_the_next_run_goes_on(
    disk: Disk, job: annotator.Job, cli: Cli, tmp_path: Path
) -> None:
    """There is room for records and two label files of four."""
    whole = job.model_copy(update={"output": str(tmp_path / "whole")})
    annotator.run(whole, ray=False)
    size = max(len(data) for data in file_bytes(whole.output, ("seg",)).values())
    disk.resize(f"{int(2.6 * size) + 24 * 1024}")
    job = job.model_copy(update={"output": str(disk.path / "out")})
    told = run(cli, job, tmp_path / "job.yaml")
    assert (told.code, is_one_line(told.err)) == (4, True)
    assert "the disk is full" in told.err and "free space, then run again" in told.err
    there = file_bytes(job.output, ("seg",))
    assert len(there) < 4 and there.items() <= file_bytes(whole.output, ("seg",)).items()
    assert list(Path(job.output, "_annotator", "tmp").iterdir()) == []
    disk.resize("16m")
    assert run(cli, job, tmp_path / "job.yaml").code == 0
    assert file_bytes(job.output, ("seg",)) == file_bytes(whole.output, ("seg",))
    assert is_whole(job)


def test_an_output_that_turns_read_only_ends_the_run_with_one_line_and_the_next_run_goes_on(
    disk: Disk, job: annotator.Job, cli: Cli, tmp_path: Path
) -> None:
    disk.resize("16m")
    job = job.model_copy(update={"output": str(disk.path / "out")})
    annotator.run(job, ray=False, limit=3)
    disk.protect(on=True)
    told = run(cli, job, tmp_path / "job.yaml")
    assert (told.code, is_one_line(told.err)) == (4, True)
    assert "Read-only file system" in told.err and "run again" in told.err
    disk.protect(on=False)
    assert run(cli, job, tmp_path / "job.yaml").code == 0
    assert is_whole(job)


def test_a_read_only_place_for_the_output_is_told_before_any_work(
    disk: Disk, job: annotator.Job, cli: Cli, tmp_path: Path
) -> None:
    disk.protect(on=True)
    told = run(cli, job.model_copy(update={"output": str(disk.path / "out")}), tmp_path / "job.yaml")
    assert (told.code, is_one_line(told.err)) == (4, True)
    assert "Read-only file system" in told.err


@pytest.mark.parametrize("room", [None, 0])
def test_a_full_spool_ends_the_run_with_one_line_and_the_next_run_goes_on(
    room: int | None, disk: Disk, job: annotator.Job, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less is free than a spool wants at the start; or enough is, and it fills while labels are written."""
    from annotator.stages import encode

    if room is not None:
        monkeypatch.setattr(encode, "MIN_FREE_BYTES", room)
        disk.resize("12k")  # a label file is larger
    job = job.model_copy(update={"spool_dir": str(disk.path)})
    told = run(cli, job, tmp_path / "job.yaml")
    assert (told.code, is_one_line(told.err)) == (4, True)
    assert "disk full" in told.err and "spool_dir" in told.err
    assert sorted(file_bytes(job.output, ("seg",))) == []
    assert os.listdir(disk.path) == []
    disk.resize("128m")
    assert run(cli, job, tmp_path / "job.yaml").code == 0
    assert is_whole(job)
