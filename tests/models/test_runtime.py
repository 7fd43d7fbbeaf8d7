"""Running form: precision, padded heads and compilation leave the function as it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from annotator.models.checkpoint import load_model
from annotator.models.heads import InstanceNorm
from annotator.models.runtime import normalise, pad_heads, pick_device, prepare
from tests.models.support import noise, run, tiny


def test_importing_the_package_loads_no_torch() -> None:
    code = (
        "import sys, annotator.models, annotator.models.config, annotator.models.zoo;"
        "from annotator.models import list_checkpoints, ModelConfig;"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_padding_the_attention_heads_keeps_the_function(tmp_path: Path) -> None:
    """Width 20 over 4 heads: head size 5 becomes 8, as 60 becomes 64 in the 2b models."""
    info = tiny(tmp_path / "x.safetensors", embed_dim=20, num_heads=4)
    plain, padded = load_model(info.uri), load_model(info.uri)
    pad_heads(padded)
    assert padded.get_submodule("backbone.layers.0.attn.qkv").weight.shape == (3 * 4 * 8, 20)
    images = noise(2, 3, 64, 48)
    torch.testing.assert_close(run(padded, images), run(plain, images), atol=1e-5, rtol=1e-5)


def test_head_sizes_that_fit_are_left_alone(tmp_path: Path) -> None:
    model = load_model(tiny(tmp_path / "x.safetensors").uri)
    before = model.state_dict()
    pad_heads(model)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_instance_norm_keeps_its_statistics_in_float32() -> None:
    """A mean of 300 with a spread of 1: bfloat16 statistics would lose the spread altogether."""
    x = (noise(1, 2, 64, 64) + 300).bfloat16()
    expected = F.instance_norm(x.float(), eps=1e-5)
    torch.testing.assert_close(InstanceNorm()(x).float(), expected, atol=0.01, rtol=0.01)


def test_bfloat16_stays_near_float32(tmp_path: Path) -> None:
    info = tiny(tmp_path / "x.safetensors", embed_dim=32)
    images = noise(2, 3, 64, 48)
    exact = run(load_model(info.uri), images)
    model = prepare(load_model(info.uri), dtype=torch.bfloat16, device=torch.device("cpu"))
    close = run(model, images.bfloat16())
    assert close.dtype == torch.bfloat16
    assert (close.float() - exact).abs().mean() < 0.02 * exact.abs().mean()


def test_prepare_defaults_to_float32_and_no_compilation_on_a_cpu(tmp_path: Path) -> None:
    model = load_model(tiny(tmp_path / "x.safetensors").uri)
    images = noise(1, 3, 64, 48)
    before = run(model, images)
    ready = prepare(model, device=torch.device("cpu"))
    assert ready is model and ready.config.task == "seg"
    assert torch.equal(run(ready, images), before)


def test_normalise_gives_the_asked_dtype_in_network_order() -> None:
    images = torch.tensor([124, 116, 104], dtype=torch.uint8).expand(2, 4, 6, 3)
    out = normalise(images, torch.bfloat16)
    assert out.dtype == torch.bfloat16 and out.shape == (2, 3, 4, 6)
    assert out.abs().max() < 0.01
    assert images.dtype == torch.uint8


def test_pick_device_takes_the_gpu_where_there_is_one() -> None:
    assert pick_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("compile", ["off", "auto"])
def test_gpu_in_bfloat16_agrees_with_the_cpu(compile: str, tmp_path: Path) -> None:
    info = tiny(tmp_path / "x.safetensors", embed_dim=80, num_heads=4)
    images = noise(2, 3, 64, 48)
    exact = run(load_model(info.uri), images)
    model = prepare(load_model(info.uri), device=torch.device("cuda"), compile="off" if compile == "off" else "auto")
    close = run(model, images.cuda().bfloat16()).float().cpu()
    assert (close - exact).abs().mean() < 0.02 * exact.abs().mean()
