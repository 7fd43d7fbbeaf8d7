"""Each kind of odd file by itself: what decoding makes of it is what docs/reference/input.md says."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image as PillowImage

from annotator.envelope import Row
from annotator.errors import ImageError
from annotator.job import Job, Limits
from annotator.stages import decode as module
from annotator.stages.decode import Image, Mode, decode
from annotator.stages.fetch import Fetcher
from tests.hostile import make
from tests.hostile.decoder import Decoder
from tests.hostile.kinds import MAX_BYTES, PROGRESSIVE, all_kinds, as_photo
from tests.hostile.page import Expected, expectations
from tests.hostile.seeds import seed_files
from tests.pixels.pictures import photo, save

KINDS = all_kinds()
LIMITS = Limits.model_validate({"max_bytes": MAX_BYTES})
FETCH = Fetcher(Job(manifest="manifest", output="labels", tasks={"seg": {}}, limits=LIMITS))


def look(data: bytes, mode: Mode = "exact") -> Image:
    """Fetch and decode, as a worker does."""
    row = Row(index=0, image_id="", uri=None, data=data, kept={})
    return decode(FETCH(row), LIMITS, mode=mode, min_hw=(16, 16))


def outcome(data: bytes, mode: Mode = "exact") -> Expected:
    try:
        return Expected(status="ok", error_class=None, said=look(data, mode).note)
    except ImageError as err:
        return Expected(status=err.status, error_class=err.error_class, said=None)


def test_the_page_lists_the_kinds_that_are_tested() -> None:
    assert set(expectations()) == set(KINDS)


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_becomes_what_the_page_says(kind: str, mode: Mode) -> None:
    assert {outcome(data, mode) for data in KINDS[kind]} == {expectations()[kind]}


@pytest.mark.parametrize("kind", as_photo())
def test_an_odd_file_that_is_labelled_shows_the_right_picture(kind: str) -> None:
    for data in KINDS[kind]:
        pixels_YXC = look(data).pixels_YXC
        assert pixels_YXC.shape == photo().shape
        assert np.abs(pixels_YXC.astype(int) - photo()).mean() <= as_photo()[kind]


def test_black_and_white_and_gray_and_deep_give_the_gray_that_was_saved() -> None:
    gray = np.repeat(photo()[..., :1], 3, axis=2)
    for data in (*KINDS["gray"][1:], *KINDS["deep"]):
        np.testing.assert_array_equal(look(data).pixels_YXC, gray)
    for data in KINDS["one_bit"]:
        expected = np.asarray(PillowImage.open(io.BytesIO(data)).convert("RGB"))
        np.testing.assert_array_equal(look(data).pixels_YXC, expected)


@pytest.mark.parametrize("kind", seed_files())
def test_a_file_cut_anywhere_gives_an_error_or_the_whole_picture(kind: str) -> None:
    """Never the part of it that is there, whatever is in the rest. Every tenth length, and the last 40."""
    for data in seed_files()[kind]:
        if len(data) > 5000 or outcome(data).status != "ok":
            continue
        whole = look(data)
        for end in {*range(0, len(data), 10), *range(max(0, len(data) - 40), len(data))}:
            try:
                part = look(data[:end])
            except ImageError:
                continue
            np.testing.assert_array_equal(part.pixels_YXC, whole.pixels_YXC, err_msg=str(end))


def test_scans_that_are_all_there_are_not_asked_for_twice() -> None:
    """Progressive without its end marker: complete. Without its last scan as well: not."""
    assert look(PROGRESSIVE[:-2]).note == "the end marker was missing"
    last = make.jpeg_scans(PROGRESSIVE)[-1]
    with pytest.raises(ImageError, match="Premature end"):
        look(PROGRESSIVE[:last])
    with_end = look(PROGRESSIVE[:last] + b"\xff\xd9")  # a legal JPEG: somebody meant it so
    assert with_end.note is None


def test_the_bomb_is_a_sound_picture_but_for_its_size() -> None:
    """By a smaller sister, a thousandth of its pixels; and a thousand bytes of the large one stand for a million."""
    small, large = make.png_bomb(1000), KINDS["bomb"][0]
    PillowImage.open(io.BytesIO(small)).load()
    assert not look(small).pixels_YXC.any()
    assert 800_000 < len(large) < 1_000_000
    assert large.startswith(make.png(30_000, 30_000, end=False))


def test_a_limit_says_what_it_is_and_what_it_found() -> None:
    for kind, words in {
        "bomb": r"30000 x 30000 = 900000000 pixels; limits.max_pixels = 100000000",
        "long_side": r"1 x 65501 pixels; limits.max_side = 65500",
    }.items():
        with pytest.raises(ImageError, match=words):
            look(KINDS[kind][0])


@pytest.mark.parametrize("limit", ["max_pixels", "max_side"])
def test_a_limit_is_the_largest_that_is_let_through(limit: str) -> None:
    line = save(np.zeros((300, 1), np.uint8), "PNG")
    assert decode(line, Limits.model_validate({limit: 300}), mode="exact", min_hw=(1, 1)).height == 300
    with pytest.raises(ImageError, match=f"limits.{limit} = 299"):
        decode(line, Limits.model_validate({limit: 299}), mode="exact", min_hw=(1, 1))


def test_no_odd_file_costs_memory_or_leaves_any_unwritten() -> None:
    """Each decoded in a process that looks at its own peak, twice, in memory filled with different bytes."""
    with Decoder() as decoder:
        found = {(kind, decoder(data)) for kind, files in KINDS.items() for data in files if kind != "many_bytes"}
    assert [one for one in found if one[1].is_finding] == []


def no_memory_in_opencv() -> cv2.error:
    error = cv2.error("OpenCV(5.0.0) alloc.cpp:73: error: (-4:Insufficient memory)")
    error.code, error.err = cv2.Error.StsNoMem, "Failed to allocate 300000000 bytes"
    return error


@pytest.mark.parametrize("error", [MemoryError(), no_memory_in_opencv()])
@pytest.mark.parametrize("place", ["apply_orientation", "_decode_other"])
def test_memory_that_runs_out_anywhere_is_the_images_and_passing(
    place: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(module, place, fail)
    with pytest.raises(ImageError) as caught:
        look(save(photo(), "PNG"))
    assert (caught.value.error_class, caught.value.transient) == ("out_of_memory", True)


def test_twelve_bits_are_refused_for_their_bits_alone() -> None:
    """The very file with 8 in its header is sound, to us and to Pillow."""
    data = make.flat_jpeg()
    assert (look(data).pixels_YXC == 128).all()
    assert np.asarray(PillowImage.open(io.BytesIO(data))).tolist() == [[128] * 32] * 32
    assert [n for n, (a, b) in enumerate(zip(data, make.flat_jpeg(bits=12), strict=True)) if a != b] == [
        data.index(b"\xff\xc1") + 4
    ]
