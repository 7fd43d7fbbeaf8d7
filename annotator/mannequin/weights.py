"""The trained mannequin models that come with the package: five small checkpoint files, Apache-2.0."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from annotator.errors import CheckpointError, OutputError

FOLDER = Path(__file__).parent / "weights"
TASKS = ("person", "pose", "seg", "depth", "normal")


@dataclass(frozen=True, kw_only=True, slots=True)
class Copied:
    """Where the checkpoint files are now, by task."""

    folder: str
    checkpoints: dict[str, str]


def copy_weights(out: str | Path) -> Copied:
    """Copy the checkpoint files into a folder, TASK.safetensors each, and return their paths.

    Raises CheckpointError if this installation has none, OutputError if the folder holds other files of these names.
    """
    missing = [task for task in TASKS if not (FOLDER / f"{task}.safetensors").is_file()]
    if missing:
        raise CheckpointError(
            f"this installation lacks the mannequin weights for {', '.join(missing)}; install the package anew, "
            "or train them with `python -m annotator.mannequin.train`"
        )
    folder = Path(out).resolve()
    checkpoints = {task: folder / f"{task}.safetensors" for task in TASKS}
    for task, path in checkpoints.items():
        if path.exists() and path.read_bytes() != (FOLDER / f"{task}.safetensors").read_bytes():
            raise OutputError(f"{path}: is there, and is another file; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for path in checkpoints.values():
        shutil.copyfile(FOLDER / path.name, path)
    return Copied(folder=str(folder), checkpoints={task: str(path) for task, path in checkpoints.items()})
