"""Floating point operations of one forward pass, counted as the roofline sheet counts them: two a multiply-add.

Convolutions and products of matrices, attention's among them; norms and activations, under 1 %, are left out.
"""

from __future__ import annotations

from annotator.models.config import ModelConfig
from annotator.models.zoo import SIZES, TASK_FACTS

PEAK_TFLOPS = 790.0
"""Dense bfloat16 products of 8192 x 8192 random matrices on an H100 SXM or H200, measured (roofline sheet)."""


def released_config(task: str, size: str) -> ModelConfig:
    """Return what a released model is."""
    facts, shape = TASK_FACTS[task], SIZES[size]
    return ModelConfig(
        task=task,
        embed_dim=shape.embed_dim,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        ffn_dim=4 * shape.embed_dim,
        patch_padding=facts.patch_padding,
        input_hw=facts.input_hw,
        channels=facts.channels[0],
        deconv_channels=facts.deconv_channels,
        conv_channels=facts.conv_channels,
    )


def forward_tflop(config: ModelConfig) -> float:
    """Return the operations of one image through backbone and head, in 1e12."""
    rows, columns = config.grid_hw
    tokens, width = rows * columns, config.embed_dim
    patches = tokens * 3 * config.patch_size**2 * width
    linear = config.num_layers * tokens * (4 * width**2 + 2 * width * config.ffn_dim)
    attention = config.num_layers * 2 * tokens**2 * width
    return 2 * (patches + linear + attention + _head(config)) / 1e12


def _head(config: ModelConfig) -> int:
    """Return the multiply-adds of the head; a transposed 4x4 convolution of stride 2 has 4 taps an output pixel."""
    if config.task is None:
        return 0
    pixels, channels, total = config.grid_hw[0] * config.grid_hw[1], config.embed_dim, 0
    for out in config.deconv_channels:
        pixels *= 4
        total += pixels * 4 * channels * out
        channels = out
    for out in (*config.conv_channels, config.channels):
        total += pixels * channels * out
        channels = out
    return total
