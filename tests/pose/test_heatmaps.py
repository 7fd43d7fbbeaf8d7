"""Heatmaps to points: equal to the original code, to a float64 reference everywhere, and to the truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from annotator.models import heatmaps
from annotator.models.heatmaps import locate
from tests.pose import reference
from tests.pose.support import gaussians, golden

WELL_POSED = 1e-6  # of the Hessian's determinant: below it, the step is the ratio of two rounding errors


def _golden_maps(data: dict[str, np.ndarray]) -> torch.Tensor:
    maps = np.zeros((6, 256, 192), np.float32)
    side = data["windows"].shape[1]
    for k, (y, x) in enumerate(data["corners_yx"]):
        maps[k, y : y + side, x : x + side] = data["windows"][k]
    maps[5][maps[5] == 0] = maps[5].min()  # negative everywhere
    return torch.from_numpy(maps)


def test_points_and_scores_are_those_of_the_original_code() -> None:
    """Noisy Gaussians, two of them cut off by a corner; the last map is negative, so its keypoint is missing."""
    data = golden()
    points_BK2, scores_BK = locate(_golden_maps(data)[None])
    input_points = points_BK2[0].numpy() * [768 / 191, 1024 / 255]
    np.testing.assert_allclose(input_points[:5], data["input_points"][:5], atol=2e-4)
    np.testing.assert_array_equal(scores_BK[0, :5].numpy(), data["scores"][:5])
    assert np.isnan(input_points[5]).all()
    assert scores_BK[0, 5] == 0


@settings(max_examples=50)
@given(
    places=st.lists(st.tuples(st.floats(12, 180), st.floats(12, 244)), min_size=1, max_size=5),
    height=st.floats(0.05, 1.5),
)
def test_a_gaussian_is_found_where_it_is(places: list[tuple[float, float]], height: float) -> None:
    """To a hundredth of a heatmap pixel, two sigma and more from the border."""
    truth = np.array(places)
    points_BK2, _ = locate(torch.from_numpy(gaussians((256, 192), truth, height=height))[None])
    assert np.abs(points_BK2[0].numpy() - truth).max() < 0.01


@st.composite
def any_map(draw: st.DrawFn) -> np.ndarray:
    """A map of any size: a bump anywhere (or outside), with noise, shifted and scaled to provoke every limit."""
    h, w = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    place = np.array([[draw(st.floats(-3, w + 2)), draw(st.floats(-3, h + 2))]])
    bump = gaussians((h, w), place, sigma=draw(st.sampled_from([0.7, 2.0, 6.0, 30.0])))[0]
    noise = draw(st.sampled_from([0.0, 0.001, 0.1, 3.0])) * rng.standard_normal((h, w))
    scale = draw(st.sampled_from([1e-4, 2e-3, 0.01, 1.0, 40.0, 70.0, 1000.0]))
    shift = draw(st.sampled_from([0.0, 0.0, 0.5, -0.5, -0.89, -2.0]))
    return np.asarray(scale * (bump + noise + shift), np.float32)


@settings(max_examples=300)
@given(any_map())
def test_any_map_decodes_as_in_the_float64_reference(heatmap: np.ndarray) -> None:
    point, score, determinant = reference.decode(heatmap)
    points_BK2, scores_BK = locate(torch.from_numpy(heatmap)[None, None])
    assert scores_BK.item() == score
    if score == 0:
        assert points_BK2.isnan().all()
    elif determinant > WELL_POSED:
        np.testing.assert_allclose(points_BK2[0, 0].numpy(), point, atol=1e-3)


@pytest.mark.parametrize("value", [1e-5, 0.3, 60.0])
def test_a_flat_map_points_to_its_first_pixel(value: float) -> None:
    """All pixels tie; whatever the refinement, it stays within the pixel: nothing is left of a step."""
    points_BK2, scores_BK = locate(torch.full((1, 1, 40, 30), value))
    expected, score, _ = reference.decode(np.full((40, 30), value, np.float32))
    np.testing.assert_allclose(points_BK2[0, 0].numpy(), expected, atol=1e-3)
    assert scores_BK.item() == pytest.approx(score)


def test_a_plateau_that_needs_no_step_is_not_moved() -> None:
    """13 x 13 equal values round the first of them that has equal neighbours: gradient and Hessian are 0."""
    heatmap = np.zeros((40, 30), np.float32)
    heatmap[5:25, 5:25] = 0.5
    heatmap[15, 15] = np.nextafter(np.float32(0.5), np.float32(1))
    points_BK2, _ = locate(torch.from_numpy(heatmap)[None, None])
    np.testing.assert_allclose(points_BK2[0, 0].numpy(), [15, 15], atol=0.6)


@pytest.mark.parametrize("corner", [(0, 0), (0, 39), (29, 0), (29, 39), (15, 0), (0, 20)])
@pytest.mark.parametrize("sigma", [1.0, 6.0])
def test_a_peak_on_the_border_is_refined_as_in_the_reference(corner: tuple[int, int], sigma: float) -> None:
    """The blur sees zeros beyond the border, the log map its own edge."""
    heatmap = gaussians((40, 30), np.array([corner]), sigma=sigma)[0]
    points_BK2, _ = locate(torch.from_numpy(heatmap)[None, None])
    np.testing.assert_allclose(points_BK2[0, 0].numpy(), reference.decode(heatmap)[0], atol=1e-5)


def test_of_equal_peaks_the_first_counts() -> None:
    heatmap = np.zeros((20, 20), np.float32)
    heatmap[4, 9] = heatmap[4, 12] = heatmap[9, 1] = 1
    points_BK2, _ = locate(torch.from_numpy(heatmap)[None, None])
    np.testing.assert_allclose(points_BK2[0, 0].numpy(), reference.decode(heatmap)[0], atol=1e-5)
    assert abs(points_BK2[0, 0, 0] - 9) < 2


def test_a_person_is_decoded_the_same_in_any_company() -> None:
    maps = torch.rand(3, 17, 32, 24, generator=torch.Generator().manual_seed(0)) - 0.3
    together, scores = locate(maps)
    for i in range(3):
        alone, score = locate(maps[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-9, equal_nan=True)
        torch.testing.assert_close(score[0], scores[i], rtol=0, atol=0)


def test_half_precision_maps_are_decoded_in_float() -> None:
    maps = torch.from_numpy(gaussians((64, 48), np.array([[20.3, 30.6]])))[None].bfloat16()
    torch.testing.assert_close(locate(maps)[0], locate(maps.float())[0], rtol=0, atol=0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_output_that_is_not_finite_gives_no_score_that_is(bad: float) -> None:
    maps = torch.from_numpy(gaussians((32, 24), np.array([[10.0, 10.0], [12.0, 20.0]])))[None].clone()
    maps[0, 0, 30, 2] = bad
    points_BK2, scores_BK = locate(maps)
    assert not scores_BK[0, 0].isfinite()
    assert points_BK2[0, 1].isfinite().all()


@settings(max_examples=20)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 99))
def test_the_blurred_maximum_is_the_same_by_matrix_products(height: int, width: int, seed: int) -> None:
    """How it is found on a GPU, where cv2 does it on a CPU."""
    maps = np.random.default_rng(seed).standard_normal((3, height, width)).astype(np.float32)
    expected = [reference.blur(m).max() for m in maps]
    np.testing.assert_allclose(heatmaps._blurred_max(torch.from_numpy(maps)), expected, atol=1e-6)


@pytest.mark.gpu
def test_the_gpu_gives_the_points_of_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(2, 40, 256, 192, generator=generator) * torch.logspace(-4, 2, 40)[:, None, None] - 0.01
    expected, found = locate(maps), locate(maps.cuda())
    torch.testing.assert_close(found[0].cpu(), expected[0], atol=1e-3, rtol=0, equal_nan=True)
    torch.testing.assert_close(found[1].cpu(), expected[1], atol=0, rtol=0)
