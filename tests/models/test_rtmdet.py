"""The person detector gives the numbers that the original one gave, and loads at any width and depth."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from annotator.errors import CheckpointError
from annotator.models.boxes import decode_boxes, normalise_detector, select_people, suppress
from annotator.models.config import DetectorConfig
from annotator.models.rtmdet import Detector, Head, load_detector
from tests.models.support import assert_close, golden, noise, save_pth, state

TINY = DetectorConfig(
    stem=(4, 4, 8),
    stages=(16, 32, 64, 128),
    depths=(1, 2, 2, 1),
    neck_depth=1,
    neck_channels=32,
    stacked=2,
    channels=1,
)
MEDIUM = DetectorConfig(
    stem=(24, 24, 48),
    stages=(96, 192, 384, 768),
    depths=(2, 4, 4, 2),
    neck_depth=2,
    neck_channels=192,
    stacked=2,
    channels=1,
)


@pytest.fixture(scope="module")
def fixture() -> dict[str, Tensor]:
    return golden("rtmdet_head")


def levels(fixture: dict[str, Tensor], name: str) -> list[Tensor]:
    return [fixture[f"{name}.{i}"] for i in range(3)]


def test_head_equals_the_reference(fixture: dict[str, Tensor]) -> None:
    weights = state(fixture)
    for name in list(weights):  # shared by the levels, stored once
        for level in ("1", "2"):
            weights.setdefault(re.sub(r"convs\.0\.", f"convs.{level}.", name), weights[name])
    head = Head(TINY).eval()
    head.load_state_dict(weights, strict=True)
    with torch.inference_mode():
        logits, distances = head(levels(fixture, "neck"))
    for found, name in ((logits, "logits"), (distances, "distances")):
        for ours, theirs in zip(found, levels(fixture, name), strict=True):
            assert_close(ours, theirs)


def test_decoded_boxes_equal_the_reference(fixture: dict[str, Tensor]) -> None:
    """A 320 x 240 image halved into 160 x 120: boxes come back in image pixels."""
    logits, distances = ([t[0] for t in levels(fixture, name)] for name in ("logits", "distances"))
    boxes, scores = decode_boxes(logits, distances, (160, 120), (0.5, 0.5))
    assert_close(boxes, fixture["boxes"])
    assert_close(scores, fixture["scores"])


def test_suppression_equals_the_reference(fixture: dict[str, Tensor]) -> None:
    detections = fixture["nms_dets"]
    assert torch.equal(suppress(detections[:, :4], detections[:, 4], 0.3), fixture["nms_keep"])


def test_input_is_normalised_in_bgr_as_the_reference_does(fixture: dict[str, Tensor]) -> None:
    found = normalise_detector(fixture["image_rgb_YXC"][None], torch.float16)
    assert torch.equal(found, fixture["normalised"])


def test_people_are_chosen_by_score_overlap_and_number() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 11], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]]).float()
    scores = torch.tensor([0.9, 0.8, 0.2, 0.7, 0.95])

    def chosen(**changes: float) -> list[int]:
        rules = {"score": 0.3, "nms_iou": 0.3, "max_people": 9} | changes
        kept = select_people(
            boxes, scores, score=rules["score"], nms_iou=rules["nms_iou"], max_people=int(rules["max_people"])
        )
        return [int(i) for i in kept]

    assert chosen() == [4, 0, 3]
    assert chosen(nms_iou=0.95) == [4, 0, 1, 3]
    assert chosen(max_people=2) == [4, 0]
    assert chosen(score=0.95) == []


def test_nothing_found_is_no_boxes() -> None:
    logits = [torch.full((1, n, n), -9.0) for n in (8, 4, 2)]
    boxes, scores = decode_boxes(logits, [torch.ones(4, n, n) for n in (8, 4, 2)], (64, 64), (1.0, 1.0))
    assert boxes.shape == (0, 4) and scores.shape == (0,)
    assert len(select_people(boxes, scores, score=0.3, nms_iou=0.3, max_people=9)) == 0


def test_medium_detector_has_the_released_tensors_and_parameters() -> None:
    """Fact sheet 5.2: 692 tensors, 24,663,447 parameters, the convolutions shared by three levels counted once."""
    with torch.device("meta"):
        detector = Detector(MEDIUM)
    repeated = 2 * 4 * 192 * 192 * 9
    assert len(detector.state_dict()) == 692
    assert sum(p.numel() for p in detector.parameters()) - repeated == 24_663_447


OTHER = replace(TINY, depths=(2, 1, 3, 2), neck_depth=2, neck_channels=16, stacked=1)


@pytest.mark.parametrize("config", [TINY, OTHER])
def test_detector_loads_from_tensors_alone(config: DetectorConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = Detector(config).eval()
    tensors = dict(source.state_dict()) | {"ema_backbone.steps": torch.zeros(1)}
    tensors = {n: t for n, t in tensors.items() if not n.endswith("num_batches_tracked")}
    detector = load_detector(save_pth(tmp_path / "x.pth", {"meta": {}, "state_dict": tensors}))
    assert detector.config == config
    images = noise(2, 3, 64, 96)
    with torch.inference_mode():
        found, expected = detector(images), source(images)
    assert all(torch.equal(a, b) for kind in (0, 1) for a, b in zip(found[kind], expected[kind], strict=True))
    assert [tuple(t.shape) for t in found[1]] == [(2, 4, 8, 12), (2, 4, 4, 6), (2, 4, 2, 3)]


def test_missing_and_misshapen_detector_tensors_are_named(tmp_path: Path) -> None:
    tensors = dict(Detector(TINY).state_dict())
    for name in ("backbone.stage1.0.conv.weight", "neck.out_convs.1.bn.bias"):
        lacking = {n: t for n, t in tensors.items() if n != name}
        with pytest.raises(CheckpointError, match=f"missing tensor {re.escape(name)}"):
            load_detector(save_pth(tmp_path / "x.pth", lacking))
    with pytest.raises(CheckpointError, match=r"rtm_cls\.2\.bias has shape \(3,\); expected \(1,\)"):
        load_detector(save_pth(tmp_path / "x.pth", tensors | {"bbox_head.rtm_cls.2.bias": torch.zeros(3)}))
