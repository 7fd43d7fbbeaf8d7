"""What is taught in each stage of training: to which network, on which samples, with which losses and marks.

`early` and `shared` train one backbone under all four heads, early on smaller pictures, which cost less than half;
then each task's network starts from it and trains alone. `person`, the detector, stands for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from annotator.mannequin import metrics
from annotator.mannequin.body import PARTS
from annotator.mannequin.detection import detector_loss
from annotator.mannequin.losses import depth_loss, normal_loss, pose_loss, seg_loss
from annotator.mannequin.networks import CHANNELS, DETECTOR, INPUT_HW, TASKS, SharedNet
from annotator.mannequin.samples import Sample, any_sample, boxed_sample, crop_sample, training_rng, whole_sample
from annotator.models.boxes import PAD_VALUE, find_people, normalise_detector
from annotator.models.heatmaps import locate
from annotator.models.rtmdet import Detector
from annotator.models.runtime import normalise

STAGES = ("early", "shared", *TASKS, "person")
EARLY_HW = (128, 96)
_HELD_OUT = 7  # the stream of seeds of the pictures for marks
_MARKED = 64  # pictures
_CLASS_PRIOR = -4.0  # few points look like people at first


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesson:
    """One stage: `batch` and `lr` are what it is taught with, `start` the stage whose backbone it goes on from."""

    network: Callable[[], nn.Module]
    sample: Callable[[np.random.Generator], Sample]
    losses: Callable[[nn.Module, Sequence[Sample]], dict[str, Tensor]]
    marks: Callable[[nn.Module, Sequence[Sample]], dict[str, float]]
    batch: int
    lr: float
    start: str | None


def make_lesson(stage: str) -> Lesson:
    """Return the stage of this name, one of STAGES."""
    if stage == "person":
        return Lesson(
            network=_detector, sample=lambda rng: boxed_sample(rng, DETECTOR.input_hw, PAD_VALUE),
            losses=_person_losses, marks=_person_marks, batch=4, lr=2e-3, start=None,
        )  # fmt: skip
    tasks = (stage,) if stage in TASKS else TASKS
    sampler = {"pose": crop_sample}.get(stage, whole_sample if stage in TASKS else any_sample)
    size_hw = EARLY_HW if stage == "early" else INPUT_HW
    return Lesson(
        network=lambda: SharedNet(tasks), sample=lambda rng: sampler(rng, size_hw), losses=_losses, marks=_marks,
        batch=4, lr=6e-4 if stage in TASKS else 8e-4,
        start={"early": None, "shared": "early"}.get(stage, "shared"),
    )  # fmt: skip


def samples_of(lesson: Lesson, first: int, count: int) -> list[Sample]:
    """Return the training samples of these numbers; they are always the same."""
    return [lesson.sample(training_rng(first + i)) for i in range(count)]


def marked_samples(lesson: Lesson) -> list[Sample]:
    """Return the held-out samples that marks are given on during training."""
    return [lesson.sample(np.random.default_rng((_HELD_OUT, i))) for i in range(_MARKED)]


def _detector() -> Detector:
    torch.manual_seed(0)
    detector = Detector(DETECTOR)
    for level in detector.bbox_head.rtm_cls:
        nn.init.constant_(level.bias, _CLASS_PRIOR)  # type: ignore[arg-type]  # a convolution
    for level in detector.bbox_head.rtm_reg:
        nn.init.constant_(level.bias, 1.0)  # type: ignore[arg-type]  # a convolution
    for weight in detector.parameters():  # a quarter less time on a CPU
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return detector


def _stack(samples: Sequence[Sample], name: str) -> Tensor:
    return torch.from_numpy(np.stack([getattr(sample, name) for sample in samples]))


def _losses(network: nn.Module, samples: Sequence[Sample]) -> dict[str, Tensor]:
    out: Mapping[str, Tensor] = network(normalise(_stack(samples, "pixels_HWC"), torch.float32))
    losses = {}
    if "pose" in out:
        input_hw = samples[0].parts_HW.shape
        losses["pose"] = pose_loss(out["pose"], _stack(samples, "points_K3"), (input_hw[0], input_hw[1]))
    if "seg" in out:
        losses["seg"] = seg_loss(out["seg"], _stack(samples, "parts_HW"), torch.tensor(PARTS))
    if "normal" in out:
        losses["normal"] = normal_loss(out["normal"], _stack(samples, "normals_HWC").permute(0, 3, 1, 2))
    if "depth" in out:
        losses["depth"] = depth_loss(out["depth"], _stack(samples, "depth_HW"))
    return losses


@torch.no_grad()
def _marks(network: nn.Module, samples: Sequence[Sample]) -> dict[str, float]:
    """Return the metrics of whatever the network has heads for, rough ones: at the input's size."""
    found: dict[str, list[Any]] = {"pck": [], "angle": [], "depth": [], "constant": []}
    confused = np.zeros((CHANNELS["seg"],) * 2, np.int64)
    for sample in samples:
        out = network(normalise(_stack([sample], "pixels_HWC"), torch.float32))
        people_HW = sample.parts_HW > 0
        if "pose" in out and sample.points_K3[:, 2].any():
            found["pck"].append(_point_errors(out["pose"], sample))
        maps = {
            task: F.interpolate(out[task], size=people_HW.shape, mode="bilinear")[0].numpy()
            for task in out if task != "pose"
        }  # fmt: skip
        if "seg" in maps:
            confused += metrics.confusion(maps["seg"].argmax(0), sample.parts_HW, CHANNELS["seg"])
        if "normal" in maps:
            found["angle"].append(metrics.angles(maps["normal"][:, people_HW].T, sample.normals_HWC[people_HW]))
        if "depth" in maps and people_HW.any():
            error, constant = metrics.depth_errors(maps["depth"][0][people_HW], sample.depth_HW[people_HW])
            found["depth"].append(error)
            found["constant"].append(constant)
    marks: dict[str, float] = {}
    if found["pck"]:
        errors = np.concatenate(found["pck"])
        marks |= {"pck@0.1": metrics.share_within(errors, 0.1), "pck@0.05": metrics.share_within(errors, 0.05)}
    if confused.any():
        marks["miou"] = float(np.nanmean(metrics.class_iou(confused)))
    if found["angle"]:
        marks["angle"] = float(np.concatenate(found["angle"]).mean())
    if found["depth"]:
        marks["depth_ratio"] = sum(found["depth"]) / sum(found["constant"])
    return marks


def _point_errors(maps_BKhw: Tensor, sample: Sample) -> np.ndarray:
    """Return the distances of one sample's keypoints as parts of the height of the person's visible keypoints' box."""
    h, w = maps_BKhw.shape[2:]
    height, width = sample.parts_HW.shape
    points_K2 = locate(maps_BKhw)[0][0].numpy() * ((width - 1) / (w - 1), (height - 1) / (h - 1))
    rows = sample.points_K3[sample.points_K3[:, 2] > 0, 1]
    tall = np.ptp(rows) * 1.12  # from the ankles to the eyes, and on to the ends
    return metrics.point_errors(points_K2, sample.points_K3, np.array([0, 0, 0, tall]))


def _person_losses(network: nn.Module, samples: Sequence[Sample]) -> dict[str, Tensor]:
    logits, distances = network(normalise_detector(_stack(samples, "pixels_HWC"), torch.float32))
    return detector_loss(logits, distances, [torch.from_numpy(sample.boxes_N4) for sample in samples])


@torch.no_grad()
def _person_marks(network: nn.Module, samples: Sequence[Sample]) -> dict[str, float]:
    scores: list[float] = []
    hits: list[bool] = []
    for sample in samples:
        logits, distances = network(normalise_detector(_stack([sample], "pixels_HWC"), torch.float32))
        people = find_people(
            [level[0] for level in logits], [level[0] for level in distances], DETECTOR.input_hw, (1.0, 1.0),
            DETECTOR.input_hw, score=0.05, nms_iou=0.5, max_people=20,
        )  # fmt: skip
        scores += people["scores"].tolist()
        hits += (metrics.match_boxes(people["boxes"].numpy(), sample.boxes_N4) >= 0).tolist()
    return {"ap50": metrics.average_precision(scores, hits, sum(len(sample.boxes_N4) for sample in samples))}
