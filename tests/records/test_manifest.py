"""Pins hold an output to its manifest; rows come out as they were written."""

from __future__ import annotations

import hashlib
import io
import json
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annotator.envelope import Row
from annotator.errors import FingerprintMismatchError, JobError, ManifestError, OutputError
from annotator.job import Job
from annotator.manifest import Manifest, kept_fields, pin_manifest, read_pin, read_pins, read_rows, selected_rows
from annotator.shards import make_file_key
from tests.records.conftest import Place

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def parquet(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def uris(count: int, first: int = 0) -> pa.Table:
    numbers = range(first, first + count)
    columns = {"uri": [f"/img/{n}.jpg" for n in numbers], "width": list(numbers), "license": ["cc0"] * count}
    return pa.table(columns, schema=pa.schema([("uri", pa.string()), ("width", pa.int64()), ("license", pa.string())]))


def job_of(place: Place, **changes: Any) -> Job:
    fields: dict[str, Any] = {"manifest": place.uri("m"), "output": place.uri("out"), "tasks": {"seg": {}}}
    return Job(**{**fields, "shard_rows": 8, **changes})


def rows_of(place: Place, manifest: Manifest, number: int = 0, **options: Any) -> list[Row]:
    file = manifest.files[number]
    return list(read_rows(place.storage, manifest, file, 0, file.rows, **options))


@pytest.fixture
def pinned(place: Place) -> Manifest:
    place.put(parquet(uris(20), row_group_size=6), "m", "a.parquet")
    place.put(parquet(uris(5, 20)), "m", "sub", "b.parquet")
    return pin_manifest(job_of(place), place.storage)


# -- pins ------------------------------------------------------------------------------------------


def test_a_second_run_reads_what_the_first_pinned(place: Place, pinned: Manifest) -> None:
    assert [(file.key, file.rows) for file in pinned.files] == [
        (make_file_key("a.parquet"), 20),
        (make_file_key("sub/b.parquet"), 5),
    ]
    assert pin_manifest(job_of(place), place.storage) == pinned
    assert read_pins(place.uri("out"), place.storage) == pinned
    one, file = read_pin(place.storage, place.uri("out"), pinned.files[1].key)
    assert (file, one.files, one.shard_rows) == (pinned.files[1], (file,), 8)
    assert place.names("out") == [
        "out/_annotator/job.json",
        *sorted(f"out/_annotator/manifests/{file.key}.json" for file in pinned.files),
    ]


def test_a_manifest_may_be_a_single_file(place: Place, pinned: Manifest) -> None:
    job = job_of(place, manifest=place.uri("m/a.parquet"), output=place.uri("other"))
    assert pin_manifest(job, place.storage).files[0].key == make_file_key("a.parquet")


def test_new_files_join_and_move_no_key(place: Place, pinned: Manifest) -> None:
    place.put(parquet(uris(3, 90)), "m", "aa.parquet")
    longer = pin_manifest(job_of(place), place.storage)
    assert len(longer.files) == 3 and set(pinned.files) < set(longer.files)
    assert read_pins(place.uri("out"), place.storage) == longer


def test_a_dry_run_writes_nothing(place: Place) -> None:
    place.put(parquet(uris(20)), "m", "a.parquet")
    assert pin_manifest(job_of(place), place.storage, write=False).rows == 20
    assert place.names("out") == []
    with pytest.raises(OutputError, match=r"no _annotator/job\.json"):
        read_pins(place.uri("out"), place.storage)


@pytest.mark.parametrize("change", [uris(21), uris(20, 1)])
def test_a_changed_file_is_refused_by_name(place: Place, pinned: Manifest, change: pa.Table) -> None:
    place.put(parquet(change), "m", "a.parquet")
    with pytest.raises(ManifestError, match=r"m/a\.parquet: changed since"):
        pin_manifest(job_of(place), place.storage)


def test_a_file_that_changes_under_a_run_is_not_read(place: Place, pinned: Manifest) -> None:
    place.put(parquet(uris(20, 1)), "m", "a.parquet")
    with pytest.raises((ManifestError, Exception), match=r"changed since|was replaced"):
        rows_of(place, pinned)


def test_a_file_that_went_is_refused_by_name(place: Place, pinned: Manifest) -> None:
    job = job_of(place, manifest=place.uri("m2"))
    record = place.uri("out/_annotator/job.json")
    place.put(parquet(uris(20)), "m2", "a.parquet")
    data = json.loads(place.storage.read(record))
    place.put(json.dumps({**data, "root": place.uri("m2")}).encode(), "out", "_annotator", "job.json")
    with pytest.raises(ManifestError, match=r"sub/b\.parquet: is pinned"):
        pin_manifest(job, place.storage)


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"shard_rows": 9}, "shard_rows"), ({"where": "width > 1"}, "where"), ({"manifest": "m/sub"}, "manifest")],
)
def test_what_the_first_run_fixed_stays_fixed(
    place: Place, pinned: Manifest, changes: dict[str, Any], name: str
) -> None:
    if "manifest" in changes:
        changes = {"manifest": place.uri("m/sub")}
    before = place.names("out")
    with pytest.raises(FingerprintMismatchError, match=f"{name} is .* first run fixed"):
        pin_manifest(job_of(place, **changes), place.storage)
    assert place.names("out") == before


def test_where_may_be_spelled_in_another_way(place: Place) -> None:
    place.put(parquet(uris(20)), "m", "a.parquet")
    pin_manifest(job_of(place, where="width>3 and license=='cc0'"), place.storage)
    pin_manifest(job_of(place, where='width > 3 and license == "cc0"'), place.storage)


def test_of_racing_first_runs_all_agree_or_are_refused(place: Place) -> None:
    for n in range(5):
        place.put(parquet(uris(20, n)), "m", f"{n}.parquet")

    def pin(shard_rows: int) -> int | None:
        try:
            return pin_manifest(job_of(place, shard_rows=shard_rows), place.storage).shard_rows
        except FingerprintMismatchError:
            return None

    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(pin, [4, 5, 4, 5]))
    fixed = read_pins(place.uri("out"), place.storage)
    assert set(outcomes) == {fixed.shard_rows, None} and len(fixed.files) == 5


@pytest.mark.parametrize(
    ("table", "changes", "said"),
    [
        (pa.table({"path": ["x"]}), {}, "no usable column among path; expected `uri`"),
        (pa.table({"uri": [1]}), {}, "column 'uri' is int64; expected string"),
        (pa.table({"uri": ["x"], "image_id": [1]}), {}, "column 'image_id' is int64; expected string"),
        (pa.table({"image": [1]}), {}, "column 'image' is int64"),
        (pa.table([["x"], ["y"]], names=["uri", "uri"]), {}, "same name"),
        (uris(3), {"keep_columns": ("licence",)}, "keep_columns names 'licence'; the file has uri, width, license"),
        (uris(3), {"where": "widht > 3"}, "where names 'widht'"),
    ],
)
def test_an_unusable_file_is_refused_in_one_line(
    local: Place, table: pa.Table, changes: dict[str, Any], said: str
) -> None:
    local.put(parquet(table), "m", "x.parquet")
    with pytest.raises(ManifestError) as caught:
        pin_manifest(job_of(local, **changes), local.storage)
    assert f"{local.uri('m/x.parquet')}: " in str(caught.value) and said in str(caught.value)
    assert "\n" not in str(caught.value) and local.names("out") == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"where": "width > 'x'"}, "does not fit"),
        ({"where": "width >"}, "not understood"),
        ({"keep_columns": ("uri",)}, "of their own"),
        ({"output": "m/labels"}, "lies in the manifest folder"),
    ],
)
def test_a_job_that_does_not_fit_is_refused(local: Place, changes: dict[str, Any], said: str) -> None:
    local.put(parquet(uris(3)), "m", "x.parquet")
    if "output" in changes:
        changes = {"output": local.uri("m/labels")}
    with pytest.raises(JobError, match=said):
        pin_manifest(job_of(local, **changes), local.storage)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"x" * 500, b"PAR1" + b"\0" * 60 + b"\x30\0\0\0PAR1"])
def test_what_is_no_parquet_is_said_so(place: Place, data: bytes) -> None:
    place.put(data, "m", "x.parquet")
    with pytest.raises(ManifestError, match=r"x\.parquet: (not a Parquet file|its Parquet footer is damaged)"):
        pin_manifest(job_of(place), place.storage)


def test_a_folder_without_parquet_files_says_how_to_make_them(place: Place) -> None:
    place.put(b"x", "m", "x.jpg")
    place.put(parquet(uris(3)), "m", "_temporary", "x.parquet")
    place.put(parquet(uris(3)), "m", ".x.parquet")
    with pytest.raises(ManifestError, match=r"no Parquet file there; .*annotator manifest build"):
        pin_manifest(job_of(place), place.storage)


def test_kept_columns_have_one_type_in_all_files(local: Place) -> None:
    local.put(parquet(uris(3)), "m", "a.parquet")
    local.put(parquet(pa.table({"uri": ["x"], "license": [3]})), "m", "b.parquet")
    with pytest.raises(ManifestError, match="other types"):
        pin_manifest(job_of(local, keep_columns=("license",)), local.storage)
    assert pin_manifest(job_of(local), local.storage).rows == 4


def test_kept_fields_are_the_manifests(place: Place, pinned: Manifest) -> None:
    assert kept_fields(place.storage, pinned, ("license", "width")) == (
        pa.field("license", pa.string()),
        pa.field("width", pa.int64()),
    )
    assert kept_fields(place.storage, pinned, ()) == ()


# -- rows ------------------------------------------------------------------------------------------


def test_rows_come_with_index_uri_digest_and_kept_columns(place: Place, pinned: Manifest) -> None:
    rows = list(read_rows(place.storage, pinned, pinned.files[0], 4, 14, ("license", "width")))
    assert [row.index for row in rows] == list(range(4, 14))
    assert rows[3].uri == "/img/7.jpg" and rows[3].data is None
    assert rows[3].image_id == hashlib.sha256(b"/img/7.jpg").hexdigest()[:32]
    assert rows[3].kept == {"license": "cc0", "width": 7}


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 60), st.integers(1, 25), st.integers(1, 25), st.integers(0, 70))
def test_shards_give_the_rows_that_pass_once_each(
    local: Place, count: int, group: int, shard_rows: int, least: int
) -> None:
    """Whatever the row groups are: rows out of all shards == selected rows == a plain filter."""
    place = Place(local.storage, local.uri(f"{count}-{group}-{shard_rows}-{least}"))
    place.put(parquet(uris(count), row_group_size=group), "m", "a.parquet")
    manifest = pin_manifest(job_of(place, where=f"width >= {least}", shard_rows=shard_rows), place.storage)
    [file] = manifest.files
    found = [
        (row.index, row.uri, row.kept["width"])
        for first in range(0, count, shard_rows)
        for row in read_rows(place.storage, manifest, file, first, min(first + shard_rows, count), ("width",))
    ]
    assert found == [(n, f"/img/{n}.jpg", n) for n in range(least, count)]
    selected = selected_rows(place.storage, manifest, file)
    assert selected is not None and selected.tolist() == list(range(least, count))


def test_without_where_all_rows_are_selected(place: Place, pinned: Manifest) -> None:
    assert selected_rows(place.storage, pinned, pinned.files[0]) is None


def test_a_relative_uri_is_under_the_manifest_files_folder(place: Place) -> None:
    written = ["x.jpg", "../x.jpg", "/abs.jpg", "s3://b/k", "https://host/x.jpg?sig=1", None, ""]
    place.put(parquet(pa.table({"uri": written})), "m", "sub", "a.parquet")
    rows = rows_of(place, pin_manifest(job_of(place), place.storage))
    root = place.root
    assert [row.uri for row in rows] == [
        f"{root}/m/sub/x.jpg", f"{root}/m/x.jpg", "/abs.jpg", "s3://b/k", "https://host/x.jpg?sig=1", None, None
    ]  # fmt: skip


def test_image_ids_are_the_manifests_own_or_digests(place: Place) -> None:
    table = pa.table({"uri": ["a", "b", None], "image_id": ["one", None, None]})
    place.put(parquet(table), "m", "a.parquet")
    manifest = pin_manifest(job_of(place), place.storage)
    key = manifest.files[0].key
    digests = [hashlib.sha256(text.encode()).hexdigest()[:32] for text in ("b", f"{key}#2")]
    assert [row.image_id for row in rows_of(place, manifest)] == ["one", *digests]


@pytest.mark.parametrize("layout", ["struct", "binary", "large_binary", "bytes"])
def test_embedded_pictures_come_with_their_rows(place: Place, layout: str) -> None:
    blobs = [bytes([n]) * 1000 if n != 5 else None for n in range(30)]
    image = (
        pa.array([{"bytes": b, "path": f"{n}.png"} if n != 5 else None for n, b in enumerate(blobs)], IMAGE)
        if layout == "struct"
        else pa.array(blobs, pa.large_binary() if layout == "large_binary" else pa.binary())
    )
    column = "bytes" if layout == "bytes" else "image"
    place.put(parquet(pa.table({column: image, "width": list(range(30))}), row_group_size=7), "m", "a.parquet")
    manifest = pin_manifest(job_of(place, where="width != 11"), place.storage)
    rows = list(read_rows(place.storage, manifest, manifest.files[0], 3, 20))
    kept = [n for n in range(3, 20) if n != 11]
    assert [(row.index, row.data) for row in rows] == [(n, blobs[n]) for n in kept]
    if layout == "struct":
        assert [row.uri for row in rows] == [place.uri(f"m/{n}.png") if n != 5 else None for n in kept]
    else:
        assert rows[0].image_id == hashlib.sha256(blobs[3] or b"").hexdigest()[:32]
    light = list(read_rows(place.storage, manifest, manifest.files[0], 3, 20, data=False))
    assert [(row.image_id, row.data) for row in light] == [(row.image_id, None) for row in rows]


def test_embedded_pictures_are_streamed(local: Place) -> None:
    """100 MB of pictures in one row group; a reader holds a few at a time."""
    blob = bytes(range(256)) * 4000
    table = pa.table({"image": pa.array([blob] * 100, pa.binary())})
    Path(local.root, "m").mkdir(parents=True)
    options = {"use_dictionary": False, "compression": "none", "data_page_size": 2**20, "write_batch_size": 1}
    pq.write_table(table, local.uri("m/a.parquet"), **options)
    del table
    manifest = pin_manifest(job_of(local), local.storage)
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    peak = 0
    for row in read_rows(local.storage, manifest, manifest.files[0], 0, 100):
        assert row.data is not None and len(row.data) == len(blob)
        peak = max(peak, pa.total_allocated_bytes() - before)
    python_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak + python_peak < 50e6


def test_damage_in_a_page_is_a_manifest_error(local: Place) -> None:
    data = bytearray(parquet(uris(1000), compression="zstd"))
    data[100:400] = b"\xff" * 300
    local.put(bytes(data), "m", "a.parquet")
    manifest = pin_manifest(job_of(local), local.storage)
    with pytest.raises(ManifestError, match=r"a\.parquet: damaged"):
        rows_of(local, manifest)


def test_dictionary_and_large_string_uris_read_like_plain_ones(local: Place) -> None:
    column = pa.array(["/a", "/b", "/a"])
    local.put(parquet(pa.table({"uri": column.dictionary_encode()})), "m", "a.parquet")
    local.put(parquet(pa.table({"uri": column.cast(pa.large_string())})), "m", "b.parquet")
    manifest = pin_manifest(job_of(local), local.storage)
    for number in (0, 1):
        assert [row.uri for row in rows_of(local, manifest, number)] == ["/a", "/b", "/a"]
