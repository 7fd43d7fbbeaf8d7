"""What a probe says of the rest is arithmetic, and so is how far off it was."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from annotator.estimate import Estimate, _t, mean_of, seconds_an_image
from annotator.forecast import (
    Actual,
    Forecast,
    Measured,
    Setting,
    compare,
    make_forecast,
    read_forecast,
    save_forecast,
)
from annotator.storage import Storage

VALUES = st.floats(0, 1e9)
GAPS = st.lists(st.floats(1e-4, 1e3), min_size=1, max_size=200)

SETTING = Setting(
    tasks={"seg": "a" * 8}, device="H100", workers=2, options={"gpus_per_worker": 1.0, "batch_size": "auto"}
)
MEASURED = Measured(
    done_s=tuple(0.5 * i for i in range(1, 65)),
    row_bytes=(900.0, 1100.0) * 32,
    file_bytes=5000,
    statuses={"seg": {"ok": 64}},
    errors={},
    start_s=30.0,
    device="H100",
    batch=4,
)


def forecast(measured: Measured = MEASURED, *, rows: int = 7200, shards: int = 60) -> Forecast:
    return make_forecast(measured, SETTING, made="2026-11-26", rows=rows, shards=shards, price_per_gpu_hour=3.5)


def actual(**changes: object) -> Actual:
    """What a run took that went exactly as foretold."""
    as_told = Actual(
        setting=SETTING, rows=7200, shards=60, worker_s=3600.0, bytes_out=7_500_000, price_per_gpu_hour=None
    )
    return replace(as_told, **changes)  # type: ignore[arg-type]


# -- estimates -------------------------------------------------------------------------------------


def _density(x: float, degrees: int) -> float:
    """Return the density of Student's t, by its definition."""
    norm = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - 0.5 * math.log(degrees * math.pi)
    return math.exp(norm - (degrees + 1) / 2 * math.log1p(x * x / degrees))


@pytest.mark.parametrize("degrees", [*range(1, 32), 40, 60, 120, 1000])
def test_the_quantiles_are_those_of_students_t(degrees: int) -> None:
    """95 % of the density lies between minus the quantile and the quantile."""
    x = np.linspace(0, _t(degrees), 4001)
    inside = 2 * np.trapezoid([_density(float(v), degrees) for v in x], x)
    assert inside == pytest.approx(0.95, abs=2e-4)


def test_an_interval_holds_the_mean_95_times_in_100() -> None:
    """2000 draws of 12: the count is binomial with a standard deviation of 10."""
    draws = np.random.default_rng(0).normal(100, 15, (2000, 12))
    assert sum(mean_of(draw.tolist()).holds(100) is True for draw in draws) == pytest.approx(1900, abs=35)


@given(st.lists(VALUES, min_size=1, max_size=100))
def test_a_mean_lies_in_its_interval_and_that_is_never_negative(values: list[float]) -> None:
    found = mean_of(values)
    if len(values) == 1:
        assert (found.low, found.high, found.holds(values[0])) == (None, None, None)
    else:
        assert found.low is not None and found.high is not None
        assert 0 <= found.low <= found.value <= found.high


@given(st.lists(VALUES, min_size=2, max_size=100), st.floats(0, 1e6), VALUES)
def test_scaling_and_adding_keep_what_the_interval_holds(values: list[float], factor: float, known: float) -> None:
    found = mean_of(values)
    made = found.scaled(factor).plus(known)
    assert made.holds(found.value * factor + known)
    assert made.value == found.value * factor + known


@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=100))
def test_the_inverse_holds_the_inverse_and_is_open_where_zero_is_not_excluded(values: list[float]) -> None:
    found = mean_of(values)
    rate = found.inverse()
    assert rate.holds(1 / found.value)
    assert (rate.high is None) == (found.low == 0)
    assert rate.low == pytest.approx(1 / found.high) if found.high is not None else rate.low is None


def test_an_estimate_outside_its_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="does not lie between"):
        Estimate(1.0, 2.0, 3.0)


# -- seconds an image ------------------------------------------------------------------------------


@given(GAPS, st.integers(1, 64))
def test_the_interval_takes_in_the_average_that_counts_the_filling_of_the_pipeline(
    gaps: list[float], batch: int
) -> None:
    done_s = np.cumsum(gaps).tolist()
    found = seconds_an_image(done_s, batch)
    assert found.value > 0
    assert (found.low is None) == (len(gaps) < 3 * max(batch, -(-len(gaps) // 16)))
    if found.low is None:
        assert found.value == pytest.approx(done_s[-1] / len(done_s))
    else:
        assert found.high is not None
        assert found.low <= done_s[-1] / len(done_s) <= found.high


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=100), st.randoms(use_true_random=False))
def test_the_order_in_which_images_are_told_does_not_matter(done_s: list[float], random: object) -> None:
    assume(max(done_s) > 0)
    mixed = list(done_s)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    assert seconds_an_image(mixed, 2) == seconds_an_image(done_s, 2)


def test_a_steady_device_is_told_exactly_whatever_the_filling_took() -> None:
    """Batches of 4 every 2 s after one that took 9: half a second an image; with the filling (9 + 15 * 2) / 64."""
    done_s = [9.0 + 2 * (i // 4) for i in range(64)]
    found = seconds_an_image(done_s, batch=4)
    assert found.value == pytest.approx(0.5)
    assert [found.low, found.high] == pytest.approx([0.5, 39 / 64])


# -- the forecast ----------------------------------------------------------------------------------


def test_a_forecast_is_the_unit_times_what_is_left() -> None:
    """0.5 s an image, so 7200 take one GPU an hour; two do 4 a second. 1000 bytes a row, 5000 a shard of 60."""
    found = forecast().predicted
    assert found["images_per_s"].value == pytest.approx(4)
    assert found["gpu_hours"].value == pytest.approx(1)
    assert found["price"].value == pytest.approx(3.5)
    assert found["bytes"].value == pytest.approx(7_200_000 + 300_000)
    assert forecast().seconds.value == pytest.approx(1800)
    half = _t(63) * math.sqrt(64 / 63) * 100 / 8
    assert found["bytes"].high == pytest.approx((1000 + half) * 7200 + 300_000)


def test_one_image_gives_a_forecast_that_says_why_it_has_no_interval() -> None:
    found = forecast(replace(MEASURED, done_s=(2.0,), row_bytes=(700.0,), batch=16), rows=1, shards=1)
    assert found.predicted["bytes"] == Estimate(5700.0)
    assert found.predicted["images_per_s"].value == 1.0
    assert ["interval of the speed" in found.notes[0], "one image" in found.notes[1]] == [True, True]


def test_a_forecast_comes_back_from_storage_as_it_was(tmp_path: Path) -> None:
    save_forecast(Storage(), str(tmp_path), forecast())
    assert read_forecast(Storage(), str(tmp_path)) == forecast()


@pytest.mark.parametrize("text", [None, "", "{}", "[]", '{"made": 1}', "null"])
def test_a_forecast_that_is_lacking_or_damaged_is_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "_annotator").mkdir()
        (tmp_path / "_annotator" / "forecast.json").write_text(text)
    assert read_forecast(Storage(), str(tmp_path)) is None


# -- how far off it was ----------------------------------------------------------------------------


def test_a_run_that_went_as_foretold_is_not_off() -> None:
    found = compare(forecast(), actual())
    assert found.differs == ()
    assert {name: (round(hit.off or 0, 6), hit.within) for name, hit in found.hits.items()} == {
        "images_per_s": (0, True), "gpu_hours": (0, True), "price": (0, True), "bytes": (0, True)
    }  # fmt: skip


def test_a_run_of_a_part_is_held_to_that_part() -> None:
    """Half of the rows in half of the shards, at half the speed: as many GPU hours as were foretold for all."""
    found = compare(forecast(), actual(rows=3600, shards=30, bytes_out=3_750_000))
    off = {name: hit.off for name, hit in found.hits.items()}
    assert off == {"images_per_s": pytest.approx(-0.5), "gpu_hours": pytest.approx(1), "price": pytest.approx(1),
                   "bytes": pytest.approx(0)}  # fmt: skip
    assert not found.hits["gpu_hours"].within


def test_the_price_of_the_run_counts_where_it_has_one() -> None:
    assert compare(forecast(), actual(price_per_gpu_hour=7.0)).hits["price"].actual == pytest.approx(7)
    assert "price" not in compare(replace(forecast(), price_per_gpu_hour=None), actual()).hits


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"device": "CPU"}, "device: CPU instead of H100"),
        ({"workers": 3}, "workers: 3 instead of 2"),
        ({"tasks": {"seg": "a" * 8, "depth": "b"}}, "tasks: seg, depth instead of seg"),
        ({"tasks": {"seg": "b" * 8}}, "other weights or options of seg"),
        ({"options": {"gpus_per_worker": 1.0, "batch_size": 4}}, "batch_size: 4 instead of auto"),
    ],
)
def test_a_run_on_something_else_is_not_compared_and_says_why(change: dict[str, object], words: str) -> None:
    found = compare(forecast(), actual(setting=replace(SETTING, **change)))  # type: ignore[arg-type]
    assert (found.differs, found.hits) == ((words,), {})
