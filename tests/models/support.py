"""Goldens and tiny models, shared by the tests of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from annotator.models.checkpoint import load_model
from annotator.models.config import CheckpointInfo
from annotator.models.model import Model
from annotator.models.random_weights import random_checkpoint

GOLDENS = Path(__file__).parent.parent / "goldens" / "models"


def golden(name: str) -> dict[str, Tensor]:
    """Return the tensors of a golden file."""
    return load_file(GOLDENS / f"{name}.safetensors")


def state(tensors: dict[str, Tensor], prefix: str = "sd.") -> dict[str, Tensor]:
    """Return the entries under a prefix, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def save_pth(path: Path, tensors: Any) -> str:
    """Write a .pth file and return its path as a uri."""
    torch.save(tensors, path)
    return str(path)


def tiny(path: Path, task: str | None = "seg", **settings: Any) -> CheckpointInfo:
    """Write a tiny random checkpoint: width 16, 2 layers, 2 heads, input 64 x 48."""
    defaults: dict[str, Any] = {"embed_dim": 16, "num_layers": 2, "num_heads": 2, "input_hw": (64, 48), "seed": 0}
    return random_checkpoint(path, task=task, **(defaults | settings))


def tiny_state(folder: Path, task: str | None = "seg", **settings: Any) -> dict[str, Tensor]:
    """Return the state dict of a tiny random model, to be written in other formats."""
    info = tiny(folder / "tiny-source.safetensors", task, **settings)
    return dict(load_model(info.uri).state_dict())


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Hold two tensors together at 1e-5: a wrong LayerNorm eps moves an output by 3e-5."""
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def run(model: Model, images: Tensor) -> Tensor:
    """Return the model's raw output."""
    out: Tensor = model(images)
    return out


def noise(*shape: int, seed: int = 1) -> Tensor:
    """Return seeded normal noise."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
