"""What the tasks that label people share: how their column `people` is checked and compared.

Whole columns at once: 308 keypoints a person would cost a Python object each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from annotator.envelope import Status
from annotator.tasks import Flaw

Rules = Callable[[pa.StructArray, np.ndarray, np.ndarray], Iterator[tuple[np.ndarray, str]]]
"""People (N,), the index of each one's row, width and height of its image (N, 2) -> who breaks a rule, and which."""

SURE = 0.3
"""A keypoint's score from which on its place means something (sapiens-v1.md 4.4: drawn from here on)."""


def check_people(rows: pa.Table, max_people: int | None, rules: Rules) -> Iterator[Flaw]:
    """Yield rows whose number of people does not fit, and rows with people who break a rule; each rule once a row."""
    lists = rows["people"].combine_chunks()
    is_ok = pc.equal(rows["status"], Status.OK.value).fill_null(False).to_numpy()
    num = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
    found = rows["people_found"].fill_null(-1).to_numpy()
    expected = found if max_people is None else np.minimum(found, max_people)
    for at in np.flatnonzero(np.where(is_ok, (num < 1) | (num != expected), num > 0)):
        status, limit = rows["status"][int(at)], "" if max_people is None else f", max_people {max_people}"
        yield Flaw("people", int(at), f"{num[at]} people, status {status}, people_found {found[at]}{limit}")
    row_N, people = pc.list_parent_indices(lists).to_numpy(), pc.list_flatten(lists)
    sizes = [pc.cast(rows[name], pa.float64()).to_numpy()[row_N] for name in ("width", "height")]  # NaN for null
    for broken_N, message in rules(people, row_N, np.stack(sizes, axis=1)):
        yield from (Flaw("people", int(at), message) for at in np.unique(row_N[broken_N]))


def numbers(lists: pa.Array, width: int) -> np.ndarray:
    """Return lists of `width` numbers each as float64 (N, width), NaN for what is null."""
    values_NW = np.full((len(lists), width), np.nan)
    inner = lists.drop_null().flatten()
    values_NW[lists.is_valid().to_numpy(zero_copy_only=False)] = inner.to_numpy(zero_copy_only=False).reshape(-1, width)
    return values_NW


def outside(boxes_N4: np.ndarray, size_N2: np.ndarray) -> np.ndarray:
    """Return which boxes x1, y1, x2, y2 are not wholly inside an image of this width and height; NaN never is."""
    low_N2, high_N2 = boxes_N4[:, :2], boxes_N4[:, 2:]
    inside_N2: np.ndarray = (low_N2 >= 0) & (low_N2 <= high_N2) & (high_N2 <= size_N2)
    return np.logical_not(inside_N2.all(axis=1))


def box_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> float:
    """Return 1 - the mean IoU of the boxes of two rows, each with its best match; one too many or few counts 1."""
    old_N4, new_N4 = (_boxes(row["people"] or []) for row in (old, new))
    num = max(len(old_N4), len(new_N4))
    overlap_NM = _iou(old_N4, new_N4)
    total = 0.0
    for _ in range(min(len(old_N4), len(new_N4))):
        best = np.unravel_index(overlap_NM.argmax(), overlap_NM.shape)
        total += float(overlap_NM[best])
        overlap_NM[best[0]] = overlap_NM[:, best[1]] = -1
    return 1 - total / num if num else 0.0


def keypoint_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> float:
    """Return the mean distance of the keypoints of two rows, as a share of the longer side of their person's box.

    Only keypoints that score SURE in one of them count: the peak of a flat heatmap is anywhere. One that is missing in
    the other counts 1. People are paired by order; infinity for another number of people.
    """
    olds, news = old["people"] or [], new["people"] or []
    if len(olds) != len(news):
        return np.inf
    shares = np.concatenate([np.empty(0), *(_keypoint_shares(a, b) for a, b in zip(olds, news, strict=True))])
    return float(shares.mean()) if len(shares) else 0.0


def _keypoint_shares(old: Mapping[str, Any], new: Mapping[str, Any]) -> np.ndarray:
    if old["keypoints"] is None or new["keypoints"] is None:
        return np.array([float((old["keypoints"] is None) != (new["keypoints"] is None))])
    x1, y1, x2, y2 = old["bbox_xyxy"]
    old_K2, new_K2 = (np.array(p["keypoints"], np.float64) for p in (old, new))
    share_K = np.linalg.norm(old_K2 - new_K2, axis=1) / max(x2 - x1, y2 - y1, 1)
    is_sure_K = np.maximum(old["keypoint_scores"], new["keypoint_scores"]) >= SURE
    sure: np.ndarray = np.nan_to_num(share_K, nan=1.0)[is_sure_K]  # NaN: missing in one; if in both, it is not sure
    return sure


def _boxes(people: Sequence[Mapping[str, Any]]) -> np.ndarray:
    return np.array([p["bbox_xyxy"] for p in people], np.float64).reshape(-1, 4)


def _iou(old_N4: np.ndarray, new_M4: np.ndarray) -> np.ndarray:
    """Return intersection over union of every pair, (N, M); 1 for equal boxes, those without area included."""
    low_NM2 = np.maximum(old_N4[:, None, :2], new_M4[None, :, :2])
    high_NM2 = np.minimum(old_N4[:, None, 2:], new_M4[None, :, 2:])
    both_NM = np.prod(np.clip(high_NM2 - low_NM2, 0, None), axis=2)
    old_N, new_M = (np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (old_N4, new_M4))
    either_NM = old_N[:, None] + new_M[None] - both_NM
    same_NM = (old_N4[:, None] == new_M4[None]).all(axis=2)
    return np.where(same_NM, 1.0, both_NM / np.where(either_NM > 0, either_NM, 1))
