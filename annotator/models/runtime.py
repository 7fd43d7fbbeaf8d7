"""How a loaded model runs: device, precision, memory layout, compilation, and the input's normalisation.

Why compile on CUDA only by default (2026-11): on a CPU the compiler's minutes buy little, and small test
models would pay them on every start.
"""

from __future__ import annotations

import contextlib
import functools
import os
from typing import Literal, TypeVar

import torch
from torch import Tensor
from torch.nn import Module

from annotator.errors import CheckpointError
from annotator.models.cache import cache_folder
from annotator.models.vit import Attention

M = TypeVar("M", bound=Module)

MEAN_RGB = (123.675, 116.28, 103.53)  # fact sheet 3, the full pipeline, which the weights were trained with
STD_RGB = (58.395, 57.12, 57.375)  # the same
HEAD_MULTIPLE = 8  # cuDNN attention needs head sizes that are multiples of 8 (roofline sheet)


def pick_device() -> torch.device:
    """Return the GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def prepare(
    model: M,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    compile: Literal["auto", "off", "max"] = "auto",
) -> M:
    """Make a model ready to run on a device, in place, and return it.

    dtype defaults to bfloat16 on CUDA and float32 elsewhere. On CUDA the head's weights become
    channels-last, and in reduced precision attention heads are padded to a multiple of 8. `compile`:
    "auto" compiles on CUDA, "max" everywhere and with kernels chosen by timing; both want one static
    shape, and another one compiles anew. float32 on CUDA means float32: TF32 is turned off.
    """
    device = pick_device() if device is None else device
    on_cuda = device.type == "cuda"
    dtype = dtype or (torch.bfloat16 if on_cuda else torch.float32)
    model.to(device=device, dtype=dtype).eval().requires_grad_(False)
    if on_cuda:
        if dtype == torch.float32:
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cuda.matmul.allow_tf32 = False
        else:
            pad_heads(model)
        for name in ("head", "decode_head"):
            for weight in getattr(model, name, Module()).parameters():
                if weight.ndim == 4:
                    weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    compile_model(model, device=device, mode=compile)
    return model


def compile_model(model: Module, *, device: torch.device, mode: Literal["auto", "off", "max"]) -> None:
    """Have a model compiled when it first runs: "auto" on CUDA, "max" everywhere and with kernels chosen by timing.

    What is compiled is kept on this machine, beside the checkpoints, so that the next process starts fast.
    """
    if mode == "off" or (mode == "auto" and device.type != "cuda"):
        return
    with contextlib.suppress(CheckpointError):  # without a cache folder each process compiles for itself
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder("compiled")))
    for switch in ("TORCHINDUCTOR_FX_GRAPH_CACHE", "TORCHINDUCTOR_AUTOGRAD_CACHE"):
        os.environ.setdefault(switch, "1")  # torch's own default in most versions
    model.compile(fullgraph=True, dynamic=False, mode="max-autotune-no-cudagraphs" if mode == "max" else None)


def pad_heads(model: Module) -> None:
    """Pad the attention heads to a size that fast kernels take (60 to 64 in the 2b model); same function."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.pad_heads(HEAD_MULTIPLE)


def normalise(images_BHW3: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn uint8 RGB into the network's input on the same device: (B, H, W, 3) -> (B, 3, H, W), contiguous.

    (x - mean) / std in float32 on the 0..255 scale, then cast to dtype (fact sheet 3).
    """
    mean, std = _constants(images_BHW3.device)
    planes = images_BHW3.permute(0, 3, 1, 2).contiguous().float()
    return planes.sub_(mean).div_(std).to(dtype)


@functools.lru_cache(maxsize=16)
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    shape = (1, 3, 1, 1)
    return (
        torch.tensor(MEAN_RGB, device=device).reshape(shape),
        torch.tensor(STD_RGB, device=device).reshape(shape),
    )


def run(model: Module, images_BHW3: Tensor) -> Tensor:
    """Return the model's raw output, float32, for uint8 RGB on its device: (B, H, W, 3) -> (B, C, h, w)."""
    output: Tensor = model(normalise(images_BHW3, next(model.parameters()).dtype))
    return output.float()
