"""The worker under faults: passing trouble, full disks, other workers, and what it does not do twice."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import annotator
from annotator import worker as worker_module
from annotator.errors import (
    CredentialsError,
    StorageError,
    TransientStorageError,
)
from annotator.preflight import preflight
from annotator.report import Report
from annotator.shards import label_uri
from annotator.stages.decode import decode
from annotator.stages.encode import LabelWriter, Spool
from annotator.stages.fetch import Fetcher
from annotator.storage import Storage
from annotator.summary import Summary
from annotator.watch import Silent
from tests.running.make import file_bytes, is_whole, make_job, table, write_manifest
from tests.worker.support import (
    label_all,
    png,
    rows_by_name,
    shards_of,
    working,
)

pytestmark = pytest.mark.slow


def test_a_passing_fault_puts_its_shard_off_and_no_other(
    tmp_path: Path, tiny_checkpoints: dict[str, Path], faults: dict[str, StorageError]
) -> None:
    job = make_job(tmp_path, tiny_checkpoints, count=10, tasks=("seg",))
    faults["image-0007.png"] = TransientStorageError("s3://b/image-0007.png: 503 SlowDown")
    first, second = label_all(job)
    assert first.done and first.created == ("seg",)
    assert second.deferred is not None and "SlowDown" in second.deferred and not second.fatal
    assert table(job.output, "seg")["row"].to_pylist() == [0, 1, 2, 3, 4]
    faults.clear()
    assert [summary.created for summary in label_all(job)] == [(), ("seg",)]
    assert is_whole(job)


def test_a_lone_straggler_becomes_a_row_in_the_last_round(
    tmp_path: Path, tiny_checkpoints: dict[str, Path], faults: dict[str, StorageError]
) -> None:
    job = make_job(tmp_path, tiny_checkpoints, count=4, tasks=("seg",))
    faults["image-0002.jpg"] = TransientStorageError("image-0002.jpg: reset (after 4 attempts)")
    (summary,) = label_all(job, last_round=True)
    assert summary.statuses == {"seg": {"ok": 3, "unreadable": 1}}
    row = rows_by_name(job)["image-0002.jpg"]
    assert (row["error_class"], "after 4 attempts" in row["error"]) == ("fetch_timeout", True)


def test_wrong_credentials_end_the_run_and_say_so(
    tmp_path: Path, tiny_checkpoints: dict[str, Path], faults: dict[str, StorageError]
) -> None:
    job = make_job(tmp_path, tiny_checkpoints, count=6, tasks=("seg",))
    faults["image-0001.png"] = CredentialsError("s3://b/image-0001.png: ExpiredToken; renew the credentials")
    with working(job) as worker:
        summary = worker(shards_of(job)[0])
    assert summary.fatal
    assert "renew the credentials" in str(summary.deferred)
    with pytest.raises(StorageError, match=r"ExpiredToken.*run again") as caught:
        annotator.run(job, ray=False)
    assert caught.value.exit_code == 4
    assert annotator.status(job.output).runs[-1].state == "failed"
    faults.clear()
    annotator.run(job, ray=False)
    assert is_whole(job)


def test_a_fault_of_the_commit_puts_the_shard_off(
    tmp_path: Path, tiny_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path, tiny_checkpoints, count=3)
    real = Storage.create

    def create(self: Storage, source: Path | bytes, uri: str, *, output: str) -> bool:
        if "/labels/depth/" in uri:
            raise TransientStorageError(f"{uri}: 503")
        return real(self, source, uri, output=output)

    with working(job) as worker:
        monkeypatch.setattr(Storage, "create", create)
        (shard,) = shards_of(job)
        assert "503" in str(worker(shard).deferred)
        monkeypatch.undo()
        again = worker(shard)
    assert (again.created, again.existed) == (("depth", "normal"), ("seg",))
    assert is_whole(job)


def test_a_full_spool_disk_is_told_and_fatal(
    tmp_path: Path, tiny_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path, tiny_checkpoints, count=3, tasks=("seg",), spool_dir=str(tmp_path / "spool"))
    with working(job) as worker:
        monkeypatch.setattr("annotator.stages.encode.MIN_FREE_BYTES", 2**62)
        summary = worker(shards_of(job)[0])
    assert summary.fatal
    assert "disk full" in str(summary.deferred)
    assert "spool_dir" in str(summary.deferred)
    assert str(tmp_path / "spool") in str(summary.deferred)
    assert not list((tmp_path / "spool").iterdir())


def test_a_spool_that_cannot_be_made_is_told(tmp_path: Path, tiny_checkpoints: dict[str, Path]) -> None:
    (tmp_path / "file").write_text("in the way")
    job = make_job(tmp_path, tiny_checkpoints, count=3, tasks=("seg",), spool_dir=str(tmp_path / "file" / "spool"))
    with pytest.raises(StorageError, match="set spool_dir to a folder we may write"):
        annotator.run(job, ray=False)


def test_a_shard_leaves_nothing_in_the_spool(tmp_path: Path, tiny_checkpoints: dict[str, Path]) -> None:
    spool = tmp_path / "spool"
    job = make_job(tmp_path, tiny_checkpoints, count=6, tasks=("seg",), spool_dir=str(spool))
    with working(job) as worker:
        for shard in shards_of(job):
            worker(shard)
            assert [path.name for path in spool.rglob("*") if path.is_file()] == ["lock"]
    assert not list(spool.iterdir())


def test_spool_folders_of_dead_processes_are_swept_and_those_of_living_ones_are_not(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from annotator.stages.encode import Spool\n"
        "spool = Spool(sys.argv[1])\n"
        "(spool.path / 'label.parquet').write_bytes(b'x')\n"
        "print(spool.path, flush=True)\n"
        "time.sleep(60)\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    living, dead = (Path(process.stdout.readline().strip()) for process in processes if process.stdout)
    try:
        processes[1].kill()
        processes[1].wait()
        assert dead.exists()
        (tmp_path / "annotator-spool-not-ours").mkdir()
        with Spool(str(tmp_path)) as spool:
            left = {path.name for path in tmp_path.iterdir()}
        assert left == {living.name, spool.path.name, "annotator-spool-not-ours"}
        assert (living / "label.parquet").exists()
        assert not spool.path.exists()
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_a_label_file_that_exists_is_not_touched_and_costs_no_model_pass(
    tmp_path: Path, tiny_checkpoints: dict[str, Path], seen: dict[str, int]
) -> None:
    job = make_job(tmp_path, tiny_checkpoints, count=10, tasks=("seg", "depth"))
    label_all(job)
    _, second = shards_of(job)
    Path(label_uri(job.output, "depth", second)).unlink()
    strange = Path(label_uri(job.output, "seg", second))
    strange.write_bytes(b"not even Parquet")
    seen.clear()
    summaries = label_all(job)
    assert (summaries[0].created, summaries[0].existed) == ((), ("seg", "depth"))
    assert (summaries[1].created, summaries[1].existed) == (("depth",), ("seg",))
    assert seen == {"depth": 5}
    assert strange.read_bytes() == b"not even Parquet"
    assert summaries[1].statuses == {"depth": {"ok": 5}}


def test_two_workers_on_the_same_shards_create_each_file_once(
    tmp_path: Path, tiny_checkpoints: dict[str, Path]
) -> None:
    job = make_job(tmp_path, tiny_checkpoints, count=10)
    preflight(job)
    results: list[Summary] = []
    workers = [threading.Thread(target=lambda: results.extend(label_all(job))) for _ in range(2)]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    created = sorted((summary.shard, task) for summary in results for task in summary.created)
    assert created == sorted((shard, task) for shard in shards_of(job) for task in ("seg", "depth", "normal"))
    assert all(summary.done for summary in results)
    assert is_whole(job)


def test_counts_are_of_the_files_that_this_call_created(
    tmp_path: Path, tiny_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker commits seg while this one labels: its rows are not ours to count."""
    job = make_job(tmp_path, tiny_checkpoints, count=3, tasks=("seg", "depth"))
    (tmp_path / "images" / "image-0001.png").unlink()
    real = Storage.create

    def create(self: Storage, source: Path | bytes, uri: str, *, output: str) -> bool:
        real(self, source, uri, output=output)
        return "/labels/seg/" not in uri

    with working(job) as worker:
        monkeypatch.setattr(Storage, "create", create)
        summary = worker(shards_of(job)[0])
    assert (summary.created, summary.existed) == (("depth",), ("seg",))
    assert summary.statuses == {"depth": {"ok": 2, "unreadable": 1}}
    assert summary.errors == {"not_found": 1}


def test_images_in_flight_are_bounded_whatever_the_size_of_the_shard(
    tmp_path: Path, tiny_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first image is held up until nobody else moves; 60 rows wait, and 8 may be under way (batches of 1)."""
    job = make_job(tmp_path, tiny_checkpoints, count=60, tasks=("seg",), shard_rows=60)
    lock, started, written = threading.Lock(), 0, 0
    most = 0
    real_append, real_fetch = LabelWriter.append, Fetcher.__call__

    def held_up(self: Fetcher, row: Any) -> bytes:
        nonlocal started, most
        with lock:
            started += 1
            most = max(most, started - written)
        if row.index == 0:
            before = -1
            while before != started:
                before = started
                time.sleep(0.2)
        return real_fetch(self, row)

    def append(self: LabelWriter, row: Any) -> None:
        nonlocal written
        with lock:
            written += 1
        real_append(self, row)

    monkeypatch.setattr(Fetcher, "__call__", held_up)
    monkeypatch.setattr(LabelWriter, "append", append)
    label_all(job)
    assert written == 60
    assert 2 <= most <= 9  # one more than the window while a row is handed over


def test_an_interrupted_run_stops_within_the_images_in_flight(
    tmp_path: Path, tiny_checkpoints: dict[str, Path], seen: dict[str, int]
) -> None:
    """Stopped when the first of two shards is done: the second has a hundred images to go, and 8 are under way."""

    class Interrupt(Silent):
        at = 0

        def progressed(self, report: Report) -> None:
            self.at = seen["seg"]
            raise KeyboardInterrupt

    job = make_job(tmp_path, tiny_checkpoints, count=0, tasks=("seg",), shard_rows=150)
    (tmp_path / "images" / "a.png").write_bytes(png(20, 20))
    write_manifest(tmp_path / "manifest", ["../images/a.png"] * 151)
    watcher = Interrupt()
    with pytest.raises(KeyboardInterrupt):
        annotator.run(job, ray=False, watcher=watcher)
    assert watcher.at < 100
    assert seen["seg"] <= watcher.at + 20


def test_a_picture_is_decoded_once_for_all_tasks(
    tmp_path: Path, tiny_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path, tiny_checkpoints, count=5)
    sizes: list[int] = []

    def counted(data: bytes, *args: Any, **options: Any) -> Any:
        sizes.append(len(data))
        return decode(data, *args, **options)

    monkeypatch.setattr(worker_module, "decode", counted)
    label_all(job)
    assert len(sizes) == 5


def test_background_zero_agrees_with_the_seg_map_pixel_by_pixel(
    tmp_path: Path, tiny_checkpoints: dict[str, Path]
) -> None:
    job = make_job(tmp_path, tiny_checkpoints, count=6)
    tasks = {n: o | ({} if n == "seg" else {"background": "zero"}) for n, o in job.tasks.items()}
    job = job.model_copy(update={"tasks": tasks})
    label_all(job)
    people = 0
    for seg, depth, normal in zip(*(table(job.output, t).to_pylist() for t in ("seg", "depth", "normal")), strict=True):
        person_YX = annotator.load_map(seg, "seg") > 0
        people += int(person_YX.sum())
        assert (np.isfinite(annotator.load_map(depth, "depth")) == person_YX).all()
        assert (np.isfinite(annotator.load_map(normal, "normal")).all(axis=2) == person_YX).all()
    assert people


def test_background_zero_still_holds_when_depth_is_added_later(
    tmp_path: Path, tiny_checkpoints: dict[str, Path], seen: dict[str, int]
) -> None:
    """Seg is committed already; its network runs again for depth's sake, its file stays."""
    job = make_job(tmp_path, tiny_checkpoints, count=4, tasks=("seg",))
    label_all(job)
    before = file_bytes(job.output, ("seg",))
    depth = {"checkpoint": str(tiny_checkpoints["depth"]), "background": "zero"}
    label_all(job.model_copy(update={"tasks": {**job.tasks, "depth": depth}}))
    assert seen == {"seg": 8, "depth": 4}
    assert file_bytes(job.output, ("seg",)) == before
    for seg, row in zip(*(table(job.output, t).to_pylist() for t in ("seg", "depth")), strict=True):
        person_YX = annotator.load_map(seg, "seg") > 0
        assert (np.isfinite(annotator.load_map(row, "depth")) == person_YX).all()


@pytest.mark.parametrize(
    ("uri", "stored"),
    [
        ("https://user:S3CRET@host/a.png", "https://host/a.png"),
        ("https://host/a.png?X-Amz-Signature=S3CRET&b=c", "https://host/a.png"),
        ("gs://token:S3CRET@bucket/a.png?sig=S3CRET", "gs://bucket/a.png"),
        ("https://host/it's a.png?sig=S3CRET", "https://host/it's a.png"),
        ("https://key:S3C/RET@host/a.png", "https://host/a.png"),
    ],
)
def test_secrets_of_a_uri_are_not_in_the_label_table(
    uri: str, stored: str, tmp_path: Path, tiny_checkpoints: dict[str, Path]
) -> None:
    job = make_job(tmp_path, tiny_checkpoints, count=1, tasks=("seg",))
    write_manifest(tmp_path / "manifest", ["../images/image-0000.jpg", uri])
    label_all(job)
    row = table(job.output, "seg").to_pylist()[1]
    assert (row["uri"], row["error_class"]) == (stored, "scheme_not_allowed")
    assert "S3C" not in str(row)
