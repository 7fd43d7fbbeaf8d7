"""What each network is trained to make small. All take float32 and give a scalar."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

HEATMAP_SIGMA = 1.5  # pixels of a heatmap that is 36 wide
_SHARPNESS = 12.0  # of the softmax: a map that peaks at 1 says where, a flat one doesn't


def pose_loss(maps_BKhw: Tensor, points_BK3: Tensor, input_hw: tuple[int, int]) -> Tensor:
    """Return the distance from Gaussian heatmaps plus the cross-entropy of where the peak is.

    points_BK3  x, y in input pixels, and a flag; points of flag 0 don't count
    """
    h, w = maps_BKhw.shape[2:]
    # first and last pixels of heatmap and input lie on each other: crop.py
    x_BK = points_BK3[..., 0] * ((w - 1) / (input_hw[1] - 1))
    y_BK = points_BK3[..., 1] * ((h - 1) / (input_hw[0] - 1))
    x_w, y_h = torch.arange(w, device=maps_BKhw.device), torch.arange(h, device=maps_BKhw.device)
    gauss_BKhw = torch.exp(
        ((x_w - x_BK[..., None, None]) ** 2 + (y_h[:, None] - y_BK[..., None, None]) ** 2) / (-2 * HEATMAP_SIGMA**2)
    )
    known_BK = (points_BK3[..., 2] > 0).float()
    count = known_BK.sum().clamp(min=1)
    square = ((maps_BKhw - gauss_BKhw) ** 2).sum((2, 3))
    where = gauss_BKhw.flatten(2) / gauss_BKhw.sum((2, 3))[..., None].clamp(min=1e-6)
    cross = -(where * F.log_softmax(maps_BKhw.flatten(2) * _SHARPNESS, 2)).sum(2)
    return ((0.1 * square + 0.2 * cross) * known_BK).sum() / count


def seg_loss(logits_BChw: Tensor, parts_BHW: Tensor, present: Tensor) -> Tensor:
    """Return cross-entropy, the background lighter, plus the soft Dice loss of the classes that are `present`."""
    parts_Bhw = _nearest(parts_BHW, logits_BChw).long()
    weight_C = torch.ones(logits_BChw.shape[1], device=logits_BChw.device)
    weight_C[0] = 0.3
    cross = F.cross_entropy(logits_BChw, parts_Bhw, weight=weight_C)
    likely_BCN = logits_BChw.softmax(1).flatten(2)
    true_BCN = F.one_hot(parts_Bhw.flatten(1), logits_BChw.shape[1]).transpose(1, 2).float()
    both_C = (likely_BCN * true_BCN).sum((0, 2))
    either_C = (likely_BCN + true_BCN).sum((0, 2))
    return cross + 0.5 * (1 - ((2 * both_C + 1) / (either_C + 1))[present].mean())


def normal_loss(vectors_B3hw: Tensor, normals_B3HW: Tensor) -> Tensor:
    """Return 1 - cosine plus the mean difference of components, over people's pixels."""
    true_B3hw = _nearest(normals_B3HW, vectors_B3hw)
    people_Bhw = true_B3hw.square().sum(1) > 0.5
    unit_B3hw = F.normalize(vectors_B3hw, dim=1, eps=1e-3)
    each_Bhw = 1 - (unit_B3hw * true_B3hw).sum(1) + (unit_B3hw - true_B3hw).abs().mean(1)
    return (each_Bhw * people_Bhw).sum() / people_Bhw.sum().clamp(min=1)


def depth_loss(depth_B1hw: Tensor, depth_BHW: Tensor) -> Tensor:
    """Return the error of relative depth, 0 the picture's nearest and 1 its farthest point of a person, against a
    constant's, half of it after the best shift.

    Dividing by a constant's error makes flat scenes count as much as deep ones.
    """
    true_Bhw = _nearest(depth_BHW, depth_B1hw)
    losses = []
    for found_hw, true_hw in zip(depth_B1hw[:, 0], true_Bhw, strict=True):
        people_hw = true_hw > 0
        if people_hw.sum() < 16:
            continue
        true_N, found_N = true_hw[people_hw], found_hw[people_hw]
        true_N = (true_N - true_N.min()) / (true_N.max() - true_N.min()).clamp(min=1e-3)
        constant = (true_N - true_N.mean()).abs().mean().clamp(min=1e-3)
        off_N = found_N - true_N
        losses.append((off_N.abs().mean() + (off_N - off_N.mean()).abs().mean()) / (2 * constant))
    return torch.stack(losses).mean() if losses else depth_B1hw.sum() * 0


def _nearest(map_BHW: Tensor, like: Tensor) -> Tensor:
    """Return a map at the size of another, each pixel one of the old ones; (B, H, W) or (B, C, H, W).

    Which of the pixels differs from sample to sample, so that on average nothing is shifted.
    """
    step = map_BHW.shape[-1] // like.shape[-1]
    each = [one[..., i % step :: step, i // step % step :: step] for i, one in enumerate(map_BHW)]
    return torch.stack(each)
