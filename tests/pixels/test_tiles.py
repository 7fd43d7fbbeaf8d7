"""Maps are worked out in parts: the parts don't show, and large labels take little memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from annotator.dense import DenseOptions
from annotator.geometry import Geometry, resize_to_label
from annotator.tasks import seg

OPTIONS = DenseOptions(checkpoint="none")


@settings(max_examples=40)
@given(
    channels=st.integers(2, 31),
    head_hw=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    image_yx=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    at_once=st.integers(1, 5000),
    seed=st.integers(0, 2**32 - 1),
)
def test_groups_of_classes_give_what_all_at_once_give(
    channels: int, head_hw: tuple[int, int], image_yx: tuple[int, int], at_once: int, seed: int
) -> None:
    logits_CHW = 5 * torch.randn(channels, *head_hw, generator=torch.Generator().manual_seed(seed))
    geometry = Geometry(image_yx, (32, 24))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seg, "_NUMBERS_AT_ONCE", at_once)
        parts = seg.decode(logits_CHW, geometry, OPTIONS)
        patch.setattr(seg, "_NUMBERS_AT_ONCE", 2**40)
        patch.setattr(seg, "_GROUPS", 1)
        whole = seg.decode(logits_CHW, geometry, OPTIONS)
    assert torch.equal(parts["mask"], whole["mask"])
    assert torch.equal(parts["class_pixels"], whole["class_pixels"])
    torch.testing.assert_close(parts["confidence"], whole["confidence"], rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize(("label_yx", "most"), [((64, 48), 7), ((3464, 3464), 1)])
def test_logits_of_all_classes_never_exist_at_the_size_of_the_label(
    label_yx: tuple[int, int], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """28 classes go by sevens at most, one by one at 12 megapixels."""
    groups = []

    def resize(output_CHW: torch.Tensor, geometry: Geometry) -> torch.Tensor:
        groups.append(len(output_CHW))
        return resize_to_label(output_CHW, geometry)

    monkeypatch.setattr("annotator.tasks.seg.resize_to_label", resize)
    monkeypatch.setattr("annotator.tasks.seg._NUMBERS_AT_ONCE", seg._NUMBERS_AT_ONCE // 2**10)  # quick: sides by 32
    side_yx = (label_yx[0] // 32, label_yx[1] // 32)
    seg.decode(torch.zeros(28, 32, 24), Geometry(side_yx, (64, 48)), OPTIONS)
    assert max(groups) == most
    assert sum(groups) == 28


# On a CPU the peak of a process stands for that of a device: the same tensors, each alive as long.
_PEAK = """
import torch
from annotator.geometry import Geometry
from annotator.stages.times import peak_memory
from annotator.tasks import load_task

task = load_task("{task}")
options = task.options(checkpoint="none")
output_BChw = torch.randn(1, {channels}, *{head_hw})


def decode(side):
    with torch.inference_mode():
        task.decode(output_BChw, [Geometry((side, side), (1024, 768), max_label_pixels=side * side)], options)


decode(64)  # what libraries take once
before = peak_memory()
decode(3464)  # 12 megapixels
print(peak_memory() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "channels", "head_hw"), [("seg", 28, (512, 384)), ("depth", 1, (1024, 768)), ("normal", 3, (512, 384))]
)
def test_a_label_of_12_megapixels_takes_less_than_a_gigabyte(
    task: str, channels: int, head_hw: tuple[int, int]
) -> None:
    code = _PEAK.format(task=task, channels=channels, head_hw=head_hw)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    taken = int(done.stdout)
    print(f"{task}: {taken / 1e6:.0f} MB")
    assert 12_000_000 < taken < 1_000_000_000


def test_normals_of_a_head_sized_label_leave_the_network_output_as_it_is() -> None:
    """Nothing is resized then, so what is done in place must be done to a copy."""
    from annotator.tasks import normal

    output_CHW = torch.randn(3, 6, 5)
    before = output_CHW.clone()
    found = normal.decode(output_CHW, Geometry((6, 5), (48, 40), "head"), normal.NormalOptions(checkpoint="none"))
    assert torch.equal(output_CHW, before)
    assert found["normal"].numpy().dtype == np.uint8 and found["normal"].is_contiguous()
