"""The keypoint sets that the pose models answer with: names, mirror images, skeleton, OKS sigmas.

The numbers are data, `keypoints.json` beside this file, made by script from the sources that it names.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

COUNTS = (17, 133, 308)


@dataclass(frozen=True, kw_only=True, slots=True)
class KeypointSet:
    """One set of keypoints, in the order of the network's channels. Left and right are the person's own.

    flip_indices         the channel that each keypoint becomes in a mirrored image
    sigmas               the constants of object keypoint similarity, one a keypoint
    skeleton             pairs of keypoints to join by a line, for drawing
    coco17_indices       where the 17 COCO keypoints are in this set, in COCO's order
    """

    title: str
    names: tuple[str, ...]
    flip_indices: tuple[int, ...]
    sigmas: tuple[float, ...]
    colors_rgb: tuple[tuple[int, int, int], ...]
    skeleton: tuple[tuple[int, int], ...]
    skeleton_colors_rgb: tuple[tuple[int, int, int], ...]
    coco17_indices: tuple[int, ...]


@functools.lru_cache(maxsize=len(COUNTS))
def keypoint_set(count: int) -> KeypointSet:
    """Return the set of 17, 133 or 308 keypoints; KeyError for another count."""
    data = json.loads(resources.files("annotator").joinpath("keypoints.json").read_text(encoding="ascii"))
    return KeypointSet(**{name: _frozen(value) for name, value in data["sets"][str(count)].items()})


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value
