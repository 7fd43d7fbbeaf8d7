"""Train the mannequin models from nothing, on pictures that are made as it goes.

    python -m annotator.mannequin.train --state FOLDER --stage early --steps 20000
    python -m annotator.mannequin.train --state FOLDER --stage shared --steps 20000
    python -m annotator.mannequin.train --state FOLDER --stage person --steps 4000
    python -m annotator.mannequin.train --state FOLDER --stage pose --steps 3000     (and seg, depth, normal)
    python -m annotator.mannequin.train --state FOLDER --export FOLDER2

A stage can be stopped at any time and goes on where it was last saved, with the very same pictures: sample n of
the training stream is always the same, so a run that was cut ends with the weights of one that was not. Asked for
more steps than a finished stage had, it goes on from its end.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import cv2
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from annotator.mannequin.lessons import STAGES, Lesson, make_lesson, marked_samples, samples_of
from annotator.mannequin.networks import DETECTOR, TASKS, nano, shared_state, task_state, write_checkpoint

_WARM_UP = 200
_DECAY = 0.35  # of the steps, at the end, in which the learning rate goes down to nothing
_EMA = 0.999
_WEIGHT_DECAY = 0.05
_MAX_GRADIENT = 4.0
_LOG_EVERY, _MARK_EVERY = 100, 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """How long to train: until a step, or for so many minutes of this run; saved every so many."""

    steps: int
    minutes: float = float("inf")
    save_minutes: float = 3.0


def learning_rate(step: int, schedule: Schedule, peak: float) -> float:
    """Return the rate of a step: up in a straight line, level, and down in one at the end."""
    left = (schedule.steps - step) / max(1.0, _DECAY * schedule.steps)
    return peak * min(1.0, (step + 1) / _WARM_UP, max(left, 0.0))


def train(stage: str, folder: Path, schedule: Schedule, weights: Path | None = None) -> int:
    """Train a stage until the schedule ends, keeping its state in the folder; return the step that it reached.

    `weights` is a folder of exported checkpoint files to begin from where the folder has no state of the stage yet.
    """
    lesson = make_lesson(stage)
    network, average, optimiser, step = _load(stage, lesson, folder, weights)
    began = saved = time.monotonic()
    stopping: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    recent: list[dict[str, float]] = []
    try:
        while step < schedule.steps and not stopping and time.monotonic() - began < schedule.minutes * 60:
            recent.append(_step(lesson, network, average, optimiser, step, schedule))
            step += 1
            if step % _LOG_EVERY == 0:
                record: dict[str, Any] = {"step": step, "seconds": round(time.monotonic() - began)}
                record |= {name: round(fmean(losses[name] for losses in recent), 4) for name in recent[0]}
                if step % _MARK_EVERY == 0 or step == schedule.steps:
                    marks = lesson.marks(average, marked_samples(lesson))
                    record |= {name: round(value, 4) for name, value in marks.items()}
                _log(folder / f"{stage}.jsonl", record)
                recent = []
            if time.monotonic() - saved > schedule.save_minutes * 60:
                _save(folder / f"{stage}.pt", network, average, optimiser, step)
                saved = time.monotonic()
    finally:
        signal.signal(signal.SIGTERM, previous)
    _save(folder / f"{stage}.pt", network, average, optimiser, step)
    return step


def _step(
    lesson: Lesson,
    network: nn.Module,
    average: nn.Module,
    optimiser: torch.optim.Optimizer,
    step: int,
    schedule: Schedule,
) -> dict[str, float]:
    """Take one step in place; return its losses."""
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(step, schedule, lesson.lr)
    losses = lesson.losses(network, samples_of(lesson, step * lesson.batch, lesson.batch))
    total = torch.stack(list(losses.values())).sum()
    if not torch.isfinite(total):
        raise FloatingPointError(f"the loss is not finite at step {step}: {losses}; start again from the last save")
    optimiser.zero_grad()
    total.backward()
    nn.utils.clip_grad_norm_(network.parameters(), _MAX_GRADIENT)
    optimiser.step()
    follow = min(_EMA, (step + 1) / (step + 20))
    with torch.no_grad():
        for slow, fast in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
            if slow.is_floating_point():
                slow.lerp_(fast, 1 - follow)
            else:
                slow.copy_(fast)
    return {name: float(loss.detach()) for name, loss in losses.items()}


def _load(
    stage: str, lesson: Lesson, folder: Path, weights: Path | None
) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer, int]:
    """Return network, its running average, optimiser and step, as saved or new."""
    network = lesson.network()
    average = copy.deepcopy(network)
    matrices = [p for name, p in network.named_parameters() if p.ndim > 1 and "pos_embed" not in name]
    others = [p for name, p in network.named_parameters() if not (p.ndim > 1 and "pos_embed" not in name)]
    groups = [{"params": matrices, "weight_decay": _WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=lesson.lr, betas=(0.9, 0.98))
    step = 0
    path = folder / f"{stage}.pt"
    if path.exists():
        saved = torch.load(path, weights_only=True)
        network.load_state_dict(saved["network"])
        average.load_state_dict(saved["average"])
        optimiser.load_state_dict(saved["optimiser"])
        step = saved["step"]
    elif weights is not None or lesson.start is not None:
        known = _weights(weights, stage) if weights is not None else _average(folder, str(lesson.start))
        wanted = {name: known[name] for name in network.state_dict()}
        network.load_state_dict(wanted)
        average.load_state_dict(wanted)
    return network.train(), average.eval().requires_grad_(False), optimiser, step


def _average(folder: Path, stage: str) -> dict[str, Tensor]:
    path = folder / f"{stage}.pt"
    if not path.exists():
        raise SystemExit(f"{path}: not there; train the stage {stage} first, with --stage {stage}")
    state: dict[str, Tensor] = torch.load(path, weights_only=True)["average"]
    return state


def _weights(folder: Path, stage: str) -> dict[str, Tensor]:
    """Return the tensors of a stage's exported checkpoint file, single precision, under its network's names."""
    path = folder / f"{stage}.safetensors"
    if not path.exists():
        raise SystemExit(f"{path}: not there; --weights names a folder that --export wrote")
    tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
    return shared_state(tensors, stage) if stage in TASKS else tensors


def _save(path: Path, network: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer, step: int) -> None:
    """Write the state, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    torch.save(
        {
            "network": network.state_dict(),
            "average": average.state_dict(),
            "optimiser": optimiser.state_dict(),
            "step": step,
        },
        temporary,
    )
    temporary.replace(path)


def _log(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def export(folder: Path, out: Path) -> list[Path]:
    """Write a checkpoint file for the detector and each task, from its own stage or else from the shared one.

    None is written for a task that has neither.
    """
    written = []
    for task in TASKS:
        alone = (folder / f"{task}.pt").exists()
        if not alone and not (folder / "shared.pt").exists():
            continue
        state = _average(folder, task if alone else "shared")
        config = nano(task)
        if not alone:
            config = dataclasses.replace(config, patch_padding=nano(TASKS[0]).patch_padding)
        written.append(out / f"{task}.safetensors")
        write_checkpoint(written[-1], config, task_state(state, task))
    if (folder / "person.pt").exists():
        written.append(out / "person.safetensors")
        write_checkpoint(written[-1], DETECTOR, _average(folder, "person"))
    return written


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line in the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m annotator.mannequin.train", description=__doc__.split("\n")[0])
    parser.add_argument("--state", type=Path, required=True, help="folder that training is kept in, to go on from")
    parser.add_argument("--stage", choices=STAGES, help="what to train")
    parser.add_argument("--steps", type=int, default=10_000, help="until this step of the stage")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop and save after so many")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--weights", type=Path, help="begin a new stage from the checkpoint files of this folder")
    parser.add_argument("--export", type=Path, help="write checkpoint files into this folder")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    cv2.setNumThreads(given.threads)
    if given.stage:
        reached = train(given.stage, given.state, Schedule(steps=given.steps, minutes=given.minutes), given.weights)
        print(f"{given.stage}: step {reached} of {given.steps}, saved in {given.state}")
    if given.export:
        for path in export(given.state, given.export):
            print(path)


if __name__ == "__main__":
    main()
