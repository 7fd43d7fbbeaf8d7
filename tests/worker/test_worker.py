"""The worker: every row is told, and a bad one costs nobody else anything."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import annotator
from annotator import worker as worker_module
from annotator.errors import (
    IncompleteRunError,
    WorkerStalledError,
)
from annotator.models import load_model
from annotator.stages import networks
from annotator.stages.decode import decode
from tests.running.make import file_bytes, is_whole, make_job, table, write_images, write_manifest
from tests.worker.support import (
    BAD,
    LIMITS,
    POISON_RGB,
    Counting,
    label_all,
    label_rows,
    map_of,
    png,
    rows_by_name,
    write_bad,
)


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
            "scheme.png": ("rejected", "scheme_not_allowed"),
        }
        assert all(row["error"] and row[map_of(task)] is None for row in rows.values() if row["status"] != "ok")
        own = ("shard", "row", "uri", "image_id")
        for name, row in rows_by_name(clean, task).items():
            assert {k: v for k, v in rows[name].items() if k not in own} == {
                k: v for k, v in row.items() if k not in own
            }
    assert is_whole(dirty)


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
    """All inputs have one shape, so where one does not fit that did before, another process has taken the memory."""

    class Full(Counting):
        def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(networks, "load_network", lambda uri, **o: Full(load_model(uri, **o), o["task"]))
    monkeypatch.setattr(networks, "try_out", lambda name, network, seen, device, batch_size: (network, batch_size))
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
