"""The released files are known by name and place, and random ones can be made of any shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from annotator.errors import CheckpointError
from annotator.models.checkpoint import inspect_checkpoint, load_model
from annotator.models.config import ModelConfig
from annotator.models.model import Model
from annotator.models.random_weights import random_checkpoint
from annotator.models.zoo import SIZES, TASK_FACTS, find_checkpoint, list_checkpoints
from tests.models.support import noise, run, tiny

HOST = {
    "detector/checkpoints/rtmpose/rtmdet_m_8xb32-100e_coco-obj365-person-235e8209.pth": ("person", None, None, "pth"),
    "pretrain/checkpoints/sapiens_0.3b/sapiens_0.3b_epoch_1600_clean.pth": ("pretrain", "0.3b", None, "pth"),
    "pose/checkpoints/sapiens_1b/sapiens_1b_goliath_best_goliath_AP_639.pth": ("pose", "1b", 308, "pth"),
    "pose/checkpoints/sapiens_1b/sapiens_1b_coco_wholebody_best_coco_wholebody_AP_727.pth": ("pose", "1b", 133, "pth"),
    "pose/checkpoints/sapiens_1b/sapiens_1b_coco_best_coco_AP_821.pth": ("pose", "1b", 17, "pth"),
    "seg/checkpoints/sapiens_1b/sapiens_1b_goliath_best_goliath_mIoU_7994_epoch_151.pth": ("seg", "1b", None, "pth"),
    "depth/checkpoints/sapiens_2b/sapiens_2b_render_people_epoch_25.pth": ("depth", "2b", None, "pth"),
    "normal/checkpoints/sapiens_0.6b/sapiens_0.6b_normal_render_people_epoch_200.pth": ("normal", "0.6b", None, "pth"),
    "torchscript/seg/checkpoints/sapiens_2b/sapiens_2b_goliath_best_goliath_mIoU_8131_epoch_200_torchscript.pt2": (
        "seg",
        "2b",
        None,
        "torchscript",
    ),
    "bfloat16/seg/checkpoints/sapiens_1b/sapiens_1b_goliath_best_goliath_mIoU_7994_epoch_151_bfloat16.pt2": (
        "seg",
        "1b",
        None,
        "torch-export",
    ),
    "torchscript/seg/checkpoints/sapiens_1b/sapiens_1b_seg_foreground_epoch_8_torchscript.pt2": (
        "foreground",
        "1b",
        None,
        "torchscript",
    ),
}


@pytest.fixture
def host(tmp_path: Path) -> str:
    for i, name in enumerate([*HOST, "pose/person_detection_results/COCO_val2017.json", "seg/notes.txt"]):
        path = tmp_path / "host" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * i)
    return str(tmp_path / "host")


def test_listing_tells_task_size_keypoints_format_and_bytes(host: str) -> None:
    found = {Path(e.uri).relative_to(host).as_posix(): e for e in list_checkpoints(host)}
    assert {n: (e.task, e.size, e.keypoints, e.format) for n, e in found.items()} == HOST
    assert [found[n].bytes for n in HOST] == list(range(len(HOST)))


def test_checkpoint_is_found_by_task_and_size_and_float32_comes_first(host: str) -> None:
    assert find_checkpoint(host, task="seg", size="1b").endswith("mIoU_7994_epoch_151.pth")
    assert find_checkpoint(host, task="seg", size="2b").endswith("_torchscript.pt2")
    assert find_checkpoint(host, task="pose", size="1b", keypoints=133).endswith("AP_727.pth")


def test_what_is_not_there_or_not_clear_is_said(host: str) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint for depth 1b; there is depth 2b, .*pose 1b 17"):
        find_checkpoint(host, task="depth", size="1b")
    with pytest.raises(CheckpointError, match="pass keypoints, one of 17, 133, 308"):
        find_checkpoint(host, task="pose", size="1b")
    older = Path(host, "pose/checkpoints/sapiens_1b/sapiens_1b_goliath_best_goliath_AP_640.pth")
    older.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"several files for pose 1b with 308 keypoints: .*AP_639.*AP_640"):
        find_checkpoint(host, task="pose", size="1b", keypoints=308)
    with pytest.raises(CheckpointError, match="no such folder"):
        list_checkpoints(host + "/nothing")
    with pytest.raises(CheckpointError, match="there is no checkpoint at all"):
        find_checkpoint(host + "/pose/person_detection_results", task="seg", size="1b")


def test_model_loads_by_folder_task_and_size(tmp_path: Path) -> None:
    path = tmp_path / "seg/checkpoints/sapiens_0.3b/sapiens_0.3b_goliath_best_goliath_mIoU_7673_epoch_194.safetensors"
    info = tiny(path)
    assert load_model(str(tmp_path), task="seg", size="0.3b").config == info.config
    assert inspect_checkpoint(str(tmp_path), task="seg", size="0.3b").uri == str(path)


# Fact sheet 2.1 (whole models) and 1.1 (backbones without a class token).
PARAMETERS: dict[str, list[tuple[str | None, int, int]]] = {  # task, channels, parameters
    "0.3b": [
        ("pose", 17, 329_458_961),
        ("pose", 133, 329_548_165),
        ("pose", 308, 329_682_740),
        ("seg", 28, 339_495_196),
        ("normal", 3, 339_475_971),
        ("depth", 1, 319_910_017),
        (None, 1024, 306_244_608),
    ],
    "0.6b": [
        ("pose", 17, 660_957_201),
        ("pose", 133, 661_046_405),
        ("pose", 308, 661_180_980),
        ("seg", 28, 670_993_436),
        ("normal", 3, 670_974_211),
        ("depth", 1, 649_835_393),
        (None, 1280, 634_597_120),
    ],
    "1b": [
        ("pose", 17, 1_168_669_457),
        ("pose", 133, 1_168_758_661),
        ("pose", 308, 1_168_893_236),
        ("seg", 28, 1_178_705_692),
        ("normal", 3, 1_178_686_467),
        ("depth", 1, 1_155_974_785),
        (None, 1536, 1_139_163_648),
    ],
    "2b": [
        ("pose", 17, 2_166_167_441),
        ("pose", 133, 2_166_256_645),
        ("pose", 308, 2_166_391_220),
        ("seg", 28, 2_176_203_676),
        ("normal", 3, 2_176_184_451),
        ("depth", 1, 2_151_113_473),
        (None, 1920, 2_131_943_040),
    ],
}


@pytest.mark.parametrize("size", SIZES)
def test_released_models_have_the_released_numbers_of_parameters(size: str) -> None:
    """Times 4 bytes these are the sizes of the released files, which confirms the layouts."""
    released = SIZES[size]
    for task, channels, expected in PARAMETERS[size]:
        facts = TASK_FACTS[task]
        config = ModelConfig(
            task=task,
            embed_dim=released.embed_dim,
            num_layers=released.num_layers,
            num_heads=released.num_heads,
            ffn_dim=4 * released.embed_dim,
            patch_padding=facts.patch_padding,
            input_hw=(1024, 768),
            channels=channels,
            deconv_channels=facts.deconv_channels,
            conv_channels=facts.conv_channels,
        )
        with torch.device("meta"):
            assert sum(p.numel() for p in Model(config).parameters()) == expected, (task, channels)


def test_random_checkpoints_repeat_by_seed_and_are_marked_for_good(tmp_path: Path) -> None:
    a, b, c = (tiny(tmp_path / f"{i}.safetensors", seed=s) for i, s in enumerate((7, 7, 8)))
    assert a.sha256 == b.sha256 != c.sha256
    assert a.random and a.licence == "none (random weights)" and a.format == "safetensors" and a.dtype == "float32"
    with safe_open(a.uri, framework="pt") as file:
        assert file.metadata()["random"] == "true"
    assert a.bytes == Path(a.uri).stat().st_size


@pytest.mark.parametrize("task", ["seg", "depth", "normal", "pose"])
def test_random_outputs_vary_over_the_image_and_with_it(task: str, tmp_path: Path) -> None:
    """Constant labels would hide mistakes, so even random models must look at their input."""
    model = load_model(tiny(tmp_path / "x.safetensors", task, embed_dim=32).uri)
    first, second = run(model, noise(2, 3, 64, 48))
    assert first.std(dim=(1, 2)).min() > 0.05
    assert (first - second).abs().mean() > 0.1 * first.abs().mean()
    assert 0.05 < first.abs().mean() < 20
    if task == "seg":
        assert first.argmax(0).unique().numel() > 5


def test_random_checkpoints_take_any_shape(tmp_path: Path) -> None:
    info = random_checkpoint(
        tmp_path / "deep" / "x.safetensors",
        task="pose",
        embed_dim=24,
        num_layers=3,
        num_heads=3,
        input_hw=(32, 64),
        seed=1,
        channels=17,
        patch_padding=0,
        head_channels=(8, 12),
    )
    config = info.config
    assert (config.deconv_channels, config.conv_channels, config.channels) == ((8, 8), (12, 12), 17)
    assert run(load_model(info.uri), noise(1, 3, 32, 64)).shape == (1, 17, 8, 16)


def test_random_weights_never_overwrite_real_ones(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tiny(path)
    tiny(path, seed=3)
    path.write_bytes(b"precious")
    with pytest.raises(CheckpointError, match="exists and isn't random weights"):
        tiny(path)
    assert path.read_bytes() == b"precious" and [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"task": "albedo"}, "no models for task 'albedo'"), ({"embed_dim": 18}, "multiple of 4")],
)
def test_impossible_random_checkpoints_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        tiny(tmp_path / "x.safetensors", **settings)
