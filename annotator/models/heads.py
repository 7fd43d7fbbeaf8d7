"""The heads of Sapiens v1: transposed convolutions, 1x1 convolutions, one last 1x1 (fact sheet 2.1).

Pose, seg, depth and normal differ only in numbers and in the released state-dict names: indices step by
3 because each convolution is followed by a norm without weights and by SiLU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORM_EPS = 1e-5  # fact sheet 2.1


class InstanceNorm(nn.Module):
    """Per-image, per-channel normalisation over the whole map, without weights: (B, C, H, W) -> same.

    The statistics are float32 whatever the input's dtype.
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if x_BCHW.dtype == torch.float32:
            return F.instance_norm(x_BCHW, eps=NORM_EPS)
        x = x_BCHW.float()
        var, mean = torch.var_mean(x, dim=(2, 3), correction=0, keepdim=True)
        return ((x - mean) * torch.rsqrt(var + NORM_EPS)).to(x_BCHW.dtype)


class ConvHead(nn.Module):
    """Features to the raw output: (B, D, h, w) -> (B, channels, h * 2^n, w * 2^n) for n transposed convolutions.

    `last` is the released name of the last layer: "final_layer" for pose, "conv_seg" for the dense heads.
    """

    def __init__(self, in_channels: int, deconv: Sequence[int], conv: Sequence[int], channels: int, last: str) -> None:
        super().__init__()
        width = in_channels
        self.deconv_layers, self.conv_layers = nn.Sequential(), nn.Sequential()
        for out in deconv:
            self.deconv_layers.extend(
                (nn.ConvTranspose2d(width, out, 4, stride=2, padding=1, bias=False), InstanceNorm(), nn.SiLU())
            )
            width = out
        for out in conv:
            self.conv_layers.extend((nn.Conv2d(width, out, 1), InstanceNorm(), nn.SiLU()))
            width = out
        self.last = last
        self.add_module(last, nn.Conv2d(width, channels, 1))

    def forward(self, features_BDhw: Tensor) -> Tensor:
        x = self.conv_layers(self.deconv_layers(features_BDhw))
        out: Tensor = self.get_submodule(self.last)(x)
        return out
