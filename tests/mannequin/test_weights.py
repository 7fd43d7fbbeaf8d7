"""The checkpoint files that come with the package: copied where jobs can name them, nothing overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import zeros

import annotator
from annotator.errors import CheckpointError, OutputError
from annotator.mannequin import weights
from annotator.mannequin.networks import DETECTOR, write_checkpoint
from annotator.models import load_detector
from annotator.models.config import CONFIG_KEY
from annotator.models.rtmdet import Detector


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shipped"
    folder.mkdir()
    for task in weights.TASKS:
        (folder / f"{task}.safetensors").write_bytes(task.encode())
    monkeypatch.setattr(weights, "FOLDER", folder)
    return folder


def test_files_are_copied_and_copied_again(shipped: Path, tmp_path: Path) -> None:
    for _ in range(2):
        copied = annotator.copy_weights(tmp_path / "mine")
        assert set(copied.checkpoints) == set(weights.TASKS)
        assert all(Path(path).read_text() == task for task, path in copied.checkpoints.items())


def test_another_file_of_that_name_is_kept(shipped: Path, tmp_path: Path) -> None:
    (tmp_path / "seg.safetensors").write_text("of somebody else")
    with pytest.raises(OutputError, match="another file"):
        annotator.copy_weights(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seg.safetensors", "shipped"]
    assert (tmp_path / "seg.safetensors").read_text() == "of somebody else"


def test_an_installation_without_weights_says_so(shipped: Path, tmp_path: Path) -> None:
    (shipped / "pose.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks the mannequin weights for pose"):
        annotator.copy_weights(tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_a_detectors_input_size_comes_from_its_metadata(tmp_path: Path) -> None:
    state = Detector(DETECTOR).state_dict()
    write_checkpoint(tmp_path / "ours.safetensors", DETECTOR, state)
    assert load_detector(str(tmp_path / "ours.safetensors")).config.input_hw == DETECTOR.input_hw
    save_file(state, tmp_path / "plain.safetensors")
    assert load_detector(str(tmp_path / "plain.safetensors")).config.input_hw == (640, 640)
    save_file({**state, "more": zeros(1)}, tmp_path / "odd.safetensors", metadata={CONFIG_KEY: "{}"})
    with pytest.raises(CheckpointError, match="does not give input_hw"):
        load_detector(str(tmp_path / "odd.safetensors"))
