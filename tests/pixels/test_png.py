"""Our PNG files: what goes in comes out, for us and for every other reader."""

from __future__ import annotations

import io
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from annotator import png

PALETTE = np.random.default_rng(5).integers(0, 256, (256, 3), np.uint8)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """Return arrays of every kind that is written: noise, or flat areas, of odd sizes down to one pixel."""
    height, width = draw(st.integers(1, 23)), draw(st.integers(1, 23))
    shape = draw(st.sampled_from([(height, width), (height, width, 3)]))
    dtype = draw(st.sampled_from([np.uint8, np.uint16]))
    drawn: np.ndarray = draw(hnp.arrays(dtype, shape))
    return drawn


@given(arrays())
def test_round_trip_is_exact(array: np.ndarray) -> None:
    again = png.decode(png.encode(array))
    np.testing.assert_array_equal(again, array)
    assert again.dtype == array.dtype


@given(arrays())
def test_where_bytes_must_not_vary_zlib_writes_them(array: np.ndarray) -> None:
    """isal's vary by kind of processor, and once in a long while for no reason that was found."""
    png.same_bytes(True)
    try:
        data = png.encode(array)
    finally:
        png.same_bytes(False)
    np.testing.assert_array_equal(png.decode(data), array)
    assert data[33 + 8 : -12 - 4] == zlib.compress(png._filtered(array).data, 1)  # between header and end


@given(arrays())
def test_opencv_and_pillow_read_the_same_numbers(array: np.ndarray) -> None:
    data = png.encode(array)
    by_opencv = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert by_opencv.dtype == array.dtype
    np.testing.assert_array_equal(by_opencv if array.ndim == 2 else by_opencv[..., ::-1], array)
    with Image.open(io.BytesIO(data)) as image:
        image.verify()
    with Image.open(io.BytesIO(data)) as image:
        if array.dtype == np.uint16 and array.ndim == 3:  # Pillow has no 16-bit RGB: it keeps the upper bytes
            array = (array >> 8).astype(np.uint8)
        np.testing.assert_array_equal(np.asarray(image).astype(array.dtype), array)


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 23), st.integers(1, 23))))
def test_palette_keeps_ids_for_us_and_pillow_and_shows_colours_to_opencv(ids: np.ndarray) -> None:
    data = png.encode(ids, palette=PALETTE)
    np.testing.assert_array_equal(png.decode(data), ids)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), ids)
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), PALETTE[ids])
    shown = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(shown[..., ::-1], PALETTE[ids])


def test_an_array_that_is_not_contiguous_is_written_as_it_reads() -> None:
    whole = np.random.default_rng(0).integers(0, 65536, (20, 31, 3)).astype(np.uint16)
    for view in (whole[::2, ::-1], whole.transpose(1, 0, 2), whole[..., 1]):
        np.testing.assert_array_equal(png.decode(png.encode(view)), view)


def test_class_ids_take_a_small_part_of_their_bytes() -> None:
    ids = np.kron(np.arange(12, dtype=np.uint8).reshape(3, 4), np.ones((200, 150), np.uint8))
    assert len(png.encode(ids, palette=PALETTE)) < ids.size / 100


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 4), np.float32),
        np.zeros((3, 4), np.int64),
        np.zeros((3, 4, 2), np.uint8),
        np.zeros((0, 4), np.uint8),
    ],
)
def test_other_arrays_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected uint8 or uint16"):
        png.encode(array)


def test_an_id_without_a_colour_is_refused() -> None:
    with pytest.raises(ValueError, match="2 colours"):
        png.encode(np.full((3, 4), 2, np.uint8), palette=PALETTE[:2])


@given(st.data())
def test_damage_gives_an_error_and_never_other_numbers(data: st.DataObject) -> None:
    """Every chunk has a checksum, so a changed byte is found; only the palette is not read back."""
    array = np.arange(60, dtype=np.uint8).reshape(6, 10)
    whole = png.encode(array, palette=PALETTE[:60])
    broken = bytearray(whole)
    broken[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    for mutant in (bytes(broken), whole[: data.draw(st.integers(0, len(whole) - 1))]):
        try:
            again = png.decode(mutant)
        except ValueError:
            continue
        np.testing.assert_array_equal(again, array)


def test_png_of_another_kind_is_refused() -> None:
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 4), np.uint8)).save(file, "PNG")
    with pytest.raises(ValueError, match="colour type 6"):
        png.decode(file.getvalue())
