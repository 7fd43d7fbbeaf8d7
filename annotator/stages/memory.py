"""A GPU's memory: what of it a worker may take, and what to say when that is not enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

_COUNTED = 0.95
"""Of a share that is handed out: what CUDA itself takes in each process is not counted."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a device, all and those that nobody has taken, and its name; zeros where there is no GPU."""

    name: str
    total: int
    free: int


def keep_to_share(device: torch.device, share: float) -> None:
    """Have this process take no more of a GPU than its share, so that the workers beside it find theirs.

    Without it the first to start would take what is free, and the next would find too little.
    """
    if device.type == "cuda" and share < 1:
        torch.cuda.set_per_process_memory_fraction(_COUNTED * share)


def memory(device: torch.device) -> Memory:
    """Return what there is of a device's memory."""
    if device.type != "cuda":
        return Memory("the CPU", 0, 0)
    free, total = torch.cuda.mem_get_info(device)
    return Memory(torch.cuda.get_device_name(device), total, free)


def free_bytes(device: torch.device, share: float) -> int:
    """Return the bytes that a worker with this share of a GPU may still take."""
    free, total = torch.cuda.mem_get_info(device)
    if share >= 1:
        return free
    return max(0, min(free, int(_COUNTED * share * total) - torch.cuda.memory_allocated(device)))


def too_large(dtypes: Mapping[str, str], share: float, found: Memory) -> str:
    """Return that the models of these tasks, in these precisions, don't fit, and what can be changed."""
    tasks = list(dtypes)
    names = f"{', '.join(tasks[:-1])} and {tasks[-1]} together" if tasks[1:] else tasks[0]
    room = f"{found.name}: {found.total / 1e9:.1f} GB, {found.free / 1e9:.1f} GB of them free"
    if share < 1:
        room += f", {share:g} of it for a worker"
    ways = ["take smaller checkpoints"]
    if tasks[1:]:
        ways.insert(0, "label fewer tasks at once: further jobs with the same output add theirs")
    if "float32" in dtypes.values():
        ways.append("set dtype: bfloat16, in an output that was not begun with float32")
    if share < 1:
        ways.append(f"set gpus_per_worker above {share:g}, so that fewer share a GPU")
    ways.append("use GPUs with more memory")
    return (
        f"the GPU's memory does not hold the models of {names} and one image, even with batch_size: 1 ({room}); "
        f"{', or '.join(ways)}"
    )
