"""The released Sapiens v1 checkpoints as facts, and what of them lies in a folder. Loads no torch.

Source: fact sheet sections 1.1, 2.1 and 7. Weights are never downloaded and never shipped.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from annotator.errors import CheckpointError

if TYPE_CHECKING:
    from annotator.storage import Storage

# of code and weights: facebookresearch/sapiens, LICENSE
LICENCE = "the Sapiens weights released by Meta are CC BY-NC 4.0: non-commercial use only"
# fact sheet 5: facebook/sapiens-pose-bbox-detector
DETECTOR_LICENCE = "the RTMDet weights released with Sapiens pose are Apache-2.0"
RANDOM_LICENCE = "none (random weights)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """One released backbone size; the feed-forward width is four times the width in all of them."""

    embed_dim: int
    num_layers: int
    num_heads: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskFacts:
    """What all released sizes of a task share."""

    patch_padding: int
    input_hw: tuple[int, int]
    channels: tuple[int, ...]
    deconv_channels: tuple[int, ...]
    conv_channels: tuple[int, ...]


SIZES = {
    "0.3b": Size(embed_dim=1024, num_layers=24, num_heads=16),
    "0.6b": Size(embed_dim=1280, num_layers=32, num_heads=16),
    "1b": Size(embed_dim=1536, num_layers=40, num_heads=24),
    "2b": Size(embed_dim=1920, num_layers=48, num_heads=32),
}
_SEG = TaskFacts(
    patch_padding=0, input_hw=(1024, 768), channels=(28,), deconv_channels=(768,) * 3, conv_channels=(768,) * 3
)
_DEPTH = TaskFacts(
    patch_padding=0, input_hw=(1024, 768), channels=(1,), deconv_channels=(384,) * 4, conv_channels=(384,) * 2
)
_NORMAL = TaskFacts(
    patch_padding=2, input_hw=(1024, 768), channels=(3,), deconv_channels=(768,) * 3, conv_channels=(768,) * 3
)
_POSE = TaskFacts(
    patch_padding=2, input_hw=(1024, 768), channels=(308, 133, 17), deconv_channels=(768,) * 2, conv_channels=(768,) * 2
)
_PRETRAIN = TaskFacts(patch_padding=0, input_hw=(1024, 1024), channels=(), deconv_channels=(), conv_channels=())
TASK_FACTS: dict[str | None, TaskFacts] = {
    "seg": _SEG,
    "depth": _DEPTH,
    "normal": _NORMAL,
    "pose": _POSE,
    None: _PRETRAIN,
}

# Stems as released; older AP figures are still in circulation, so names are only a hint (fact sheet 7).
_KEYPOINTS = {"goliath": 308, "coco_wholebody": 133, "coco": 17}
_STEM = re.compile(
    r"sapiens_(?P<size>0\.3b|0\.6b|1b|2b)_"
    r"(?:(?P<pretrain>epoch_)|(?P<depth>render_people_)|(?P<normal>normal_render_people_)|(?P<foreground>seg_foreground_)"
    r"|(?P<pose>goliath|coco_wholebody|coco)_best_\w+?_AP_|(?P<seg>goliath)_best_\w+?_mIoU_)"
)
_FORMATS = ("pth", "safetensors", "torchscript", "torch-export")  # in the order in which find_checkpoint prefers them


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """One checkpoint file of a folder, as told by its name and place; `inspect_checkpoint` reads the file itself.

    task is seg, depth, normal, pose, pretrain or person; size and keypoints are None where they don't apply.
    """

    uri: str
    task: str
    size: str | None
    keypoints: int | None
    format: str
    bytes: int


def list_checkpoints(folder: str, *, storage: Storage | None = None) -> list[Listed]:
    """Return the checkpoints under a `sapiens_host/` or `sapiens_lite_host/` folder, or any folder, sorted by task.

    Files whose name says nothing are left out. Raises CheckpointError if there is no such folder.
    """
    found = [entry for uri, size in _files(folder, storage) if (entry := _listed(uri, size)) is not None]
    return sorted(found, key=lambda e: (e.task, e.size or "", e.keypoints or 0, _FORMATS.index(e.format), e.uri))


def find_checkpoint(
    root: str, *, task: str, size: str | None = None, keypoints: int | None = None, storage: Storage | None = None
) -> str:
    """Return the uri of a task's checkpoint in a folder; float32 weights come before bfloat16 exports.

    Raises CheckpointError, saying what there is, for none, and for several that differ in more than format.
    """
    listed = list_checkpoints(root, storage=storage)
    hits = [e for e in listed if e.task == task and e.size == size and keypoints in (None, e.keypoints)]
    wanted = " ".join(filter(None, (task, size))) + (f" with {keypoints} keypoints" if keypoints else "")
    if not hits:
        there = ", ".join(sorted({_label(e) for e in listed})) or "no checkpoint at all"
        raise CheckpointError(f"{root}: no checkpoint for {wanted}; there is {there}; download it, or choose another")
    if len({e.keypoints for e in hits}) > 1:
        choices = ", ".join(str(k) for k in sorted({e.keypoints or 0 for e in hits}))
        raise CheckpointError(f"{root}: several checkpoints for {wanted}; pass keypoints, one of {choices}")
    best = [e for e in hits if e.format == hits[0].format]
    if len(best) > 1:
        raise CheckpointError(f"{root}: several files for {wanted}: {', '.join(e.uri for e in best)}; name one of them")
    return best[0].uri


def _label(entry: Listed) -> str:
    return " ".join(str(part) for part in (entry.task, entry.size, entry.keypoints) if part is not None)


def _files(folder: str, storage: Storage | None) -> Iterator[tuple[str, int]]:
    if "://" in folder:
        from annotator.storage import Storage

        yield from ((info.uri, info.size) for info in (storage or Storage()).list(folder))
        return
    if not Path(folder).is_dir():
        raise CheckpointError(f"{folder}: no such folder; expected one that holds checkpoints, such as sapiens_host")
    for parent, _, names in os.walk(folder, followlinks=True):
        for name in names:
            path = Path(parent, name)
            if path.is_file():
                yield str(path), path.stat().st_size


def _listed(uri: str, size: int) -> Listed | None:
    name = uri.replace("\\", "/").rpartition("/")[2]
    kind = _format_of(name)
    if kind is None:
        return None
    if name.startswith("rtmdet"):
        return Listed(uri=uri, task="person", size=None, keypoints=None, format=kind, bytes=size)
    match = _STEM.match(name)
    if match is None:
        return None
    task = next(k for k in ("pretrain", "depth", "normal", "foreground", "pose", "seg") if match[k])
    keypoints = _KEYPOINTS[match["pose"]] if task == "pose" else None
    return Listed(uri=uri, task=task, size=match["size"], keypoints=keypoints, format=kind, bytes=size)


def _format_of(name: str) -> str | None:
    if name.endswith("_bfloat16.pt2"):
        return "torch-export"
    return {".pth": "pth", ".safetensors": "safetensors", ".pt2": "torchscript"}.get(Path(name).suffix)
