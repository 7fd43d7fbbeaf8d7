"""Sizes of labels, and the reference's way from the head's output to them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from annotator import geometry
from annotator.geometry import Geometry, LabelSize, cap, mask_to, resize_to_label, stretch

SIDE = st.integers(1, 20_000)


@pytest.mark.parametrize(
    ("image_yx", "label_size", "max_label_pixels", "expected"),
    [
        ((100, 83), "image", 2**21, (100, 83)),
        ((100, 83), "image", 8300, (100, 83)),  # exactly at the limit
        ((4000, 3000), "image", 2**21, (1672, 1254)),  # scale .4180
        ((1, 10_000_000), "image", 2**21, (1, 2**21)),  # the short side can't shrink below one pixel
        ((4000, 3000), "input", 5, (64, 48)),  # the limit is for labels of the image's size
        ((4000, 3000), "head", 5, (32, 24)),
    ],
)
def test_label_size(
    image_yx: tuple[int, int], label_size: LabelSize, max_label_pixels: int, expected: tuple[int, int]
) -> None:
    geometry = Geometry(image_yx, (64, 48), label_size, max_label_pixels)
    assert geometry.label_yx((32, 24)) == expected


@given(SIDE, SIDE, st.integers(1, 2**22))
def test_cap_keeps_the_limit_and_the_aspect(height: int, width: int, max_pixels: int) -> None:
    y, x = cap((height, width), max_pixels)
    assert y >= 1 and x >= 1 and y * x <= max_pixels
    if height * width <= max_pixels:
        assert (y, x) == (height, width)
    elif min(y, x) > 1:
        scale = (max_pixels / (height * width)) ** 0.5
        assert abs(y - height * scale) < 1 and abs(x - width * scale) < 1


def test_stretch_fills_the_input_and_keeps_no_aspect() -> None:
    pixels = np.zeros((10, 40, 3), np.uint8)
    pixels[:, 20:] = 200
    out = stretch(pixels, (64, 48))
    assert out.shape == (64, 48, 3) and out.dtype == np.uint8
    assert (out[:, :23] == 0).all() and (out[:, 25:] == 200).all()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_resizing_keeps_a_ramp_a_ramp(head_h: int, head_w: int, y: int, x: int) -> None:
    """A map of x positions, as shares of the width, is the same map at any size, apart from the border."""
    ramp = ((torch.arange(head_w) + 0.5) / head_w).expand(1, head_h, head_w)
    label = resize_to_label(ramp, Geometry((y, x), (64, 48)))
    assert label.shape == (1, y, x) and label.dtype == torch.float32
    expected = (torch.arange(x) + 0.5) / x
    inner = (expected > 0.5 / head_w) & (expected < 1 - 0.5 / head_w)
    assert torch.allclose(label[0, :, inner], expected[inner].expand(y, -1), atol=0.5 / 48 + 1e-5)


def test_reduced_precision_is_resized_in_float32() -> None:
    output = torch.randn(3, 32, 24, generator=torch.Generator().manual_seed(0)).bfloat16()
    geometry = Geometry((100, 83), (64, 48))
    assert torch.equal(resize_to_label(output, geometry), resize_to_label(output.float(), geometry))


def test_mask_moves_to_another_size_by_its_pixel_centres() -> None:
    mask = np.array([[0, 1], [2, 3]], np.uint8)
    np.testing.assert_array_equal(mask_to(mask, (4, 4)), np.kron(mask, np.ones((2, 2), np.uint8)))
    np.testing.assert_array_equal(mask_to(mask_to(mask, (6, 6)), (2, 2)), mask)
    assert mask_to(mask, (2, 2)) is mask


def test_stretch_works_a_size_out_once_and_keeps_it_no_longer_than_the_image() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    first = stretch(pixels, (64, 48))
    assert stretch(pixels, (64, 48)) is first
    assert stretch(pixels, (32, 48)).shape == (32, 48, 3)
    kept = len(geometry._STRETCHED)
    del pixels
    assert len(geometry._STRETCHED) == kept - 1
