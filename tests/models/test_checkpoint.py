"""What a checkpoint says of itself, what it can't say, and how it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from annotator.errors import CheckpointError
from annotator.models.checkpoint import inspect_checkpoint, load_model
from annotator.models.config import CONFIG_KEY, ModelConfig
from tests.models.support import noise, run, save_pth, tiny, tiny_state

TOLD: dict[str, Any] = {"num_heads": 2, "patch_padding": 0}


@pytest.mark.parametrize(
    ("task", "channels", "padding", "output_hw"),
    [("seg", 28, 0, (32, 24)), ("depth", 1, 0, (64, 48)), ("normal", 3, 2, (32, 24)), ("pose", 308, 2, (16, 12))],
)
def test_our_own_files_say_all_that_is_needed(
    task: str, channels: int, padding: int, output_hw: tuple[int, int], tmp_path: Path
) -> None:
    info = tiny(tmp_path / "x.safetensors", task)
    config = load_model(info.uri, task=task).config
    assert config == info.config
    assert (config.task, config.channels, config.patch_padding) == (task, channels, padding)
    assert (config.embed_dim, config.num_layers, config.num_heads, config.ffn_dim) == (16, 2, 2, 64)
    assert config.input_hw == (64, 48) and config.output_hw == output_hw
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_task_and_architecture_are_read_from_tensors_whatever_the_name(tmp_path: Path) -> None:
    uri = save_pth(tmp_path / "sapiens_2b_render_people_epoch_25.pth", tiny_state(tmp_path, "normal", num_layers=3))
    config = inspect_checkpoint(uri, num_heads=2, patch_padding=2).config
    assert (config.task, config.embed_dim, config.num_layers) == ("normal", 16, 3)
    assert (config.deconv_channels, config.conv_channels) == ((16, 16, 16), (16, 16, 16))


@pytest.mark.parametrize("left_out", ["num_heads", "patch_padding"])
def test_what_tensors_do_not_tell_must_be_told(left_out: str, tmp_path: Path) -> None:
    uri = save_pth(tmp_path / "x.pth", tiny_state(tmp_path))
    told = {k: v for k, v in TOLD.items() if k != left_out}
    with pytest.raises(CheckpointError, match=f"x.pth: tensors don't tell {left_out}.*pass {left_out}"):
        load_model(uri, **told)


def test_released_widths_bring_their_heads_and_padding(tmp_path: Path) -> None:
    """Width 1024 is 0.3b: 16 heads; normal models pad their patches by 2. One layer is enough to read that."""
    tensors = tiny_state(tmp_path, "normal", embed_dim=1024, num_layers=1, num_heads=16, head_channels=8)
    config = inspect_checkpoint(save_pth(tmp_path / "x.pth", tensors)).config
    assert (config.num_heads, config.patch_padding) == (16, 2)
    assert inspect_checkpoint(str(tmp_path / "x.pth"), patch_padding=0).config.patch_padding == 0


@pytest.mark.parametrize(
    ("task", "input_hw", "told", "found"),
    [
        ("seg", (64, 48), None, (64, 48)),  # 12 rows: 4 x 3
        ("seg", (128, 96), None, (128, 96)),  # 48 rows: 8 x 6
        (None, (64, 64), None, (64, 64)),  # square, as pre-training
        ("seg", (48, 64), (48, 64), (48, 64)),  # landscape must be told, else 12 rows are 4 x 3
        ("seg", (32, 16), (32, 16), (32, 16)),
    ],
)
def test_input_size_follows_from_the_position_table_or_is_told(
    task: str | None, input_hw: tuple[int, int], told: tuple[int, int] | None, found: tuple[int, int], tmp_path: Path
) -> None:
    uri = save_pth(tmp_path / "x.pth", tiny_state(tmp_path, task, input_hw=input_hw))
    assert inspect_checkpoint(uri, input_size=told, **TOLD).config.input_hw == found


def test_odd_position_table_asks_for_the_input_size(tmp_path: Path) -> None:
    uri = save_pth(tmp_path / "x.pth", tiny_state(tmp_path, input_hw=(32, 16)))
    with pytest.raises(CheckpointError, match=r"pos_embed has 2 rows.*pass input_size"):
        load_model(uri, **TOLD)


def test_another_input_size_resizes_the_position_table(tmp_path: Path) -> None:
    """Resized when loaded, or on the way through: the same numbers."""
    info = tiny(tmp_path / "x.safetensors")
    images = noise(1, 3, 128, 96)
    resized = load_model(info.uri, input_size=(128, 96))
    assert resized.config.input_hw == (128, 96) and resized.backbone.pos_embed.shape[1] == 48
    torch.testing.assert_close(run(resized, images), run(load_model(info.uri), images), atol=1e-6, rtol=1e-6)


def test_arguments_may_not_contradict_the_files_own_metadata(tmp_path: Path) -> None:
    info = tiny(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="patch_padding is 0 by the file's metadata, not 2"):
        load_model(info.uri, patch_padding=2)
    with pytest.raises(CheckpointError, match="num_heads is 2 by the file's metadata, not 4"):
        load_model(info.uri, num_heads=4)


@pytest.mark.parametrize("found, asked", [("seg", "depth"), ("normal", "seg"), ("pose", "seg"), (None, "seg")])
def test_checkpoint_of_another_task_is_refused(found: str | None, asked: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"expected one for {asked}"):
        load_model(tiny(tmp_path / "x.safetensors", found).uri, task=asked)


def test_dense_head_of_unusual_channels_needs_the_task(tmp_path: Path) -> None:
    uri = save_pth(tmp_path / "foreground.pth", tiny_state(tmp_path, channels=2))
    with pytest.raises(CheckpointError, match=r"a dense head of 2 channels.*pass task"):
        load_model(uri, **TOLD)
    assert load_model(uri, task="seg", **TOLD).config.channels == 2
    with pytest.raises(CheckpointError, match="a head of 2 channels can't be for depth"):
        load_model(uri, task="depth", **TOLD)


def test_missing_unknown_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    tensors = tiny_state(tmp_path)
    lacking = {n: t for n, t in tensors.items() if n != "backbone.layers.1.ffn.layers.1.bias"}
    with pytest.raises(CheckpointError, match=r"missing tensor backbone\.layers\.1\.ffn\.layers\.1\.bias;"):
        load_model(save_pth(tmp_path / "a.pth", lacking), **TOLD)
    extra = tensors | {"backbone.layers.1.gamma": torch.zeros(16)}
    with pytest.raises(CheckpointError, match=r"unknown tensor backbone\.layers\.1\.gamma;"):
        load_model(save_pth(tmp_path / "b.pth", extra), **TOLD)
    wrong = tensors | {"backbone.ln1.weight": torch.zeros(15)}
    with pytest.raises(CheckpointError, match=r"backbone\.ln1\.weight has shape \(15,\); expected \(16,\)"):
        load_model(save_pth(tmp_path / "c.pth", wrong), **TOLD)
    gone = {n: t for n, t in tensors.items() if "pos_embed" not in n}
    with pytest.raises(CheckpointError, match=r"missing tensor backbone\.pos_embed"):
        load_model(save_pth(tmp_path / "d.pth", gone), **TOLD)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bbox_head.rtm_cls.0.weight", "a person detector"),
        ("backbone.blocks.0.attn.wq.weight", "a Sapiens2 checkpoint"),
        ("fc.weight", "expected a Sapiens checkpoint"),
    ],
)
def test_other_models_are_named_for_what_they_are(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_model(save_pth(tmp_path / "x.pth", {name: torch.zeros(1)}), task="seg")


def test_models_come_in_float32_unless_told_otherwise(tmp_path: Path) -> None:
    half = {n: t.bfloat16() for n, t in tiny_state(tmp_path).items()}
    uri = save_pth(tmp_path / "x.pth", half)
    assert {p.dtype for p in load_model(uri, **TOLD).parameters()} == {torch.float32}
    assert {p.dtype for p in load_model(uri, dtype=torch.bfloat16, **TOLD).parameters()} == {torch.bfloat16}
    assert inspect_checkpoint(uri, **TOLD).dtype == "bfloat16"


def test_loaded_models_are_for_inference_only(tmp_path: Path) -> None:
    model = load_model(tiny(tmp_path / "x.safetensors").uri)
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_missing_files_and_folders_say_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_model(str(tmp_path / "none.pth"))
    with pytest.raises(CheckpointError, match=r"is a folder.*task and size"):
        load_model(str(tmp_path))
    with pytest.raises(CheckpointError, match="pass task as well"):
        load_model(str(tmp_path), size="1b")


def test_metadata_of_a_later_version_is_refused_by_name(tmp_path: Path) -> None:
    config = tiny(tmp_path / "x.safetensors").config.to_dict() | {"registers": 8}
    uri = str(tmp_path / "y.safetensors")
    tensors = {n: t.clone() for n, t in tiny_state(tmp_path).items()}
    save_file(tensors, uri, metadata={CONFIG_KEY: json.dumps(config)})
    with pytest.raises(CheckpointError, match="unknown keys registers"):
        load_model(uri)
    save_file(tensors, uri, metadata={CONFIG_KEY: "{"})
    with pytest.raises(CheckpointError, match="is not JSON"):
        load_model(uri)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3}, "must divide the width 16"),
        ({"patch_padding": 1}, "expected 0 or 2"),
        ({"input_hw": (60, 48)}, "multiples of 16"),
        ({"task": "albedo"}, "expected one of seg, depth"),
    ],
)
def test_impossible_configs_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    good = tiny(tmp_path / "x.safetensors").config.to_dict()
    with pytest.raises(CheckpointError, match=message):
        ModelConfig.from_dict(good | change)
    del good["embed_dim"]
    with pytest.raises(CheckpointError, match=r"incomplete.*embed_dim"):
        ModelConfig.from_dict(good)
