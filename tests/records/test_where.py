"""`where`: text to an Arrow expression, by reading it, never by running it."""

from __future__ import annotations

import contextlib

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotator.errors import JobError
from annotator.where import parse_where

TABLE = pa.table(
    {
        "width": pa.array([100, 512, 1024, None], pa.int32()),
        "license": ["cc0", "cc-by", None, "cc0"],
        "ok": [True, False, True, None],
        "image": pa.array([{"path": "a"}, {"path": "b"}, None, {"path": None}], pa.struct([("path", pa.string())])),
    }
)


def passing(text: str) -> list[int]:
    rows = TABLE.append_column("n", pa.array(range(TABLE.num_rows)))
    return list(rows.filter(parse_where(text).expression)["n"].to_pylist())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("width >= 512", [1, 2]),
        ("512 <= width < 1024", [1]),
        ("width >= 512 and license == 'cc-by'", [1]),
        ("width > 1000 or license == 'cc0'", [0, 2, 3]),
        ("not (width > 200)", [0]),
        ("license in ['cc0', 'x']", [0, 3]),
        ("license not in ['cc0']", [1]),  # null is neither in nor out, as in SQL
        ("license == None", [2]),
        ("license is not None", [0, 1, 3]),
        ("None != width", [0, 1, 2]),
        ("ok", [0, 2]),
        ("not ok", [1]),
        ("ok == True", [0, 2]),
        (r"license == '\d'", []),  # Python warns of such an escape
        ("width > -1.5", [0, 1, 2]),
        ("image.path == 'b'", [1]),
        ("image.path == None", [2, 3]),
    ],
)
def test_a_filter_keeps_these_rows(text: str, expected: list[int]) -> None:
    assert passing(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("width >=", "not understood at column"),
        ("width + 1 > 2", "'width \\+ 1' at column 1"),
        ("__import__('os').system('true')", "is no condition"),
        ("width.__class__ == f(1)", "'f\\(1\\)' at column 20"),
        ("(lambda: 1)() == width", "no column and no value"),
        ("license in 'cc0'", "no list"),
        ("license in []", "one or more values"),
        ("license in ['a', 1]", "of one type"),
        ("license in ['a', None]", "None"),
        ("width < None", "can't be compared"),
        ("1 == 1", "names no column"),
        ("license == b'x'", "no value"),
        ("", "not understood"),
        ("width = 3", "not understood"),
        ("a" * 3000, "at most 2000"),
        ("(" * 900 + "a" + ")" * 900, "where:"),
        ("width > 1\0", "where:"),
    ],
)
def test_what_is_not_understood_is_shown_with_its_place(text: str, said: str) -> None:
    with pytest.raises(JobError, match=said) as caught:
        parse_where(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["width == 'x'", "license > 3", "width", "license and ok"])
def test_a_type_that_does_not_fit_is_said_before_any_work(text: str) -> None:
    with pytest.raises(JobError, match="does not fit"):
        parse_where(text).bind(TABLE.schema)


def test_two_spellings_of_one_filter_are_one_text() -> None:
    one, two = parse_where("width>=512 and  license=='cc0'"), parse_where('width >= 512 and (license == "cc0")')
    assert one.text == two.text
    assert parse_where(one.text).text == one.text


def test_only_the_columns_in_use_are_read() -> None:
    where = parse_where("image.path == 'a' and width > 3 and width < 5")
    assert (where.leaves, where.columns) == (("image.path", "width"), ("image", "width"))


@given(st.text(max_size=60))
def test_any_text_is_a_filter_or_a_job_error(text: str) -> None:
    with contextlib.suppress(JobError):
        parse_where(text)
