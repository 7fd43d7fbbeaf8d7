"""Operations are counted as in the roofline sheet."""

from __future__ import annotations

import pytest

from annotator.bench.flops import forward_tflop, released_config


@pytest.mark.parametrize(
    ("size", "task", "expected"),
    [
        ("0.3b", "pose", 3.24),
        ("0.3b", "seg", 4.73),
        ("0.3b", "depth", 4.51),
        ("0.3b", "normal", 4.72),
        ("0.6b", "seg", 7.38),
        ("1b", "pose", 9.77),
        ("1b", "depth", 11.02),
        ("2b", "seg", 18.54),
    ],
)
def test_the_count_is_that_of_the_sheet(size: str, task: str, expected: float) -> None:
    assert forward_tflop(released_config(task, size)) == pytest.approx(expected, abs=0.02)
