"""`verify --sample` labels rows anew and holds what is stored to the model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

import annotator
from annotator.errors import CheckpointError, OutputError
from annotator.labels.relabel import Draw
from annotator.labels.verify import verify
from annotator.people import box_difference, keypoint_difference
from annotator.shards import Shard
from annotator.tasks import load_task
from tests.labels.labelled import TASKS, again, made, output, person_with, rewrite
from tests.labels.make_output import Row, expected_map, map_columns

__all__ = ["made", "output"]

NAN = math.nan


def test_rows_labelled_anew_are_the_same_bytes_when_the_job_is_deterministic(made: annotator.Job) -> None:
    report = verify(made.output, sample=3)
    assert report.ok, report.problems
    assert [(s.task, s.rows, s.equal, s.worst, s.limit) for s in report.sample] == [
        (task, 3, 3, 0.0, 0.0) for task in sorted(TASKS)
    ]


def test_labels_that_are_well_formed_and_not_the_models_are_found(output: Path) -> None:
    """Mirrored maps, swapped people: nothing but the model knows better."""
    paths = {
        "depth": rewrite(output, "depth", again(lambda m: m[::-1], "depth")),
        "normal": rewrite(output, "normal", again(lambda m: m[:, ::-1], "normal")),
        "person": rewrite(output, "person", person_with(bbox_xyxy=[0, 0, 1, 1])),
    }
    assert verify(str(output), deep=True).ok
    report = verify(str(output), sample=7)
    assert {(p.kind, p.where) for p in report.problems} == {("sample", str(path)) for path in paths.values()}
    assert all(p.message.startswith("row 1: ") for p in report.problems)
    worst = {s.task: s for s in report.sample}
    assert {task for task, sample in worst.items() if sample.equal < sample.rows} == set(paths)
    assert worst["normal"].worst > 1 and worst["normal"].worst_row is not None


def test_another_status_or_another_image_is_found(output: Path, made: annotator.Job) -> None:
    rewrite(output, "seg", lambda row: {**row, "image_id": "another"})
    rewrite(output, "depth", lambda row: {**row, "status": "unreadable", "error_class": "corrupt", "depth": None})
    report = verify(str(output), sample=7)
    messages = sorted(p.message for p in report.problems)
    assert report.counts == {"sample": 2}
    assert "image_id is 'another', labelled anew " in messages[0]
    assert messages[1] == "row 1: status is 'unreadable', labelled anew 'ok'"


@pytest.mark.parametrize("trouble", ["fetch_timeout", "decoder_crashed"])
def test_rows_that_met_passing_trouble_or_ended_a_decoder_are_not_compared(output: Path, trouble: str) -> None:
    """What ended a decoder is not decoded again, for any task: this process would end."""
    bad = {"status": "unreadable", "error_class": trouble, "depth": None}
    rewrite(output, "depth", lambda row: {**row, **bad})
    report = verify(str(output), sample=7)
    assert report.ok
    rows = {"fetch_timeout": [6, 7], "decoder_crashed": [6, 6]}[trouble]
    assert {s.task: s.rows for s in report.sample} == {task: rows[task != "depth"] for task in TASKS}


def test_other_weights_are_refused_and_so_is_an_output_without_a_run(output: Path) -> None:
    record = next((output / "_annotator" / "runs").glob("*.json"))
    data = json.loads(record.read_text())
    data["job"]["tasks"]["seg"]["checkpoint"] = data["job"]["tasks"]["depth"]["checkpoint"]
    record.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="sha256"):
        verify(str(output), sample=1)
    record.unlink()
    with pytest.raises(OutputError, match="no run left its job"):
        verify(str(output), sample=1)


# -- what is drawn, and how far apart labels are -----------------------------------------------


def test_every_row_has_the_same_chance_and_order_does_not_matter() -> None:
    """4 rows of 20, 500 times: each row about 100 times (three standard deviations are 27); all tasks together."""
    shards = [Shard("a", 0, 16), Shard("b", 0, 4)]
    times = {(shard, row): 0 for shard in shards for row in range(shard.end)}
    for seed in range(500):
        one, other = Draw(4, seed), Draw(4, seed)
        for shard in shards:
            one.add("seg", shard, np.arange(shard.end))
            one.add("pose", shard, np.arange(shard.end))
        for shard in reversed(shards):
            other.add("pose", shard, np.arange(shard.end)[::-1])
        drawn = one.rows()
        assert {s: set(rows) for s, rows in drawn.items()} == {s: set(rows) for s, rows in other.rows().items()}
        assert sum(len(rows) for rows in drawn.values()) == 4
        for shard, rows in drawn.items():
            for row, tasks in rows.items():
                assert tasks == {"seg", "pose"}
                times[shard, row] += 1
    assert min(times.values()) > 60 and max(times.values()) < 140


def test_a_draw_of_more_rows_than_there_are_takes_all() -> None:
    draw = Draw(100, 0)
    draw.add("seg", Shard("a", 8, 12), np.array([8, 10]))
    assert draw.rows() == {Shard("a", 8, 12): {8: {"seg"}, 10: {"seg"}}}


def test_drift_is_measured_as_it_is_called() -> None:
    """Of 108 pixels 27 of another class; normals turned by 10 degrees; depth off by 1 % of its range."""
    seg, depth, normal = (load_task(name).drift for name in ("seg", "depth", "normal"))
    assert seg is not None and depth is not None and normal is not None
    old = expected_map("seg", 0)
    new = old.copy()
    new[:3] = (new[:3] + 1) % 28
    assert seg.between(map_columns("seg", old), map_columns("seg", new)) == pytest.approx(0.25)
    row = map_columns("depth", expected_map("depth", 0))
    moved = {**row, "depth_offset": row["depth_offset"] + 0.01 * 0.5 * (8 + 11 * 9)}
    assert depth.between(row, moved) == pytest.approx(0.01, rel=1e-3)
    angle = math.radians(10)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]], np.float32)
    flat = np.zeros((12, 9, 3), np.float32)
    flat[..., 0] = 1
    turned = flat.copy()
    turned[..., :2] = flat[..., :2] @ turn
    assert normal.between(map_columns("normal", flat), map_columns("normal", turned)) == pytest.approx(10, abs=0.5)
    for drift, name in ((seg, "seg"), (depth, "depth"), (normal, "normal")):
        row = map_columns(name, expected_map(name, 0))
        assert drift.between(row, row) == 0
        assert drift.between(row, map_columns(name, expected_map(name, 0)[:-1])) > max(drift.limits.values())


def people(*found: Row) -> Row:
    return {"people": list(found)}


def test_boxes_are_compared_each_with_its_best_match() -> None:
    """Half of a box is an IoU of 1/2; a box too many counts as a whole difference."""
    one, half, far, flat = ({"bbox_xyxy": b} for b in ([0, 0, 4, 4], [0, 0, 4, 2], [10, 10, 12, 12], [3, 3, 3, 3]))
    assert box_difference(people(one, far), people(far, one)) == 0
    assert box_difference(people(one), people(half)) == pytest.approx(0.5)
    assert box_difference(people(one), people(one, far)) == pytest.approx(0.5)
    assert box_difference(people(), people()) == 0
    assert box_difference(people(flat), people(flat)) == 0


def test_keypoints_are_compared_in_sides_of_their_box() -> None:
    """One of two keypoints moved by 5 in a box 50 high: a mean of 0.05; one that is missing counts 1."""
    person = {"bbox_xyxy": [0, 0, 20, 50], "keypoints": [[1.0, 1.0], [2.0, 2.0]], "keypoint_scores": [0.9, 0.9]}
    moved = {**person, "keypoints": [[4.0, 5.0], [2.0, 2.0]]}
    missing = {**person, "keypoints": [[NAN, NAN], [2.0, 2.0]], "keypoint_scores": [0.0, 0.9]}
    unsure = {"keypoint_scores": [0.1, 0.9]}
    assert keypoint_difference(people(person), people(moved)) == pytest.approx(0.05)
    assert keypoint_difference(people(person | unsure), people(moved | unsure)) == 0
    assert keypoint_difference(people(person), people(missing)) == pytest.approx(0.5)
    assert keypoint_difference(people(missing), people(missing)) == 0
    assert keypoint_difference(people(person), people()) == math.inf
    assert keypoint_difference(people({**person, "keypoints": None}), people(person)) == 1
