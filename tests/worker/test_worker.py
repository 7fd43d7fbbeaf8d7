"""The worker, called as Ray calls it: bad rows, passing faults, what it leaves alone, what it holds at once."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import annotator
from annotator import worker as worker_module
from annotator.errors import (
    CredentialsError,
    IncompleteRunError,
    StorageError,
    TransientStorageError,
    WorkerStalledError,
)
from annotator.manifest import read_pins
from annotator.models import load_model
from annotator.preflight import preflight
from annotator.report import Report
from annotator.shards import Shard, cut, label_uri
from annotator.stages import networks
from annotator.stages.decode import decode
from annotator.stages.encode import LabelWriter, Spool
from annotator.stages.fetch import fetch
from annotator.storage import Storage
from annotator.summary import Summary
from annotator.watch import Silent
from annotator.worker import Worker
from tests.running.make import file_bytes, is_whole, make_job, table, write_images, write_manifest

POISON_RGB = (255, 0, 255)


def shards_of(job: annotator.Job) -> list[Shard]:
    """Return every shard of a job that preflight has pinned."""
    manifest = read_pins(job.output, Storage())
    return [shard for file in manifest.files for shard in cut(file.key, file.rows, manifest.shard_rows)]


@contextmanager
def working(job: annotator.Job, *, last_round: bool = False) -> Iterator[Callable[[Shard], Summary]]:
    """Yield a worker for a job, built as a run would."""
    with Worker(preflight(job).job, last_round=last_round) as worker:
        yield worker


def label_all(job: annotator.Job, *, last_round: bool = False) -> list[Summary]:
    with working(job, last_round=last_round) as worker:
        return [worker(shard) for shard in shards_of(job)]


def rows_by_name(job: annotator.Job, task: str = "seg") -> dict[str, dict[str, Any]]:
    """Return a task's label rows by the last part of their uri."""
    return {str(row["uri"]).rsplit("/", 1)[-1]: row for row in table(job.output, task).to_pylist()}


def png(height: int, width: int, rgb: tuple[int, int, int] = (10, 20, 30)) -> bytes:
    ok, data = cv2.imencode(".png", np.full((height, width, 3), rgb[::-1], np.uint8))
    assert ok
    return bytes(data.tobytes())


# -- bad rows ------------------------------------------------------------------------------------

BAD = {  # file name -> what it holds, and the status and class of its row
    "missing.jpg": (None, "unreadable", "not_found"),
    "empty.jpg": (b"", "unreadable", "empty"),
    "text.jpg": (b"<html><body>404 Not Found</body></html>", "unreadable", "unsupported_format"),
    "corrupt.png": (png(40, 40)[:60], "unreadable", "corrupt"),
    "heavy.png": (png(30, 30) + bytes(60_000), "rejected", "too_many_bytes"),
    "huge.png": (png(300, 400), "rejected", "too_many_pixels"),
    "folder.png": ("a folder", "unreadable", "not_found"),
}
LIMITS = {"max_bytes": 50_000, "max_pixels": 100_000}


def write_bad(folder: Path) -> list[str]:
    for name, (data, _, _) in BAD.items():
        if isinstance(data, bytes):
            (folder / name).write_bytes(data)
        elif data is not None:
            (folder / name).mkdir()
    return [f"../images/{name}" for name in BAD]


def test_every_kind_of_bad_row_is_a_row_that_says_why_and_its_neighbours_do_not_notice(
    tmp_path: Path, tiny_checkpoints: dict[str, Path]
) -> None:
    """Two corpora of the same 9 good images; one has a bad row after each good one."""
    clean = make_job(tmp_path / "clean", tiny_checkpoints, count=9, shard_rows=6)
    dirty = make_job(tmp_path / "dirty", tiny_checkpoints, count=9, shard_rows=6, limits=LIMITS)
    bad: list[str | None] = [*write_bad(tmp_path / "dirty" / "images"), None, "gopher://host/scheme.png"]
    good = [f"../images/{Path(str(row['uri'])).name}" for row in label_rows(clean)]
    mixed = [uri for pair in zip(good, bad, strict=True) for uri in pair]
    pq.write_table(pa.table({"uri": mixed}), tmp_path / "dirty" / "manifest" / "part-0.parquet")
    label_all(dirty)
    for task in ("seg", "depth", "normal"):
        rows = rows_by_name(dirty, task)
        found = {name: (row["status"], row["error_class"]) for name, row in rows.items() if row["status"] != "ok"}
        assert found == {
            **{name: (status, error_class) for name, (_, status, error_class) in BAD.items()},
            "None": ("unreadable", "no_source"),
            "scheme.png": ("unreadable", "fetch_failed"),
        }
        assert all(row["error"] and row[map_of(task)] is None for row in rows.values() if row["status"] != "ok")
        own = ("shard", "row", "uri", "image_id")
        for name, row in rows_by_name(clean, task).items():
            assert {k: v for k, v in rows[name].items() if k not in own} == {
                k: v for k, v in row.items() if k not in own
            }
    assert is_whole(dirty)


def label_rows(job: annotator.Job, task: str = "seg") -> list[dict[str, Any]]:
    """Return a task's label rows in manifest order, labelling them if nobody has."""
    label_all(job)
    return [dict(row) for row in table(job.output, task).to_pylist()]


def map_of(task: str) -> str:
    return "mask" if task == "seg" else task


def test_a_row_names_the_limit_it_broke(tmp_path: Path, tiny_checkpoints: dict[str, Path]) -> None:
    job = make_job(tmp_path, tiny_checkpoints, count=1, tasks=("seg",), limits=LIMITS)
    write_manifest(tmp_path / "manifest", write_bad(tmp_path / "images"))
    label_all(job)
    rows = rows_by_name(job)
    assert "limits.max_bytes = 50000" in rows["heavy.png"]["error"]
    assert "limits.max_pixels = 100000" in rows["huge.png"]["error"]
    assert str(tmp_path / "images" / "missing.jpg") in rows["missing.jpg"]["error"]


def test_the_last_round_gives_the_same_bytes_though_each_image_decodes_alone(
    tmp_path: Path, tiny_checkpoints: dict[str, Path]
) -> None:
    job = make_job(tmp_path, tiny_checkpoints, count=3, tasks=("seg",))
    last = job.model_copy(update={"output": str(tmp_path / "last")})
    label_all(job)
    label_all(last, last_round=True)
    assert file_bytes(last.output, ("seg",)) == file_bytes(job.output, ("seg",))


@pytest.mark.parametrize("layout", ["struct", "binary", "bytes"])
def test_embedded_pictures_are_labelled_as_files_are(
    layout: str, tmp_path: Path, tiny_checkpoints: dict[str, Path]
) -> None:
    files = make_job(tmp_path, tiny_checkpoints, count=7, tasks=("seg",))
    data = [path.read_bytes() for path in sorted((tmp_path / "images").iterdir())]
    columns = {
        "struct": {"image": [{"bytes": d, "path": f"p{i}.png"} for i, d in enumerate(data)]},
        "binary": {"image": data},
        "bytes": {"bytes": data, "uri": pa.nulls(len(data), pa.string())},
    }[layout]
    (tmp_path / "embedded").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "embedded" / "e.parquet")
    job = files.model_copy(update={"manifest": str(tmp_path / "embedded"), "output": str(tmp_path / "out")})
    label_all(files)
    label_all(job)
    ours, theirs = table(job.output, "seg"), table(files.output, "seg")
    for column in ("row", "status", "mask", "class_pixels", "width", "height"):
        assert ours[column].to_pylist() == theirs[column].to_pylist(), column
    assert len(set(ours["image_id"].to_pylist())) == 7
    assert is_whole(job)


def test_kept_columns_ride_along_with_their_types(tmp_path: Path, tiny_checkpoints: dict[str, Path]) -> None:
    job = make_job(tmp_path, tiny_checkpoints, count=0, tasks=("seg",), keep_columns=tuple("abcdefg"))
    names = [*write_images(tmp_path / "images", 5), "missing.png"]
    kept = pa.table(
        {
            "a": pa.array(["x", None, "y", "x", "x", "z"]).dictionary_encode(),
            "b": pa.array([1, 2, None, 4, 5, 6], pa.int16()),
            "c": pa.array([0, 1, 2, 3, None, 5], pa.timestamp("ns", tz="UTC")),
            "d": pa.array([["t", "u"], [], None, ["v"], ["w"], ["x"]]),
            "e": pa.array([{"k": 1, "l": b"b"}] * 5 + [None]),
            "f": pa.array([1.5, None, -0.0, float("inf"), 0.1, 2.0], pa.float32()),
            "g": pa.array([True, False, None, True, True, False]),
        }
    )
    uris = pa.table({"uri": [f"../images/{name}" for name in names], "unused": range(6)})
    for name in kept.column_names:
        uris = uris.append_column(name, kept[name])
    pq.write_table(uris, tmp_path / "manifest" / "part-0.parquet")
    label_all(job)
    labels = table(job.output, "seg")
    for name in kept.column_names:
        assert labels[name].type == kept[name].type
        assert labels[name].to_pylist() == kept[name].to_pylist()
    assert "unused" not in labels.column_names
    assert is_whole(job)


def test_where_leaves_rows_out_and_keeps_their_numbers(tmp_path: Path, tiny_checkpoints: dict[str, Path]) -> None:
    """Rows 0 to 11; every third passes; the second shard of five has none."""
    job = make_job(tmp_path, tiny_checkpoints, count=12, tasks=("seg",), where="pick == 1", shard_rows=4)
    uris = [f"../images/{path.name}" for path in sorted((tmp_path / "images").iterdir())]
    write_manifest(tmp_path / "manifest", uris, pick=[1, 0, 0, 1, 0, 0, 0, 0, None, 1, 0, 1])
    summaries = label_all(job)
    assert table(job.output, "seg")["row"].to_pylist() == [0, 3, 9, 11]
    assert [summary.rows for summary in summaries] == [2, 0, 2]
    assert all(summary.done and summary.created == ("seg",) for summary in summaries)
    assert is_whole(job)


# -- a model that fails --------------------------------------------------------------------------


class Counting(torch.nn.Module):
    """A real model that counts the images it is shown, and fails on any batch with a picture of POISON_RGB.

    The blank one that a worker tries a network on is not counted.
    """

    seen: dict[str, int]

    def __init__(self, model: Any, task: str) -> None:
        super().__init__()
        self.model, self.task, self.config = model, task, model.config
        self.tried_out = False

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        red, green = image_BCHW[:, 0].amin(dim=(1, 2)), image_BCHW[:, 1].amax(dim=(1, 2))
        if bool(((red > 2.2) & (green < -1.9)).any()):  # (255 - 123.7) / 58.4 and (0 - 116.3) / 57.1
            raise RuntimeError("an assertion on the device")
        if self.tried_out:
            Counting.seen[self.task] = Counting.seen.get(self.task, 0) + len(image_BCHW)
        self.tried_out = True
        output: torch.Tensor = self.model(image_BCHW)
        return output


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Return how many images each task's model was shown, filled as workers work."""
    real = load_model
    Counting.seen = {}

    def load(uri: str, **options: Any) -> Counting:
        return Counting(real(uri, **options), options["task"])

    monkeypatch.setattr(networks, "load_network", load)
    return Counting.seen


@pytest.mark.parametrize("deterministic", [True, False])
def test_an_image_that_the_model_fails_on_fails_alone(
    deterministic: bool, tmp_path: Path, tiny_checkpoints: dict[str, Path], seen: dict[str, int]
) -> None:
    job = make_job(tmp_path, tiny_checkpoints, count=8, shard_rows=8, batch_size=8, deterministic=deterministic)
    clean = job.model_copy(update={"output": str(tmp_path / "clean"), "deterministic": True})
    label_all(clean)
    (tmp_path / "images" / "image-0003.png").write_bytes(png(30, 50, POISON_RGB))
    summaries = label_all(job)
    assert summaries[0].statuses["depth"] == {"ok": 7, "failed": 1}
    for task in ("seg", "depth", "normal"):
        rows = table(job.output, task).to_pylist()
        assert [row["error_class"] for row in rows] == [None] * 3 + ["model_failed"] + [None] * 4
        assert (rows[3]["width"], rows[3]["height"]) == (50, 30)  # the picture itself was readable
        assert "assertion on the device" in rows[3]["error"]
    masks, expected = (
        [annotator.load_map(row, "seg") for row in table(o.output, "seg").to_pylist() if row["row"] != 3]
        for o in (job, clean)
    )
    for mask, wanted in zip(masks, expected, strict=True):
        assert (mask != wanted).mean() <= (0 if deterministic else 0.001)


def test_a_device_that_is_gone_ends_the_run_and_nobody_waits(
    tmp_path: Path, tiny_checkpoints: dict[str, Path], seen: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sticky fault of the device: no image may be blamed, so no row is written."""

    def gone(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("illegal memory access")

    job = make_job(tmp_path, tiny_checkpoints, count=30, shard_rows=15)
    (tmp_path / "images" / "image-0003.png").write_bytes(png(30, 50, POISON_RGB))
    monkeypatch.setattr(torch, "ones", gone)
    start = time.monotonic()
    with pytest.raises(WorkerStalledError, match="assertion on the device"):
        annotator.run(job, ray=False)
    assert time.monotonic() - start < 20
    assert not list(Path(job.output).rglob("*.parquet"))


def test_running_out_of_memory_is_no_fault_of_an_image(
    tmp_path: Path, tiny_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All inputs have one shape, so where one does not fit, none does: another process has taken the memory."""

    class Full(Counting):
        def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(networks, "load_network", lambda uri, **o: Full(load_model(uri, **o), o["task"]))
    job = make_job(tmp_path, tiny_checkpoints, count=4, tasks=("seg",), deterministic=False)
    with pytest.raises(IncompleteRunError):
        annotator.run(job, ray=False)
    assert not list(Path(job.output).rglob("*.parquet"))


def test_an_unforeseen_exception_costs_its_shard_and_no_other(
    tmp_path: Path, tiny_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def buggy(data: bytes, *args: Any, **options: Any) -> Any:
        if data.startswith(b"BUG"):
            raise ZeroDivisionError("a bug of ours")
        return decode(data, *args, **options)

    monkeypatch.setattr(worker_module, "decode", buggy)
    monkeypatch.setattr(worker_module, "decode_isolated", buggy)
    job = make_job(tmp_path, tiny_checkpoints, count=10, tasks=("seg",))
    (tmp_path / "images" / "image-0001.png").write_bytes(b"BUG")
    with pytest.raises(IncompleteRunError, match=r"000000000000-000000000005: .*a bug of ours"):
        annotator.run(job, ray=False)
    assert table(job.output, "seg")["row"].to_pylist() == [5, 6, 7, 8, 9]


# -- passing faults ------------------------------------------------------------------------------


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> dict[str, StorageError]:
    """Return faults by the end of the uri whose read gives them; to be filled."""
    found: dict[str, StorageError] = {}
    real = Storage.read

    def read(self: Storage, uri: str, *, length: int | None = None) -> bytes:
        for end, fault in found.items():
            if uri.endswith(end):
                raise fault
        return real(self, uri, length=length)

    monkeypatch.setattr(Storage, "read", read)
    return found


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


@pytest.mark.parametrize(
    ("rows", "num_faults", "done"),
    [
        (5, 2, True),  # max(2, 5 %) of 5 rows is 2
        (5, 3, False),
        (60, 3, True),  # and of 60 rows 3
        (60, 4, False),
    ],
)
def test_the_last_round_forgives_two_stragglers_or_five_percent(
    rows: int,
    num_faults: int,
    done: bool,
    tmp_path: Path,
    tiny_checkpoints: dict[str, Path],
    faults: dict[str, StorageError],
) -> None:
    job = make_job(tmp_path, tiny_checkpoints, count=0, tasks=("seg",), shard_rows=64)
    write_manifest(tmp_path / "manifest", [f"absent-{i:03d}.png" for i in range(rows)])
    for i in range(num_faults):
        faults[f"absent-{7 * i % rows:03d}.png"] = TransientStorageError("timed out")
    (summary,) = label_all(job, last_round=True)
    assert summary.done is done
    assert summary.errors == ({"fetch_timeout": num_faults, "not_found": rows - num_faults} if done else {})


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


# -- the spool -----------------------------------------------------------------------------------


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


# -- what is there already -----------------------------------------------------------------------


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


# -- what it holds at once -----------------------------------------------------------------------


def test_images_in_flight_are_bounded_whatever_the_size_of_the_shard(
    tmp_path: Path, tiny_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first image is held up until nobody else moves; 60 rows wait, and 8 may be under way (batches of 1)."""
    job = make_job(tmp_path, tiny_checkpoints, count=60, tasks=("seg",), shard_rows=60)
    lock, started, written = threading.Lock(), 0, 0
    most = 0
    real_append = LabelWriter.append

    def held_up(row: Any, *rest: Any) -> bytes:
        nonlocal started, most
        with lock:
            started += 1
            most = max(most, started - written)
        if row.index == 0:
            before = -1
            while before != started:
                before = started
                time.sleep(0.2)
        return fetch(row, *rest)

    def append(self: LabelWriter, row: Any) -> None:
        nonlocal written
        with lock:
            written += 1
        real_append(self, row)

    monkeypatch.setattr(worker_module, "fetch", held_up)
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


# -- what is stored ------------------------------------------------------------------------------


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
    assert (row["uri"], row["error_class"]) == (stored, "fetch_failed")
    assert "S3C" not in str(row)
