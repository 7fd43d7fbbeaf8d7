"""Bad rows counted and exported: each once, with what it takes to read the image again."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

import annotator
from annotator.errors import ManifestError, OutputError
from annotator.job import StorageOptions
from annotator.labels.bad_rows import MAX_EXAMPLES, plan_bad
from annotator.manifest import read_pins
from annotator.shards import Shard
from annotator.storage import Storage, join
from tests.labels.make_output import Row, make_output


def some_bad(task: str, row: int) -> str:
    """Rows 5 and 20 are bad for all tasks, row 30 for seg alone, row 3 shows nobody."""
    if row in (5, 20) or (task == "seg" and row == 30):
        return "unreadable" if row < 20 else "rejected"
    return "no_person" if row == 3 else "ok"


def rows_of(folder: str | Path) -> list[Row]:
    tables = [pq.read_table(path) for path in sorted(Path(folder).glob("*.parquet"))]
    return [row for table in tables for row in table.to_pylist()]


def test_bad_rows_are_counted_by_task_status_and_class_with_examples(tmp_path: Path) -> None:
    made = make_output(str(tmp_path), rows=(40, 7), tasks=("seg", "depth"), status=some_bad)
    found = annotator.bad_rows(made.uri)
    counts = {(group.task, group.status, group.error_class): group.rows for group in found.groups}
    assert counts == {  # row 5 is in both manifest files
        ("seg", "unreadable", "corrupt"): 2,
        ("seg", "rejected", "corrupt"): 2,
        ("depth", "unreadable", "corrupt"): 2,
        ("depth", "rejected", "corrupt"): 1,
    }
    assert (found.rows, found.unreadable) == (7, 0)
    assert [group.rows for group in found.groups] == [2, 2, 2, 1]
    [example] = found.groups[-1].examples
    assert (example.row, example.uri) == (20, join(made.manifest.root, "images/0-20.jpg"))
    assert example.shard == made.shards()[1].key and "JPEG ends" in str(example.error)


def test_tasks_and_classes_choose(tmp_path: Path) -> None:
    made = make_output(str(tmp_path), tasks=("seg", "depth"), status=some_bad)
    assert {group.task for group in annotator.bad_rows(made.uri, tasks=["depth"]).groups} == {"depth"}
    assert annotator.bad_rows(made.uri, errors=["not_found"]).groups == ()
    with pytest.raises(OutputError, match="no pose labels; it has depth, seg"):
        annotator.bad_rows(made.uri, tasks=["pose"])
    with pytest.raises(OutputError, match=r"_annotator/job\.json"):
        annotator.bad_rows(str(tmp_path / "elsewhere"))


def test_a_report_of_many_bad_rows_stays_small(tmp_path: Path) -> None:
    made = make_output(str(tmp_path), rows=(200,), tasks=("seg",), status=lambda _task, _row: "failed")
    [group] = annotator.bad_rows(made.uri).groups
    assert (group.rows, len(group.examples)) == (200, MAX_EXAMPLES)


def test_files_without_bad_rows_are_known_by_their_footer(tmp_path: Path) -> None:
    """The pages of the column are overwritten: whoever read them would notice."""
    made = make_output(str(tmp_path), rows=(16,), tasks=("seg",))
    path = made.path("seg")
    chunk = pq.read_metadata(path).row_group(0).column(7)
    assert chunk.path_in_schema == "error_class"
    data = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start : start + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    path.write_bytes(bytes(data))
    found = annotator.bad_rows(made.uri)
    assert (found.groups, found.unreadable) == ((), 0)


def test_a_label_file_that_cannot_be_read_is_counted(tmp_path: Path) -> None:
    made = make_output(str(tmp_path), tasks=("seg",), status=some_bad)
    made.path("seg", 1).write_bytes(made.path("seg", 1).read_bytes()[:-50])
    found = annotator.bad_rows(made.uri)
    assert (found.unreadable, found.rows) == (1, 2)  # rows 20 and 30 were in it
    with pytest.raises(OutputError, match=r"seg labels of .*000000000016-000000000032 can't be read"):
        annotator.export_bad_rows(made.uri, str(tmp_path / "bad"))
    left = plan_bad(made.storage, made.uri, made.manifest, ["seg"], ["not_found"])
    assert list(left.shards("x")) == [made.shards()[1]]  # a retry tells of it too


def test_the_shards_of_a_class_are_planned(tmp_path: Path) -> None:
    made = make_output(str(tmp_path), tasks=("seg", "depth"), status=some_bad)
    manifest = read_pins(made.uri, made.storage)
    left = plan_bad(made.storage, made.uri, manifest, ["seg", "depth"], ["corrupt"])
    assert sorted(left.shards("x")) == sorted([made.shards()[0], made.shards()[1], made.shards()[3]])
    assert (left.rows_left, left.tasks_left) == (4, ("seg", "depth"))
    assert plan_bad(made.storage, made.uri, manifest, ["depth"], ["corrupt"]).rows_left == 3
    assert plan_bad(made.storage, made.uri, manifest, ["seg"], ["empty"]).is_done
    first = made.shards()[0]
    assert sorted(left.without({first, Shard("other", 0, 5)}).shards("x")) == sorted(set(left.shards("x")) - {first})


# -- export ----------------------------------------------------------------------------------------


def test_each_bad_image_is_exported_once_with_what_is_wrong(tmp_path: Path) -> None:
    made = make_output(str(tmp_path), tasks=("seg", "depth"), status=some_bad)
    built = annotator.export_bad_rows(made.uri, str(tmp_path / "bad"))
    assert (built.images, built.files, built.root) == (4, 2, str(tmp_path / "manifest" / "images"))
    rows = rows_of(tmp_path / "bad")
    assert [(row["image_id"], row["size"], row["tasks"]) for row in rows] == [
        ("image-0-5", 5, "depth,seg"),
        ("image-0-20", 20, "depth,seg"),
        ("image-0-30", 30, "seg"),
        ("image-1-5", 5, "depth,seg"),
    ]
    assert rows[0]["uri"] == str(tmp_path / "manifest" / "images" / "0-5.jpg")
    assert {row["error_class"] for row in rows} == {"corrupt"} and "JPEG ends" in rows[0]["error"]
    names = sorted(path.name for path in (tmp_path / "bad").iterdir())
    assert names == sorted(f"{file.key}.parquet" for file in made.manifest.files)
    assert annotator.check_manifest(str(tmp_path / "bad")).ok


def test_an_export_chooses_tasks_and_classes_and_may_be_exported_again(tmp_path: Path) -> None:
    made = make_output(str(tmp_path), tasks=("seg", "depth"), status=some_bad)
    built = annotator.export_bad_rows(made.uri, str(tmp_path / "depth"), tasks=["depth"])
    assert (built.images, [row["tasks"] for row in rows_of(tmp_path / "depth")]) == (3, ["depth"] * 3)
    assert annotator.export_bad_rows(made.uri, str(tmp_path / "none"), errors=["empty"]).images == 0
    (tmp_path / "manifest" / "part-0.parquet").write_bytes((tmp_path / "manifest" / "part-1.parquet").read_bytes())
    with pytest.raises(ManifestError, match="changed since the first run"):
        annotator.export_bad_rows(made.uri, str(tmp_path / "changed"))
    with pytest.raises(OutputError, match="is not empty"):
        annotator.export_bad_rows(made.uri, str(tmp_path / "depth"))


def test_uris_are_exported_as_the_manifest_has_them_signature_included(tmp_path: Path) -> None:
    """Label rows have them without; an export is read again, so it needs what the manifest has."""
    signed = "https://host/image.jpg?X-Amz-Signature=abc"
    made = make_output(str(tmp_path), rows=(4,), tasks=("seg",), uri=lambda *_: signed, status=lambda *_: "failed")
    annotator.export_bad_rows(made.uri, str(tmp_path / "bad"))
    assert {row["uri"] for row in rows_of(tmp_path / "bad")} == {signed}


def test_embedded_pictures_come_along(tmp_path: Path) -> None:
    made = make_output(
        str(tmp_path), rows=(20,), tasks=("seg",), embed=lambda _, row: bytes([row]) * 9, status=some_bad
    )
    annotator.export_bad_rows(made.uri, str(tmp_path / "bad"))
    assert [row["image"] for row in rows_of(tmp_path / "bad")] == [{"bytes": bytes([5]) * 9, "path": None}]


@pytest.mark.s3
def test_bad_rows_of_an_output_on_s3(moto_s3: StorageOptions, s3_bucket: str) -> None:
    storage = Storage(options=moto_s3)
    made = make_output(s3_bucket, storage, rows=(40,), tasks=("seg",), status=some_bad)
    assert annotator.bad_rows(made.uri, storage=storage).rows == 3
    folder = join(s3_bucket, "bad")
    assert annotator.export_bad_rows(made.uri, folder, storage=storage).images == 3
    assert annotator.check_manifest(folder, storage).rows == 3
