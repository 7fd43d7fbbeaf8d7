"""The Sapiens v1 backbone: a plain pre-norm vision transformer (fact sheet 1.1).

Shapes: B samples, H W network-input pixels, P patches (row-major), D width, h w patch rows and columns.
Module names give the released state-dict names; nothing here knows about files.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from annotator.models.config import ModelConfig

NORM_EPS = 1e-6  # fact sheet 1.1; 1e-5 would move outputs by 3e-5


def resize_positions(table_1PD: Tensor, from_hw: tuple[int, int], to_hw: tuple[int, int]) -> Tensor:
    """Return the position table resized to another grid: bicubic, in float32 (fact sheet 1.3).

    Shapes: (1, P, D) -> (1, P', D), dtype kept.
    """
    if from_hw == to_hw:
        return table_1PD
    map_1Dhw = table_1PD.float().reshape(1, *from_hw, -1).permute(0, 3, 1, 2)
    map_1Dhw = F.interpolate(map_1Dhw, size=to_hw, mode="bicubic", align_corners=False)
    return map_1Dhw.flatten(2).transpose(1, 2).to(table_1PD.dtype)


class PatchEmbed(nn.Module):
    """Patches to tokens by one strided convolution: (B, 3, H, W) -> (B, D, h, w)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size = config.patch_size
        self.projection = nn.Conv2d(3, config.embed_dim, size, stride=size, padding=config.patch_padding)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        out: Tensor = self.projection(images_B3HW)
        return out


class Attention(nn.Module):
    """Full self-attention with one fused qkv projection: (B, P, D) -> (B, P, D)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, in_BPD: Tensor) -> Tensor:
        B, P, _ = in_BPD.shape
        q, k, v = self.qkv(in_BPD).reshape(B, P, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        x_BPD: Tensor = self.proj(out.transpose(1, 2).reshape(B, P, -1))
        return x_BPD

    def pad_heads(self, multiple: int) -> None:
        """Widen each head with zeros to a multiple, which fast kernels need; the function stays the same.

        Only for running: the weights' shapes are then no longer those of the checkpoint.
        """
        dim, heads = self.proj.weight.shape[0], self.num_heads
        size = self.proj.weight.shape[1] // heads
        extra = -size % multiple
        if not extra:
            return
        with torch.no_grad():
            qkv = F.pad(self.qkv.weight.view(3 * heads, size, dim), (0, 0, 0, extra)).reshape(-1, dim)
            bias = F.pad(self.qkv.bias.view(3 * heads, size), (0, extra)).reshape(-1)
            proj = F.pad(self.proj.weight.view(dim, heads, size), (0, extra)).reshape(dim, -1)
        self.qkv.weight, self.qkv.bias = nn.Parameter(qkv, False), nn.Parameter(bias, False)
        self.proj.weight = nn.Parameter(proj, False)


class FeedForward(nn.Module):
    """Linear, exact GELU, Linear: (B, P, D) -> (B, P, D)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Sequential(nn.Linear(dim, hidden), nn.GELU()), nn.Linear(hidden, dim))

    def forward(self, x_BPD: Tensor) -> Tensor:
        out: Tensor = self.layers(x_BPD)
        return out


class Block(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(config.embed_dim, eps=NORM_EPS)
        self.attn = Attention(config.embed_dim, config.num_heads)
        self.ln2 = nn.LayerNorm(config.embed_dim, eps=NORM_EPS)
        self.ffn = FeedForward(config.embed_dim, config.ffn_dim)

    def forward(self, x_BPD: Tensor) -> Tensor:
        x_BPD = x_BPD + self.attn(self.ln1(x_BPD))
        out: Tensor = x_BPD + self.ffn(self.ln2(x_BPD))
        return out


class VisionTransformer(nn.Module):
    """Normalised RGB to features: (B, 3, H, W) -> (B, D, H/16, W/16), any H and W that are multiples of 16."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.grid_hw = config.grid_hw
        self.patch_size = config.patch_size
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid_hw[0] * config.grid_hw[1], config.embed_dim))
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.ln1 = nn.LayerNorm(config.embed_dim, eps=NORM_EPS)  # the final norm; the name is the released one

    def forward(self, images_B3HW: Tensor) -> Tensor:
        H, W = images_B3HW.shape[2:]
        if H % self.patch_size or W % self.patch_size:
            raise ValueError(f"input is {H}x{W}; height and width must be multiples of {self.patch_size}")
        grid_hw = (H // self.patch_size, W // self.patch_size)
        x_BPD: Tensor = self.patch_embed(images_B3HW).flatten(2).transpose(1, 2)
        x_BPD = x_BPD + resize_positions(self.pos_embed, self.grid_hw, grid_hw)
        for layer in self.layers:
            x_BPD = layer(x_BPD)
        x_BPD = self.ln1(x_BPD)
        # A view in channels-last memory order, which is what the heads run fastest on.
        return x_BPD.reshape(x_BPD.shape[0], *grid_hw, x_BPD.shape[2]).permute(0, 3, 1, 2)
