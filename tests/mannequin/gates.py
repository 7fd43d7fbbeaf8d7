"""How right labels of mannequins must be, and a run of the public command line that shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

import annotator
from annotator.mannequin.evaluate import Accuracy
from annotator.mannequin.weights import TASKS
from tests.running.command import Cli

HELD_OUT = 90210
"""A seed that nothing was trained on. `nms_iou` was chosen on its first pictures."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One figure, what it must reach, and from which side."""

    limit: float
    at_least: bool

    def is_passed(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit


GATES: Mapping[str, Gate] = {
    "pck_10": Gate(limit=0.92, at_least=True),
    "pck_05": Gate(limit=0.75, at_least=True),
    "box_ap50": Gate(limit=0.90, at_least=True),
    "part_miou": Gate(limit=0.60, at_least=True),
    "normal_degrees": Gate(limit=16.0, at_least=False),
    "depth_ratio": Gate(limit=0.60, at_least=False),
}


def red(accuracy: Accuracy) -> list[str]:
    """Return the gates that are not passed, of those that were measured."""
    measured = {name: getattr(accuracy, name) for name in GATES}
    return [name for name, value in measured.items() if value is not None and not GATES[name].is_passed(value)]


def label(cli: Cli, made: Path, folder: Path, tasks: Sequence[str] = TASKS) -> Path:
    """Label the pictures of a folder with the shipped weights, as a user would; return the output."""
    weights = folder / "weights"
    assert cli("demo", "weights", "--out", weights).code == 0
    chosen: dict[str, dict[str, object]] = {
        task: {"checkpoint": str(weights / f"{task}.safetensors")} for task in tasks
    }
    if "pose" in chosen:
        chosen["pose"]["boxes"] = "person"
    if "person" in chosen:
        chosen["person"]["nms_iou"] = 0.65  # mannequins stand close to each other
    job = {
        "manifest": str(made / "manifest"),
        "output": str(folder / "output"),
        "sources": {"roots": [str(made / "images")]},
        "tasks": chosen,
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    done = cli("run", path, "--no-ray")
    assert done.code == 0, done.err
    return folder / "output"


def measure(cli: Cli, made: Path, folder: Path, tasks: Sequence[str] = TASKS) -> Accuracy:
    """Return how right the labels are that the command line makes."""
    return annotator.label_accuracy(str(label(cli, made, folder, tasks)), str(made))
