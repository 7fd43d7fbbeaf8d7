"""Figures of accuracy on cases that can be reckoned by hand."""

from __future__ import annotations

import numpy as np
import pytest

from annotator.mannequin import metrics


def test_a_keypoint_counts_within_its_share_of_the_boxs_height() -> None:
    """In a box 100 pixels high, 4 pixels are 0.04; outside the picture nothing is asked; nothing found is wrong."""
    truth_K3 = np.array([[10, 10, 2], [20, 20, 1], [0, 0, 0], [30, 30, 2]], np.float32)
    found_K2 = np.array([[14, 10], [20, 28], [99, 99], [np.nan, np.nan]])
    errors = metrics.point_errors(found_K2, truth_K3, np.array([0, 0, 50, 100]))
    assert errors[:2] == pytest.approx([0.04, 0.08]) and np.isnan(errors[2]) and np.isinf(errors[3])
    assert metrics.share_within(errors, 0.1) == pytest.approx(2 / 3)
    assert metrics.share_within(errors, 0.05) == pytest.approx(1 / 3)


def test_class_iou_is_of_the_classes_that_the_truth_has() -> None:
    truth_YX = np.array([[0, 0, 1, 1]])
    found_YX = np.array([[0, 1, 1, 2]])
    iou = metrics.class_iou(metrics.confusion(found_YX, truth_YX, 4))
    assert iou[:2] == pytest.approx([1 / 2, 1 / 3]) and np.isnan(iou[2:]).all()


def test_angles_do_not_mind_length() -> None:
    found = np.array([[2, 0, 0], [0, 1, 0], [0, 0, -1]])
    truth = np.array([[1, 0, 0], [1, 0, 0], [0, 0, 1]])
    assert metrics.angles(found, truth) == pytest.approx([0, 90, 180], abs=0.01)


def test_depth_is_judged_after_scale_and_shift_but_not_when_turned_round() -> None:
    truth = np.array([1.0, 2, 3, 4])
    assert metrics.depth_errors(5 * truth - 3, truth) == pytest.approx((0, 1), abs=1e-9)
    assert metrics.depth_errors(-truth, truth) == pytest.approx((1, 1))
    assert metrics.depth_errors(np.zeros(4), truth) == pytest.approx((1, 1))


def test_a_true_box_is_taken_once() -> None:
    truth = np.array([[0, 0, 10, 10], [20, 0, 30, 10]], float)
    found = np.array([[0, 0, 10, 9], [0, 0, 10, 10], [20, 0, 30, 10], [50, 50, 60, 60]], float)
    assert metrics.match_boxes(found, truth).tolist() == [0, -1, 1, -1]


def test_average_precision_of_two_hits_round_a_miss() -> None:
    """Precision 1 at the first hit, 2/3 at the second; four people: (1 + 2/3) / 4."""
    assert metrics.average_precision([0.9, 0.5, 0.7], [True, True, False], 4) == pytest.approx((1 + 2 / 3) / 4)
    assert metrics.average_precision([], [], 4) == 0
