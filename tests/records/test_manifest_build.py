"""Manifests from folders and lists: every image once, in files that a run can read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from annotator.errors import ManifestError, OutputError
from annotator.job import Job
from annotator.manifest import pin_manifest, read_rows
from annotator.manifest_build import append_manifest, build_manifest, check_manifest, update_manifest
from tests.records.conftest import Place
from tests.records.test_manifest import parquet, uris

IMAGES = ["a.jpg", "b c.JPEG", "sub/c.Png", "sub/d%20.webp", "sub/deep/\u00e9.TIFF", "z.bmp"]


@pytest.fixture
def folder(place: Place) -> Place:
    for name in [*IMAGES, "notes.txt", "jpg", "x.jpg.part"]:
        place.put(b"x", "images", name)
    return place


def written(place: Place, *parts: str) -> list[str]:
    names = [name for name in place.names(*parts) if name.endswith(".parquet")]
    tables = []
    for name in names:
        with place.storage.open(place.uri(name)) as file:
            tables.append(pq.read_table(file))
    return list(pa.concat_tables(tables)["uri"].to_pylist())


def test_a_folder_becomes_a_manifest_of_its_images(folder: Place) -> None:
    counts: list[int] = []
    built = build_manifest(folder.uri("images"), folder.uri("m"), folder.storage, progress=counts.append)
    assert written(folder, "m") == sorted(folder.uri("images", name) for name in IMAGES)
    assert (built.images, built.files, built.duplicates, built.unusable) == (6, 1, 0, 0)
    assert counts == [6] and folder.names("m") == ["m/manifest-00000.parquet"]
    assert check_manifest(folder.uri("m"), folder.storage).ok


def test_a_run_reads_what_was_built(folder: Place) -> None:
    build_manifest(folder.uri("images"), folder.uri("m"), folder.storage)
    job = Job(manifest=folder.uri("m"), output=folder.uri("out"), tasks={"seg": {}})
    manifest = pin_manifest(job, folder.storage)
    rows = list(read_rows(folder.storage, manifest, manifest.files[0], 0, 6))
    assert [folder.storage.read(row.uri or "") for row in rows] == [b"x"] * 6


def test_extensions_may_be_chosen(folder: Place) -> None:
    build_manifest(folder.uri("images"), folder.uri("m"), folder.storage, extensions=[".PART"])
    assert written(folder, "m") == [folder.uri("images/x.jpg.part")]


@pytest.mark.parametrize("rows_per_file", [1, 2, 3, 6, 100])
def test_files_are_cut_to_size(folder: Place, rows_per_file: int) -> None:
    built = build_manifest(folder.uri("images"), folder.uri("m"), folder.storage, rows_per_file=rows_per_file)
    assert built.files == -(-6 // rows_per_file)
    assert folder.names("m") == [f"m/manifest-{n:05d}.parquet" for n in range(built.files)]
    assert written(folder, "m") == sorted(folder.uri("images", name) for name in IMAGES)


def test_many_images_fill_row_groups(local: Place) -> None:
    """40,000 uris in batches of 16,384: row groups are of 4,096 all the same, but for the last of a file."""
    local.put("\n".join(f"/img/{n}.jpg" for n in range(40_000)).encode(), "list.txt")
    built = build_manifest(local.uri("list.txt"), local.uri("m"), local.storage, rows_per_file=30_000)
    assert (built.images, built.files) == (40_000, 2)
    metadata = pq.read_metadata(local.uri("m/manifest-00000.parquet"))
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [4096] * 7 + [30_000 - 7 * 4096]
    assert written(local, "m") == [f"/img/{n}.jpg" for n in range(40_000)]


def test_a_list_gives_each_uri_once_resolved_under_its_folder(place: Place) -> None:
    place.put("\ufeffx.jpg\r\n\n  sub/y 1.jpg \ns3://b/z.jpg\nx.jpg\n/abs.png".encode(), "lists", "l.txt")
    built = build_manifest(place.uri("lists/l.txt"), place.uri("m"), place.storage)
    assert (built.images, built.duplicates) == (4, 1)
    assert written(place, "m") == [place.uri("lists/x.jpg"), place.uri("lists/sub/y 1.jpg"), "s3://b/z.jpg", "/abs.png"]


@pytest.mark.parametrize(("name", "delimiter"), [("l.csv", ","), ("l.TSV", "\t")])
def test_a_table_gives_uris_and_ids(place: Place, name: str, delimiter: str) -> None:
    """Ids that look like numbers keep their zeros; a column of mixed types that is not read does no harm."""
    lines = [("note", "image_id", "uri"), ("1", "007", "a.jpg"), ("x", "", '"b, ""c"".jpg"')]
    place.put("\n".join(delimiter.join(line) for line in lines).encode(), name)
    build_manifest(place.uri(name), place.uri("m"), place.storage)
    with place.storage.open(place.uri("m/manifest-00000.parquet")) as file:
        table = pq.read_table(file)
    assert table.to_pydict() == {"uri": [place.uri("a.jpg"), place.uri('b, "c".jpg')], "image_id": ["007", None]}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("l.csv", "path,x\na,b\n", "no column `uri`; the header names path, x"),
        ("l.csv", "uri\na\nb,c\n", "not readable as CSV"),
        ("l.csv", "", "not readable as CSV"),
        ("l.csv", "uri,x\na,1\n,2\n", "row 2: empty uri"),
        ("l.txt", "a.jpg\ngs://b/x.jpg\n", "row 2: gs://b/x.jpg: unknown scheme"),
        ("l.txt", "\n\n", "no image"),
        ("l.json", "[]", "expected a folder, a list"),
    ],
)
def test_a_source_that_makes_no_sense_is_refused(local: Place, name: str, text: str, said: str) -> None:
    local.put(text.encode(), name)
    with pytest.raises(ManifestError) as caught:
        build_manifest(local.uri(name), local.uri("m"), local.storage)
    assert said in str(caught.value) and local.names("m") == []


def test_a_list_in_another_encoding_is_refused(local: Place) -> None:
    local.put("caf\u00e9.jpg".encode("latin-1"), "l.txt")
    with pytest.raises(ManifestError, match="not UTF-8"):
        build_manifest(local.uri("l.txt"), local.uri("m"), local.storage)


def test_a_folder_without_images_is_refused(place: Place) -> None:
    place.put(b"x", "images", "x.txt")
    for source in ("images", "missing"):
        with pytest.raises(ManifestError, match="no image"):
            build_manifest(place.uri(source), place.uri("m"), place.storage)


def test_a_full_folder_is_refused(folder: Place) -> None:
    folder.put(b"x", "m", "anything")
    with pytest.raises(OutputError, match=r"not empty .*manifest append"):
        build_manifest(folder.uri("images"), folder.uri("m"), folder.storage)


def test_a_file_name_that_is_no_utf8_is_counted_not_written(local: Place) -> None:
    folder = Path(local.root, "images")
    folder.mkdir(parents=True)
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.jpg")).write_bytes(b"x")
    (folder / "a.jpg").write_bytes(b"x")
    built = build_manifest(str(folder), local.uri("m"), local.storage)
    assert (built.images, built.unusable) == (1, 1)


# -- append ----------------------------------------------------------------------------------------


def test_append_adds_what_is_new_and_nothing_else(folder: Place) -> None:
    build_manifest(folder.uri("images"), folder.uri("m"), folder.storage, rows_per_file=4)
    before = [folder.storage.read(folder.uri(name)) for name in folder.names("m")]
    for name in ("images/new.jpg", "images/sub/new.png"):
        folder.put(b"x", name)
    added = append_manifest(folder.uri("images"), folder.uri("m"), folder.storage)
    assert (added.images, added.files, added.duplicates) == (2, 1, 6)
    assert [folder.storage.read(folder.uri(name)) for name in folder.names("m")][:2] == before
    assert folder.names("m")[-1] == "m/manifest-00002.parquet"
    again = append_manifest(folder.uri("images"), folder.uri("m"), folder.storage)
    assert (again.images, again.files) == (0, 0) and len(folder.names("m")) == 3
    assert check_manifest(folder.uri("m"), folder.storage).ok


def test_update_builds_first_and_appends_then(folder: Place) -> None:
    counts = []
    for name in ("images/new.jpg", "images/new.jpg", "images/newer.jpg"):
        counts.append(update_manifest(folder.uri("images"), folder.uri("m"), folder.storage).images)
        folder.put(b"x", name)
    assert counts == [6, 1, 0]


def test_append_knows_relative_uris_of_a_manifest_made_elsewhere(local: Place) -> None:
    local.put(parquet(pa.table({"uri": ["../images/a.jpg", None, "/x/b.jpg"]})), "m", "part.parquet")
    local.put(b"x", "images", "a.jpg")
    local.put(b"x", "images", "c.jpg")
    added = append_manifest(local.uri("images"), local.uri("m"), local.storage)
    assert (added.images, added.duplicates) == (1, 1)
    assert local.names("m") == ["m/manifest-00000.parquet", "m/part.parquet"]


# -- check -----------------------------------------------------------------------------------------


def check(place: Place, **tables: Any) -> dict[str, str]:
    for name, table in tables.items():
        place.put(table if isinstance(table, bytes) else parquet(table), "m", f"{name}.parquet")
    found = check_manifest(place.uri("m"), place.storage)
    assert found.ok is (not [p for p in found.problems if not p.warning])
    return {problem.kind: problem.message for problem in found.problems}


def test_a_sound_manifest_has_no_problems(place: Place) -> None:
    assert check(place, a=uris(10), b=uris(10, 10)) == {}


def test_check_finds_repeated_uris_within_and_across_files(place: Place) -> None:
    problems = check(place, a=pa.table({"uri": ["x", "y", "x"]}), b=pa.table({"uri": ["y", "z"]}))
    assert problems["duplicate_uri"].startswith("2 rows")


def test_check_finds_repeated_ids_and_missing_uris(place: Place) -> None:
    table = pa.table({"uri": ["x", None, ""], "image_id": ["1", "1", None]})
    problems = check(place, a=table)
    assert problems["null_uri"].startswith("2 rows") and problems["duplicate_image_id"].startswith("1 rows")


def test_check_finds_files_that_a_run_would_refuse(place: Place) -> None:
    problems = check(place, a=uris(3), b=b"no parquet", c=pa.table({"uri": [1]}))
    assert set(problems) == {"unreadable", "unusable"}


def test_check_warns_of_huge_row_groups_and_mixed_columns(local: Place) -> None:
    many = pa.table({"uri": [str(n) for n in range(200_001)]})
    local.put(parquet(many, row_group_size=300_000), "m", "b.parquet")
    problems = check(local, a=uris(3))
    assert set(problems) == {"huge_row_group", "mixed_columns"}
    assert check_manifest(local.uri("m"), local.storage).ok
