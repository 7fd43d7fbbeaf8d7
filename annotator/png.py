"""PNG files of dense labels, written fast and read back exactly.

Why our own writer (2026-11): one filter for all rows through numpy and isal's deflate takes a quarter of the
CPU of OpenCV's or Pillow's, at the size of zlib level 1, and any reader opens the result.

isal's bytes depend on the processor's kind, and once in some ten thousand files, for a reason not found, on nothing
that we know: the same pixels and size, another Huffman table (2026-11). So `same_bytes` has zlib do it instead.

Policy (reference/io.md, part 4): filter UP and level 1 for every kind. On class ids, 16-bit depth and normals
alike that is within 2 % of the smallest of NONE, SUB and UP, and often far below NONE; levels 2 and 3 gain 1 %.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator

import cv2
import numpy as np
from isal import isal_zlib

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GRAY, _RGB, _PALETTE = 0, 2, 3  # colour types: PNG specification 11.2.2
_UP = 2  # filter type: PNG specification 9.2
_LEVEL = 1

_compress: Callable[[memoryview, int], bytes] = isal_zlib.compress


def same_bytes(wanted: bool) -> None:
    """Have `encode` give the same bytes for the same array at all times, in this process, at some cost in CPU."""
    global _compress
    _compress = zlib.compress if wanted else isal_zlib.compress


def encode(array: np.ndarray, *, palette: np.ndarray | None = None) -> bytes:
    """Return the array as a PNG.

    Takes uint8 or uint16, (Y, X) gray or (Y, X, 3) RGB; and uint8 (Y, X) ids with `palette`, uint8 (N, 3) RGB.
    Raises: ValueError for any other array, and for an id that the palette lacks.
    """
    gray, rgb = array.ndim == 2, array.ndim == 3 and array.shape[2:] == (3,)
    if array.dtype not in (np.uint8, np.uint16) or not (gray or rgb) or array.size == 0:
        raise ValueError(f"{array.dtype} {array.shape}; expected uint8 or uint16, (Y, X) or (Y, X, 3), not empty")
    colour = _RGB if rgb else _GRAY
    extra = b""
    if palette is not None:
        if colour != _GRAY or array.dtype != np.uint8 or not array.max() < len(palette) <= 256:
            raise ValueError(f"{array.dtype} {array.shape} with {len(palette)} colours; expected ids below that")
        colour, extra = _PALETTE, _chunk(b"PLTE", np.ascontiguousarray(palette, np.uint8).tobytes())
    height, width = array.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, array.itemsize * 8, colour, 0, 0, 0)
    body = _compress(_filtered(array).data, _LEVEL)
    return b"".join((_SIGNATURE, _chunk(b"IHDR", header), extra, _chunk(b"IDAT", body), _chunk(b"IEND", b"")))


def decode(data: bytes) -> np.ndarray:
    """Return the array that `encode` was given: class ids, not their colours, from a palette PNG.

    Raises: ValueError for anything that is damaged, or of a kind that `encode` does not write.
    """
    check(data)  # before anything is allocated by what a damaged header says
    bits, colour = size_and_kind(data)[2:]
    if bits not in (8, 16) or colour not in (_GRAY, _RGB, _PALETTE):
        raise ValueError(f"PNG of {bits} bits and colour type {colour}; expected 8 or 16 bits, gray, RGB or palette")
    if colour == _PALETTE:
        data = _palette_to_gray(data)
    encoded, flags = np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        array: np.ndarray | None = cv2.imdecode(encoded, flags)
    except cv2.error as err:
        raise ValueError(f"damaged PNG: {' '.join(str(err.err).split())}") from None
    if array is None:
        raise ValueError(f"damaged PNG of {len(data)} bytes")
    if array.ndim == 3:
        array = cv2.cvtColor(array, cv2.COLOR_BGR2RGB)
    return array


def size_and_kind(data: bytes) -> tuple[int, int, int, int]:
    """Return width, height, bits and colour type from the header; ValueError if there is none."""
    if data[:8] != _SIGNATURE or data[12:16] != b"IHDR" or len(data) < 33:
        raise ValueError(f"not a PNG: starts with {data[:8].hex(' ')}")
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    return width, height, bits, colour


def check(data: bytes) -> None:
    """Raise ValueError unless all chunks are there to the last byte, each as its checksum says. Decodes nothing."""
    size_and_kind(data)
    at, name = len(_SIGNATURE), b""
    for name, chunk in _chunks(data):
        (crc,) = struct.unpack(">I", chunk[-4:])
        if isal_zlib.crc32(chunk[4:-4]) != crc:
            raise ValueError(f"damaged PNG: the checksum of its {name!r} chunk at byte {at} is wrong")
        at += len(chunk)
    if name != b"IEND" or at != len(data):
        raise ValueError(f"damaged PNG: {len(data)} bytes, of which chunks take {at}, the last of them {name!r}")


def _filtered(array: np.ndarray) -> np.ndarray:
    """Return the rows of bytes as they are compressed: filter type, then the difference to the row above."""
    rows = np.ascontiguousarray(array.astype(">u2", copy=False) if array.itemsize == 2 else array)
    rows = rows.view(np.uint8).reshape(array.shape[0], -1)
    out = np.empty((rows.shape[0], rows.shape[1] + 1), np.uint8)
    out[:, 0] = _UP
    out[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=out[1:, 1:])
    return out


def _chunk(name: bytes, body: bytes) -> bytes:
    crc = isal_zlib.crc32(body, isal_zlib.crc32(name))
    return b"".join((struct.pack(">I", len(body)), name, body, struct.pack(">I", crc)))


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and whole bytes of each chunk."""
    at = len(_SIGNATURE)
    while at + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        yield name, data[at : at + 12 + length]
        at += 12 + length


def _palette_to_gray(data: bytes) -> bytes:
    """Return the same pixels as a gray PNG, so that a reader gives ids instead of colours."""
    parts = [_SIGNATURE]
    for name, chunk in _chunks(data):
        if name == b"IHDR":
            chunk = _chunk(name, chunk[8:17] + bytes([_GRAY]) + chunk[18:21])
        if name not in (b"PLTE", b"tRNS"):
            parts.append(chunk)
    return b"".join(parts)
