"""Box to network input: equal to the original code, exact bilinear sampling, and nothing odd crashes it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotator import crop as crop_module
from annotator.crop import box_problem, clip_box, cut, make_crop
from tests.pose import reference
from tests.pose.support import golden

INPUT_HW = (1024, 768)


@pytest.mark.parametrize("case", [0, 1, 2])
def test_crops_are_those_of_the_original_code(case: int) -> None:
    """One grey level on at most 0.1 % of the numbers. Case 1 sticks out of its image, case 2 is wide."""
    data = golden()
    image = cv2.imdecode(data[f"image{case}_bgr_png"], cv2.IMREAD_COLOR)
    crop = make_crop(data[f"box{case}"], INPUT_HW)
    np.testing.assert_allclose(crop.centre_xy, data[f"centre{case}"], rtol=1e-6)
    np.testing.assert_allclose(crop.size_xy, data[f"scale{case}"], rtol=1e-6)
    apart = np.abs(cut(image, crop, image.shape[:2])[::16, ::16].astype(int) - data[f"crop{case}_bgr"])
    assert apart.max() <= 1
    assert np.mean(apart > 0) <= 0.001


boxes = st.tuples(st.floats(-60, 150), st.floats(-60, 150), st.floats(0.5, 300), st.floats(0.5, 300)).map(
    lambda b: np.array([b[0], b[1], b[0] + b[2], b[1] + b[3]], np.float32)
)


@settings(max_examples=40)
@given(box=boxes, size=st.tuples(st.integers(1, 90), st.integers(1, 90)), seed=st.integers(0, 99))
def test_a_crop_is_an_exact_bilinear_sample(box: np.ndarray, size: tuple[int, int], seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    input_hw = (64, 48)
    found = cut(image, make_crop(box, input_hw), size)
    np.testing.assert_allclose(found, reference.crop(image, box, input_hw), atol=0.55)


@settings(max_examples=25)
@given(box=boxes, seed=st.integers(0, 99))
def test_an_image_too_large_for_opencv_4_gives_the_same_crop(box: np.ndarray, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (70, 90, 3), np.uint8)
    crop = make_crop(box, (64, 48))
    found = crop_module._sample(image, crop.matrix, crop.input_hw)
    apart = np.abs(found.astype(int) - cut(image, crop, (70, 90)))
    assert apart.max() <= 1


def test_a_panorama_is_cropped_where_the_box_is() -> None:
    image = np.zeros((40, 40_000, 3), np.uint8)
    image[:, 35_000:35_030] = 255
    found = cut(image, make_crop(np.array([35_000, 0, 35_029, 39], np.float32), (64, 48)), (40, 40_000))
    assert found[32, 24].tolist() == [255, 255, 255]
    assert found[:, 0].max() == 0


@pytest.mark.parametrize(
    ("box", "problem"),
    [
        ([0, 0, 10, 10], None),
        ([-5, -5, 200, 200], None),
        ([9.5, 0, 30, 10], None),
        ([0, 0, np.nan, 10], "NaN"),
        ([0, 0, np.inf, 10], "NaN or infinity"),
        ([0, 0, 3e38, 10], "beyond any image"),
        ([10, 0, 5, 10], "no area"),
        ([5, 5, 5, 9], "no area"),
        ([1e-38, 1e-38, 2e-38, 2e-38], "no area"),
        ([-9, 0, 0, 10], "outside"),
        ([10, 0, 20, 10], "outside"),  # the image ends at 10
        ([0, 20, 5, 30], "outside"),
    ],
)
def test_a_box_of_no_use_is_told_from_one_that_sticks_out(box: list[float], problem: str | None) -> None:
    found = box_problem(np.array(box, np.float32), (20, 10))
    assert found is None if problem is None else problem in str(found)


@given(st.lists(st.floats(width=32), min_size=4, max_size=4))
def test_whatever_has_no_problem_can_be_cropped(box: list[float]) -> None:
    box_4 = np.array(box, np.float32)
    if box_problem(box_4, (20, 10)) is None:
        crop = make_crop(box_4, (32, 24))
        assert np.isfinite(crop.matrix).all()
        assert cut(np.full((20, 10, 3), 9, np.uint8), crop, (20, 10)).shape == (32, 24, 3)
        clipped = clip_box(box_4, (20, 10))
        assert 0 <= clipped[0] < clipped[2] <= 10
        assert 0 <= clipped[1] < clipped[3] <= 20


def test_a_picture_decoded_at_half_its_size_gives_nearly_the_same_crop() -> None:
    """A frame that was off by a pixel of the half picture would be off by 2.4 grey levels where it is steepest."""
    y, x = np.mgrid[:201, :300]
    image = np.stack([x * 0.8, y * 1.2, 250 - y], axis=2).astype(np.uint8)
    half = cv2.resize(image, (150, 101), interpolation=cv2.INTER_AREA)
    crop = make_crop(np.array([100, 60, 160, 130], np.float32), (256, 192))
    apart = np.abs(cut(image, crop, (201, 300)).astype(int) - cut(half, crop, (201, 300)))
    assert apart.max() <= 2
