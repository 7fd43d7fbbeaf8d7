"""What `verify` makes of tar files that were tampered with, and what `retry` and races leave of them."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import annotator
from annotator import png
from annotator.labels.verify import verify
from annotator.shards import parse_label_uri
from annotator.storage import Storage
from annotator.worker import Worker
from tests.labels.in_tars import TASKS, Pair, in_tars, output, pair
from tests.labels.make_output import Row, label_bytes
from tests.running.make import file_bytes, table

__all__ = ["output", "pair"]


def tars(output: Path, task: str = "seg") -> list[Path]:
    return sorted((output / "png" / task).rglob("*.tar"))


def rewrite(output: Path, change: Callable[[list[Row]], list[Row]]) -> None:
    """Write seg's first label file again with other rows, as sound as any."""
    path = sorted((output / "labels" / "seg").rglob("*.parquet"))[0]
    path.write_bytes(label_bytes(change(pq.ParquetFile(path).read().to_pylist()), pq.read_schema(path)))


def places(output: Path) -> list[dict[str, Any]]:
    return [row["mask"] for row in table(output, "seg").to_pylist() if row["mask"] is not None]


# -- tampering -------------------------------------------------------------------------------------


def remove(output: Path) -> None:
    tars(output)[0].unlink()


def cut_within_a_map(output: Path) -> None:
    path = tars(output)[0]
    place = places(output)[2]
    path.write_bytes(path.read_bytes()[: place["offset"] + place["size"] // 2])


def cut_off_the_end(output: Path) -> None:
    """All maps are there; what closes a tar file is not."""
    path = tars(output)[1]
    path.write_bytes(path.read_bytes()[:-1024])


def swap(output: Path) -> None:
    one, two = tars(output)
    first = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(first)


def flip_a_byte(output: Path) -> None:
    path = tars(output)[0]
    place = places(output)[1]
    data = bytearray(path.read_bytes())
    data[place["offset"] + place["size"] // 2] ^= 4
    path.write_bytes(data)


def flip_a_byte_of_a_header(output: Path) -> None:
    path = tars(output)[0]
    data = bytearray(path.read_bytes())
    data[places(output)[1]["offset"] - 500] ^= 4
    path.write_bytes(data)


def exchange_two_places(output: Path) -> None:
    def change(rows: list[Row]) -> list[Row]:
        rows[0]["mask"], rows[1]["mask"] = rows[1]["mask"], rows[0]["mask"]
        return rows

    rewrite(output, change)


def point_one_byte_on(output: Path) -> None:
    rewrite(output, lambda rows: [{**rows[0], "mask": {**rows[0]["mask"], "offset": 513}}, *rows[1:]])


def say_one_byte_less(output: Path) -> None:
    less = places(output)[0]["size"] - 1
    rewrite(output, lambda rows: [{**rows[0], "mask": {**rows[0]["mask"], "size": less}}, *rows[1:]])


def point_into_another_shards_tar(output: Path) -> None:
    other = places(output)[-1]
    rewrite(output, lambda rows: [{**rows[0], "mask": other}, *rows[1:]])


def point_out_of_the_output(output: Path) -> None:
    rewrite(output, lambda rows: [{**rows[0], "mask": {**rows[0]["mask"], "path": "../x.tar"}}, *rows[1:]])


def lose_the_place_of_an_ok_row(output: Path) -> None:
    rewrite(output, lambda rows: [{**rows[0], "mask": None}, *rows[1:]])


TAMPERED: dict[Callable[[Path], None], str] = {
    remove: "tar",
    cut_within_a_map: "tar",
    cut_off_the_end: "tar",
    swap: "tar",
    flip_a_byte: "checksum",
    flip_a_byte_of_a_header: "tar",
    exchange_two_places: "tar",
    point_one_byte_on: "tar",
    say_one_byte_less: "tar",
    point_into_another_shards_tar: "tar",
    point_out_of_the_output: "tar",
    lose_the_place_of_an_ok_row: "map",
}


@pytest.mark.parametrize("tamper", TAMPERED, ids=lambda tamper: tamper.__name__)
def test_whatever_was_done_to_tar_files_or_places_is_found(output: Path, tamper: Callable[[Path], None]) -> None:
    """Without `deep`, and the other tasks are not blamed."""
    tamper(output)
    report = verify(str(output))
    assert set(report.counts) == {TAMPERED[tamper]}, report.problems
    assert all("/labels/seg/" in problem.where for problem in report.problems)
    assert TAMPERED[tamper] in verify(str(output), deep=True).counts


@pytest.mark.parametrize("tamper", [flip_a_byte, cut_off_the_end])
def test_a_damaged_tar_file_is_made_again_when_it_and_its_label_file_are_deleted(
    pair: Pair, output: Path, tamper: Callable[[Path], None]
) -> None:
    tamper(output)
    [problem] = verify(str(output)).problems
    [path] = [path for path in tars(output) if path.name in problem.message]
    path.unlink()
    Path(problem.where).unlink()
    with pair.empty_picture():
        annotator.run(pair.tar.model_copy(update={"output": str(output)}), ray=False)
    assert verify(str(output), deep=True).ok
    assert path.read_bytes() == (Path(pair.tar.output) / path.relative_to(output)).read_bytes()


def test_a_sound_store_is_clean_to_the_last_pixel_and_equal_when_labelled_anew(pair: Pair) -> None:
    with pair.empty_picture():
        report = verify(pair.tar.output, deep=True, sample=7)
    assert report.ok, report.problems
    assert (report.unused.files, [task.rows for task in report.tasks]) == (0, [7, 7, 7])
    assert [(s.rows, s.equal) for s in report.sample] == [(7, 7)] * 3


def test_deep_holds_maps_in_tar_files_to_what_their_task_promises(output: Path) -> None:
    """A sound PNG of class ids that the row's columns do not count."""
    path, place = tars(output)[0], places(output)[0]
    old = path.read_bytes()[place["offset"] : place["offset"] + place["size"]]
    mask = png.decode(old)
    mask[:] = 0
    new = png.encode(mask, palette=np.zeros((28, 3), np.uint8))
    with tarfile.open(path) as tar:
        member = tarfile.TarInfo(tar.getnames()[0])
    member.size = len(new)
    assert len(new) <= place["size"]
    data = bytearray(path.read_bytes())
    data[:512] = member.tobuf(tarfile.GNU_FORMAT)
    data[place["offset"] : place["offset"] + place["size"]] = new.ljust(place["size"], b"\0")
    path.write_bytes(data)
    rewrite(output, lambda rows: [{**rows[0], "mask": {**rows[0]["mask"], "size": len(new)}}, *rows[1:]])
    assert verify(str(output)).ok
    assert verify(str(output), deep=True).counts == {"map_values": 1}


# -- tar files that nobody names ---------------------------------------------------------------------


def test_tar_files_that_nobody_names_are_told_and_are_no_error(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside those that are named, of a shard that is not done, of no shard, and of a task that has none."""
    folder = tars(output)[0].parent
    left = [
        folder / "000000000000-000000000005-0123456789abcdef.tar",
        folder / "000000000005-000000000007-fedcba9876543210.tar",
        output / "png" / "aaa" / "x.tar",
        output / "png" / "zzz" / "x.tar",
    ]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 7)
    report = verify(str(output))
    assert report.ok
    assert (report.unused.files, report.unused.num_bytes) == (4, 28)
    assert sorted(report.unused.paths) == sorted(str(path.relative_to(output)) for path in left)


def test_tar_files_of_a_shard_that_is_not_done_are_not_named(output: Path) -> None:
    first = sorted((output / "labels" / "depth").rglob("*.parquet"))[0]
    first.unlink()
    report = verify(str(output))
    assert report.counts == {"missing_shard": 1}
    assert report.unused.paths == (str(tars(output, "depth")[0].relative_to(output)),)


def test_a_label_file_that_cant_be_read_makes_no_tar_file_unused(output: Path) -> None:
    first = sorted((output / "labels" / "depth").rglob("*.parquet"))[0]
    first.write_bytes(b"no Parquet")
    report = verify(str(output))
    assert (report.counts, report.unused.files) == ({"unreadable": 1}, 0)


# -- other attempts ----------------------------------------------------------------------------------


def test_a_retry_writes_new_tar_files_and_leaves_the_old_ones_and_their_rows(pair: Pair, output: Path) -> None:
    job = pair.tar.model_copy(update={"output": str(output)})
    before = {path: path.read_bytes() for task in TASKS for path in tars(output, task)}
    rows = {task: table(output, task).to_pylist() for task in TASKS}
    report = annotator.retry(str(output), ["empty"], job=job, ray=False)
    assert report.statuses == {task: {"ok": 1} for task in TASKS}
    assert {path: path.read_bytes() for path in before} == before
    for task in TASKS:
        [new] = set(tars(output, task)) - set(before)
        found = table(output, task).to_pylist()
        assert found[:3] + found[4:] == rows[task][:3] + rows[task][4:]
        column = "mask" if task == "seg" else task
        assert (found[3]["status"], output / found[3][column]["path"]) == ("ok", new)
    whole = in_tars(pair.plain, output.parent / "whole")
    annotator.run(whole, ray=False)
    for task in TASKS:
        maps = [
            annotator.load_map(table(folder, task).to_pylist()[3], task, root=str(folder))
            for folder in (output, whole.output)
        ]
        assert np.array_equal(maps[0], maps[1], equal_nan=True)
    found = verify(str(output), deep=True)
    assert (found.counts, found.unused.files) == ({}, 0)


def test_of_two_workers_on_one_shard_both_tar_files_may_stay_and_the_label_file_names_its_own(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second labels another picture in the place of the first one's, so its maps are others."""
    job = in_tars(pair.plain, tmp_path / "raced")
    annotator.run(job, ray=False)
    files = file_bytes(job.output, TASKS)
    labels = sorted(Path(job.output, "labels", "seg").rglob("*.parquet"))[0]
    kept = labels.read_bytes()
    shard = parse_label_uri(job.output, "seg", str(labels))
    assert shard is not None
    with Worker(job, tasks=("seg",)) as worker:
        labels.unlink()
        real = Storage.create

        def late(self: Storage, source: Any, uri: str, *, output: str) -> bool:
            if "/labels/" in uri and not labels.exists():
                labels.write_bytes(kept)  # the first worker is done just now
            return real(self, source, uri, output=output)

        monkeypatch.setattr(Storage, "create", late)
        picture = next(pair.picture.parent.glob("image-0000.*"))
        good = picture.read_bytes()
        picture.write_bytes(next(pair.picture.parent.glob("image-0006.*")).read_bytes())
        summary = worker(shard)
        picture.write_bytes(good)
    assert (summary.created, summary.existed) == ((), ("seg",))
    assert file_bytes(job.output, TASKS) == files
    report = verify(job.output, deep=True)
    assert (report.counts, report.unused.files) == ({}, 1)
    assert len(tars(Path(job.output))) == 3


def test_a_copied_output_is_whole(output: Path) -> None:
    moved = shutil.move(output, output.parent / "moved")
    assert verify(str(moved), deep=True).ok
