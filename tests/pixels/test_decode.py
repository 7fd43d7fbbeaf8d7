"""Decoding: the right pixels, or an error that says why there are none."""

from __future__ import annotations

import io
import os
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage
from PIL import ImageOps

from annotator.errors import ImageError
from annotator.job import Limits
from annotator.stages.decode import Image, decode, decode_isolated
from tests.pixels.pictures import SIZE_YX, frames, one_of_each_kind, photo, save

PICTURES = one_of_each_kind()
PHOTOS = sorted((Path(__file__).parent.parent / "photos").glob("*.*g"))


def exact(data: bytes, *, max_pixels: int = 10**8) -> Image:
    return decode(data, Limits(max_pixels=max_pixels), mode="exact", min_hw=(1024, 768))


def why(data: bytes, *, max_pixels: int = 10**8) -> tuple[str, str]:
    """Return status and class of the error that decoding must give."""
    with pytest.raises(ImageError) as caught:
        exact(data, max_pixels=max_pixels)
    return caught.value.status, caught.value.error_class


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


@pytest.mark.parametrize("kind", ["png", "webp", "bmp", "tiff"])
def test_lossless_kinds_give_the_pixels_that_were_saved(kind: str) -> None:
    image = exact(PICTURES[kind])
    np.testing.assert_array_equal(image.pixels_YXC, photo())
    assert (image.height, image.width, image.note) == (*SIZE_YX, None)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("how", [{}, {"progressive": True}, {"quality": 60}, {"mode": "L"}])
def test_jpeg_gives_the_pixels_that_opencv_gives(subsampling: int, how: dict[str, Any]) -> None:
    data = save(photo((133, 201)), "JPEG", subsampling=subsampling, **how)
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(exact(data).pixels_YXC, expected)


@pytest.mark.parametrize("path", PHOTOS, ids=lambda p: p.name)
def test_photographs_give_the_pixels_that_opencv_gives(path: Path) -> None:
    expected = cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(exact(path.read_bytes()).pixels_YXC, expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_kind_is_turned_upright_once(kind: str, orientation: int) -> None:
    """OpenCV turns TIFFs even when told not to, so a second turn would show here."""
    how: dict[str, Any] = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    data = save(photo(), kind, orientation=orientation, **how.get(kind, {}))
    expected = np.asarray(ImageOps.exif_transpose(PillowImage.open(io.BytesIO(data))))
    image = exact(data)
    assert image.pixels_YXC.shape == expected.shape
    assert np.abs(image.pixels_YXC.astype(int) - expected).max() <= 3
    assert (image.height, image.width) == expected.shape[:2]
    assert image.pixels_YXC.flags.c_contiguous


def test_alpha_is_dropped_and_never_multiplied_in() -> None:
    rgba = np.dstack([photo(), np.full(SIZE_YX, 3, np.uint8)])
    kinds: dict[str, dict[str, Any]] = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True, "exact": True}}
    for kind, how in kinds.items():
        np.testing.assert_array_equal(exact(save(rgba, kind, **how)).pixels_YXC, photo(), err_msg=kind)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_keep_the_upper_8_and_gray_becomes_rgb(kind: str) -> None:
    gray = photo()[..., 0]
    pixels = exact(save(gray.astype(np.uint16) << 8 | 0x34, kind)).pixels_YXC
    np.testing.assert_array_equal(pixels, np.repeat(gray[..., None], 3, axis=2))


def test_cmyk_jpeg_becomes_rgb() -> None:
    pixels = exact(save(photo(), "JPEG", mode="CMYK", quality=98, subsampling=0)).pixels_YXC
    assert np.abs(pixels.astype(int) - photo()).mean() < 3


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_first_frame_is_taken_and_noted(kind: str) -> None:
    image = exact(frames(kind, **({"lossless": True} if kind == "WEBP" else {})))
    np.testing.assert_array_equal(image.pixels_YXC, photo())
    assert image.note is not None and "first frame" in image.note
    assert exact(frames("GIF")).note == image.note


def test_missing_end_marker_is_tolerated_and_noted() -> None:
    whole = PICTURES["jpeg"]
    for cut in (whole[:-2], whole[:-1]):
        image = exact(cut)
        np.testing.assert_array_equal(image.pixels_YXC, exact(whole).pixels_YXC)
        assert image.note == "the end marker was missing"


def test_bytes_after_the_end_do_no_harm() -> None:
    assert exact(PICTURES["jpeg"] + b"trailer" * 100).note is None


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_file_cut_short_is_corrupt(kind: str, share: float) -> None:
    data = PICTURES[kind]
    assert why(data[: int(len(data) * share)]) == ("unreadable", "corrupt")


def test_damage_inside_a_jpeg_is_corrupt_although_opencv_reads_it() -> None:
    data = bytearray(save(photo((200, 300)), "JPEG", quality=90))
    data[len(data) // 2 : len(data) // 2 + 2] = b"\xff\x9b"
    assert cv2.imdecode(np.frombuffer(bytes(data), np.uint8), cv2.IMREAD_COLOR) is not None
    assert why(bytes(data)) == ("unreadable", "corrupt")


def test_a_wrong_checksum_in_a_png_is_corrupt() -> None:
    data = bytearray(PICTURES["png"])
    data[60] ^= 1
    assert why(bytes(data)) == ("unreadable", "corrupt")


def test_pixel_limit_is_judged_from_the_header_alone() -> None:
    """65000 x 65000: nothing is allocated for a file of 33 bytes that claims it."""
    assert why(png_header(65000, 65000)) == ("rejected", "too_many_pixels")
    pixels = SIZE_YX[0] * SIZE_YX[1]
    assert exact(PICTURES["png"], max_pixels=pixels).note is None
    assert why(PICTURES["png"], max_pixels=pixels - 1) == ("rejected", "too_many_pixels")


def test_opencvs_own_limit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV reads it once, when it is loaded, so a process of its own is needed."""
    monkeypatch.setenv("OPENCV_IO_MAX_IMAGE_PIXELS", "1000")
    with pytest.raises(ImageError, match="OPENCV_IO_MAX_IMAGE_PIXELS") as caught:
        decode_isolated(PICTURES["png"], Limits(), mode="exact", min_hw=(64, 48))
    assert (caught.value.status, caught.value.error_class) == ("rejected", "too_many_pixels")


def test_a_jpeg_of_endless_scans_is_rejected() -> None:
    data = save(photo(), "JPEG", progressive=True)
    scan = data.index(b"\xff\xda")
    assert why(data[:scan] + data[scan:-2] * 200) == ("rejected", "too_many_scans")


def test_a_size_that_lies_is_corrupt() -> None:
    """A WebP whose container claims another canvas than its frame has, and a PNG with too few rows."""
    webp = bytearray(save(photo(), "WEBP", orientation=1))
    assert webp[12:16] == b"VP8X"
    webp[24] += 1
    assert why(bytes(webp)) == ("unreadable", "corrupt")
    assert why(png_header(61, 4700) + PICTURES["png"][33:]) == ("unreadable", "corrupt")


@settings(max_examples=60)
@given(st.data())
def test_any_change_to_a_file_gives_an_image_or_an_error(data: st.DataObject) -> None:
    mutant = bytearray(data.draw(st.sampled_from(list(PICTURES.values()))))
    for _ in range(data.draw(st.integers(1, 6))):
        mutant[data.draw(st.integers(0, len(mutant) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = exact(bytes(mutant), max_pixels=1_000_000)
    except ImageError:
        return
    assert image.pixels_YXC.shape == (image.height, image.width, 3)
    assert image.pixels_YXC.dtype == np.uint8


@pytest.mark.parametrize("orientation", [1, 6])
def test_fast_decodes_at_a_scale_not_below_the_network_input(orientation: int) -> None:
    """900 x 1200 stored; an input of 300 x 300 allows 3/8 (338 x 450), of 500 x 300 nothing but full size."""
    pixels = cv2.resize(photo(), (1200, 900), interpolation=cv2.INTER_CUBIC)
    data = save(pixels, "JPEG", orientation=orientation)
    for min_hw, stored_hw in (((300, 300), (338, 450)), ((460, 300), (900, 1200))):
        turned = orientation == 6
        asked = min_hw[::-1] if turned else min_hw
        image = decode(data, Limits(), mode="fast", min_hw=asked)
        assert image.pixels_YXC.shape[:2] == (stored_hw[::-1] if turned else stored_hw)
        assert (image.height, image.width) == ((1200, 900) if turned else (900, 1200))
        full = exact(data).pixels_YXC
        small = cv2.resize(full, image.pixels_YXC.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(small.astype(int) - image.pixels_YXC).mean() < 2


def test_fast_is_exact_where_a_jpeg_is_small_or_the_file_no_jpeg() -> None:
    for data in (PICTURES["jpeg"], PICTURES["png"]):
        image = decode(data, Limits(), mode="fast", min_hw=(1024, 768))
        np.testing.assert_array_equal(image.pixels_YXC, exact(data).pixels_YXC)


def test_rare_chroma_layout_is_read_by_opencv_and_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: Any, **kwargs: Any) -> np.ndarray:
        raise ValueError("tjDecompressHeader3(): Could not determine subsampling level of JPEG image")

    expected = exact(PICTURES["jpeg"]).pixels_YXC
    monkeypatch.setattr(simplejpeg, "decode_jpeg", unknown)
    image = exact(PICTURES["jpeg"])
    np.testing.assert_array_equal(image.pixels_YXC, expected)
    assert image.note is not None and "subsampling" in image.note


def test_isolated_gives_the_same_image_and_the_same_error() -> None:
    for data in (PICTURES["jpeg"][:-2], PICTURES["png"]):
        alone = decode_isolated(data, Limits(), mode="exact", min_hw=(64, 48))
        np.testing.assert_array_equal(alone.pixels_YXC, exact(data).pixels_YXC)
        assert (alone.height, alone.width, alone.note) == (*SIZE_YX, exact(data).note)
        assert alone.pixels_YXC.flags.writeable
    with pytest.raises(ImageError) as caught:
        decode_isolated(PICTURES["png"], Limits(max_pixels=5), mode="exact", min_hw=(64, 48))
    assert (caught.value.status, caught.value.error_class) == ("rejected", "too_many_pixels")


def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Let a shell script stand in for the decoding process."""
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))


@pytest.mark.parametrize("signum", [signal.SIGSEGV, signal.SIGKILL])
def test_a_decoder_that_crashes_costs_its_image_alone(
    signum: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch, f"kill -{int(signum)} $$")
    with pytest.raises(ImageError) as caught:
        decode_isolated(PICTURES["png"], Limits(), mode="exact", min_hw=(64, 48))
    assert (caught.value.status, caught.value.error_class) == ("unreadable", "decoder_crashed")


def test_a_decoder_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = tmp_path / "pid"
    stand_in(tmp_path, monkeypatch, f"echo $$ > {pid}; exec sleep 60")
    with pytest.raises(ImageError) as caught:
        decode_isolated(PICTURES["png"], Limits(), mode="exact", min_hw=(64, 48), timeout_s=0.5)
    assert (caught.value.status, caught.value.error_class) == ("unreadable", "decoder_timeout")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_broken_pictures_write_nothing_to_the_log() -> None:
    code = (
        "import sys; from annotator.stages.decode import *\n"
        "try: decode(sys.stdin.buffer.read(), Limits(), mode='exact', min_hw=(1, 1))\n"
        "except ImageError: pass\n"
    )
    root = str(Path(__file__).parents[2])
    for kind in ("tiff", "bmp", "gif", "webp"):
        cut = PICTURES[kind][: len(PICTURES[kind]) // 2]
        done = subprocess.run([sys.executable, "-c", code], input=cut, capture_output=True, cwd=root, check=True)
        assert done.stderr == b"", kind
