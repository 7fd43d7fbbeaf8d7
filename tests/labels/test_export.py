"""Exports open in the tools they are for, hold what the labels hold, and go on where they stopped."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

import annotator
from annotator import png
from annotator.errors import InvalidInputError, OutputError
from annotator.job import StorageOptions
from annotator.labels.export import FORMATS, FormatName, core
from annotator.labels.maps import load_map
from annotator.storage import Storage
from tests.labels.make_output import Output, Plan, expected_map, make_output, write_shard
from tests.labels.test_query import add_pose

ALL = list(FORMATS)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "PART_ROWS", 16)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Output:
    """27 images in two manifest files and three shards; rows 3 and 6 have no map; seg, depth, normal, pose."""
    statuses = {3: "unreadable", 6: "no_person"}
    made = make_output(
        str(tmp_path_factory.mktemp("export")), rows=(20, 7), status=lambda _task, row: statuses.get(row, "ok")
    )
    add_pose(made)
    return made


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file of an export that a person would use, by path."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    found = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
    return {name: data for name, data in found.items() if not name.startswith("_export/")}


def test_every_format_is_named_by_its_type() -> None:
    assert list(get_args(FormatName)) == ALL


# -- formats ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves tar files open
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_webdataset_reads_the_samples(output: Output, tmp_path: Path) -> None:
    import webdataset

    annotator.export(output.uri, tmp_path / "out", "webdataset", tasks=["seg", "depth"])
    tars = sorted(str(path) for path in (tmp_path / "out").glob("*.tar"))
    assert len(tars) == 3
    samples = list(webdataset.WebDataset(tars, shardshuffle=False, empty_check=False))
    assert len(samples) == 23
    for sample in samples:
        row = json.loads(sample["json"])
        assert np.array_equal(png.decode(sample["seg.png"]), expected_map("seg", row["row"]))
        columns = {**row["depth"], "depth": {"bytes": sample["depth.png"], "path": None}}
        assert np.abs(load_map(columns, "depth") - expected_map("depth", row["row"])).max() <= 0.25
    assert set(json.loads((tmp_path / "out" / "labels.json").read_text())) == {"seg", "depth"}


def test_png_files_are_the_maps_and_the_index_says_whose(output: Output, tmp_path: Path) -> None:
    import cv2

    annotator.export(output.uri, tmp_path / "out", "png")
    index = pq.read_table(tmp_path / "out" / "index").to_pylist()
    assert len(index) == 23
    for row in index:
        assert np.array_equal(
            png.decode((tmp_path / "out" / row["seg"]["mask"]).read_bytes()), expected_map("seg", row["row"])
        )
        depth = cv2.imread(str(tmp_path / "out" / row["depth"]["depth"]), cv2.IMREAD_UNCHANGED)
        value = row["depth"]["depth_offset"] + row["depth"]["depth_scale"] * depth
        assert np.abs(value - expected_map("depth", row["row"])).max() <= 0.25
    assert len([name for name in tree(tmp_path / "out") if name.endswith(".png")]) == 3 * 23


def test_datasets_loads_the_folder_and_the_card_says_what_it_is(output: Output, tmp_path: Path) -> None:
    import datasets

    annotator.export(output.uri, tmp_path / "out", "huggingface")
    folder = str(tmp_path / "out")
    seg = datasets.load_dataset(folder, "seg", split="train", cache_dir=str(tmp_path / "cache"))
    assert len(seg) == 27
    assert isinstance(seg.features["mask"], datasets.Image)
    row = next(row for row in seg if row["image_id"] == "image-0-7")
    assert np.array_equal(np.asarray(row["mask"]), expected_map("seg", 7))
    pose = datasets.load_dataset(folder, "pose", split="train", cache_dir=str(tmp_path / "cache"))
    assert len(pose) == 27
    card = (tmp_path / "out" / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert [c["config_name"] for c in head["configs"]] == ["depth", "normal", "pose", "seg"]
    assert head["size_categories"] == ["n<1K"]
    for said in ("no_person 2, ok 23, unreadable 2", "CC BY-NC", "5eed5eed", "27 Tongue", "not metres", "27 images"):
        assert said in card


@pytest.mark.parametrize(("images", "size"), [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**7, "10M<n<100M")])
def test_the_card_names_the_size_of_the_dataset(images: int, size: str) -> None:
    from annotator.labels.export.huggingface import size_category

    assert size_category(images) == size


def test_a_manifest_of_bad_rows_can_be_labelled_again(output: Output, tmp_path: Path) -> None:
    done = annotator.export(output.uri, tmp_path / "out", "manifest", tasks=["seg"], where="status != 'ok'")
    assert done.images == 4
    table = pq.read_table(tmp_path / "out").to_pylist()
    assert sorted(row["image_id"] for row in table) == ["image-0-3", "image-0-6", "image-1-3", "image-1-6"]
    assert all(os.path.isabs(row["uri"]) for row in table)
    assert table[0]["label_row"] == table[0]["size"]  # which the manifest has beside it
    assert annotator.check_manifest(str(tmp_path / "out")).rows == 4


# -- which images ----------------------------------------------------------------------------------


def test_where_takes_columns_of_one_task_or_of_several(output: Output, tmp_path: Path) -> None:
    one = annotator.export(output.uri, tmp_path / "one", "manifest", where="confidence > 0.5 and row < 5")
    two = annotator.export(
        output.uri, tmp_path / "two", "manifest", where="seg.confidence > 0.5 and pose.people_found == 2 and row < 9"
    )
    assert (one.images, two.images) == (8, 5)


def test_where_may_name_a_task_that_is_not_exported(output: Output, tmp_path: Path) -> None:
    done = annotator.export(output.uri, tmp_path / "out", "coco-keypoints", where="seg.status == 'no_person'")
    assert done.images == 2
    found = json.loads((tmp_path / "out" / "keypoints.json").read_text())
    assert {image["annotator_row"] for image in found["images"]} == {6}


def test_what_can_not_be_exported_is_said(output: Output, clean: Output, tmp_path: Path) -> None:
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (InvalidInputError, "no export format 'coco'", {"format": "coco"}),
        (InvalidInputError, "coco-keypoints holds pose labels", {"format": "coco-keypoints", "output": clean.uri}),
        (InvalidInputError, "png holds maps", {"tasks": ["pose"]}),
        (InvalidInputError, "takes labels of pose alone", {"format": "coco-keypoints", "tasks": ["seg", "pose"]}),
        (OutputError, "no face labels", {"tasks": ["face"]}),
        (InvalidInputError, "columns are", {"where": "size > 3"}),
        (InvalidInputError, "local folder", {"out": "s3://bucket/out"}),
        (InvalidInputError, "lies in the output", {"out": f"{output.uri}/png"}),
        (OutputError, "is not empty", {"out": tmp_path / "full"}),
    ]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.doc").write_text("x")
    for error, text, changes in cases:
        with pytest.raises(error, match=text):
            annotator.export(**{"output": output.uri, "out": tmp_path / "out", "format": "png", **changes})
    assert (tmp_path / "full" / "thesis.doc").read_text() == "x"
    assert not (tmp_path / "out").exists() or tree(tmp_path / "out") == {}


# -- going on --------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ALL)
def test_an_export_that_was_stopped_goes_on_and_ends_as_one_that_was_not(
    output: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    whole = annotator.export(output.uri, tmp_path / "whole", format)  # type: ignore[arg-type]
    replace, calls = os.replace, iter(range(100))

    def die(source: Any, target: Any) -> None:
        if "_export/tmp" in str(source) and next(calls) == 1:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(core, "_THREADS", 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            annotator.export(output.uri, tmp_path / "out", format)  # type: ignore[arg-type]
    assert len(list((tmp_path / "out" / "_export" / "parts").iterdir())) < 2, "the last part was not begun"
    done = annotator.export(output.uri, tmp_path / "out", format)  # type: ignore[arg-type]
    assert done.images == whole.images
    assert 0 <= done.kept < done.parts == 3
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert annotator.export(output.uri, tmp_path / "out", format).kept == 3  # type: ignore[arg-type]


def test_labels_that_are_new_or_mended_are_taken_up(tmp_path: Path) -> None:
    made = make_output(str(tmp_path), tasks=("seg",), rows=(48,), skip=[("seg", 1)])
    out = tmp_path / "out"
    first = annotator.export(made.uri, out, "png")
    assert (first.images, first.parts) == (32, 2)
    write_shard(made, Plan(), "seg", made.shards()[1])
    made.rewrite("seg", 0, lambda rows: [{**row, "status": "failed", "mask": None} for row in rows])
    second = annotator.export(made.uri, out, "png")
    assert (second.images, second.parts, second.kept) == (32, 3, 1)
    names = [name for name in tree(out) if name.endswith(".png")]
    assert sorted(int(name[-16:-4]) for name in names) == list(range(16, 48))


def test_of_parts_that_fail_at_once_the_first_failure_is_told(
    output: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever part that is: those that stop because of it say nothing of their own."""

    tables = core._Chooser.tables

    def fail_or_wait(self: Any, part: core.Part, *, maps: bool) -> Iterator[pa.Table]:
        if part.name.endswith("16"):
            raise InvalidInputError("the disk is made of cheese")
        time.sleep(0.3)
        return tables(self, part, maps=maps)

    monkeypatch.setattr(core._Chooser, "tables", fail_or_wait)
    with pytest.raises(InvalidInputError, match="cheese"):
        annotator.export(output.uri, tmp_path / "out", "png")


def test_a_folder_of_another_export_is_refused(output: Output, tmp_path: Path) -> None:
    annotator.export(output.uri, tmp_path / "out", "png", tasks=["seg"])
    other: list[dict[str, Any]] = [{"format": "webdataset"}, {"where": "row < 5"}, {"tasks": ["depth"]}]
    for changes in other:
        with pytest.raises(OutputError, match="name another folder"):
            annotator.export(output.uri, tmp_path / "out", **{"format": "png", "tasks": ["seg"], **changes})


def test_two_exports_at_once_do_not_share_a_folder(output: Output, tmp_path: Path) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def wait(_done: int, _total: int) -> None:
        reached.set()
        go_on.wait(20)

    first = threading.Thread(
        target=annotator.export, args=(output.uri, tmp_path / "out", "png"), kwargs={"progress": wait}
    )
    first.start()
    assert reached.wait(20)
    try:
        with pytest.raises(OutputError, match="another export"):
            annotator.export(output.uri, tmp_path / "out", "png")
    finally:
        go_on.set()
        first.join()
    assert annotator.export(output.uri, tmp_path / "out", "png").kept == 3


# -- and besides -----------------------------------------------------------------------------------


@pytest.mark.s3
def test_an_output_on_s3_is_exported_and_gone_on_with(moto_s3: StorageOptions, s3_bucket: str, tmp_path: Path) -> None:
    storage = Storage(options=moto_s3)
    made = make_output(s3_bucket, storage, tasks=("seg",), rows=(32,))
    assert annotator.export(made.uri, tmp_path / "out", "png", storage=storage).images == 32
    assert annotator.export(made.uri, tmp_path / "out", "png", storage=storage).kept == 2


def test_the_command_says_what_it_did(output: Output, tmp_path: Path) -> None:
    from annotator.cli import app

    command = [
        "export",
        output.uri,
        "webdataset",
        "--out",
        str(tmp_path / "out"),
        "--task",
        "seg",
        "--where",
        "row < 5",
    ]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    assert "images: 8" in first.output
    again = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert (again["images"], again["parts"], again["kept"]) == (8, 3, 3)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Arrow counts it, for 16 and for 64 label files of 64 maps of 9 KB."""
    noise = np.random.default_rng(0).integers(0, 28, (96, 96), dtype=np.uint8)
    monkeypatch.setattr("tests.labels.make_output.expected_map", lambda _task, _row: noise)
    monkeypatch.setattr(core, "PART_ROWS", 256)

    def peak(files: int) -> int:
        root = tmp_path / str(files)
        made = make_output(str(root), tasks=("seg",), rows=(64,), shard_rows=64)
        label = made.path("seg")
        monkeypatch.setattr(core, "list_shards", lambda *args: _repeated(made, files))
        before, most = pa.total_allocated_bytes(), 0

        def look(_done: int, _total: int) -> None:
            nonlocal most
            most = max(most, pa.total_allocated_bytes() - before)

        assert annotator.export(made.uri, root / "out", "webdataset", progress=look).images == 64 * files
        assert label.exists()
        shutil.rmtree(root)
        return most

    assert peak(64) < 2 * peak(16) + 2**20


def _repeated(made: Output, files: int) -> Iterator[tuple[Any, Any]]:
    from annotator.labels.join import list_shards
    from annotator.shards import Shard

    (shard, found), *_ = list_shards(made.storage, made.uri, ["seg"])
    for number in range(files):
        yield Shard(shard.file_key, number * 64, (number + 1) * 64), found
