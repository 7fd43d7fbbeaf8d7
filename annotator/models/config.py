"""What a model is, apart from its weights. Loads neither torch nor anything heavy.

Shapes: B samples, C channels, H W network-input pixels, P patches, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from annotator.errors import CheckpointError

TASKS = ("seg", "depth", "normal", "pose")
CONFIG_KEY = "annotator_config"  # safetensors metadata: ModelConfig or DetectorConfig as JSON


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Everything that fixes a Sapiens v1 model's function but its weights; part of the fingerprint.

    task             one of TASKS, or None for a bare backbone, whose output is its features
    patch_padding    0 or 2 pixels of zeros round the input; leaves no trace in the weights (fact sheet 0.1)
    input_hw         height, width that the position table is laid out for
    channels         of the output: classes, keypoints, 1 for depth, 3 for normals, D for a bare backbone
    deconv_channels  outputs of the transposed convolutions, each of which doubles height and width
    conv_channels    outputs of the 1x1 convolutions between those and the last layer
    """

    task: str | None
    embed_dim: int
    num_layers: int
    num_heads: int
    ffn_dim: int
    patch_padding: int
    input_hw: tuple[int, int]
    channels: int
    deconv_channels: tuple[int, ...] = ()
    conv_channels: tuple[int, ...] = ()
    patch_size: int = 16
    family: str = "sapiens"

    def __post_init__(self) -> None:
        if self.task is not None and self.task not in TASKS:
            raise CheckpointError(f"task is {self.task!r}; expected one of {', '.join(TASKS)}, or none for a backbone")
        if self.num_heads < 1 or self.embed_dim % self.num_heads:
            raise CheckpointError(
                f"num_heads is {self.num_heads}; it must divide the width {self.embed_dim}; pass another num_heads"
            )
        if self.patch_padding not in (0, 2):
            raise CheckpointError(f"patch_padding is {self.patch_padding}; expected 0 or 2")
        if len(self.input_hw) != 2 or any(n < 1 or n % self.patch_size for n in self.input_hw):
            raise CheckpointError(
                f"input_size is {self.input_hw}; expected (height, width), both multiples of {self.patch_size}"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.embed_dim // self.num_heads

    @property
    def grid_hw(self) -> tuple[int, int]:
        """Rows and columns of patches; the padding of 2 does not change them."""
        return self.input_hw[0] // self.patch_size, self.input_hw[1] // self.patch_size

    @property
    def output_hw(self) -> tuple[int, int]:
        """Height and width of the raw output at `input_hw`."""
        factor = 2 ** len(self.deconv_channels)
        return self.grid_hw[0] * factor, self.grid_hw[1] * factor

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `from_dict` gives the same config back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelConfig:
        """Build a config from `to_dict`'s values. Raises CheckpointError for unknown or missing keys."""
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(data) - known):
            raise CheckpointError(f"model config holds unknown keys {', '.join(unknown)}; written by a later version?")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        try:
            return cls(**values)
        except TypeError as err:
            raise CheckpointError(f"model config is incomplete: {err}") from None


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectorConfig:
    """What fixes an RTMDet person detector but its weights; part of the person fingerprint (fact sheet 5.2).

    stem         outputs of the three stem convolutions
    stages       outputs of the four stages; the last three (strides 8, 16, 32) go to the neck
    depths       blocks in each stage
    neck_depth   blocks in each layer of the neck
    neck_channels  of each level that the head sees
    stacked      convolutions before each predictor
    channels     classes; person is class 0
    input_hw     the canvas that images are fitted into (fact sheet 5.1)
    """

    stem: tuple[int, int, int]
    stages: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    neck_depth: int
    neck_channels: int
    stacked: int
    channels: int
    input_hw: tuple[int, int] = (640, 640)
    task: str = "person"
    family: str = "rtmdet"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `read_config` gives the same config back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}


def read_config(data: Mapping[str, Any]) -> ModelConfig | DetectorConfig:
    """Return the config that either kind's `to_dict` wrote. Raises CheckpointError for one of another version."""
    if data.get("family") != "rtmdet":
        return ModelConfig.from_dict(data)
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    try:
        return DetectorConfig(**values)
    except TypeError as err:
        raise CheckpointError(f"detector config does not fit: {err}; written by a later version?") from None


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointInfo:
    """What a checkpoint file holds, read without building the model.

    config   ModelConfig, or DetectorConfig for a person detector
    format   pth, safetensors, torchscript or torch-export
    bytes    size of the file
    sha256   hex digest of the file's bytes
    dtype    of its weights, such as "float32"
    random   True for weights made by `random_checkpoint`; such labels mean nothing
    licence  of the weights
    """

    uri: str
    format: str
    bytes: int
    sha256: str
    config: Any
    dtype: str
    random: bool
    licence: str
