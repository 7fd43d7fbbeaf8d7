"""PNGs of maps: any reader opens them, and they are hardly larger than OpenCV's. Times: `annotator bench encode`."""

from __future__ import annotations

import ctypes
import ctypes.util
import io
import json

import cv2
import numpy as np
import pytest
from PIL import Image

from annotator import png
from annotator.bench.encode import MOST_BYTES, TASKS, bench_encode, encode_map, encode_opencv, make_maps
from annotator.tasks.seg import COLOURS


@pytest.fixture(scope="module")
def maps() -> dict[str, np.ndarray]:
    return make_maps()


def shown(task: str, array: np.ndarray) -> np.ndarray:
    """Return a map as a picture of 8 or 16 bits, as a reader that knows nothing of us shows it."""
    return COLOURS[array] if task == "seg" else array


@pytest.mark.parametrize("task", TASKS)
def test_opencv_opens_a_map(task: str, maps: dict[str, np.ndarray]) -> None:
    flags = cv2.IMREAD_COLOR if task == "seg" else cv2.IMREAD_UNCHANGED
    found = cv2.imdecode(np.frombuffer(encode_map(task, maps[task]), np.uint8), flags)
    np.testing.assert_array_equal(found[..., ::-1] if found.ndim == 3 else found, shown(task, maps[task]))


@pytest.mark.parametrize("task", TASKS)
def test_pillow_opens_a_map(task: str, maps: dict[str, np.ndarray]) -> None:
    data = encode_map(task, maps[task])
    with Image.open(io.BytesIO(data)) as image:
        image.verify()
    with Image.open(io.BytesIO(data)) as image:
        found = np.asarray(image.convert("RGB") if task == "seg" else image)
    np.testing.assert_array_equal(found, shown(task, maps[task]))


class _PngImage(ctypes.Structure):
    """png_image of libpng's simplified API, png.h 1.6."""

    _fields_ = (
        ("opaque", ctypes.c_void_p),
        ("version", ctypes.c_uint32),
        ("width", ctypes.c_uint32),
        ("height", ctypes.c_uint32),
        ("format", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("colormap_entries", ctypes.c_uint32),
        ("warning_or_error", ctypes.c_uint32),
        ("message", ctypes.c_char * 64),
    )


@pytest.mark.parametrize("task", TASKS)
def test_libpng_opens_a_map_without_a_warning(task: str, maps: dict[str, np.ndarray]) -> None:
    name = ctypes.util.find_library("png16") or ctypes.util.find_library("png")
    if name is None:
        pytest.skip("no libpng on this machine")
    libpng = ctypes.CDLL(name)
    data, image = encode_map(task, maps[task]), _PngImage(version=1)
    assert libpng.png_image_begin_read_from_memory(ctypes.byref(image), data, ctypes.c_size_t(len(data)))
    image.format = 2  # PNG_FORMAT_RGB
    pixels_YXC = np.empty((image.height, image.width, 3), np.uint8)
    assert libpng.png_image_finish_read(
        ctypes.byref(image), None, pixels_YXC.ctypes.data_as(ctypes.c_void_p), ctypes.c_int32(0), None
    ), image.message
    assert image.warning_or_error == 0, image.message
    if task != "depth":  # 16 bits are turned into 8 by libpng's own idea of gamma
        np.testing.assert_array_equal(pixels_YXC, shown(task, maps[task]))


def test_the_maps_of_an_image_are_hardly_larger_than_opencv_makes_them(maps: dict[str, np.ndarray]) -> None:
    ours = sum(len(encode_map(task, array)) for task, array in maps.items())
    theirs = sum(len(encode_opencv(array)) for array in maps.values())
    assert ours <= MOST_BYTES * theirs


def test_the_bench_measures_both_encoders() -> None:
    result = bench_encode(repeats=5)  # the median: one alone is what the machine makes of it
    assert result.exact
    assert 0 < result.time_ratio < 1
    assert json.loads(json.dumps(result.to_dict()))["bytes_ratio"] == result.bytes_ratio
    assert "OpenCV" in result.table()


def test_the_bench_measures_the_fast_encoder_though_a_deterministic_job_ran_before(maps: dict[str, np.ndarray]) -> None:
    png.same_bytes(False)
    fast = {task: len(encode_map(task, array)) for task, array in maps.items()}
    png.same_bytes(True)
    try:
        assert {task: len(encode_map(task, array)) for task, array in maps.items()} != fast
        assert {task: measured.ours_bytes for task, measured in bench_encode(repeats=1).maps.items()} == fast
    finally:
        png.same_bytes(False)
