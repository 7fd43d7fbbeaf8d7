"""COCO exports: pycocotools loads and evaluates them, and they give the labels back."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import annotator
from annotator import png
from tests.labels.make_output import MAP_YX, Output, expected_map
from tests.labels.test_export import output, small_parts

__all__ = ["output", "small_parts"]

# pycocotools 2.0.11 is behind numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def quiet_coco(path: Path) -> Any:
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def evaluate(truth: Any, results: list[dict[str, Any]], kind: str, sigmas: list[float] | None = None) -> float:
    """Return the average precision of results against annotations."""
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(truth, truth.loadRes([dict(result) for result in results]), kind)  # it adds to them
        if sigmas is not None:
            run.params.kpt_oks_sigmas = np.array(sigmas)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return float(run.stats[0])


def test_coco_keypoints_load_and_evaluate(output: Output, tmp_path: Path) -> None:
    done = annotator.export(output.uri, tmp_path / "out", "coco-keypoints")
    coco = quiet_coco(tmp_path / "out" / "keypoints.json")
    assert len(coco.imgs) == done.images == 27
    people = list(coco.anns.values())
    assert len(people) == sum(r % 3 for r in range(20)) + sum(r % 3 for r in range(7)) - 2  # row 5: one is left out
    category = coco.cats[1]
    assert len(category["keypoints"]) * 3 == len(people[0]["keypoints"])
    assert min(min(pair) for pair in category["skeleton"]) >= 1
    rows = annotator.open_labels(output.uri, "pose").to_table().to_pylist()
    last = next(row for row in rows if row["row"] == 4)["people"][0]
    found = next(a for a in people if coco.imgs[a["image_id"]]["annotator_row"] == 4)
    points = np.array(found["keypoints"]).reshape(-1, 3)
    there = points[:, 2] > 0
    assert there.sum() == found["num_keypoints"] > 0
    assert np.allclose(points[there, :2], np.array(last["keypoints"])[there], atol=0.006)


def test_poses_equal_themselves_and_worse_ones_score_less(output: Output, tmp_path: Path) -> None:
    annotator.export(output.uri, tmp_path / "out", "coco-keypoints")
    coco = quiet_coco(tmp_path / "out" / "keypoints.json")
    for found in coco.anns.values():
        found["area"] = 10_000.0  # boxes of the hand-made people are tiny
    sigmas = coco.cats[1]["sigmas"]
    same = [{k: a[k] for k in ("image_id", "category_id", "keypoints", "score")} for a in coco.anns.values()]
    moved = [
        {**a, "keypoints": (np.array(a["keypoints"]) + np.array([300, 300, 0] * len(sigmas))).tolist()} for a in same
    ]
    assert evaluate(coco, same, "keypoints", sigmas) == pytest.approx(1)
    assert evaluate(coco, moved, "keypoints", sigmas) < 0.5


def test_coco_segmentation_loads_evaluates_and_gives_the_maps_back(output: Output, tmp_path: Path) -> None:
    annotator.export(output.uri, tmp_path / "out", "coco-segmentation")
    coco = quiet_coco(tmp_path / "out" / "segmentation.json")
    assert len(coco.imgs) == 25  # two unreadable ones have no size and are left out
    assert len(coco.cats) == 27
    image = next(i for i in coco.imgs.values() if i["annotator_image_id"] == "image-0-7")
    mask_YX = np.zeros(MAP_YX, np.uint8)
    for found in coco.imgToAnns[image["id"]]:
        mask_YX[coco.annToMask(found) > 0] = found["category_id"]
        assert found["area"] == int(coco.annToMask(found).sum())
    assert np.array_equal(mask_YX, expected_map("seg", 7))
    results = [{k: a[k] for k in ("image_id", "category_id", "segmentation", "score")} for a in coco.anns.values()]
    assert evaluate(coco, results, "segm") == pytest.approx(1)
    assert evaluate(coco, results[: len(results) // 2], "segm") < 0.9


def test_coco_panoptic_pictures_are_what_the_json_says(output: Output, tmp_path: Path) -> None:
    annotator.export(output.uri, tmp_path / "out", "coco-panoptic")
    found = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert (len(found["images"]), len(found["annotations"])) == (25, 23)
    for annotation in found["annotations"]:
        picture = png.decode((tmp_path / "out" / "panoptic" / annotation["file_name"]).read_bytes()).astype(np.int64)
        ids = picture @ [1, 256, 65536]
        assert set(np.unique(ids)) - {0} == {segment["id"] for segment in annotation["segments_info"]}
        for segment in annotation["segments_info"]:
            x, y, width, height = segment["bbox"]
            assert (ids == segment["id"]).sum() == segment["area"]
            assert (ids[y : y + height, x : x + width] == segment["id"]).sum() == segment["area"]
    assert {c["isthing"] for c in found["categories"]} == {0}
