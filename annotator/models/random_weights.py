"""Checkpoints with random weights, for trials and tests: the real file format, and labels that mean nothing.

Why a writer of our own (2026-11): it streams tensor by tensor, so a 2b model of 8.7 GB takes little memory.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from annotator.errors import CheckpointError
from annotator.models.checkpoint import NULL_KEY, RANDOM_KEY, inspect_checkpoint
from annotator.models.config import CONFIG_KEY, CheckpointInfo, DetectorConfig, ModelConfig
from annotator.models.formats import read_weights
from annotator.models.model import Model
from annotator.models.rtmdet import Detector
from annotator.models.zoo import TASK_FACTS


def random_checkpoint(
    path: str | Path,
    *,
    task: str | None,
    embed_dim: int,
    num_layers: int,
    num_heads: int,
    input_hw: tuple[int, int],
    seed: int,
    channels: int | None = None,
    patch_padding: int | None = None,
    head_channels: int | Sequence[int] | None = None,
    null: bool = False,
) -> CheckpointInfo:
    """Write a float32 .safetensors checkpoint with seeded random weights, marked as random for good.

    What is left out is as in the released models of the task (pose: 308 keypoints). `head_channels` is the width
    of all hidden head layers, or (of the transposed convolutions, of the 1x1 ones); left out, a model that is
    narrower than its released head has a head of its own width. For `person`, `embed_dim` is the width of the
    detector's neck (192 as released), `num_layers` the blocks of a stage, and the other numbers have no meaning.
    `null` marks a model whose forward pass a worker leaves out, to show its own speed (not for person).
    The weights are scaled so that outputs vary over the image, like a trained model's.
    Raises CheckpointError for impossible numbers, and when the path holds a file that isn't random weights.
    """
    if task == "person":
        write_random(Path(path), _detector_config(embed_dim, num_layers), seed)
        return inspect_checkpoint(str(path))
    if task not in TASK_FACTS:
        raise CheckpointError(f"no models for task {task!r}; expected one of {', '.join(t for t in TASK_FACTS if t)}")
    facts = TASK_FACTS[task]
    if embed_dim % 4:
        raise CheckpointError(f"embed_dim is {embed_dim}; expected a multiple of 4")
    config = ModelConfig(
        task=task,
        embed_dim=embed_dim,
        num_layers=num_layers,
        num_heads=num_heads,
        ffn_dim=4 * embed_dim,
        patch_padding=facts.patch_padding if patch_padding is None else patch_padding,
        input_hw=input_hw,
        channels=embed_dim if task is None else channels or facts.channels[0],
        deconv_channels=_head_widths(facts.deconv_channels, head_channels, 0, embed_dim),
        conv_channels=_head_widths(facts.conv_channels, head_channels, 1, embed_dim),
    )
    write_random(Path(path), config, seed, null=null)
    return inspect_checkpoint(str(path))


def _detector_config(width: int, depth: int) -> DetectorConfig:
    """Return an RTMDet in the released proportions (fact sheet 5.2)."""
    if width % 8:
        raise CheckpointError(f"embed_dim is {width}; expected a multiple of 8 for a detector")
    return DetectorConfig(
        stem=(width // 8, width // 8, width // 4),
        stages=(width // 2, width, 2 * width, 4 * width),
        depths=(depth,) * 4,
        neck_depth=depth,
        neck_channels=width,
        stacked=2,
        channels=1,
    )


def _head_widths(
    released: tuple[int, ...], asked: int | Sequence[int] | None, which: int, embed_dim: int
) -> tuple[int, ...]:
    if asked is None:
        return tuple(min(width, embed_dim) for width in released)
    return (asked if isinstance(asked, int) else asked[which],) * len(released)


def write_random(path: Path, config: ModelConfig | DetectorConfig, seed: int, *, null: bool = False) -> None:
    """Write the file for `random_checkpoint`: atomically, one tensor in memory at a time."""
    if path.exists() and not _is_random(path):
        raise CheckpointError(f"{path}: exists and isn't random weights of ours; choose another path")
    with torch.device("meta"):
        model = Detector(config) if isinstance(config, DetectorConfig) else Model(config)
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items() if t.is_floating_point()}
    metadata = {"format": "pt", RANDOM_KEY: "true", CONFIG_KEY: json.dumps(config.to_dict()), "seed": str(seed)}
    if null:
        metadata[NULL_KEY] = "true"
    generator = torch.Generator().manual_seed(seed)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(_header(shapes, metadata))
            for name, shape in shapes.items():
                _random_tensor(name, shape, config, generator).contiguous().numpy().tofile(file)
        os.replace(temporary, path)
    except OSError as err:
        raise CheckpointError(f"{path}: can't be written ({err.strerror}); choose another path") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _is_random(path: Path) -> bool:
    try:
        return read_weights(path).metadata.get(RANDOM_KEY) == "true"
    except CheckpointError:
        return False


def _header(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors header: 8 bytes of length, JSON, padded with spaces to a multiple of 8."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    at = 0
    for name, shape in shapes.items():
        end = at + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _random_tensor(
    name: str, shape: tuple[int, ...], config: ModelConfig | DetectorConfig, generator: torch.Generator
) -> Tensor:
    if name.endswith("running_mean"):
        return torch.zeros(shape)
    if name.endswith(("running_var", "bn.weight")):
        return torch.ones(shape)
    if name.startswith("bbox_head.rtm_cls") and name.endswith("bias"):
        return torch.full(shape, -2.0)  # few points look like people, as in pictures
    if name.startswith("bbox_head.rtm_reg") and name.endswith("bias"):
        return torch.full(shape, 1.5)  # boxes of some size: sides are e^1.5 strides away
    if name.endswith("pos_embed") and isinstance(config, ModelConfig):
        return sincos_positions(config.grid_hw, config.embed_dim)
    if len(shape) == 1:
        scale = torch.randn(shape, generator=generator) * 0.02
        return scale + 1 if ".ln" in name and name.endswith("weight") else scale
    # Fan-in, so that each layer keeps the scale; a stride-2 transposed 4x4 convolution adds 2x2 taps per output.
    fan_in = shape[0] * 4 if ".deconv_layers." in name else math.prod(shape[1:])
    return torch.randn(shape, generator=generator) / math.sqrt(fan_in)


def sincos_positions(grid_hw: tuple[int, int], embed_dim: int) -> Tensor:
    """Return the fixed 2-D sine and cosine table of MAE: (1, P, D), float32 (fact sheet 1.2)."""
    quarter = embed_dim // 4
    omega = 10000.0 ** -(torch.arange(quarter) / quarter)
    rows, columns = (torch.arange(n)[:, None] * omega for n in grid_hw)
    rows = torch.cat([rows.sin(), rows.cos()], 1)[:, None].expand(-1, grid_hw[1], -1)
    columns = torch.cat([columns.sin(), columns.cos()], 1)[None].expand(grid_hw[0], -1, -1)
    return torch.cat([rows, columns], 2).reshape(1, -1, embed_dim)
