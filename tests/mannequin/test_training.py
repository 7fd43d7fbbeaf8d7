"""Training: it learns, it goes on where it stopped, and what it writes is a checkpoint like any other."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from annotator.mannequin import lessons, train
from annotator.mannequin.lessons import STAGES, Lesson, make_lesson, samples_of
from annotator.mannequin.networks import DETECTOR, INPUT_HW, TASKS, nano
from annotator.mannequin.train import Schedule, export, learning_rate
from annotator.models import inspect_checkpoint, load_detector, load_model

pytestmark = pytest.mark.slow


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sample a step, and marks on two."""

    def lesson(stage: str) -> Lesson:
        return dataclasses.replace(make_lesson(stage), batch=1)

    monkeypatch.setattr(train, "make_lesson", lesson)
    monkeypatch.setattr(lessons, "_MARKED", 2)


def weights(folder: Path, stage: str) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(folder / f"{stage}.pt", weights_only=True)["network"]
    return loaded


@pytest.mark.parametrize("stage", ["early", "person"])
def test_a_stage_that_was_cut_ends_as_one_that_was_not(stage: str, small: None, tmp_path: Path) -> None:
    assert train.train(stage, tmp_path / "whole", Schedule(steps=3)) == 3
    train.train(stage, tmp_path / "cut", Schedule(steps=3, minutes=0))  # stops at once, and saves
    assert (tmp_path / "cut" / f"{stage}.pt").exists()
    assert train.train(stage, tmp_path / "cut", Schedule(steps=3)) == 3
    cut, whole = weights(tmp_path / "cut", stage), weights(tmp_path / "whole", stage)
    assert all(torch.equal(cut[name], whole[name]) for name in whole)


def test_a_cut_between_steps_changes_nothing(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train.train("person", tmp_path / "whole", Schedule(steps=4))
    real = train._step

    def stop_after_two(*given: object) -> dict[str, float]:
        if given[4] == 2:
            raise KeyboardInterrupt
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(train, "_step", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        train.train("person", tmp_path / "cut", Schedule(steps=4, save_minutes=0))
    monkeypatch.setattr(train, "_step", real)
    train.train("person", tmp_path / "cut", Schedule(steps=4))
    cut, whole = weights(tmp_path / "cut", "person"), weights(tmp_path / "whole", "person")
    assert all(torch.equal(cut[name], whole[name]) for name in whole)


@pytest.mark.parametrize("stage", ["early", "person"])
def test_a_network_learns_one_picture_by_heart(stage: str) -> None:
    lesson = make_lesson(stage)
    torch.manual_seed(0)
    network = lesson.network().train()
    samples = samples_of(lesson, 0, 2)
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    totals = []
    for _ in range(15):
        total = torch.stack(list(lesson.losses(network, samples).values())).sum()
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        totals.append(float(total.detach()))
    assert min(totals[-3:]) < 0.75 * totals[0]


def test_the_learning_rate_rises_stays_and_ends_at_nothing() -> None:
    schedule = Schedule(steps=1000)
    rates = [learning_rate(step, schedule, 1.0) for step in range(1000)]
    assert rates[0] < 0.01 and rates[300] == rates[600] == 1.0 and 0 < rates[-1] < 0.01


def test_training_samples_are_always_the_same() -> None:
    for stage in STAGES:
        lesson = make_lesson(stage)
        one, again = (samples_of(lesson, 5, 1)[0] for _ in range(2))
        assert (one.pixels_HWC == again.pixels_HWC).all()


def test_exported_weights_load_as_any_checkpoint(small: None, tmp_path: Path) -> None:
    for stage in ("early", "shared", "seg", "person"):
        train.train(stage, tmp_path / "state", Schedule(steps=1))
    written = export(tmp_path / "state", tmp_path / "out")
    assert sorted(path.stem for path in written) == sorted([*TASKS, "person"])
    assert sum(path.stat().st_size for path in written) < 25e6
    for path in written:
        info = inspect_checkpoint(str(path))
        assert (info.licence, info.dtype, info.random) == ("Apache-2.0", "float16", False)
    model = load_model(str(tmp_path / "out" / "seg.safetensors"))
    assert model.config == nano("seg")
    assert model(torch.zeros(1, 3, *INPUT_HW)).shape == (1, 28, 96, 72)
    shared = load_model(str(tmp_path / "out" / "depth.safetensors"))
    assert shared.config.patch_padding == nano(TASKS[0]).patch_padding  # as it was trained, not as the table says
    assert load_detector(str(tmp_path / "out" / "person.safetensors")).config == DETECTOR


def test_a_task_is_not_trained_before_the_backbone(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="train the stage shared first"):
        train.main(["--state", str(tmp_path), "--stage", "pose", "--steps", "1"])
