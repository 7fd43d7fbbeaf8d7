"""How far labels are from the truth. Plain numpy; every figure is over people, or over their pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def point_errors(found_K2: np.ndarray, truth_K3: np.ndarray, box_4: np.ndarray) -> np.ndarray:
    """Return the distance of each keypoint from the truth as a part of the box's height, (K,).

    NaN where the truth is outside the picture; infinite where it is inside and nothing was found.
    """
    distance_K = np.hypot(*(found_K2 - truth_K3[:, :2]).T) / max(float(box_4[3] - box_4[1]), 1.0)
    distance_K = np.where(np.isfinite(distance_K), distance_K, np.inf)
    return np.where(truth_K3[:, 2] > 0, distance_K, np.nan)


def share_within(errors: np.ndarray, limit: float) -> float:
    """Return the share of keypoints that are within a limit: PCK."""
    known = errors[~np.isnan(errors)]
    return float((known < limit).mean()) if known.size else float("nan")


def confusion(found_YX: np.ndarray, truth_YX: np.ndarray, classes: int) -> np.ndarray:
    """Return how many pixels of each true class (rows) were taken for each class (columns)."""
    pairs = truth_YX.astype(np.int64) * classes + found_YX
    return np.bincount(pairs.ravel(), minlength=classes**2).reshape(classes, classes)


def class_iou(confused: np.ndarray) -> np.ndarray:
    """Return each class' intersection over union, NaN for classes that the truth lacks."""
    hit = np.diag(confused).astype(np.float64)
    union = confused.sum(0) + confused.sum(1) - hit
    return np.where(confused.sum(1) > 0, hit / np.maximum(union, 1), np.nan)


def angles(found_N3: np.ndarray, truth_N3: np.ndarray) -> np.ndarray:
    """Return the angle between pairs of directions, degrees (N,)."""
    lengths = np.linalg.norm(found_N3, axis=1) * np.linalg.norm(truth_N3, axis=1)
    cosine = (found_N3 * truth_N3).sum(1) / np.maximum(lengths, 1e-9)
    return np.asarray(np.degrees(np.arccos(cosine.clip(-1, 1))))


def depth_errors(found_N: np.ndarray, truth_N: np.ndarray) -> tuple[float, float]:
    """Return the mean error, in the truth's unit, of a picture's depth after the best scale and shift, and of a
    constant.

    The scale is not let below 0: depth that is the wrong way round is no better than none.
    """
    truth = truth_N.astype(np.float64)
    found = found_N.astype(np.float64) - found_N.mean(dtype=np.float64)
    off = truth - truth.mean()
    scale = max(0.0, float(found @ off) / max(float(found @ found), 1e-12))
    return float(np.abs(off - scale * found).mean()), float(np.abs(off).mean())


def box_iou(a_N4: np.ndarray, b_M4: np.ndarray) -> np.ndarray:
    """Return the overlap of every pair of boxes over their union, (N, M)."""
    low = np.maximum(a_N4[:, None, :2], b_M4[None, :, :2])
    high = np.minimum(a_N4[:, None, 2:], b_M4[None, :, 2:])
    both = (high - low).clip(0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (a_N4, b_M4)]
    overlap: np.ndarray = both / np.maximum(areas[0][:, None] + areas[1][None] - both, 1e-9)
    return overlap


def match_boxes(found_N4: np.ndarray, truth_M4: np.ndarray, iou: float = 0.5) -> np.ndarray:
    """Return which true box each found one, best first, is taken for, -1 none: (N,); none is taken twice."""
    overlaps = box_iou(found_N4, truth_M4) if len(found_N4) and len(truth_M4) else np.zeros((len(found_N4), 0))
    taken = np.full(len(found_N4), -1)
    for i, row in enumerate(overlaps):
        free = np.where(np.isin(np.arange(len(row)), taken), -1.0, row)
        if len(free) and free.max() >= iou:
            taken[i] = int(free.argmax())
    return taken


def average_precision(scores: Sequence[float], hits: Sequence[bool], people: int) -> float:
    """Return the area under precision over recall, precision made to fall, of a corpus' boxes."""
    if not people or not len(scores):
        return 0.0
    right = np.asarray(hits)[np.argsort(-np.asarray(scores), kind="stable")]
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[right].sum() / people)
