"""Encoded bytes to upright RGB pixels, with limits judged first and damage never passed on in silence.

JPEGs go through simplejpeg in strict mode, because OpenCV returns damaged JPEGs without a word; everything
else through OpenCV, which refuses files that are cut short. Both give the same pixels on ordinary JPEGs.
Run as a module it decodes one image from stdin, so that a decoder that crashes takes only itself down.

Policy on damage (2026-11): a JPEG that lacks nothing but its end marker is complete, so it is decoded and
noted; any other damage makes the image unreadable, since nobody can tell how far it reaches. What becomes of
each kind of odd file is in docs/reference/input.md, and tested against it.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import simplejpeg

from annotator.errors import ImageError
from annotator.images import (
    JPEG_FRAMES,
    JPEG_PROGRESSIVE,
    Header,
    apply_orientation,
    corrupt,
    jpeg_segments,
    plain_tiff,
    probe,
)
from annotator.job import Limits

Mode = Literal["exact", "fast"]

ISOLATED_TIMEOUT_S = 120.0
"""For one image in a process of its own; 400 megapixels of PNG took 35 s (reference/io.md, part 3)."""

_MAX_SCANS = 500
"""More scans than any encoder writes; each costs a pass over all pixels (libjpeg-turbo's fuzzers use 500)."""

_END_MARKER = b"\xff\xd9"
_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])

# Broken images are told by rows, not by lines on stderr.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """A decoded image as it is meant to be seen.

    pixels_YXC     uint8 RGB, contiguous; smaller than the image when decoded at a reduced scale
    width, height  of the image itself, after orientation
    note           what was tolerated or left out, for people; null when nothing was
    """

    pixels_YXC: np.ndarray
    width: int
    height: int
    note: str | None


def decode(data: bytes, limits: Limits, *, mode: Mode, min_hw: tuple[int, int]) -> Image:
    """Return the image's pixels: first frame, no alpha, 8 bits, upright.

    `fast` decodes JPEGs at the smallest scale (1/8 to 1/2) that is no smaller than `min_hw` in either
    direction; a plain stretch maps it to the image. `exact` ignores `min_hw`.

    Raises: ImageError: `rejected` with too_many_pixels, too_long_side or too_many_scans; `unreadable` with
    empty, unsupported_format, corrupt or out_of_memory (that one transient).
    """
    header = probe(data)
    _check_limits(header, limits)
    note: str | None = None
    try:
        if header.kind == "jpeg":
            stored_YXC, note = _decode_jpeg(data, header, min_hw if mode == "fast" else None)
        else:
            stored_YXC = _decode_other(data, header)
        upright_YXC = np.ascontiguousarray(apply_orientation(stored_YXC, header.orientation))
    except MemoryError:
        raise _no_memory(header) from None
    except cv2.error as err:  # turning or converting what was decoded
        raise _explain(err, header) from None
    height, width = header.oriented_yx
    notes = (
        "animated or of several pages; the first frame was used" if header.animated else None,
        f"{header.unchecked}; decoded without a check for damage" if header.unchecked else None,
        note,
    )
    return Image(pixels_YXC=upright_YXC, width=width, height=height, note="; ".join(filter(None, notes)) or None)


def _check_limits(header: Header, limits: Limits) -> None:
    """Raise ImageError for an image that claims more than the job allows; nothing is allocated yet."""
    size = f"{header.width} x {header.height}"
    pixels = header.width * header.height
    if pixels > limits.max_pixels:
        found = f"{size} = {pixels} pixels"
        raise ImageError("rejected", "too_many_pixels", f"{found}; limits.max_pixels = {limits.max_pixels}")
    if header.tile_pixels > limits.max_pixels:
        found = f"tiles of {header.tile_pixels} pixels in an image of {size}"
        raise ImageError("rejected", "too_many_pixels", f"{found}; limits.max_pixels = {limits.max_pixels}")
    if max(header.width, header.height) > limits.max_side:
        raise ImageError("rejected", "too_long_side", f"{size} pixels; limits.max_side = {limits.max_side}")


def _decode_jpeg(data: bytes, header: Header, min_hw: tuple[int, int] | None) -> tuple[np.ndarray, str | None]:
    if _num_scans(data) > _MAX_SCANS:
        raise ImageError("rejected", "too_many_scans", f"more than {_MAX_SCANS} scans in one JPEG")
    scale: dict[str, Any] = {}
    if min_hw is not None:
        height, width = min_hw[::-1] if header.orientation >= 5 else min_hw
        # scales between 1/2 and 1 take longer than full size (reference/io.md, part 3)
        scale = {"min_height": height, "min_width": width, "min_factor": 2}
    try:
        pixels_YXC, note = _strict(data, header, scale)
        expected = simplejpeg.decode_jpeg_header(data, **scale)[:2] if scale else (header.height, header.width)
    except ValueError as err:
        if "subsampling" not in str(err):
            raise corrupt("jpeg", " ".join(str(err).split())) from None
        # rare chroma layouts that simplejpeg has no name for
        return _decode_other(data, header), "rare chroma subsampling; decoded without a check for damage"
    _check_size(header, expected, pixels_YXC)
    return _undo_rounding(pixels_YXC, header), note


def _undo_rounding(reduced_YXC: np.ndarray, header: Header) -> np.ndarray:
    """Return a reduced image that covers the image exactly, at the same size.

    A reduced size is rounded up, so its last row and column reach beyond the image: 1001 pixels at 1/4 become
    251, which stand for 1004. Taken for the whole they would shift labels by up to 7 pixels at the far edge.
    """
    reduced = reduced_YXC.shape[:2]
    whole = header.height, header.width
    eighths = next(k for k in range(8, 0, -1) if reduced == tuple(-(-n * k // 8) for n in whole))
    fy, fx = (r / (n * eighths / 8) for r, n in zip(reduced, whole, strict=True))
    if fy == fx == 1:
        return reduced_YXC
    # with factors instead of a size OpenCV goes by them exactly, and gives a row or column too many
    grown_YXC: np.ndarray = cv2.resize(reduced_YXC, None, fx=fx, fy=fy, interpolation=cv2.INTER_LINEAR)
    return grown_YXC[: reduced[0], : reduced[1]]


def _strict(data: bytes, header: Header, scale: dict[str, Any]) -> tuple[np.ndarray, str | None]:
    """Decode, or decode with the end marker that the file lacks; ValueError for any other damage."""
    try:
        return simplejpeg.decode_jpeg(data, "RGB", strict=True, **scale), None
    except ValueError as err:
        # with the marker added a decoder would not miss scans that are not there, nor arithmetic data
        if "Premature end of JPEG file" not in str(err) or header.unchecked or not _has_all_scans(data):
            raise
    return simplejpeg.decode_jpeg(data + _END_MARKER, "RGB", strict=True, **scale), "the end marker was missing"


def _num_scans(data: bytes) -> int:
    """Return how many scans a JPEG has; no less where its markers make no sense."""
    upper = data.count(b"\xff\xda")
    if upper <= _MAX_SCANS:  # else films that telephones append have such bytes as well
        return upper
    num = 0
    try:
        for marker, _, _ in jpeg_segments(data):
            num += marker == 0xDA
    except (IndexError, struct.error):  # the file ends early: all were seen
        return num
    except ImageError:
        return upper
    return num


def _has_all_scans(data: bytes) -> bool:
    """Whether the scans of a JPEG send every coefficient of every component, to its last bit.

    A decoder is content with fewer, so a file that was cut between two scans looks sound to it: blurred, or
    without colour. Within a scan it notices missing data. Source: T.81, B.2.3 and G.1.1.
    """
    missing: dict[int, list[int]] = {}  # component -> bits still to come, by coefficient
    progressive = False
    try:
        for marker, at, end in jpeg_segments(data):
            if marker in JPEG_FRAMES:
                progressive = marker in JPEG_PROGRESSIVE
                missing = {data[at + 6 + 3 * i]: [99] * 64 for i in range(data[at + 5])}
            elif marker == 0xDA:
                first, last, bits = (data[end - 3], data[end - 2], data[end - 1] & 15) if progressive else (0, 63, 0)
                for component in data[at + 1 : end - 3 : 2]:
                    missing[component][first : last + 1] = [bits] * (last + 1 - first)
    except IndexError:  # the end marker, too, is missing
        pass
    except (ImageError, struct.error, KeyError):
        return False
    return bool(missing) and not any(any(bits) for bits in missing.values())


def _decode_other(data: bytes, header: Header) -> np.ndarray:
    if header.kind == "tiff":
        data = plain_tiff(data, header)
    elif header.kind == "png" and b"acTL" in data:
        data = _still_png(data)
    try:
        bgr_YXC = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as err:
        raise _explain(err, header) from None
    if bgr_YXC is None:
        raise corrupt(header.kind, f"OpenCV can't decode it, though its header says {header.width} x {header.height}")
    _check_size(header, (header.height, header.width), bgr_YXC)
    rgb_YXC: np.ndarray = cv2.cvtColor(bgr_YXC, cv2.COLOR_BGR2RGB)
    return rgb_YXC


def _still_png(data: bytes) -> bytes:
    """Return the PNG without the chunks that animate it.

    OpenCV takes another way for animations, on which it passes over damage and hands out memory that nothing was
    written to.
    """
    parts, at = [data[:8]], 8
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        name = data[at + 4 : at + 8]
        if name not in (b"acTL", b"fcTL", b"fdAT"):
            parts.append(data[at:end])
        if name == b"IEND":
            break
        at = end
    return b"".join(parts)


def _check_size(header: Header, expected: tuple[int, int], pixels_YXC: np.ndarray) -> None:
    if pixels_YXC.shape[:2] != tuple(expected):
        height, width = pixels_YXC.shape[:2]
        found = f"the header says {header.width} x {header.height}, the pixels are {width} x {height}"
        raise corrupt(header.kind, found)


def _explain(err: cv2.error, header: Header) -> ImageError:
    if err.code == cv2.Error.StsNoMem:
        return _no_memory(header)
    if "CV_IO_MAX_IMAGE" in str(err):
        hint = "OPENCV_IO_MAX_IMAGE_PIXELS, _WIDTH and _HEIGHT in the environment raise OpenCV's own limits"
        return ImageError("rejected", "too_many_pixels", f"{header.width} x {header.height} pixels; {hint}")
    return corrupt(header.kind, " ".join(str(err.err).split()))


def _no_memory(header: Header) -> ImageError:
    found = f"no memory for {header.width} x {header.height} pixels"
    return ImageError("unreadable", "out_of_memory", found, transient=True)


CRASHES = frozenset({"decoder_crashed", "decoder_timeout"})
"""Error classes of images that end or hold up the process which decodes them."""


def decode_isolated(
    data: bytes,
    limits: Limits,
    *,
    mode: Mode,
    min_hw: tuple[int, int],
    timeout_s: float = ISOLATED_TIMEOUT_S,
) -> Image:
    """Return what `decode` would, from a process of its own.

    Raises: as `decode`, and ImageError `unreadable` with decoder_crashed or decoder_timeout.
    """
    order = json.dumps({"limits": limits.model_dump(mode="json"), "mode": mode, "min_hw": min_hw})
    path = os.pathsep.join(p for p in (_PACKAGE_ROOT, os.environ.get("PYTHONPATH")) if p)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "annotator.stages.decode", order],
            input=data,
            capture_output=True,
            timeout=timeout_s,
            env={**os.environ, "PYTHONPATH": path},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ImageError("unreadable", "decoder_timeout", f"decoding took more than {timeout_s:g} s") from None
    head, _, pixels = done.stdout.partition(b"\n")
    if done.returncode or not head:
        raise ImageError("unreadable", "decoder_crashed", f"the decoder ended with code {done.returncode}")
    reply = json.loads(head)
    if "error" in reply:
        raise ImageError(**reply["error"])
    pixels_YXC = np.frombuffer(bytearray(pixels), np.uint8).reshape(reply["shape"])
    return Image(pixels_YXC=pixels_YXC, width=reply["width"], height=reply["height"], note=reply["note"])


def _serve(order: dict[str, Any], data: bytes, write: Callable[[bytes], Any]) -> None:
    """Decode one image and write a line of JSON, then the raw pixels if there are any."""
    try:
        hw = (order["min_hw"][0], order["min_hw"][1])
        image = decode(data, Limits(**order["limits"]), mode=order["mode"], min_hw=hw)
    except ImageError as err:
        error = {
            "status": err.status,
            "error_class": err.error_class,
            "message": str(err),
            "transient": err.transient,
        }
        write(json.dumps({"error": error}).encode() + b"\n")
        return
    head = {"shape": image.pixels_YXC.shape, "width": image.width, "height": image.height, "note": image.note}
    write(json.dumps(head).encode() + b"\n")
    write(image.pixels_YXC.tobytes())


if __name__ == "__main__":
    with contextlib.suppress(OSError):  # Linux: where memory runs out, this process goes first
        Path("/proc/self/oom_score_adj").write_text("1000")
    _serve(json.loads(sys.argv[1]), sys.stdin.buffer.read(), sys.stdout.buffer.write)
