"""Our models give the numbers that the original modules gave for the same weights and input."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from annotator.models.checkpoint import load_model
from annotator.models.heads import ConvHead
from annotator.models.runtime import normalise
from annotator.models.vit import resize_positions
from tests.models.support import GOLDENS, assert_close, golden, run, save_pth, state


@pytest.mark.parametrize("padding", [0, 2])
def test_backbone_equals_the_reference_with_either_patch_padding(padding: int, tmp_path: Path) -> None:
    fixture = golden("backbone")
    model = load_model(save_pth(tmp_path / "b.pth", state(fixture)), num_heads=4, patch_padding=padding)
    assert_close(run(model, fixture["input"]), fixture[f"output_pad{padding}"])


def test_patch_paddings_give_different_features() -> None:
    """The trap of the fact sheet: a wrong padding loads without a word, so the two must be told apart."""
    fixture = golden("backbone")
    assert (fixture["output_pad0"] - fixture["output_pad2"]).abs().max() > 0.1


def test_pretraining_position_table_is_resized_as_the_reference_does(tmp_path: Path) -> None:
    """17 rows = a class token and 4 x 4; bicubic to 4 x 3."""
    fixture = golden("backbone")
    tensors = state(fixture) | {"pos_embed": fixture["pretrain_pos_embed"], "cls_token": torch.zeros(1, 1, 64)}
    uri = save_pth(tmp_path / "pretrain_clean.pth", tensors)
    model = load_model(uri, num_heads=4, patch_padding=2, input_size=(64, 48))
    assert_close(model.backbone.pos_embed, fixture["resized_pos_embed"])
    square = load_model(uri, num_heads=4, patch_padding=2)
    assert square.config.input_hw == (64, 64)
    resized = resize_positions(square.backbone.pos_embed, (4, 4), (4, 3))
    assert_close(resized, fixture["resized_pos_embed"])


def test_whole_seg_model_equals_the_reference(tmp_path: Path) -> None:
    fixture = golden("tasks")
    model = load_model(save_pth(tmp_path / "seg.pth", state(fixture)), num_heads=4, patch_padding=0)
    assert (model.config.task, model.config.channels, model.config.input_hw) == ("seg", 28, (64, 48))
    output = run(model, fixture["input"])
    assert tuple(output.shape[2:]) == model.config.output_hw == (32, 24)
    assert_close(output[:, :, ::2, ::2], fixture["seg_output"])


def test_whole_pose_model_equals_the_reference_from_a_file_with_mmengine_metadata() -> None:
    fixture = golden("tasks")
    model = load_model(str(GOLDENS / "pose17_configdict.pth"), num_heads=4, patch_padding=2)
    assert (model.config.task, model.config.channels) == ("pose", 17)
    assert_close(run(model, fixture["input"]), fixture["pose17_output"])


@pytest.mark.parametrize(
    ("name", "deconv", "conv", "channels", "last", "step"),
    [
        ("depth", (20,) * 4, (20,) * 2, 1, "conv_seg", 1),
        ("normal", (24,) * 3, (24,) * 3, 3, "conv_seg", 1),
        ("pose308", (24,) * 2, (24,) * 2, 308, "final_layer", 7),
    ],
)
def test_heads_equal_the_reference(
    name: str, deconv: tuple[int, ...], conv: tuple[int, ...], channels: int, last: str, step: int
) -> None:
    fixture = golden("heads")
    head = ConvHead(64, deconv, conv, channels, last)
    head.load_state_dict(state(fixture, f"{name}.sd."), strict=True)
    with torch.inference_mode():
        output = head(fixture[f"{name}.features"])[:, ::step]
    assert_close(output, fixture[f"{name}.output"])


def test_normalised_image_equals_the_reference() -> None:
    fixture = golden("tasks")
    ours = normalise(fixture["image_rgb_YXC"][None], torch.float32)
    assert torch.equal(ours[0], fixture["normalised"])
    assert ours.is_contiguous()


def test_batch_rows_do_not_influence_each_other(tmp_path: Path) -> None:
    fixture = golden("tasks")
    model = load_model(save_pth(tmp_path / "seg.pth", state(fixture)), num_heads=4, patch_padding=0)
    one = run(model, fixture["input"])
    three = run(model, torch.cat([fixture["input"], -fixture["input"], fixture["input"]]))
    assert_close(three[2:], one)
    assert_close(three[:1], one)


@pytest.mark.parametrize("input_hw", [(64, 48), (96, 48), (32, 80), (16, 16)])
def test_any_multiple_of_16_is_taken_without_reloading(input_hw: tuple[int, int], tmp_path: Path) -> None:
    fixture = golden("backbone")
    model = load_model(save_pth(tmp_path / "b.pth", state(fixture)), num_heads=4, patch_padding=0)
    assert run(model, torch.zeros(1, 3, *input_hw)).shape == (1, 64, input_hw[0] // 16, input_hw[1] // 16)


def test_other_input_sizes_are_refused(tmp_path: Path) -> None:
    model = load_model(save_pth(tmp_path / "b.pth", state(golden("backbone"))), num_heads=4, patch_padding=0)
    with pytest.raises(ValueError, match="65x48; height and width must be multiples of 16"):
        model(torch.zeros(1, 3, 65, 48))
