"""The bench of drift compares what it says, and sees what moves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from annotator.bench.drift import Drifted, _depth, _normal, _seg, bench_drift, read_pictures, table
from annotator.bench.setup import make_jpeg
from annotator.errors import JobError


def test_bfloat16_stays_within_the_limit_of_every_dense_task() -> None:
    """And it is not float32 by another name: something moves."""
    found = bench_drift(("seg", "depth", "normal"), {}, model="tiny", images=2, image_wh=(80, 60), compiled=False)
    assert [(one.task, one.variant) for one in found] == [(t, "bfloat16") for t in ("seg", "depth", "normal")]
    assert all(one.ok and one.limit is not None and one.worst > 0 for one in found), table(found)
    assert found[0].measures["pixel agreement"] == pytest.approx(1 - found[0].worst, abs=0.05)


def test_scaled_decoding_is_measured_where_it_takes_place_and_not_judged() -> None:
    found = bench_drift(("seg",), {}, model="tiny", images=1, image_wh=(2100, 2060), compiled=False)
    fast = next(one for one in found if one.variant == "float32, decode: fast")
    assert 0 < fast.worst < 0.5
    assert fast.limit is None and fast.ok


def test_what_is_beyond_its_limit_is_not_ok() -> None:
    drifted = Drifted(task="seg", variant="x", measures={"mIoU": 0.5}, measure="share", worst=0.1, limit=0.05)
    assert not drifted.ok
    assert "| 0.05 | NO |" in table([drifted])


def test_measures_of_maps_that_differ_in_known_places() -> None:
    """One pixel of four differs: agreement 3/4; class 0 is 2 of 3 pixels, class 1 is 1 of 2."""
    found = _seg(np.array([[0, 0], [0, 1]]), np.array([[0, 0], [1, 1]]))
    assert found == pytest.approx({"pixel agreement": 0.75, "mIoU": (2 / 3 + 1 / 2) / 2})
    x, y = np.array([[[1.0, 0.0, 0.0]]]), np.array([[[0.0, 1.0, 0.0]]])
    assert _normal(x, y)["mean, degrees"] == pytest.approx(90)
    assert _depth(np.array([0.0, 4.0]), np.array([0.0, 3.0]))["mean, of the range"] == pytest.approx(1 / 8)


def test_pictures_of_a_folder_are_taken(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(make_jpeg((20, 10), seed=0))
    (tmp_path / "b.txt").write_text("no picture")
    assert len(read_pictures(str(tmp_path), 5)) == 1
    with pytest.raises(JobError, match=r"no \.jpg"):
        read_pictures(str(tmp_path / "empty"), 5)
