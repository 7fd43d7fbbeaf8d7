"""The mannequin models: Sapiens v1 and RTMDet at nano size, and their checkpoint files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from annotator.models.checkpoint import LICENCE_KEY
from annotator.models.config import CONFIG_KEY, DetectorConfig, ModelConfig
from annotator.models.heads import ConvHead
from annotator.models.model import Model, head_names
from annotator.models.random_weights import sincos_positions
from annotator.models.rtmdet import Detector
from annotator.models.vit import VisionTransformer
from annotator.models.zoo import TASK_FACTS

INPUT_HW = (192, 144)
TASKS = ("pose", "seg", "depth", "normal")
CHANNELS = {"pose": 17, "seg": 28, "depth": 1, "normal": 3}
_HEADS: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    # transposed convolutions (as many as released), 1x1 convolutions
    "pose": ((80, 64), (64,)),
    "seg": ((64, 32, 24), (24,)),
    "depth": ((64, 32, 16, 8), (8,)),
    "normal": ((64, 32, 24), (24,)),
}
DETECTOR = DetectorConfig(
    stem=(8, 8, 16),
    stages=(24, 48, 96, 128),
    depths=(1, 1, 1, 1),
    neck_depth=1,
    neck_channels=48,
    stacked=1,
    channels=1,
    input_hw=(256, 256),
)
LICENCE = "Apache-2.0"


def nano(task: str) -> ModelConfig:
    """Return the nano model of a task, its padding that of the released ones."""
    deconv, conv = _HEADS[task]
    return ModelConfig(
        task=task,
        embed_dim=192,
        num_layers=4,
        num_heads=6,
        ffn_dim=768,
        patch_padding=TASK_FACTS[task].patch_padding,
        input_hw=INPUT_HW,
        channels=CHANNELS[task],
        deconv_channels=deconv,
        conv_channels=conv,
    )


class SharedNet(nn.Module):
    """One backbone under the heads of several tasks: normalised RGB (B, 3, H, W) to each task's raw output."""

    def __init__(self, tasks: Sequence[str], seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        configs = {task: nano(task) for task in tasks}
        self.backbone = VisionTransformer(configs[tasks[0]])
        self.heads = nn.ModuleDict(
            {
                task: ConvHead(c.embed_dim, c.deconv_channels, c.conv_channels, c.channels, head_names(task)[1])
                for task, c in configs.items()
            }
        )
        self._start()

    def _start(self) -> None:
        """Initialise: sines and cosines for places (random ones learn half as fast), small Gaussians for the rest."""
        with torch.no_grad():
            width = self.backbone.pos_embed.shape[2]
            self.backbone.pos_embed.copy_(0.5 * sincos_positions(self.backbone.grid_hw, width))
            for module in self.backbone.modules():
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=0.5 / math.sqrt(width))
                    nn.init.zeros_(module.bias)
            patches = self.backbone.patch_embed.projection
            nn.init.xavier_uniform_(patches.weight.view(width, -1))
            nn.init.zeros_(patches.bias)  # type: ignore[arg-type]  # a convolution with a bias
            if "pose" in self.heads:
                last = self.heads["pose"].get_submodule("final_layer")
                nn.init.normal_(last.weight, std=0.01)  # type: ignore[arg-type]  # heatmaps start near zero
                nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def forward(self, images_B3HW: Tensor) -> dict[str, Tensor]:
        features = self.backbone(images_B3HW)
        return {task: head(features) for task, head in self.heads.items()}


def task_state(state: Mapping[str, Tensor], task: str) -> dict[str, Tensor]:
    """Return one task's tensors of a SharedNet's, under the released names."""
    prefix = head_names(task)[0]
    return {
        name.replace(f"heads.{task}.", f"{prefix}."): tensor
        for name, tensor in state.items()
        if name.startswith(("backbone.", f"heads.{task}."))
    }


def shared_state(state: Mapping[str, Tensor], task: str) -> dict[str, Tensor]:
    """Return a SharedNet's tensors of one task's under the released names; undoes task_state."""
    prefix = head_names(task)[0]
    return {name.replace(f"{prefix}.", f"heads.{task}.", 1): tensor for name, tensor in state.items()}


def write_checkpoint(path: Path, config: ModelConfig | DetectorConfig, state: Mapping[str, Tensor]) -> None:
    """Write half-precision safetensors that load_model or load_detector reads, whole or not at all."""
    network: nn.Module = Detector(config) if isinstance(config, DetectorConfig) else Model(config)
    network.load_state_dict(dict(state), strict=True)
    tensors = {n: t.half().contiguous() if t.is_floating_point() else t for n, t in network.state_dict().items()}
    metadata = {"format": "pt", CONFIG_KEY: json.dumps(config.to_dict()), LICENCE_KEY: LICENCE, "model": "mannequin"}
    temporary = path.with_name(f".{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, temporary, metadata=metadata)
    temporary.chmod(0o644)  # safetensors writes for its owner alone
    temporary.replace(path)
