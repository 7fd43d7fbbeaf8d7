"""Checkpoints to models: what a file's tensors say, what must be told, and loading.

Architecture and task are read from the tensors. What they can't tell comes, in this order, from the
arguments, from our own safetensors metadata, or from the table of released models by width and task.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from annotator.errors import CheckpointError
from annotator.models.cache import file_digest, local_copy
from annotator.models.config import CONFIG_KEY, CheckpointInfo, DetectorConfig, ModelConfig
from annotator.models.formats import Weights, read_weights
from annotator.models.model import Model, head_names
from annotator.models.rtmdet import Detector, is_detector, load_detector, read_detector_config
from annotator.models.vit import resize_positions
from annotator.models.zoo import DETECTOR_LICENCE, LICENCE, RANDOM_LICENCE, SIZES, TASK_FACTS, find_checkpoint

if TYPE_CHECKING:
    from annotator.storage import Storage

RANDOM_KEY = "random"  # safetensors metadata: "true" for weights that were never trained
LICENCE_KEY = "licence"  # safetensors metadata: of weights that are not Meta's
NULL_KEY = "null"  # safetensors metadata: "true" for a model that a bench makes cost nothing
_POSITIONS = "backbone.pos_embed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """What the caller says about a checkpoint; None where the file or the table shall say."""

    task: str | None = None
    num_heads: int | None = None
    patch_padding: int | None = None
    input_size: tuple[int, int] | None = None


def load_model(
    uri: str,
    *,
    task: str | None = None,
    num_heads: int | None = None,
    patch_padding: int | None = None,
    input_size: tuple[int, int] | None = None,
    size: str | None = None,
    keypoints: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    storage: Storage | None = None,
) -> Model:
    """Load a checkpoint into a model that is ready for inference; float32 on the CPU unless told otherwise.

    uri         a .pth, .safetensors, TorchScript or torch.export file, local or s3://; or, with `task`, `size`
                and for pose `keypoints`, a sapiens_host or sapiens_lite_host folder
    input_size  (height, width); the position table is resized to it when the file holds another

    The result has `.config`; its forward takes normalised RGB (B, 3, H, W) and gives the raw head output.
    Weights are mapped and copied tensor by tensor: memory holds the model once.
    Raises CheckpointError naming the file, what was found, what was expected and what to do.
    """
    uri = _resolve(uri, task, size, keypoints, storage)
    weights = read_weights(local_copy(uri, storage))
    if _is_for_people(uri, weights, task):
        raise CheckpointError(f"{uri}: a person detector; expected a Sapiens model; load it with load_detector")
    given = Given(task=task, num_heads=num_heads, patch_padding=patch_padding, input_size=input_size)
    tensors, config = understand(uri, weights, given)
    with torch.device("meta"):
        model = Model(config)
    state = {
        name: tensor.to(device=device or "cpu", dtype=dtype or torch.float32, copy=True)
        for name, tensor in tensors.items()
    }
    model.requires_grad_(False).load_state_dict(state, strict=True, assign=True)
    model.is_null = weights.metadata.get(NULL_KEY) == "true"
    return model.eval()


def load_network(uri: str, *, task: str, storage: Storage | None = None, **given: Any) -> Model | Detector:
    """Load the network of a task, ready for inference: load_detector for person, else load_model."""
    if task == "person":
        return load_detector(uri, storage=storage)
    return load_model(uri, task=task, storage=storage, **given)


def inspect_checkpoint(
    uri: str,
    *,
    task: str | None = None,
    num_heads: int | None = None,
    patch_padding: int | None = None,
    input_size: tuple[int, int] | None = None,
    size: str | None = None,
    keypoints: int | None = None,
    storage: Storage | None = None,
) -> CheckpointInfo:
    """Return what a checkpoint holds, and its digest, without building the model; arguments as `load_model`."""
    uri = _resolve(uri, task, size, keypoints, storage)
    path = local_copy(uri, storage)
    weights = read_weights(path)
    config: ModelConfig | DetectorConfig
    detects = _is_for_people(uri, weights, task)
    if detects:
        config = read_detector_config(uri, weights)
    else:
        given = Given(task=task, num_heads=num_heads, patch_padding=patch_padding, input_size=input_size)
        _, config = understand(uri, weights, given)
    random = weights.metadata.get(RANDOM_KEY) == "true"
    licence = weights.metadata.get(LICENCE_KEY, DETECTOR_LICENCE if detects else LICENCE)
    dtypes = Counter(t.dtype for t in weights.tensors.values())
    return CheckpointInfo(
        uri=uri,
        format=weights.format,
        bytes=path.stat().st_size,
        sha256=file_digest(uri, storage),
        config=config,
        dtype=str(dtypes.most_common(1)[0][0]).removeprefix("torch."),
        random=random,
        licence=RANDOM_LICENCE if random else licence,
    )


def _is_for_people(uri: str, weights: Weights, task: str | None) -> bool:
    """Return whether the checkpoint is a person detector's, held against the task that it is asked for."""
    found = is_detector(weights.tensors)
    if found and task not in (None, "person"):
        raise CheckpointError(f"{uri}: a person detector; expected a model for {task}; use it for the person task")
    if task == "person" and not found:
        raise CheckpointError(f"{uri}: not a person detector; expected an RTMDet checkpoint; use it for another task")
    return found


def _resolve(uri: str, task: str | None, size: str | None, keypoints: int | None, storage: Storage | None) -> str:
    if size is None:
        return uri
    if task is None:
        raise CheckpointError(f"{uri}: a size without a task; pass task as well, such as task='seg'")
    return find_checkpoint(uri, task=task, size=size, keypoints=keypoints, storage=storage)


def understand(uri: str, weights: Weights, given: Given) -> tuple[dict[str, Tensor], ModelConfig]:
    """Return the tensors under released names with the position table fitted, and the config they make.

    Raises CheckpointError when something must be told, when arguments contradict the file, and for missing,
    unknown or wrongly shaped tensors.
    """
    tensors = _released_names(uri, weights.tensors)
    stored = _stored_config(uri, weights.metadata)
    config, table_hw = _make_config(uri, tensors, stored, given)
    tensors[_POSITIONS] = resize_positions(tensors[_POSITIONS], table_hw, config.grid_hw)
    _check_tensors(uri, tensors, config)
    return tensors, config


def _released_names(uri: str, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give bare backbones their prefix, and leave out what pre-training files hold beside the backbone."""
    if any(re.match(r"(backbone\.)?blocks\.0\.attn\.wq\.", n) for n in raw):
        raise CheckpointError(f"{uri}: a Sapiens2 checkpoint; expected Sapiens (v1); use a v1 checkpoint")
    tensors = dict(raw) if any(n.startswith("backbone.") for n in raw) else {f"backbone.{n}": t for n, t in raw.items()}
    if "backbone.patch_embed.projection.weight" not in tensors:
        some = ", ".join(sorted(raw)[:3])
        raise CheckpointError(
            f"{uri}: no tensor backbone.patch_embed.projection.weight; found {some}, ...; expected a Sapiens checkpoint"
        )
    if tensors.pop("backbone.cls_token", None) is not None:  # a pre-training file (fact sheet 1.3)
        tensors = {n: t for n, t in tensors.items() if not n.startswith("neck.")}
        if _POSITIONS in tensors:
            tensors[_POSITIONS] = tensors[_POSITIONS][:, 1:]
    return tensors


def _stored_config(uri: str, metadata: Mapping[str, str]) -> ModelConfig | None:
    if CONFIG_KEY not in metadata:
        return None
    try:
        data = json.loads(metadata[CONFIG_KEY])
    except ValueError:
        raise CheckpointError(f"{uri}: safetensors metadata {CONFIG_KEY} is not JSON; write the file again") from None
    return ModelConfig.from_dict(data)


def _make_config(
    uri: str, tensors: Mapping[str, Tensor], stored: ModelConfig | None, given: Given
) -> tuple[ModelConfig, tuple[int, int]]:
    """Return the config, and rows and columns of the position table in the file."""
    patch = tensors["backbone.patch_embed.projection.weight"]
    embed_dim, patch_size = patch.shape[0], patch.shape[-1]
    layers = [int(m[1]) for n in tensors if (m := re.match(r"backbone\.layers\.(\d+)\.", n))]
    task = _task(uri, tensors, stored, given.task)
    ffn = tensors.get("backbone.layers.0.ffn.layers.0.0.weight")
    table_hw = _table_hw(uri, tensors, stored, given.input_size, patch_size)
    released = next((s for s in SIZES.values() if s.embed_dim == embed_dim), None)
    num_heads = _told(
        uri, "num_heads", given.num_heads, stored and stored.num_heads, released and released.num_heads, embed_dim
    )
    padding = _told(
        uri,
        "patch_padding",
        given.patch_padding,
        stored and stored.patch_padding,
        TASK_FACTS[task].patch_padding if released else None,
        embed_dim,
    )
    head, last = head_names(task) if task else ("", "")
    table_input = (table_hw[0] * patch_size, table_hw[1] * patch_size)
    config = ModelConfig(
        task=task,
        embed_dim=embed_dim,
        num_layers=max(layers, default=-1) + 1,
        num_heads=num_heads,
        ffn_dim=4 * embed_dim if ffn is None else ffn.shape[0],
        patch_padding=padding,
        input_hw=given.input_size or (stored.input_hw if stored else table_input),
        channels=tensors[f"{head}.{last}.weight"].shape[0] if task else embed_dim,
        deconv_channels=_widths(tensors, f"{head}.deconv_layers", 1),
        conv_channels=_widths(tensors, f"{head}.conv_layers", 0),
        patch_size=patch_size,
    )
    return config, table_hw


def _widths(tensors: Mapping[str, Tensor], prefix: str, axis: int) -> tuple[int, ...]:
    found = {
        int(m[1]): t.shape[axis] for n, t in tensors.items() if (m := re.fullmatch(rf"{prefix}\.(\d+)\.weight", n))
    }
    return tuple(found[i] for i in sorted(found))


def _told(uri: str, name: str, given: Any, stored: Any, released: Any, embed_dim: int) -> int:
    if given is not None and stored is not None and given != stored:
        raise CheckpointError(f"{uri}: {name} is {stored} by the file's metadata, not {given}; leave {name} out")
    value = next((v for v in (given, stored, released) if v is not None), None)
    if value is None:
        widths = ", ".join(str(s.embed_dim) for s in SIZES.values())
        raise CheckpointError(
            f"{uri}: tensors don't tell {name}, and width {embed_dim} is none of the released {widths}; pass {name}"
        )
    return int(value)


def _task(uri: str, tensors: Mapping[str, Tensor], stored: ModelConfig | None, given: str | None) -> str | None:
    """Return the task by the names and channels of the last layer (fact sheet 7), held against what is asked for."""
    found: str | None = None
    channels = 0
    if "head.final_layer.weight" in tensors:
        found = "pose"
    elif "decode_head.conv_seg.weight" in tensors:
        channels = tensors["decode_head.conv_seg.weight"].shape[0]
        named = stored.task if stored else {28: "seg", 3: "normal", 1: "depth"}.get(channels)
        found = named or given
        if found is None:
            raise CheckpointError(
                f"{uri}: a dense head of {channels} channels; 28 would be seg, 3 normal, 1 depth; pass task"
            )
    if given is not None and given != found:
        what = f"for {found}" if found else "a bare backbone without a head"
        raise CheckpointError(f"{uri}: the checkpoint is {what}; expected one for {given}; use another file or task")
    if found == "pose" or found is None or channels in TASK_FACTS[found].channels or (found == "seg" and channels > 1):
        return found
    raise CheckpointError(f"{uri}: a head of {channels} channels can't be for {found}; pass another task")


def _table_hw(
    uri: str,
    tensors: Mapping[str, Tensor],
    stored: ModelConfig | None,
    input_size: tuple[int, int] | None,
    patch_size: int,
) -> tuple[int, int]:
    """Return rows and columns of the file's position table.

    Every released task model is laid out 4 high to 3 wide and pre-training square (fact sheet 1.1), and no
    row count fits both; other layouts must be told.
    """
    if _POSITIONS not in tensors:
        raise CheckpointError(f"{uri}: missing tensor {_POSITIONS}; expected all of a model's tensors; copy it again")
    rows = tensors[_POSITIONS].shape[1]
    told = [s for s in (stored.input_hw if stored else None, input_size) if s is not None]
    for height, width in told:
        if (height // patch_size) * (width // patch_size) == rows:
            return height // patch_size, width // patch_size
    side, unit = isqrt(rows), isqrt(rows // 12)
    if rows and side * side == rows:
        return side, side
    if rows and 12 * unit * unit == rows:
        return 4 * unit, 3 * unit
    raise CheckpointError(
        f"{uri}: {_POSITIONS} has {rows} rows, which is neither square nor 4:3; pass input_size (height, width)"
    )


def _check_tensors(uri: str, tensors: Mapping[str, Tensor], config: ModelConfig) -> None:
    with torch.device("meta"):
        expected = {n: tuple(t.shape) for n, t in Model(config).state_dict().items()}
    if missing := sorted(set(expected) - set(tensors)):
        raise CheckpointError(f"{uri}: missing {_some(missing)}; expected all of a model's tensors; copy it again")
    if unknown := sorted(set(tensors) - set(expected)):
        raise CheckpointError(
            f"{uri}: unknown {_some(unknown)}; expected the tensors of a Sapiens {config.task or 'backbone'} model only"
        )
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise CheckpointError(
                f"{uri}: tensor {name} has shape {tuple(tensors[name].shape)}; expected {shape} for {config.task} of "
                f"width {config.embed_dim}; the file mixes models or is damaged"
            )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"tensor{'s' if len(names) > 1 else ''} {', '.join(names[:5])}{more}"
