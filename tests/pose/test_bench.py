"""The decode bench compares what it says it compares."""

from __future__ import annotations

import json

import numpy as np

from annotator.bench.decode import bench_decode, make_heatmaps, reference_decode
from tests.pose import reference


def test_the_bench_measures_both_and_they_agree() -> None:
    result = bench_decode(people=2, keypoints=17, absent=0.5, repeats=1)
    assert result.same
    assert result.ours_s > 0 < result.reference_s
    assert json.loads(json.dumps(result.to_dict()))["keypoints"] == 17
    assert "times faster" in result.table()


def test_what_the_bench_compares_with_is_the_reference_algorithm() -> None:
    maps = make_heatmaps(1, 6, absent=0.3)[0].numpy()
    points, scores = reference_decode(maps)
    expected = [reference.decode(m) for m in maps]
    np.testing.assert_allclose(points, [point for point, _, _ in expected], atol=1e-2)
    np.testing.assert_allclose(scores, [score for _, score, _ in expected])
