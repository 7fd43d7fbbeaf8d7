"""RTMDet, the person detector that Sapiens pose was published with: network and loading (fact sheet 5).

Module names give the released state-dict names. How its output becomes boxes: `boxes.py`.
Shapes: B samples, H W the padded input (640 x 640 as released), h w one level's grid.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from annotator.errors import CheckpointError
from annotator.models.cache import local_copy
from annotator.models.config import CONFIG_KEY, DetectorConfig
from annotator.models.formats import Weights, read_weights

if TYPE_CHECKING:
    from annotator.storage import Storage

NORM_EPS = 1e-5  # fact sheet 5.2: the config's, not the class default of 1e-3
STRIDES = (8, 16, 32)
_COUNTER = "num_batches_tracked"


class ConvModule(nn.Module):
    """Convolution without bias, batch norm, SiLU; same padding."""

    def __init__(self, cin: int, cout: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(cout, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.bn(self.conv(x)))


class SeparableConv(nn.Module):
    """Depthwise 5x5, then pointwise 1x1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise_conv = ConvModule(channels, channels, 5, groups=channels)
        self.pointwise_conv = ConvModule(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.pointwise_conv(self.depthwise_conv(x))
        return out


class Block(nn.Module):
    """3x3 convolution and separable 5x5, with or without a residual sum."""

    def __init__(self, channels: int, *, add: bool) -> None:
        super().__init__()
        self.add = add
        self.conv1 = ConvModule(channels, channels, 3)
        self.conv2 = SeparableConv(channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(self.conv1(x))
        return out + x if self.add else out


class ChannelAttention(nn.Module):
    """Each channel scaled by a gate made of all channels' means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.fc(x.mean((2, 3), keepdim=True)))


class CSPLayer(nn.Module):
    """Two half-width paths, one of them through blocks, joined by a 1x1 convolution."""

    def __init__(self, cin: int, cout: int, depth: int, *, add: bool, attention: bool) -> None:
        super().__init__()
        half = cout // 2
        self.main_conv = ConvModule(cin, half, 1)
        self.short_conv = ConvModule(cin, half, 1)
        self.final_conv = ConvModule(2 * half, cout, 1)
        self.blocks = nn.Sequential(*(Block(half, add=add) for _ in range(depth)))
        if attention:
            self.attention = ChannelAttention(2 * half)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.blocks(self.main_conv(x)), self.short_conv(x)], 1)
        out: Tensor = self.final_conv(self.attention(both) if hasattr(self, "attention") else both)
        return out


class SPP(nn.Module):
    """Max pools of 5, 9 and 13 beside the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvModule(channels, channels // 2, 1)
        self.conv2 = ConvModule(channels // 2 * 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        out: Tensor = self.conv2(torch.cat([x, *(F.max_pool2d(x, k, 1, k // 2) for k in (5, 9, 13))], 1))
        return out


class Backbone(nn.Module):
    """CSPNeXt: an image to the features of stages 2, 3 and 4."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        a, b, c = config.stem
        self.stem = nn.Sequential(ConvModule(3, a, 3, stride=2), ConvModule(a, b, 3), ConvModule(b, c, 3))
        width = c
        for i, (out, depth) in enumerate(zip(config.stages, config.depths, strict=True)):
            last = i == 3  # it pools, and adds no residuals
            layers: list[nn.Module] = [ConvModule(width, out, 3, stride=2), *([SPP(out)] if last else [])]
            layers.append(CSPLayer(out, out, depth, add=not last, attention=True))
            self.add_module(f"stage{i + 1}", nn.Sequential(*layers))
            width = out

    def forward(self, images_B3HW: Tensor) -> list[Tensor]:
        x = self.stem(images_B3HW)
        levels = []
        for i in range(4):
            x = self.get_submodule(f"stage{i + 1}")(x)
            levels.append(x)
        return levels[1:]


class Neck(nn.Module):
    """CSPNeXtPAFPN: top-down, then bottom-up; all levels leave with the same width."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        low, mid, high = config.stages[1:]

        def layer(cin: int, cout: int) -> CSPLayer:
            return CSPLayer(cin, cout, config.neck_depth, add=False, attention=False)

        self.reduce_layers = nn.ModuleList([ConvModule(high, mid, 1), ConvModule(mid, low, 1)])
        self.top_down_blocks = nn.ModuleList([layer(2 * mid, mid), layer(2 * low, low)])
        self.downsamples = nn.ModuleList([ConvModule(low, low, 3, stride=2), ConvModule(mid, mid, 3, stride=2)])
        self.bottom_up_blocks = nn.ModuleList([layer(2 * low, mid), layer(2 * mid, high)])
        self.out_convs = nn.ModuleList(ConvModule(c, config.neck_channels, 3) for c in (low, mid, high))

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        c3, c4, c5 = levels
        r5 = self.reduce_layers[0](c5)
        p4 = self.top_down_blocks[0](torch.cat([F.interpolate(r5, scale_factor=2.0, mode="nearest"), c4], 1))
        r4 = self.reduce_layers[1](p4)
        p3 = self.top_down_blocks[1](torch.cat([F.interpolate(r4, scale_factor=2.0, mode="nearest"), c3], 1))
        n4 = self.bottom_up_blocks[0](torch.cat([self.downsamples[0](p3), r4], 1))
        n5 = self.bottom_up_blocks[1](torch.cat([self.downsamples[1](n4), r5], 1))
        return [conv(x) for conv, x in zip(self.out_convs, (p3, n4, n5), strict=True)]


class Head(nn.Module):
    """Class logits and side distances for every level; the file repeats shared weights for each level."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        width = config.neck_channels

        def stack() -> nn.Sequential:
            return nn.Sequential(*(ConvModule(width, width, 3) for _ in range(config.stacked)))

        self.cls_convs = nn.ModuleList(stack() for _ in STRIDES)
        self.reg_convs = nn.ModuleList(stack() for _ in STRIDES)
        self.rtm_cls = nn.ModuleList(nn.Conv2d(width, config.channels, 1) for _ in STRIDES)
        self.rtm_reg = nn.ModuleList(nn.Conv2d(width, 4, 1) for _ in STRIDES)

    def forward(self, levels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, distances = [], []
        for i, (x, stride) in enumerate(zip(levels, STRIDES, strict=True)):
            logits.append(self.rtm_cls[i](self.cls_convs[i](x)))
            distances.append(self.rtm_reg[i](self.reg_convs[i](x)).exp() * stride)
        return logits, distances


class Detector(nn.Module):
    """Normalised BGR (B, 3, H, W) to class logits (B, classes, h, w) and distances (B, 4, h, w) a level.

    Distances are pixels of the input from a level's points to left, top, right and bottom.
    """

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.neck = Neck(config)
        self.bbox_head = Head(config)

    def forward(self, images_B3HW: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        out: tuple[list[Tensor], list[Tensor]] = self.bbox_head(self.neck(self.backbone(images_B3HW)))
        return out


def load_detector(
    uri: str,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    storage: Storage | None = None,
) -> Detector:
    """Load an RTMDet checkpoint of any width and depth, both read from its tensors; float32 on the CPU by default.

    Tensors beside backbone, neck and head are left out. Raises CheckpointError naming file and tensor.
    """
    weights = read_weights(local_copy(uri, storage))
    tensors = weights.tensors
    if not is_detector(tensors):
        raise CheckpointError(f"{uri}: not a person detector; expected an RTMDet checkpoint; use it for another task")
    with torch.device("meta"):
        detector = Detector(read_detector_config(uri, weights))
    counter = torch.zeros((), dtype=torch.int64)  # of training steps; not used
    state = {
        name: tensors.get(name, counter).to(
            device or "cpu", (dtype or torch.float32) if wanted.is_floating_point() else wanted.dtype, copy=True
        )
        for name, wanted in detector.state_dict().items()
    }
    detector.requires_grad_(False).load_state_dict(state, strict=True, assign=True)
    return detector.eval()


def is_detector(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether these are an RTMDet detector's tensors."""
    return any(name.startswith("bbox_head.") for name in tensors)


def read_detector_config(uri: str, weights: Weights) -> DetectorConfig:
    """Return width and depth as the tensors have them; every tensor's presence and shape is checked.

    The size of the input leaves no trace in the tensors: it is what our own metadata says, else as released.
    """
    tensors = weights.tensors
    try:
        config = _with_input(uri, _read_config(tensors), weights.metadata)
    except KeyError as err:
        raise CheckpointError(f"{uri}: missing tensor {err.args[0]}; expected an RTMDet person detector") from None
    with torch.device("meta"):
        expected = Detector(config).state_dict()
    for name, wanted in expected.items():
        if name not in tensors and not name.endswith(_COUNTER):
            raise CheckpointError(f"{uri}: missing tensor {name}; expected all of a detector's tensors; copy it again")
        if name in tensors and tensors[name].shape != wanted.shape:
            raise CheckpointError(
                f"{uri}: tensor {name} has shape {tuple(tensors[name].shape)}; expected {tuple(wanted.shape)}"
            )
    return config


def _with_input(uri: str, config: DetectorConfig, metadata: Mapping[str, str]) -> DetectorConfig:
    if CONFIG_KEY not in metadata:
        return config
    try:
        height, width = json.loads(metadata[CONFIG_KEY])["input_hw"]
        return dataclasses.replace(config, input_hw=(int(height), int(width)))
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{uri}: metadata {CONFIG_KEY} does not give input_hw; write the file again") from None


def _read_config(tensors: Mapping[str, Tensor]) -> DetectorConfig:
    def width(name: str) -> int:
        return tensors[f"{name}.conv.weight"].shape[0]

    def count(pattern: str) -> int:
        found = [int(m[1]) for n in tensors if (m := re.match(pattern, n))]
        return max(found, default=-1) + 1

    depths = [count(rf"backbone\.stage{i}\.{2 if i == 4 else 1}\.blocks\.(\d+)\.") for i in range(1, 5)]
    return DetectorConfig(
        stem=(width("backbone.stem.0"), width("backbone.stem.1"), width("backbone.stem.2")),
        stages=(
            width("backbone.stage1.0"),
            width("backbone.stage2.0"),
            width("backbone.stage3.0"),
            width("backbone.stage4.0"),
        ),
        depths=(depths[0], depths[1], depths[2], depths[3]),
        neck_depth=count(r"neck\.top_down_blocks\.0\.blocks\.(\d+)\."),
        neck_channels=width("neck.out_convs.0"),
        stacked=count(r"bbox_head\.cls_convs\.0\.(\d+)\."),
        channels=tensors["bbox_head.rtm_cls.0.weight"].shape[0],
    )
