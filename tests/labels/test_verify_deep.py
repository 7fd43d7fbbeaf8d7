"""`verify --deep` holds every label to what its task promises."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import annotator
from annotator.errors import AccessError, TaskNotFoundError
from annotator.labels import check, children
from annotator.labels.verify import verify
from annotator.storage import Storage
from tests.labels.labelled import TASKS, again, made, one_pixel, output, person_with, rewrite
from tests.labels.make_output import Output, Row, make_output
from tests.running.command import Cli, cli
from tests.running.make import make_job

__all__ = ["cli", "made", "output"]


# -- deep --------------------------------------------------------------------------------------


def test_a_real_run_is_clean_to_the_last_pixel(made: annotator.Job) -> None:
    report = verify(made.output, deep=True)
    assert report.ok, report.problems
    assert [(t.task, t.rows) for t in report.tasks] == [(task, 7) for task in sorted(TASKS)]


def test_rows_without_labels_are_no_flaw(clean: Output) -> None:
    """Unreadable, rejected and failed images, and some without people."""
    assert verify(clean.uri, deep=True).ok


@pytest.mark.parametrize("bits", [8, 16])
def test_maps_whose_background_was_cut_away_are_clean(
    tmp_path: Path, tiny_checkpoints: dict[str, Path], bits: int
) -> None:
    job = make_job(tmp_path, tiny_checkpoints, count=4, tasks=("seg", "depth", "normal"))
    more: dict[str, dict[str, Any]] = {"seg": {}, "depth": {"background": "zero"}}
    more["normal"] = {"background": "zero", "bits": bits}
    job = job.model_copy(update={"tasks": {task: {**job.tasks[task], **more[task]} for task in more}})
    annotator.run(job, ray=False)
    report = verify(job.output, deep=True)
    assert report.ok, report.problems


NAN = math.nan
FLAWS: dict[str, tuple[str, Callable[[Row], Row], str, str]] = {
    "map of another size": ("seg", again(lambda m: m[:-1], "mask"), "map_size", "map_width x map_height"),
    "map and its columns of another size": (
        "depth",
        lambda row: again(lambda m: m[:-1], "depth")({**row, "map_height": row["map_height"] - 1}),
        "map_size",
        "of an image of",
    ),
    "map of another kind": ("depth", again(lambda m: (m >> 8).astype(np.uint8), "depth"), "map_encoding", "8 bits"),
    "text for a map": (
        "normal",
        lambda row: {**row, "normal": {"bytes": b"hello", "path": None}},
        "map_encoding",
        "not a PNG",
    ),
    "map cut short": (
        "normal",
        lambda r: {**r, "normal": {"bytes": r["normal"]["bytes"][:-40], "path": None}},
        "map_encoding",
        "damaged PNG",
    ),
    "class id out of range": ("seg", again(one_pixel(28), "mask"), "map_values", "class id 28, expected 0 to 27"),
    "class counts of another mask": (
        "seg",
        lambda row: {**row, "class_pixels": [row["class_pixels"][-1], *row["class_pixels"][:-1]]},
        "map_values",
        "class_pixels",
    ),
    "confidence above 1": ("seg", lambda row: {**row, "confidence": 1.5}, "map_values", "confidence 1.5"),
    "no confidence": ("seg", lambda row: {**row, "confidence": None}, "map_values", "confidence is None"),
    "a vector that is too long": ("normal", again(one_pixel(255), "normal"), "map_values", "length 1.732"),
    "vectors that are too short": ("normal", again(lambda m: m // 2 + 64, "normal"), "map_values", "shorter than"),
    "a normal that is missing": ("normal", again(one_pixel(0), "normal"), "map_values", "length 1.732"),
    "a depth that is missing": ("depth", again(one_pixel(0), "depth"), "map_values", "1 pixels without depth"),
    "a scale of zero": ("depth", lambda row: {**row, "depth_scale": 0.0}, "map_values", "depth_scale 0.0"),
    "no offset": ("depth", lambda row: {**row, "depth_offset": None}, "map_values", "depth_offset None"),
    "an offset that is no number": ("depth", lambda row: {**row, "depth_offset": NAN}, "map_values", "offset nan"),
    "an image without size": ("seg", lambda row: {**row, "width": None}, "map_size", "no width or height"),
    "a box outside the image": (
        "person",
        lambda row: person_with(bbox_xyxy=[0, 0, row["width"] + 1, row["height"]])(row),
        "people",
        "not inside the image",
    ),
    "a box turned round": ("pose", person_with(bbox_xyxy=[5, 5, 2, 9]), "people", "not inside the image"),
    "a box that is no number": ("person", person_with(bbox_xyxy=[0, 0, NAN, 1]), "people", "not inside the image"),
    "no box": ("person", person_with(bbox_xyxy=None), "people", "not inside the image"),
    "a box in an image without size": ("pose", lambda row: {**row, "height": None}, "people", "not inside"),
    "a score above 1": ("person", person_with(bbox_score=1.5), "people", "bbox_score is not from 0.01 to 1"),
    "a score below the threshold": ("person", person_with(bbox_score=0.001), "people", "bbox_score is not from"),
    "no score": ("person", person_with(bbox_score=None), "people", "bbox_score is not from"),
    "people out of order": ("person", lambda row: {**row, "people": row["people"][::-1]}, "people", "the best first"),
    "a person too few": ("person", lambda row: {**row, "people": row["people"][1:]}, "people", "people, status ok"),
    "nobody": ("pose", lambda row: {**row, "people": []}, "people", "0 people, status ok"),
    "no list": ("pose", lambda row: {**row, "people": None}, "people", "0 people, status ok"),
    "people where there are none": ("pose", lambda row: {**row, "status": "no_person"}, "people", "status no_person"),
    "a keypoint at infinity": (
        "pose",
        lambda row: person_with(keypoints=[[math.inf, 1], *row["people"][0]["keypoints"][1:]])(row),
        "people",
        "keypoint",
    ),
    "a missing keypoint with a score": (
        "pose",
        lambda row: person_with(keypoints=[[NAN, NAN]] * 17, keypoint_scores=[0.5] * 17)(row),
        "people",
        "keypoint",
    ),
    "a keypoint without a score": ("pose", person_with(keypoint_scores=[None] * 17), "people", "keypoint"),
    "a negative score": ("pose", person_with(keypoint_scores=[-0.5] * 17), "people", "keypoint"),
    "keypoints and no scores": ("pose", person_with(keypoint_scores=None), "people", "error, or none"),
    "keypoints of a person with an error": ("pose", person_with(error="box has no area"), "people", "error, or none"),
    "a person without anything": ("pose", person_with(keypoints=None, keypoint_scores=None), "people", "or none"),
    "a score that is no number": ("pose", person_with(bbox_score=NAN), "people", "bbox_score is no number"),
}  # fmt: skip


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_label_that_breaks_its_tasks_contract_is_named(output: Path, flaw: str) -> None:
    """None of these is seen without `deep`: the files are sound, and every row is there once."""
    task, change, kind, words = FLAWS[flaw]
    path = rewrite(output, task, change)
    assert verify(str(output)).ok or flaw == "people where there are none"
    report = verify(str(output), deep=True)
    assert kind in report.counts
    problem = next(p for p in report.problems if p.kind == kind)
    assert problem.where == str(path)
    assert problem.message.startswith("1 of 5 rows; row 1: ")
    assert words in problem.message


def test_a_map_that_claims_gigabytes_is_refused_before_it_is_decoded(output: Path) -> None:
    """60,000 x 60,000 pixels by its header and by its columns, in an image of far less."""
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (60000).to_bytes(4, "big") * 2 + b"\x10\0\0\0\0" + bytes(100)
    bomb = {"depth": {"bytes": header, "path": None}, "map_width": 60000, "map_height": 60000}
    rewrite(output, "depth", lambda row: {**row, **bomb})
    assert verify(str(output), deep=True).counts == {"map_size": 1}


def test_a_task_that_is_not_installed_here_is_told_at_once(tmp_path: Path) -> None:
    output = make_output(str(tmp_path), tasks=("seg",))
    record = Path(output.uri) / "_annotator" / "tasks" / "seg.json"
    record.with_name("albedo.json").write_text(json.dumps(json.loads(record.read_text()) | {"task": "albedo"}))
    assert verify(output.uri).counts == {"missing_shard": 4}
    with pytest.raises(TaskNotFoundError, match="albedo"):
        verify(output.uri, deep=True)


# -- in processes of its own -------------------------------------------------------------------


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a few files count as many, so that processes are started."""
    monkeypatch.setattr(children, "FEW_FILES", 1)
    monkeypatch.setattr(children, "_CHUNK", 2)


@pytest.mark.usefixtures("many")
def test_processes_find_what_threads_find(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for flaw in ("class id out of range", "a box outside the image", "a depth that is missing"):
        rewrite(output, FLAWS[flaw][0], FLAWS[flaw][1])
    labels = sorted((output / "labels").rglob("*.parquet"))
    labels[-1].write_bytes(b"PAR1")
    by_processes = verify(str(output), deep=True)
    monkeypatch.setattr(children, "FEW_FILES", 500)
    assert verify(str(output), deep=True) == by_processes
    assert by_processes.counts == {"map_values": 2, "people": 1, "unreadable": 1}


def in_every_process(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Run this line in each process that is started and opens the second label file of depth."""
    (folder / "sitecustomize.py").write_text(
        "import os, sys\n"
        "def hook(event, args):\n"
        "    if event == 'open' and 'depth' in str(args[0]) and str(args[0]).endswith('05-000000000007.parquet'):\n"
        f"        {code}\n"
        "sys.addaudithook(hook)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


@pytest.mark.usefixtures("many")
def test_a_file_that_kills_its_reader_costs_that_file_only(
    made: annotator.Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Arrow has been seen to abort over a flipped bit."""
    in_every_process(tmp_path, monkeypatch, "os.abort()")
    report = verify(made.output)
    assert report.counts == {"unreadable": 1}
    assert "ended the process" in report.problems[0].message
    assert report.problems[0].where.endswith("05-000000000007.parquet")
    assert sum(t.rows for t in report.tasks) == 7 * 5 - 2


@pytest.mark.usefixtures("many")
def test_a_storage_fault_in_a_process_ends_verify(
    made: annotator.Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    in_every_process(tmp_path, monkeypatch, "raise PermissionError(13, 'forbidden')")
    with pytest.raises(AccessError, match="05-000000000007"):
        verify(made.output)


def test_the_command_line_says_it_in_words_and_in_json(output: Path, cli: Cli) -> None:
    done = cli("verify", output, "--deep", "--sample", 2, "--seed", 5)
    assert done.code == 0
    assert "labelled anew" in done.out and "verified" in done.out
    path = rewrite(output, *FLAWS["class id out of range"][:2])
    done = cli("verify", output, "--deep", "--json")
    assert done.code == 7
    assert done.json["counts"] == {"map_values": 1}
    assert done.json["problems"][0]["where"] == str(path)
    assert cli("verify", output).code == 0


def test_a_portion_of_a_file_is_checked_like_the_whole(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite(output, *FLAWS["class id out of range"][:2])
    monkeypatch.setattr(check, "WHOLE_BYTES", 0)
    monkeypatch.setattr("annotator.labels.scan.WHOLE_BYTES", 0)
    assert verify(str(output), Storage(), deep=True).counts == {"map_values": 1}
