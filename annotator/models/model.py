"""Backbone and head together, under the released state-dict names."""

from __future__ import annotations

from torch import Tensor, nn

from annotator.models.config import ModelConfig
from annotator.models.heads import ConvHead
from annotator.models.vit import VisionTransformer


def head_names(task: str) -> tuple[str, str]:
    """Return the released names of a task's head and of that head's last layer (fact sheet 2.1)."""
    return ("head", "final_layer") if task == "pose" else ("decode_head", "conv_seg")


class Model(nn.Module):
    """Normalised RGB (B, 3, H, W) to the raw head output (B, C, h, w); a bare backbone gives features.

    H and W are any multiples of 16; at `config.input_hw` the output is `config.output_hw`.
    A null model stands for one that costs nothing: a bench puts `null_output` in the place of its forward pass.
    """

    is_null = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = VisionTransformer(config)
        self.head_name: str | None = None
        if config.task is not None:
            self.head_name, last = head_names(config.task)
            self.add_module(
                self.head_name,
                ConvHead(config.embed_dim, config.deconv_channels, config.conv_channels, config.channels, last),
            )

    def forward(self, images_B3HW: Tensor) -> Tensor:
        out: Tensor = self.backbone(images_B3HW)
        if self.head_name is not None:
            out = self.get_submodule(self.head_name)(out)
        return out
