"""Sapiens models in plain torch, written from the fact sheet alone, and their checkpoints.

    load_model(uri)          -> Model: normalised RGB (B, 3, H, W) -> raw head output
    load_detector(uri)       -> Detector: normalised BGR (B, 3, H, W) -> class logits and distances a level
    inspect_checkpoint(uri)  -> CheckpointInfo
    random_checkpoint(path)  -> CheckpointInfo of a new file
    list_checkpoints(folder) -> what lies in a sapiens_host/ folder

Names are resolved when they are first used, so importing this package loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from annotator.models.cache import file_digest as file_digest
    from annotator.models.checkpoint import inspect_checkpoint as inspect_checkpoint
    from annotator.models.checkpoint import load_model as load_model
    from annotator.models.checkpoint import load_network as load_network
    from annotator.models.config import CheckpointInfo as CheckpointInfo
    from annotator.models.config import ModelConfig as ModelConfig
    from annotator.models.model import Model as Model
    from annotator.models.random_weights import random_checkpoint as random_checkpoint
    from annotator.models.rtmdet import load_detector as load_detector
    from annotator.models.zoo import find_checkpoint as find_checkpoint
    from annotator.models.zoo import list_checkpoints as list_checkpoints

_HOMES = {
    "CheckpointInfo": "config",
    "Model": "model",
    "ModelConfig": "config",
    "file_digest": "cache",
    "find_checkpoint": "zoo",
    "inspect_checkpoint": "checkpoint",
    "list_checkpoints": "zoo",
    "load_detector": "rtmdet",
    "load_model": "checkpoint",
    "load_network": "checkpoint",
    "random_checkpoint": "random_weights",
}
__all__ = [
    "CheckpointInfo",
    "Model",
    "ModelConfig",
    "file_digest",
    "find_checkpoint",
    "inspect_checkpoint",
    "list_checkpoints",
    "load_detector",
    "load_model",
    "load_network",
    "random_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
