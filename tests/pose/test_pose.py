"""The pose task: options, crops, flip test, labels. From picture and box to keypoints in image pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from annotator.envelope import label_schema
from annotator.errors import ImageError, JobError
from annotator.job import parse
from annotator.keypoints import COUNTS, keypoint_set
from annotator.models.checkpoint import load_model
from annotator.models.heads import ConvHead
from annotator.models.heatmaps import average_mirrored
from annotator.tasks import pose
from annotator.tasks.pose import TASK, PoseOptions
from tests.pose import reference
from tests.pose.support import GOLDENS, PoseOracle, colour_of, draw_blobs

K = 17


def options(boxes: str = "manifest", **more: Any) -> PoseOptions:
    return parse(PoseOptions, {"checkpoint": "x", "boxes": boxes, **more}, "tasks.pose")


def people(*boxes: list[float], scores: list[float] | None = None) -> dict[str, list[dict[str, np.ndarray]]]:
    found = np.array(boxes, np.float32).reshape(-1, 4)
    return {"person": [{"boxes": found, "scores": np.array(scores or [0.9] * len(found), np.float32)}]}


@torch.inference_mode()
def label(model: torch.nn.Module, image: np.ndarray, chosen: PoseOptions, needs: Any) -> dict[str, Any]:
    """Take an image all the way, as a worker does."""
    image_yx = (image.shape[0], image.shape[1])
    found = list(pose.inputs(image, image_yx, (1024, 768), chosen, needs))
    output = pose.infer(model, torch.from_numpy(np.stack([i.pixels_HWC for i in found])), chosen)
    decoded = pose.decode(output, [i.geometry for i in found], chosen)
    arrays = [{name: value.numpy() for name, value in d.items()} for d in decoded]
    return pose.encode(arrays, image_yx, chosen, needs)


def crops(chosen: PoseOptions, needs: Any, image_yx: tuple[int, int] = (20, 30)) -> list[Any]:
    """Return the geometry of what the network would see of a black picture."""
    black = np.zeros((*image_yx, 3), np.uint8)
    return [i.geometry for i in pose.inputs(black, image_yx, (64, 48), chosen, needs)]


def points_of(count: int, *, score: float = 0.5) -> dict[str, np.ndarray]:
    """Return what the network found of a person: all keypoints in one place."""
    return {"points": np.tile(np.array([3, 4, score], np.float32), (count, 1))}


# ---- options


@pytest.mark.parametrize("given_boxes", [{}, {"boxes": None}])
def test_a_job_without_boxes_is_told_what_to_add(given_boxes: dict[str, Any]) -> None:
    with pytest.raises(JobError, match=r"tasks\.pose: boxes is missing.*add the task person.*whole_frame"):
        parse(PoseOptions, {"checkpoint": "x", **given_boxes}, "tasks.pose")


def test_an_unknown_source_of_boxes_is_refused() -> None:
    with pytest.raises(JobError, match="manifest"):
        options("detector")


def test_people_are_needed_wherever_they_come_from_but_not_for_the_whole_frame() -> None:
    assert [TASK.needs(options(b)) for b in ("person", "manifest", "labels")] == [("person",)] * 3
    assert TASK.needs(options("whole_frame")) == ()


@pytest.mark.parametrize(("channels", "right"), [(17, True), (133, True), (308, True), (28, False), (16, False)])
def test_only_the_released_numbers_of_keypoints_pass(channels: int, right: bool) -> None:
    assert (TASK.channels(channels) is None) is right


# ---- keypoint sets


@pytest.mark.parametrize("count", COUNTS)
def test_a_keypoint_set_is_consistent(count: int) -> None:
    found = keypoint_set(count)
    lengths = {len(v) for v in (found.names, found.flip_indices, found.sigmas, found.colors_rgb)}
    assert lengths == {count}
    assert len(set(found.names)) == count
    assert [found.flip_indices[i] for i in found.flip_indices] == list(range(count))
    assert [found.names[i] for i in found.coco17_indices] == list(keypoint_set(17).names)
    assert all(0 <= i < count for link in found.skeleton for i in link)
    assert len(found.skeleton) == len(found.skeleton_colors_rgb)


@pytest.mark.parametrize("count", COUNTS)
def test_the_mirror_image_of_a_left_point_is_the_right_one(count: int) -> None:
    found = keypoint_set(count)
    pairs = [(n, found.names[found.flip_indices[i]]) for i, n in enumerate(found.names) if n.startswith("left_")]
    assert len(pairs) >= 8
    assert [right for left, right in pairs if right != left.replace("left_", "right_", 1)] == []


# ---- flip test


def test_the_flip_test_gives_the_heatmaps_of_the_original_code() -> None:
    tensors = load_file(GOLDENS / "models" / "tasks.safetensors")
    model = load_model(
        str(GOLDENS / "models" / "pose17_configdict.pth"), num_heads=4, patch_padding=2, input_size=(64, 48)
    )
    with torch.inference_mode():
        upright, mirrored = model(tensors["input"]), model(tensors["input"].flip(3))
        found = average_mirrored(upright, mirrored, keypoint_set(17).flip_indices)
    expected = load_file(GOLDENS / "pose" / "flip.safetensors")["pose17.output"]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_averaging_308_heatmaps_gives_those_of_the_original_code() -> None:
    tensors = load_file(GOLDENS / "models" / "heads.safetensors")
    flip = load_file(GOLDENS / "pose" / "flip.safetensors")
    weights = {n.removeprefix("pose308.sd."): t for n, t in tensors.items() if n.startswith("pose308.sd.")}
    head = ConvHead(64, (24, 24), (24, 24), 308, "final_layer").eval()
    head.load_state_dict(weights)
    with torch.inference_mode():
        upright, mirrored = head(tensors["pose308.features"]), head(flip["pose308.mirrored_features"])
        found = average_mirrored(upright, mirrored, tuple(flip["pose308.flip_indices"].tolist()))
    torch.testing.assert_close(found[:, :, ::4], flip["pose308.output"], atol=1e-5, rtol=1e-5)


# ---- from picture and box to keypoints


@st.composite
def scenes(draw: st.DrawFn) -> tuple[np.ndarray, list[tuple[float, float]], list[float]]:
    """A picture of odd size with three blobs, and a box round them that may stick out of the frame."""
    width, height = draw(st.integers(200, 420)), draw(st.integers(200, 420))
    x1, y1 = draw(st.floats(-60, 40)), draw(st.floats(-60, 40))
    x2, y2 = draw(st.floats(width - 90, width + 60)), draw(st.floats(height - 90, height + 60))
    inside = st.tuples(
        st.floats(max(x1, 0) + 25, min(x2, width) - 25), st.floats(max(y1, 0) + 25, min(y2, height) - 25)
    )
    places = [draw(inside) for _ in range(3)]
    return draw_blobs((height, width), places, sigma=8), places, [x1, y1, x2, y2]


@settings(max_examples=12)
@given(scene=scenes(), flip_test=st.booleans())
def test_keypoints_are_where_they_were_drawn(scene: Any, flip_test: bool) -> None:
    """Within 0.05 pixels of the image, from pixels to labels, mirrored pass included."""
    image, places, box = scene
    row = label(PoseOracle(), image, options(flip_test=flip_test), people(box))
    found = np.array(row["people"][0]["keypoints"])
    truth = np.array([places[c] for c in colour_of()])
    assert np.abs(found - truth).max() < 0.05


@settings(max_examples=8)
@given(scene=scenes())
def test_keypoints_are_those_of_the_float64_reference(scene: Any) -> None:
    """Within 0.05 pixels of the image, crops rounded to grey levels in ours alone."""
    image, _, box = scene
    row = label(PoseOracle(), image, options(), people(box))
    crop_13HW = torch.from_numpy(reference.crop(image, np.array(box, np.float32), (1024, 768)).transpose(2, 0, 1)[None])
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    maps = PoseOracle()(((crop_13HW - mean) / std).float())[0].numpy()
    for k in (0, 1, 2):
        point, score, _ = reference.decode(maps[k])
        expected = reference.to_image(point, maps.shape[1:], np.array(box, np.float32), (1024, 768))
        np.testing.assert_allclose(row["people"][0]["keypoints"][k], expected, atol=0.05)
        assert row["people"][0]["keypoint_scores"][k] == pytest.approx(score, abs=0.01)


def test_several_people_keep_their_order_and_their_own_boxes() -> None:
    image = np.concatenate([draw_blobs((200, 150), [(x, 90.0)] * 3, sigma=8) for x in (50.0, 100.0)], axis=1)
    row = label(PoseOracle(), image, options("person"), people([150, 0, 300, 200], [0, 0, 150, 200]))
    assert [round(p["keypoints"][0][0]) for p in row["people"]] == [250, 50]
    assert [p["bbox_xyxy"][0] for p in row["people"]] == [150, 0]


def test_decoding_one_by_one_is_decoding_a_batch() -> None:
    chosen, maps = options(), torch.rand(2, K, 64, 48, generator=torch.Generator().manual_seed(1))
    frames = crops(chosen, people([0, 0, 40, 60], [20, 5, 80, 90]), (90, 80))
    together = pose.decode(torch.cat([maps, maps[:1]]), frames, chosen)  # the last is padding
    assert len(together) == 2
    for i in range(2):
        (alone,) = pose.decode(maps[i : i + 1], frames[i : i + 1], chosen)
        torch.testing.assert_close(alone["points"], together[i]["points"])


# ---- labels


def test_nobody_found_is_said_and_nothing_invented() -> None:
    assert crops(options("person"), people()) == []
    row = pose.encode([], (20, 30), options("person"), people())
    assert row == {"status": "no_person", "people_found": 0, "people": []}


def test_the_whole_frame_is_one_person_only_when_asked_for() -> None:
    chosen = options("whole_frame")
    assert len(crops(chosen, {})) == 1
    row = pose.encode([points_of(K)], (20, 30), chosen, {})
    (person,) = row["people"]
    assert person["whole_frame"] is True
    assert person["bbox_xyxy"] == [0, 0, 30, 20]
    assert person["bbox_score"] is None
    (other,) = pose.encode([points_of(K)], (20, 30), options(), people([0, 0, 30, 20]))["people"]
    assert other["whole_frame"] is False


def test_a_degenerate_box_costs_only_its_own_person() -> None:
    needs = people([0, 0, 10, 10], [np.nan, 0, 5, 5], [9, 9, 3, 3], [40, 0, 50, 9], [-5, -5, 50, 50])
    assert len(crops(options(), needs)) == 2
    row = pose.encode([points_of(K), points_of(K)], (20, 30), options(), needs)
    assert [p["error"] and p["error"][:9] for p in row["people"]] == [None, "box holds", "box has n", "box lies ", None]
    assert [p["keypoints"] is None for p in row["people"]] == [False, True, True, True, False]
    assert row["people"][4]["bbox_xyxy"] == [0, 0, 30, 20]  # clipped
    assert row["people"][2]["bbox_xyxy"] == [9, 9, 3, 3]  # as given
    assert row["people_found"] == 5
    assert "status" not in row


def test_a_crowd_is_bounded_by_score_and_counted() -> None:
    needs = people([0, 0, 5, 5], [5, 5, 9, 9], [9, 9, 15, 15], scores=[0.2, 0.9, 0.5])
    chosen = options("person", max_people=2)
    assert len(crops(chosen, needs)) == 2
    row = pose.encode([points_of(K), points_of(K)], (20, 30), chosen, needs)
    assert row["people_found"] == 3
    assert [p["bbox_xyxy"][0] for p in row["people"]] == [5, 9]
    assert row["error"] == "3 people, the best 2 kept (max_people)"
    within = pose.encode([points_of(K)] * 3, (20, 30), options("person", max_people=3), needs)
    assert (within["people_found"], within["error"]) == (3, None)


def test_no_manifest_can_ask_for_more_people_than_the_default_allows() -> None:
    """A row may hold a million boxes; each would be a crop and a pass through the network."""
    needs = people(*[[0.0, 0.0, 5.0, 5.0]] * 101)
    assert len(crops(options("manifest"), needs)) == 100
    row = pose.encode([points_of(K)] * 100, (20, 30), options("manifest"), needs)
    assert (row["people_found"], len(row["people"])) == (101, 100)
    assert row["error"] == "101 people, the best 100 kept (max_people)"


def test_output_that_is_not_finite_costs_its_person_or_if_all_are_so_the_image() -> None:
    needs, chosen = people([0, 0, 5, 5], [5, 5, 9, 9]), options()
    bad = points_of(K, score=np.nan)
    row = pose.encode([bad, points_of(K)], (20, 30), chosen, needs)
    assert [p["error"] is None for p in row["people"]] == [False, True]
    with pytest.raises(ImageError, match="every person") as caught:
        pose.encode([bad, bad], (20, 30), chosen, needs)
    assert (caught.value.status, caught.value.error_class) == ("failed", "not_finite")


def test_a_missing_keypoint_is_nan_with_score_0_and_no_error() -> None:
    needs = people([0, 0, 9, 9])
    (decoded,) = pose.decode(-torch.ones(1, K, 16, 12), crops(options(), needs), options())
    row = pose.encode([{"points": decoded["points"].numpy()}], (20, 30), options(), needs)
    (person,) = row["people"]
    assert person["error"] is None
    assert np.isnan(person["keypoints"]).all()
    assert person["keypoint_scores"] == [0] * K


def _row() -> dict[str, Any]:
    needs = people([0, 0, 10, 10], [9, 9, 3, 3], scores=[0.9, 0.8])
    row = pose.encode([points_of(K, score=0.7)], (20, 30), options(), needs)
    return {"width": 30, "height": 20, "status": "ok", **row}


@pytest.mark.parametrize("count", COUNTS)
def test_the_columns_are_as_published_and_survive_parquet(count: int, tmp_path: Path) -> None:
    fields = TASK.fields(options(), count)
    schema = label_schema(fields, record={"meaning": dict(TASK.meaning(options(), count))})
    struct = schema.field("people").type.value_type
    assert {f.name: str(f.type).replace("element", "item") for f in struct} == {
        "bbox_xyxy": "fixed_size_list<item: float>[4]",
        "bbox_score": "float",
        "keypoints": f"fixed_size_list<item: fixed_size_list<item: float>[2]>[{count}]",
        "keypoint_scores": f"fixed_size_list<item: float>[{count}]",
        "whole_frame": "bool",
        "error": "string",
    }
    person = pose.encode([points_of(count)], (20, 30), options(), people([0, 0, 9, 9], [9, 9, 3, 3]))
    rows = [person, {"people_found": 0, "people": []}, {"people_found": None, "people": None}]
    table = pa.Table.from_pylist(rows, schema=schema)
    pq.write_table(table, tmp_path / "labels.parquet")
    assert pq.read_table(tmp_path / "labels.parquet").equals(table)
    meaning = json.loads(schema.metadata[b"annotator"])["meaning"]
    assert len(meaning["keypoints"]) == len(meaning["swaps"]) == len(meaning["sigmas"]) == count
    assert len(meaning["coco17_indices"]) == 17


def test_loading_a_row_gives_arrays() -> None:
    loaded = TASK.load(_row())
    assert loaded["keypoints"].shape == (2, K, 2)
    assert loaded["keypoints"].dtype == np.float32
    assert loaded["keypoints"][0, 0].tolist() == [3, 4]
    assert np.isnan(loaded["keypoints"][1]).all()
    assert loaded["keypoint_scores"][1].tolist() == [0] * K
    assert loaded["error"][0] is None
    assert "no area" in loaded["error"][1]


def test_drawing_marks_people_on_a_picture_of_any_size() -> None:
    picture = np.zeros((200, 300, 3), np.uint8)
    drawn = pose.draw(picture, _row())
    assert picture.max() == 0
    assert drawn.shape == picture.shape
    assert drawn[45, 35].max() > 0  # the keypoints at (3, 4), ten times as large
    assert drawn[100, 50].max() > 0  # the lower edge of the box
    assert drawn[150:, 150:].max() == 0
    assert pose.draw(picture, {**_row(), "people": []}).max() == 0
