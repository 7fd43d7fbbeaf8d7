"""People and pose through the public API: found, given or neither, and keypoints where the fact sheet puts them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import annotator
from annotator.errors import FingerprintMismatchError, JobError, ManifestError
from annotator.images import apply_orientation
from annotator.job import Sources
from annotator.models import load_network, random_checkpoint
from annotator.models.boxes import MEAN_BGR, STD_BGR
from annotator.models.config import DetectorConfig
from annotator.models.runtime import run as run_model
from annotator.stages import networks
from tests.oracle import with_orientation
from tests.pose import reference
from tests.pose.support import PoseOracle, draw_blobs
from tests.running.make import file_bytes, is_whole, table, write_manifest

INPUT_HW = (256, 192)
INVERSE = {6: 8, 8: 6}


class DetectorOracle(nn.Module):
    """A detector that boxes what is brighter than the canvas's padding, as one person."""

    def __init__(self) -> None:
        super().__init__()
        self.config = DetectorConfig(
            stem=(1, 1, 1),
            stages=(1, 1, 1, 1),
            depths=(1, 1, 1, 1),
            neck_depth=1,
            neck_channels=1,
            stacked=1,
            channels=1,
        )
        self.weight = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.seen = 0

    def forward(self, images_B3HW: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (MEAN_BGR, STD_BGR))
        bright_BHW = (images_B3HW * std + mean).amax(dim=1) > 130
        self.seen += len(bright_BHW)
        logits = [torch.full((len(bright_BHW), 1, 640 // s, 640 // s), -10.0) for s in (8, 16, 32)]
        distances = [torch.ones(len(bright_BHW), 4, 640 // s, 640 // s) for s in (8, 16, 32)]
        for i, bright_HW in enumerate(bright_BHW):
            y, x = torch.nonzero(bright_HW, as_tuple=True)
            if len(y):
                box = [float(n) for n in (x.min(), y.min(), x.max() + 1, y.max() + 1)]
                row, column = int((box[1] + box[3]) / 16), int((box[0] + box[2]) / 16)
                logits[0][i, 0, row, column] = 3.0
                sides = [column * 8 - box[0], row * 8 - box[1], box[2] - column * 8, box[3] - row * 8]
                distances[0][i, :, row, column] = torch.tensor(sides)
        return logits, distances


@pytest.fixture
def oracles(monkeypatch: pytest.MonkeyPatch) -> dict[str, nn.Module]:
    """Put hand-made networks in the place of the person and pose models."""
    made: dict[str, nn.Module] = {"person": DetectorOracle(), "pose": PoseOracle(INPUT_HW)}
    real = load_network

    def load(uri: str, *, task: str, **kwargs: Any) -> Any:
        return made[task] if task in made else real(uri, task=task, **kwargs)

    monkeypatch.setattr(networks, "load_network", load)
    return made


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("checkpoints")
    kinds = {"person": None, "pose": 17, "seg": None, "depth": None}
    for task, channels in kinds.items():
        random_checkpoint(
            folder / f"{task}.safetensors", task=task, embed_dim=32, num_layers=1, num_heads=4,
            input_hw=INPUT_HW if task == "pose" else (64, 48), seed=1, channels=channels,
        )  # fmt: skip
    return {task: str(folder / f"{task}.safetensors") for task in kinds}


PLACES = [(70.3, 40.8), (96.1, 90.4), (60.7, 140.2)]


def write_pictures(folder: Path) -> dict[str, np.ndarray]:
    """Write pictures with three blobs, odd and rotated ones, and a black one; return them upright."""
    folder.mkdir(parents=True)
    pictures = {
        "plain.png": draw_blobs((187, 161), PLACES, sigma=6),
        "wide.png": draw_blobs((150, 333), [(x + 130, y - 12) for x, y in PLACES], sigma=5),
        "turned-6.png": draw_blobs((187, 161), PLACES, sigma=6),
        "turned-3.png": draw_blobs((211, 143), PLACES, sigma=7),
        "empty.png": np.zeros((90, 120, 3), np.uint8),
    }
    for name, upright in pictures.items():
        orientation = int(name.split("-")[1][0]) if "-" in name else 1
        stored = apply_orientation(upright, INVERSE.get(orientation, orientation))
        ok, png = cv2.imencode(".png", stored[..., ::-1])
        assert ok
        (folder / name).write_bytes(with_orientation(png.tobytes(), orientation))
    return pictures


def make_job(
    folder: Path, checkpoints: dict[str, str], tasks: dict[str, dict[str, Any]], **columns: Any
) -> annotator.Job:
    pictures = write_pictures(folder / "images")
    manifest = write_manifest(folder / "manifest", [f"../images/{name}" for name in pictures], **columns)
    return annotator.Job(
        manifest=str(manifest),
        output=str(folder / "out"),
        sources=Sources(roots=(str(folder / "images"),)),
        tasks={name: {"checkpoint": checkpoints[name], **options} for name, options in tasks.items()},
        shard_rows=3,
        deterministic=True,
    )


BLANKS = 4


def rows_of(job: annotator.Job, task: str) -> dict[str, dict[str, Any]]:
    return {row["uri"].rsplit("/", 1)[1]: row for row in table(job.output, task).to_pylist()}


def expected_points(picture: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Return the keypoints of the fact sheet, step by step in float64, with the same network in the middle."""
    crop = np.round(reference.crop(picture, box, INPUT_HW)).astype(np.uint8)
    with torch.inference_mode():
        maps = run_model(PoseOracle(INPUT_HW), torch.from_numpy(crop[None]))[0].double().numpy()
    points = [reference.to_image(reference.decode(m)[0], maps.shape[1:], box, INPUT_HW) for m in maps]
    return np.array(points)


def test_the_detector_feeds_pose_in_the_same_pass(
    tmp_path: Path, checkpoints: dict[str, str], oracles: dict[str, Any]
) -> None:
    job = make_job(tmp_path, checkpoints, {"pose": {"boxes": "person"}, "person": {}})
    annotator.run(job, ray=False)
    people, poses = rows_of(job, "person"), rows_of(job, "pose")
    assert people["empty.png"]["status"] == poses["empty.png"]["status"] == "no_person"
    assert people["empty.png"]["people"] == poses["empty.png"]["people"] == []
    # blank ones first, to warm up and to time forward passes alone; then each image once, whoever wants people
    assert oracles["person"].seen == BLANKS + len(people)
    for name in people.keys() - {"empty.png"}:
        found, pose = people[name]["people"], poses[name]["people"]
        assert len(found) == len(pose) == people[name]["people_found"] == 1
        assert pose[0]["bbox_xyxy"] == found[0]["bbox_xyxy"]
        assert found[0]["bbox_score"] == pytest.approx(torch.tensor(3.0).sigmoid().item(), abs=1e-6)
        x1, y1, x2, y2 = found[0]["bbox_xyxy"]
        for x, y in zip(*np.array(pose[0]["keypoints"]).T, strict=True):
            assert x1 < x < x2 and y1 < y < y2
        assert not pose[0]["whole_frame"]
    assert is_whole(job)


@pytest.mark.parametrize("source", ["manifest", "whole_frame"])
def test_keypoints_are_those_of_the_fact_sheet_within_a_twentieth_of_a_pixel(
    source: str, tmp_path: Path, checkpoints: dict[str, str], oracles: dict[str, Any]
) -> None:
    """On odd sizes, turned pictures, and boxes that stick out of the frame."""
    given: list[list[float]] = [[30, 10, 140, 170], [-25.5, -30, 150, 230.25]]
    boxes: list[list[list[float]]] = [given, given, given, given, []]
    columns: dict[str, Any] = {"boxes": boxes} if source == "manifest" else {}
    job = make_job(tmp_path, checkpoints, {"pose": {"boxes": source}}, **columns)
    annotator.run(job, ray=False)
    checked = 0
    pictures = write_pictures(tmp_path / "again")
    for name, row in rows_of(job, "pose").items():
        if name == "empty.png":
            continue
        height, width = pictures[name].shape[:2]
        assert (row["width"], row["height"]) == (width, height)
        expected_boxes = given if source == "manifest" else [[0, 0, width, height]]
        for person, box in zip(row["people"], expected_boxes, strict=True):
            assert person["whole_frame"] is (source == "whole_frame")
            expected = expected_points(pictures[name], np.array(box, np.float64))
            np.testing.assert_allclose(np.array(person["keypoints"]), expected, atol=0.05)
            assert person["bbox_xyxy"] == [max(0, box[0]), max(0, box[1]), min(width, box[2]), min(height, box[3])]
            checked += 1
    assert checked == 4 * len(given if source == "manifest" else [1])


def test_a_degenerate_box_is_its_persons_error_only(
    tmp_path: Path, checkpoints: dict[str, str], oracles: dict[str, Any]
) -> None:
    nan = float("nan")
    good = [30.0, 10.0, 140.0, 170.0]
    boxes = [[good, [nan, 0, 10, 10], [50, 50, 40, 60], [9000, 9000, 9100, 9100]], [good], [good], None, []]
    job = make_job(tmp_path, checkpoints, {"pose": {"boxes": "manifest"}}, boxes=boxes)
    annotator.run(job, ray=False)
    rows = rows_of(job, "pose")
    errors = [person["error"] for person in rows["plain.png"]["people"]]
    assert rows["plain.png"]["status"] == "ok"
    assert errors[0] is None and all(errors[1:])
    assert rows["plain.png"]["people"][0]["keypoints"] is not None
    assert rows["turned-3.png"]["status"] == rows["empty.png"]["status"] == "no_person"


def test_the_row_of_a_crowd_says_who_was_left_out_beside_what_decoding_tolerated(
    tmp_path: Path, checkpoints: dict[str, str], oracles: dict[str, Any]
) -> None:
    good = [30.0, 10.0, 140.0, 170.0]
    tasks = {"pose": {"boxes": "manifest", "max_people": 2}}
    job = make_job(tmp_path, checkpoints, tasks, boxes=[[good] * 3, [good] * 3, [good] * 2, [], []])
    ok, jpeg = cv2.imencode(".jpg", draw_blobs((187, 161), PLACES, sigma=6))
    assert ok
    (tmp_path / "images" / "wide.png").write_bytes(jpeg.tobytes()[:-2])
    annotator.run(job, ray=False)
    rows = rows_of(job, "pose")
    assert {name: (row["people_found"], len(row["people"]), row["error"]) for name, row in rows.items()} == {
        "plain.png": (3, 2, "3 people, the best 2 kept (max_people)"),
        "wide.png": (3, 2, "the end marker was missing; 3 people, the best 2 kept (max_people)"),
        "turned-6.png": (2, 2, None),
        "turned-3.png": (0, 0, None),
        "empty.png": (0, 0, None),
    }
    assert {row["error_class"] for row in rows.values()} == {None}
    assert is_whole(job)


def test_pose_from_person_labels_that_are_there_already(
    tmp_path: Path, checkpoints: dict[str, str], oracles: dict[str, Any]
) -> None:
    job = make_job(tmp_path, checkpoints, {"person": {}})
    pose = {"pose": {"checkpoint": checkpoints["pose"], "boxes": "labels"}}
    with pytest.raises(JobError, match="no person labels"):
        annotator.run(job.model_copy(update={"tasks": pose}), ray=False)
    annotator.run(job, ray=False)
    before, seen = file_bytes(job.output, ("person",)), oracles["person"].seen
    forecast = annotator.plan(job.model_copy(update={"tasks": pose}), probe=100, ray=False).forecast
    report = annotator.run(job.model_copy(update={"tasks": pose}), ray=False)
    assert forecast is not None and forecast.statuses == report.statuses
    assert oracles["person"].seen == seen
    assert file_bytes(job.output, ("person",)) == before
    people, poses = rows_of(job, "person"), rows_of(job, "pose")
    for name, row in poses.items():
        assert row["status"] == people[name]["status"]
        assert [p["bbox_xyxy"] for p in row["people"]] == [p["bbox_xyxy"] for p in people[name]["people"]]
    assert is_whole(job)


def test_adding_pose_later_finds_people_again_and_leaves_their_labels_alone(
    tmp_path: Path, checkpoints: dict[str, str], oracles: dict[str, Any]
) -> None:
    job = make_job(tmp_path, checkpoints, {"person": {}})
    annotator.run(job, ray=False)
    before = file_bytes(job.output, ("person",))
    both = job.model_copy(
        update={"tasks": {**job.tasks, "pose": {"checkpoint": checkpoints["pose"], "boxes": "person"}}}
    )
    report = annotator.run(both, ray=False)
    assert set(report.statuses) == {"pose"}
    assert file_bytes(job.output, ("person",)) == before
    again = both.model_copy(update={"tasks": {**both.tasks, "person": {**job.tasks["person"], "score": 0.5}}})
    with pytest.raises(FingerprintMismatchError, match=r"options\.score"):
        annotator.run(again, ray=False)


def test_dense_tasks_do_no_work_where_nobody_is_unless_told_to(
    tmp_path: Path, checkpoints: dict[str, str], oracles: dict[str, Any]
) -> None:
    tasks: dict[str, dict[str, Any]] = {"person": {}, "seg": {}, "depth": {"require_person": False}}
    job = make_job(tmp_path, checkpoints, tasks)
    annotator.run(job, ray=False)
    seg, depth = rows_of(job, "seg"), rows_of(job, "depth")
    assert {name for name, row in seg.items() if row["status"] == "no_person"} == {"empty.png"}
    assert seg["empty.png"]["mask"] is None
    assert {row["status"] for row in depth.values()} == {"ok"}
    assert is_whole(job)


def test_adding_person_to_dense_labels_does_not_change_what_they_are(
    tmp_path: Path, checkpoints: dict[str, str], oracles: dict[str, Any]
) -> None:
    job = make_job(tmp_path, checkpoints, {"seg": {}})
    annotator.run(job, ray=False)
    both = job.model_copy(update={"tasks": {**job.tasks, "person": {"checkpoint": checkpoints["person"]}}})
    assert set(annotator.run(both, ray=False).statuses) == {"person"}


def test_jobs_that_leave_boxes_to_guess_are_refused(tmp_path: Path, checkpoints: dict[str, str]) -> None:
    job = make_job(tmp_path, checkpoints, {"pose": {}})
    with pytest.raises(JobError, match=r"boxes is missing; say where"):
        annotator.run(job, ray=False)
    pose = {"checkpoint": checkpoints["pose"]}
    with pytest.raises(JobError, match=r"needs task 'person' in the same job"):
        annotator.run(job.model_copy(update={"tasks": {"pose": {**pose, "boxes": "person"}}}), ray=False)
    with pytest.raises((JobError, ManifestError), match=r"'boxes'"):
        annotator.run(job.model_copy(update={"tasks": {"pose": {**pose, "boxes": "manifest"}}}), ray=False)
    two = {"pose": {**pose, "boxes": "manifest"}, "person": {"checkpoint": checkpoints["person"]}}
    with pytest.raises(JobError, match="the job also finds people itself"):
        annotator.run(job.model_copy(update={"tasks": two}), ray=False)
    assert not Path(job.output).exists()
