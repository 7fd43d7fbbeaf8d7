"""The header probe: what it reads, and that no bytes at all can surprise it."""

from __future__ import annotations

import io
import struct
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from annotator.errors import ImageError
from annotator.images import Header, apply_orientation, probe
from tests.pixels.pictures import SIZE_YX, frames, one_of_each_kind, photo, save

HEIGHT, WIDTH = SIZE_YX
PICTURES = one_of_each_kind()
WITH_EXIF = {kind: save(photo(), kind, orientation=6) for kind in ("JPEG", "PNG", "WEBP", "TIFF")}


def error_class(data: bytes) -> str | None:
    """Return the class of the error that probing gives, None for a header."""
    try:
        assert isinstance(probe(data), Header)
    except ImageError as err:
        assert err.status == "unreadable"
        return err.error_class
    return None


@pytest.mark.parametrize("kind", PICTURES)
def test_size_is_read_from_every_kind(kind: str) -> None:
    header = probe(PICTURES[kind])
    assert (header.kind, header.width, header.height) == (kind, WIDTH, HEIGHT)
    assert (header.bits, header.channels, header.orientation, header.animated) == (8, 3, 1, False)


@pytest.mark.parametrize("kind", WITH_EXIF)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_read_wherever_the_kind_keeps_it(kind: str, orientation: int) -> None:
    header = probe(save(photo(), kind, orientation=orientation))
    assert header.orientation == orientation
    assert header.oriented_yx == ((HEIGHT, WIDTH) if orientation < 5 else (WIDTH, HEIGHT))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_senseless_orientation_is_none(orientation: int) -> None:
    assert probe(save(photo(), "JPEG", orientation=orientation)).orientation == 1


@pytest.mark.parametrize(
    ("data", "bits", "channels"),
    [
        (save(photo()[..., 0].astype(np.uint16) * 257, "PNG"), 16, 1),
        (save(photo()[..., 0], "JPEG"), 8, 1),
        (save(photo(), "JPEG", mode="CMYK"), 8, 4),
        (save(photo(), "PNG", mode="RGBA"), 8, 4),
        (save(photo(), "PNG", mode="LA"), 8, 2),
        (save(photo(), "PNG", mode="1"), 1, 1),
        (save(photo(), "WEBP", mode="RGBA"), 8, 3),  # opaque, so Pillow drops the alpha
        (save(photo(), "BMP", mode="RGBA"), 8, 4),
        (save(photo(), "TIFF", mode="RGBA"), 8, 4),
    ],
)
def test_bits_and_channels_are_those_stored(data: bytes, bits: int, channels: int) -> None:
    header = probe(data)
    assert (header.bits, header.channels, header.width, header.height) == (bits, channels, WIDTH, HEIGHT)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_a_second_frame_is_seen(kind: str) -> None:
    assert probe(frames(kind)).animated


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty"),
        (b"<html>404</html>", "unsupported_format"),
        (b"\0" * 100, "unsupported_format"),
        (b"\xff\xd8\xff", "corrupt"),
        (PICTURES["jpeg"].replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"), "unsupported_format"),  # 12 bits
        (PICTURES["jpeg"].replace(b"\xff\xc0\0\x11", b"\xff\xc3\0\x11"), "unsupported_format"),  # lossless
        (save(photo()[..., 0].astype(np.float32), "TIFF"), "unsupported_format"),
        (PICTURES["bmp"][:18] + struct.pack("<ii", 0, 5) + PICTURES["bmp"][26:], "corrupt"),  # no width
    ],
)
def test_what_is_no_picture_of_ours_says_why(data: bytes, expected: str) -> None:
    assert error_class(data) == expected


@pytest.mark.parametrize("data", [*PICTURES.values(), *WITH_EXIF.values(), frames("GIF"), frames("PNG")])
def test_every_truncation_gives_a_header_or_an_error(data: bytes) -> None:
    assert error_class(data) is None
    for end in range(min(len(data), 1500)):
        error_class(data[:end])


@given(
    start=st.sampled_from([*PICTURES.values(), *WITH_EXIF.values(), frames("GIF")]),
    kept=st.integers(0, 200),
    noise=st.binary(max_size=100),
    changes=st.lists(st.tuples(st.integers(0, 299), st.integers(0, 255)), max_size=4),
)
def test_any_bytes_give_a_header_or_an_error(
    start: bytes, kept: int, noise: bytes, changes: list[tuple[int, int]]
) -> None:
    """Noise behind a real beginning reaches deep into each parser; so do a few changed bytes."""
    mutant = bytearray(start[:kept] + noise)
    for at, value in changes:
        if at < len(mutant):
            mutant[at] = value
    error_class(bytes(mutant))


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8" + b"\xff" * 2**24,  # fill bytes
        b"\xff\xd8" + b"\xff\xd0" * 2**23,  # markers that stand alone
        b"\xff\xd8" + b"\xff\xe1\0\x02" * 2**22,  # empty segments
        PICTURES["png"][:33] + (b"\0" * 4 + b"abcd" + b"\0" * 4) * 2**20,  # empty chunks
        b"GIF89a" + b"\1\0\1\0\0\0\0" + b"\x2c" + b"\0" * 9 + b"\2" + b"\1\0" * 2**23,  # tiny sub-blocks
        b"II*\0" + struct.pack("<IH", 8, 65535) + b"\0" * 2**20,
    ],
)
def test_hostile_files_are_judged_at_once(data: bytes) -> None:
    """Up to 16 MB each; a parser that walks them step by step takes seconds."""
    start = time.perf_counter()
    error_class(data)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_pillow_does(orientation: int, channels: int) -> None:
    stored = photo() if channels == 3 else photo()[..., 0].copy()
    image = Image.open(io.BytesIO(save(stored, "PNG", orientation=orientation)))
    expected = np.asarray(ImageOps.exif_transpose(image))
    upright = apply_orientation(stored, orientation)
    np.testing.assert_array_equal(upright, expected)
    assert upright.flags.c_contiguous
