"""How the detector is taught: which points answer for whom, and what overlaps count."""

from __future__ import annotations

import pytest
import torch

from annotator.mannequin.detection import assign, detector_loss, pair_giou, pair_iou


def test_overlap_of_boxes_by_hand() -> None:
    """Two squares of 10, half over each other: 50 of 150; apart, the hull's empty part counts against them."""
    a = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10]])
    b = torch.tensor([[5.0, 0, 15, 10], [20, 0, 30, 10]])
    assert pair_iou(a, b).tolist() == pytest.approx([1 / 3, 0])
    assert pair_giou(a, b).tolist() == pytest.approx([1 / 3, -1 / 3])


def points(*places: tuple[float, float]) -> torch.Tensor:
    return torch.tensor([[x, y, 8.0] for x, y in places])


def test_points_near_a_persons_middle_answer_for_them_and_no_others() -> None:
    """Two people; of the points one is in the middle of each, one in a corner, one outside."""
    boxes = torch.tensor([[0.0, 0, 40, 80], [60, 0, 100, 80]])
    where = points((20, 40), (80, 40), (2, 2), (50, 40))
    found = torch.tensor([[0.0, 0, 40, 80], [60, 0, 100, 80], [0, 0, 40, 80], [0, 0, 40, 80]])
    owners = assign(torch.zeros(4), found, where, boxes)
    assert owners.tolist() == [0, 1, -1, -1]


def test_a_point_that_two_people_want_answers_for_the_one_it_fits() -> None:
    boxes = torch.tensor([[0.0, 0, 40, 80], [4, 0, 44, 80]])
    found = torch.tensor([[4.0, 0, 44, 80], *[[0.0, 0, 1, 1]] * 11])
    owners = assign(torch.zeros(12), found, points((22, 40), *[(200, 200)] * 11), boxes)
    assert owners[0] == 1 and (owners[1:] == -1).all()


def test_a_picture_without_people_teaches_to_say_nobody() -> None:
    logits = [torch.zeros(1, 1, n, n, requires_grad=True) for n in (4, 2, 1)]
    distances = [torch.ones(1, 4, n, n) for n in (4, 2, 1)]
    losses = detector_loss(logits, distances, [torch.zeros(0, 4)])
    losses["score"].backward()
    assert losses["box"] == 0
    assert all((level.grad > 0).all() for level in logits if level.grad is not None)
