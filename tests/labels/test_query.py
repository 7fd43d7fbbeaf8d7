"""SQL over an output: a view a task, the manifest, a row a person; and nothing else can be reached."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import annotator
from annotator.envelope import IMAGE
from annotator.errors import InvalidInputError, OutputError
from annotator.fingerprint import make_record, pin_record
from annotator.job import StorageOptions
from annotator.labels.query import connect, query, save_query
from annotator.shards import label_uri
from annotator.storage import Storage
from annotator.tasks import load_task
from tests.labels.counting import local_reads, map_ranges, s3_requests
from tests.labels.make_output import Output, Row, label_bytes, make_output
from tests.running.command import Cli, cli

__all__ = ["cli"]

POINTS = 17


def person(row: int, number: int) -> Row:
    """Keypoint k of a person lies at (100 * row + k, number) and scores k / 20; the first one is missing."""
    points = [[math.nan, math.nan], *([100.0 * row + k, float(number)] for k in range(1, POINTS))]
    return {
        "bbox_xyxy": [1.0, 2.0, 3.0 + number, 4.0],
        "bbox_score": 0.5,
        "keypoints": points,
        "keypoint_scores": [0.0, *(k / 20 for k in range(1, POINTS))],
        "whole_frame": False,
        "error": None,
    }


def add_pose(output: Output) -> None:
    """Write pose labels for every row: row r holds r % 3 people; one without keypoints in row 5."""
    task = load_task("pose")
    record = make_record(
        task,
        task.options.model_validate({"checkpoint": "pose.safetensors", "boxes": "manifest"}),
        config={"task": "pose", "embed_dim": 32, "input_hw": (64, 48), "channels": POINTS},
        weights={"sha256": "5eed" * 16, "random": False},
        dtype="float32",
        decode="exact",
        kept=(),
        needs={"person": "manifest"},
    )
    pin_record(output.storage, output.uri, record)
    for shard in output.shards():
        rows = []
        for row in range(shard.first, shard.end):
            people = [person(row, number) for number in range(row % 3)]
            if row == 5:
                people[0] |= {"keypoints": None, "keypoint_scores": None, "error": "box has no area"}
            envelope = {"shard": shard.key, "row": row, "image_id": f"{shard.file_key}-{row}", "status": "ok"}
            rows.append(envelope | {"people_found": len(people), "people": people})
        output.storage.create(
            label_bytes(rows, record.file_schema), label_uri(output.uri, "pose", shard), output=output.uri
        )


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Output:
    """12 images in 3 shards, one of them bad; seg and pose."""
    root = tmp_path_factory.mktemp("query")
    made = make_output(
        str(root),
        tasks=("seg",),
        rows=(8, 4),
        shard_rows=4,
        status=lambda _task, row: "unreadable" if row == 6 else "ok",
        uri=lambda _file, row: f"s3://user:secret@bucket/{row}.jpg?X-Amz-Signature=hidden",
    )
    add_pose(made)
    return made


def rows(output: Output, sql: str) -> list[Any]:
    """Return the rows of a query as tuples."""
    return [tuple(row.values()) for row in query(output.uri, sql).to_pylist()]


def test_each_task_is_a_view(output: Output) -> None:
    assert rows(output, "select status, count(*) from seg group by status order by status") == [
        ("ok", 11),
        ("unreadable", 1),
    ]
    both = "select count(*) from seg join pose using (shard, row) where confidence > 0.5 and people_found = 2"
    assert rows(output, both) == [(3,)]


def test_the_manifest_joins_by_shard_and_row(output: Output) -> None:
    """`size` is a column of the manifest alone; it equals the row's number there."""
    found = rows(
        output,
        "select m.size, m.image_id, seg.image_id as labelled from manifest m join seg using (shard, row) "
        "where m.size >= 3 order by m.shard, m.row",
    )
    assert [size for size, *_ in found] == [3, 4, 5, 6, 7, 3]
    assert all(a == b for _, a, b in found)
    assert rows(output, "select count(*), count(distinct shard) from manifest") == [(12, 3)]


def test_secrets_of_the_manifest_are_not_shown(output: Output) -> None:
    assert rows(output, 'select uri from manifest where "row" = 1 limit 1') == [("s3://bucket/1.jpg",)]
    assert "secret" not in str(query(output.uri, "select * from manifest").to_pylist())


def test_secrets_in_the_paths_of_embedded_pictures_are_not_shown_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.labels import make_output as module

    real = module._manifest_table

    def with_paths(*args: Any) -> pa.Table:
        image = [{"bytes": b"x", "path": "https://bucket/1.jpg?sig=hidden"}] * 2
        return real(*args).drop_columns(["uri"]).append_column("image", pa.array(image, IMAGE))

    monkeypatch.setattr(module, "_manifest_table", with_paths)
    made = make_output(str(tmp_path), tasks=("seg",), rows=(2,))
    assert rows(made, "select image.path, octet_length(image.bytes) from manifest limit 1") == [
        ("https://bucket/1.jpg", 1)
    ]


def test_persons_have_a_row_each_and_keypoints_by_name(output: Output) -> None:
    found = rows(
        output,
        "select row, person, x2, left_eye.x, left_eye.y, left_eye.score from persons "
        "where image_id like 'part-0%' order by row, person limit 4",
    )
    assert found == [
        (1, 0, 3.0, 101.0, 0.0, pytest.approx(0.05)),
        (2, 0, 3.0, 201.0, 0.0, pytest.approx(0.05)),
        (2, 1, 4.0, 201.0, 1.0, pytest.approx(0.05)),
        (4, 0, 3.0, 401.0, 0.0, pytest.approx(0.05)),
    ]
    assert rows(output, "select count(*), count(nose), count(left_eye) from persons") == [(10, 0, 9)]
    assert rows(output, "select row, error from persons where error is not null") == [(5, "box has no area")]


def test_boxes_alone_make_persons_too(tmp_path: Path) -> None:
    from tests.labels import make_output as module

    made = make_output(str(tmp_path), tasks=("seg",), rows=(2,))
    task = load_task("person")
    record = make_record(
        task,
        task.options.model_validate({"checkpoint": "person.pth"}),
        config={"task": "person", "channels": 1},
        weights={"sha256": "5eed" * 16, "random": False},
        dtype="float32",
        decode="exact",
        kept=(),
        needs={},
    )
    pin_record(made.storage, made.uri, record)
    (shard,) = made.shards()
    people = [{"bbox_xyxy": [1.0, 2.0, 3.0, 4.0], "bbox_score": 0.25}]
    labels = [{"shard": shard.key, "row": row, "status": "ok", "people_found": 1, "people": people} for row in range(2)]
    made.storage.create(
        module.label_bytes(labels, record.file_schema), label_uri(made.uri, "person", shard), output=made.uri
    )
    persons = rows(made, "select row, person, y2, bbox_score from persons order by row")
    assert persons == [(0, 0, 4, 0.25), (1, 0, 4, 0.25)]


def test_a_query_reads_the_columns_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    noise = np.random.default_rng(0).integers(0, 28, (120, 120), dtype=np.uint8)
    monkeypatch.setattr("tests.labels.make_output.expected_map", lambda _task, _row: noise)
    made = make_output(str(tmp_path), tasks=("seg",), rows=(256,), shard_rows=256)
    with local_reads() as reads:
        assert query(made.uri, "select avg(confidence) from seg where status = 'ok'").to_pylist()
    assert reads.overlap(map_ranges(made.path("seg")), made.path("seg").stat().st_size) == 0


HOSTILE = [
    "select * from read_csv('/etc/passwd')",
    "select * from '/etc/passwd.csv'",
    "select content from read_text('/etc/hostname')",
    "select * from glob('/*')",
    "copy seg to 'stolen.parquet'",
    "attach 'new.db'",
    "install httpfs",
    "load httpfs",
    "set enable_external_access = true",
    "set allowed_paths = ['/etc/passwd']",
    "reset lock_configuration",
    "export database 'dump'",
    "select * from read_parquet('s3://other/x.parquet')",
    "select 1; copy (select 1) to 'x.csv'",
]


@pytest.mark.parametrize("sql", HOSTILE)
def test_sql_reaches_nothing_but_the_output(
    output: Output, sql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInputError, match="SQL"):
        query(output.uri, sql)
    assert list(tmp_path.iterdir()) == []


def test_sql_does_not_see_variables_of_python(output: Output) -> None:
    secret = pa.table({"a": [1]})
    with pytest.raises(InvalidInputError, match="secret"):
        query(output.uri, "select * from secret")
    assert secret.num_rows == 1


def test_wrong_sql_is_one_line_that_says_what_was_meant(output: Output) -> None:
    with pytest.raises(InvalidInputError, match=r"confidenc.*confidence") as caught:
        query(output.uri, "select confidenc from seg")
    assert "\n" not in str(caught.value)
    with pytest.raises(InvalidInputError, match="expected one SELECT, found CREATE"):
        query(output.uri, "create table t (a int)")
    with pytest.raises(InvalidInputError, match="expected one SELECT, found nothing"):
        query(output.uri, "-- a remark")
    with pytest.raises(InvalidInputError, match="several columns are called row"):
        query(output.uri, "select seg.row, pose.row from seg join pose using (shard)")


def test_labels_stay_as_they_are(output: Output) -> None:
    for sql in ("delete from seg", "drop view seg", "update seg set confidence = 1"):
        with pytest.raises(InvalidInputError):
            query(output.uri, sql)
    assert rows(output, "select count(*) from seg") == [(12,)]


def test_an_output_without_labels_says_so(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="holds no labels"):
        query(str(tmp_path), "select 1")


def test_a_connection_takes_tables_of_the_users_own(output: Output) -> None:
    with connect(output.uri) as connection:
        connection.register("mine", pa.table({"row": [1, 2], "weight": [0.5, 2.0]}))
        found = connection.execute("select sum(weight) from seg join mine using (row)").fetchall()
    assert found == [(5.0,)]


# -- files -----------------------------------------------------------------------------------------

NESTED = "select row, image_id, left_eye, [1.5::double, null] as list, 'a''b\"c' as text, 'nan'::float as nothing, " \
    "'ab'::blob as data from persons order by image_id, row limit 3"  # fmt: skip


def test_a_result_is_written_as_parquet_csv_or_json(output: Output, tmp_path: Path) -> None:
    for kind in ("parquet", "csv", "json"):
        assert save_query(output.uri, NESTED, tmp_path / "new" / f"x.{kind}") == 3
    assert str(pq.read_table(tmp_path / "new" / "x.parquet").to_pylist()) == str(query(output.uri, NESTED).to_pylist())
    objects = json.loads((tmp_path / "new" / "x.json").read_text())
    assert objects[0]["left_eye"] == {"x": 101.0, "y": 0.0, "score": pytest.approx(0.05)}
    assert (objects[0]["nothing"], objects[0]["data"], objects[0]["list"]) == (None, "YWI=", [1.5, None])
    lines = list(csv.DictReader(io.StringIO((tmp_path / "new" / "x.csv").read_text())))
    assert (lines[2]["text"], json.loads(lines[2]["list"])) == ("a'b\"c", [1.5, None])
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["x.csv", "x.json", "x.parquet"]


def test_an_empty_result_is_a_whole_file(output: Output, tmp_path: Path) -> None:
    for kind in ("parquet", "csv", "json"):
        assert save_query(output.uri, "select row from seg where row < 0", tmp_path / f"x.{kind}") == 0
    assert json.loads((tmp_path / "x.json").read_text()) == []
    assert (tmp_path / "x.csv").read_text().strip() == "row"
    assert pq.read_table(tmp_path / "x.parquet").schema.names == ["row"]


def test_a_result_that_can_t_be_written_says_so_and_leaves_nothing(output: Output, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"x.txt: unknown suffix; expected .parquet, .csv, .json"):
        save_query(output.uri, "select 1", tmp_path / "x.txt")
    (tmp_path / "x.csv").mkdir()
    with pytest.raises(OutputError, match="can't be written"):
        save_query(output.uri, "select 1", tmp_path / "x.csv")
    with pytest.raises(InvalidInputError, match="SQL"):
        save_query(output.uri, "select nothing from seg", tmp_path / "y.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]


# -- the command -----------------------------------------------------------------------------------


def test_the_command_prints_a_table(cli: Cli, output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    typed = cli("query", output.uri, "select row, confidence, mask from seg order by shard, row limit 2")
    assert typed.out.splitlines()[0].split() == ["row", "confidence", "mask"]
    assert "bytes>" in typed.out and "2 rows" in typed.out
    wide = cli("query", output.uri, "select * from persons").out
    assert max(map(len, wide.splitlines()[:5])) <= 100
    assert "10 rows; not shown:" in wide and "nose" in wide
    many = cli("query", output.uri, "select * from range(100) t(i)").out
    assert "100 rows, the first 40 are shown" in many


def test_the_command_prints_json_or_writes_a_file(cli: Cli, output: Output, tmp_path: Path) -> None:
    sql = "select nose, left_eye.x as x, person from persons order by image_id limit 1"
    assert cli("query", output.uri, sql, "--json").json == [{"nose": None, "x": 101.0, "person": 0}]
    typed = cli("query", output.uri, sql, "--out", tmp_path / "rows.dat", "--format", "csv")
    assert (typed.out, typed.err) == ("", f"1 rows in {tmp_path / 'rows.dat'}\n")
    assert (tmp_path / "rows.dat").read_text().startswith("nose,x,person\n")
    assert cli("query", output.uri, "select nothing").code == 2


# -- S3 --------------------------------------------------------------------------------------------


@pytest.mark.s3
def test_queries_run_on_s3_and_leave_maps_there(
    moto_s3: StorageOptions, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    noise = np.random.default_rng(0).integers(0, 28, (120, 120), dtype=np.uint8)
    monkeypatch.setattr("tests.labels.make_output.expected_map", lambda _task, _row: noise)
    storage = Storage(options=moto_s3)
    made = make_output(s3_bucket, storage, tasks=("seg",), rows=(64,), shard_rows=64)
    sql = "select m.size, confidence from seg join manifest m using (shard, row) where status = 'ok' and m.size < 9"
    with s3_requests() as requests:
        assert annotator.query(made.uri, sql, storage=storage).num_rows == 9
    data = storage.read(made.label("seg"))
    maps = map_ranges(io.BytesIO(data))
    assert sum(reads.overlap(maps, len(data)) for _, key, reads in requests if "/labels/" in key) == 0
    with pytest.raises(InvalidInputError, match="SQL"):
        annotator.query(made.uri, f"select * from read_parquet('{made.label('seg')}')", storage=storage)


def test_without_duckdb_the_extra_is_named(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "duckdb", None)
    with pytest.raises(InvalidInputError, match=r"annotator\[query\]"):
        query(output.uri, "select 1")


def test_duckdb_reads_the_dataset_itself(output: Output) -> None:
    labels = annotator.open_labels(output.uri, "pose", columns=["people_found"])  # noqa: F841 - found by its name
    assert duckdb.execute("select sum(people_found) from labels").fetchall() == [(10,)]
