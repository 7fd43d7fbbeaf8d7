"""The detector's output to person boxes, in plain torch (fact sheet 5.1 and 5.3).

Boxes are x1, y1, x2, y2; before `scale` is divided out they are pixels of the padded network input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from annotator.models.rtmdet import STRIDES

MEAN_BGR = (103.53, 116.28, 123.675)  # fact sheet 5.1
STD_BGR = (57.375, 57.12, 58.395)  # the same
PAD_VALUE = 114  # the canvas below and right of the image (fact sheet 5.1)
INPUT_HW = (640, 640)
_MIN_SCORE = 0.05  # fact sheet 5.3, as the next two
_TOP_LEVEL = 1000
_TOP_IMAGE = 100


def normalise_detector(images_BHW3: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn uint8 RGB into the detector's input, which is BGR: (B, H, W, 3) -> (B, 3, H, W), contiguous."""
    mean, std = (torch.tensor(v, device=images_BHW3.device).reshape(1, 3, 1, 1) for v in (MEAN_BGR, STD_BGR))
    planes = images_BHW3.flip(3).permute(0, 3, 1, 2).contiguous().float()
    return planes.sub_(mean).div_(std).to(dtype)


def decode_boxes(
    logits: Sequence[Tensor], distances: Sequence[Tensor], input_hw: tuple[int, int], scale_xy: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Return one image's person boxes (N, 4) and scores (N,), best first, at most 100, no overlaps removed.

    logits, distances  one image's levels, (classes, h, w) and (4, h, w); class 0 is person
    scale_xy           network pixels per image pixel; boxes come back in image pixels, and may reach outside it
    """
    boxes, scores = [], []
    for logit_Chw, distance_4hw, stride in zip(logits, distances, STRIDES, strict=True):
        level_scores = logit_Chw[0].float().sigmoid().flatten()
        keep = (level_scores > _MIN_SCORE).nonzero()[:, 0]
        order = level_scores[keep].argsort(descending=True, stable=True)[:_TOP_LEVEL]
        keep = keep[order]
        columns, rows = keep % logit_Chw.shape[2], keep // logit_Chw.shape[2]
        left, top, right, bottom = distance_4hw.float().flatten(1)[:, keep]
        x, y = columns * stride, rows * stride
        boxes.append(torch.stack([x - left, y - top, x + right, y + bottom], 1))
        scores.append(level_scores[keep])
    all_boxes, all_scores = torch.cat(boxes), torch.cat(scores)
    height, width = input_hw
    limit = torch.tensor([width, height, width, height], device=all_boxes.device, dtype=torch.float32)
    all_boxes = torch.minimum(all_boxes.clamp(min=0), limit) / torch.tensor(scale_xy * 2, device=all_boxes.device)
    real = ((all_boxes[:, 2:] - all_boxes[:, :2]) > 0).all(1)
    all_boxes, all_scores = all_boxes[real], all_scores[real]
    order = all_scores.argsort(descending=True, stable=True)[:_TOP_IMAGE]
    return all_boxes[order], all_scores[order]


def find_people(
    logits: Sequence[Tensor],
    distances: Sequence[Tensor],
    input_hw: tuple[int, int],
    scale_xy: tuple[float, float],
    image_yx: tuple[int, int],
    *,
    score: float,
    nms_iou: float,
    max_people: int,
) -> dict[str, Tensor]:
    """Return one image's people, best first: boxes (N, 4) and scores (N,) of at most `max_people`, and
    `people_found`, how many there were; arguments as `decode_boxes` and `select_people`.

    Boxes that lie beside the image, in the canvas's padding, are nobody.
    """
    boxes, scores = decode_boxes(logits, distances, input_hw, scale_xy)
    kept = select_people(boxes, scores, score=score, nms_iou=nms_iou, max_people=len(scores))
    kept = kept[(boxes[kept, 0] < image_yx[1]) & (boxes[kept, 1] < image_yx[0])]
    found, kept = len(kept), kept[:max_people]
    return {"boxes": boxes[kept], "scores": scores[kept], "people_found": torch.tensor(found)}


def select_people(boxes_N4: Tensor, scores_N: Tensor, *, score: float, nms_iou: float, max_people: int) -> Tensor:
    """Return the indices of the boxes that are people, best first: score above, overlaps removed, at most so many."""
    above = (scores_N > score).nonzero()[:, 0]
    kept = above[suppress(boxes_N4[above], scores_N[above], nms_iou)]
    return kept[:max_people]


def suppress(boxes_N4: Tensor, scores_N: Tensor, iou: float) -> Tensor:
    """Return the indices of boxes that overlap no better one by more than iou, best first.

    Sides count one pixel more than their difference, as the original scripts count them (fact sheet 5.3).
    """
    order = scores_N.argsort(descending=True, stable=True)
    boxes = boxes_N4[order].cpu()
    sizes = boxes[:, 2:] - boxes[:, :2] + 1
    areas = sizes[:, 0] * sizes[:, 1]
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    overlap = (high - low + 1).clamp(min=0).prod(2)
    too_close = overlap / (areas[:, None] + areas[None] - overlap) > iou
    alive = torch.ones(len(boxes), dtype=torch.bool)
    for i in range(len(boxes)):
        if alive[i]:
            alive[i + 1 :] &= ~too_close[i, i + 1 :]
    return order[alive.to(order.device)]
