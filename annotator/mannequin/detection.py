"""How the nano RTMDet is taught: which points of its grids answer for which person, and what they should say.

A point answers for a person if it lies near the middle of the person's box and its own box and score fit best;
how many do is read from how well the best ten fit. This is the dynamic assignment of YOLOX (SimOTA), in the form
that RTMDet refines.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from annotator.models.rtmdet import STRIDES

_NEAR = 2.5  # strides from the middle of a box that a point may be off
_CANDIDATES = 10
_IOU_WEIGHT = 3.0
_FAR = 1e5


def detector_loss(logits: Sequence[Tensor], distances: Sequence[Tensor], boxes: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the losses of scores and of boxes, both per point that answers for somebody.

    logits, distances  each level's (B, 1, h, w) and (B, 4, h, w)
    boxes              each picture's true boxes (N, 4)
    """
    scores_BP = torch.cat([level.flatten(2)[:, 0] for level in logits], 1)
    points_P3 = _points([level.shape[2:] for level in logits]).to(scores_BP.device)
    sides_BP4 = torch.cat([level.flatten(2).transpose(1, 2) for level in distances], 1)
    found_BP4 = torch.cat([points_P3[:, :2] - sides_BP4[..., :2], points_P3[:, :2] + sides_BP4[..., 2:]], 2)
    score_losses, box_losses, count = [], [], 0.0
    for scores_P, found_P4, true_N4 in zip(scores_BP, found_BP4, boxes, strict=True):
        owner_P = assign(scores_P.detach(), found_P4.detach(), points_P3, true_N4)
        mine = owner_P >= 0
        overlap = pair_giou(found_P4[mine], true_N4[owner_P[mine]])
        target_P = torch.zeros_like(scores_P)
        target_P[mine] = pair_iou(found_P4[mine].detach(), true_N4[owner_P[mine]]).clamp(min=0)
        score_losses.append(_quality_focal(scores_P, target_P))
        box_losses.append((1 - overlap).sum())
        count += float(mine.sum())
    share = 1 / max(count, 1.0)
    return {"score": torch.stack(score_losses).sum() * share, "box": 2 * torch.stack(box_losses).sum() * share}


def _points(sizes: Sequence[Sequence[int]]) -> Tensor:
    """Return x, y and stride of every point, (P, 3), as boxes.decode_boxes places them."""
    levels = []
    for (h, w), stride in zip(sizes, STRIDES, strict=True):
        y, x = torch.meshgrid(torch.arange(h) * stride, torch.arange(w) * stride, indexing="ij")
        levels.append(torch.stack([x.flatten(), y.flatten(), torch.full((h * w,), stride)], 1).float())
    return torch.cat(levels)


def assign(scores_P: Tensor, found_P4: Tensor, points_P3: Tensor, true_N4: Tensor) -> Tensor:
    """Return the number of the person that each point answers for, -1 for nobody, (P,) int64."""
    nobody_P = torch.full((len(points_P3),), -1, dtype=torch.int64, device=scores_P.device)
    if not len(true_N4):
        return nobody_P
    x, y, stride = points_P3.T
    inside_PN = (
        (x[:, None] > true_N4[:, 0]) & (x[:, None] < true_N4[:, 2])
        & (y[:, None] > true_N4[:, 1]) & (y[:, None] < true_N4[:, 3])
    )  # fmt: skip
    middle_N2 = (true_N4[:, :2] + true_N4[:, 2:]) / 2
    away_PN = (points_P3[:, None, :2] - middle_N2).abs().amax(2) / stride[:, None]
    iou_PN = pair_iou(found_P4[:, None], true_N4[None])
    fit_PN = F.binary_cross_entropy_with_logits(scores_P[:, None].expand_as(iou_PN), iou_PN, reduction="none")
    cost_PN = fit_PN - _IOU_WEIGHT * iou_PN.clamp(min=1e-6).log() + _FAR * ~(inside_PN & (away_PN < _NEAR))
    chosen_PN = torch.zeros_like(cost_PN, dtype=torch.bool)
    for n in range(len(true_N4)):
        many = int(iou_PN[:, n].topk(min(_CANDIDATES, len(iou_PN))).values.sum().clamp(min=1))
        best = cost_PN[:, n].topk(many, largest=False).indices
        chosen_PN[best[cost_PN[best, n] < _FAR], n] = True
    cheapest_P = cost_PN.masked_fill(~chosen_PN, float("inf")).argmin(1)
    return torch.where(chosen_PN.any(1), cheapest_P, nobody_P)


def _quality_focal(logits_P: Tensor, target_P: Tensor) -> Tensor:
    """Return the sum of cross-entropies with the overlap as target, each weighted by the square of its error."""
    error_P = (target_P - logits_P.sigmoid()).abs().square()
    return (F.binary_cross_entropy_with_logits(logits_P, target_P, reduction="none") * error_P).sum()


def pair_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the overlap over the union of boxes (..., 4), pair by pair."""
    both, union, _ = _areas(a, b)
    return both / union


def pair_giou(a: Tensor, b: Tensor) -> Tensor:
    """Return the generalised overlap of boxes (..., 4), pair by pair: -1 far apart, 1 equal."""
    both, union, hull = _areas(a, b)
    return both / union - (hull - union) / hull


def _areas(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the areas of intersection, union and common hull."""
    both = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - both
    return both, union.clamp(min=1e-6), hull.clamp(min=1e-6)
