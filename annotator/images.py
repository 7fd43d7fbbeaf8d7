"""What an encoded image says about itself, read from its first bytes without decoding it.

Why our own parser (2026-11): limits must be judged before anything is allocated, and no library we depend on
tells size, bits and EXIF orientation without decoding. Any bytes give a Header or an ImageError, in time
linear in their number.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from annotator.errors import ImageError

_MAX_PARTS = 65536
"""Segments or blocks looked at in one file; hostile files hold millions of empty ones."""

_MAX_CHUNKS = 2**18
"""Chunks of a PNG, all of which are looked at: two gigabytes of the 8 KB that encoders write."""

_FILL = re.compile(rb"\xff+")
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # the next marker that is no part of a scan's data
_ORIENTATION = 0x0112  # EXIF 2.32 table 4, TIFF 6.0 page 36
_EXTRA_SAMPLES = 0x0152  # TIFF 6.0 page 31
_ROWS_PER_STRIP = 0x0116  # TIFF 6.0 page 39
_COMPRESSION = 0x0103  # TIFF 6.0 page 30; 1 is none
_TILE_WIDTH, _TILE_LENGTH = 0x0142, 0x0143  # TIFF 6.0 page 67
# TIFF field types BYTE, SHORT, LONG, LONG8 and their signed twins: libtiff takes a size from any of them.
_NUMBERS = {1: "B", 3: "H", 4: "I", 16: "Q", 6: "b", 8: "h", 9: "i", 17: "q"}
JPEG_FRAMES = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)  # baseline, extended, progressive; Huffman or arithmetic
JPEG_PROGRESSIVE = (0xC2, 0xCA)
_JPEG_ARITHMETIC = (0xC9, 0xCA)
_JPEG_OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF)  # lossless and hierarchical: T.81 table B.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What the file claims; width and height are of the stored pixels, before orientation.

    kind         jpeg, png, webp, gif, bmp or tiff
    bits         per sample as stored
    channels     that decoding without conversion gives, alpha and black included
    orientation  EXIF value, 1 to 8; 1 where none or a senseless one is given
    animated     more than one frame or page
    unchecked    a coding whose decoder takes missing or damaged data for zeros and says nothing; else null
    tile_pixels  of one tile of a TIFF: decoded whole, even where the image is smaller
    """

    kind: str
    width: int
    height: int
    bits: int
    channels: int
    orientation: int = 1
    animated: bool = False
    unchecked: str | None = None
    tile_pixels: int = 0

    @property
    def oriented_yx(self) -> tuple[int, int]:
        """Height and width after the orientation is applied."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def probe(data: bytes) -> Header:
    """Return what the file's header says.

    Raises: ImageError, always `unreadable`: `empty`, `unsupported_format` or `corrupt`.
    """
    if not data:
        raise ImageError("unreadable", "empty", "the file is empty; expected an encoded image")
    kind = sniff(data)
    if kind is None:
        expected = "expected JPEG, PNG, WebP, GIF, BMP or TIFF"
        raise ImageError("unreadable", "unsupported_format", f"starts with {data[:8].hex(' ')}; {expected}")
    try:
        header = _PARSERS[kind](data)
    except (struct.error, IndexError, OverflowError):
        raise corrupt(kind, f"the header ends early, in a file of {len(data)} bytes") from None
    if header.width < 1 or header.height < 1:
        raise corrupt(kind, f"the header says {header.width} x {header.height} pixels")
    return header


def sniff(data: bytes) -> str | None:
    """Return the kind of file that the first bytes announce, or None."""
    if data[:4] == b"RIFF":
        return "webp" if data[8:12] == b"WEBP" else None
    return next((kind for magic, kind in _MAGIC.items() if data.startswith(magic)), None)


def corrupt(kind: str, found: str) -> ImageError:
    """Return the error for a file that is damaged."""
    return ImageError("unreadable", "corrupt", f"damaged {kind}: {found}")


def apply_orientation(image_YXC: np.ndarray, orientation: int) -> np.ndarray:
    """Return the image as it is meant to be seen, contiguous; the same array for orientation 1.

    Shapes: (Y, X) or (Y, X, C); 5 to 8 swap Y and X.   Source: EXIF 2.32, tag 274.
    """
    if orientation == 1:
        return image_YXC
    return np.ascontiguousarray(_TURNS[orientation](image_YXC))


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, first byte and end of each segment's content, those that stand alone left out.

    Raises: IndexError or struct.error where the file ends early, ImageError for what is no JPEG or endless.
    """
    at = 2
    for _ in range(_MAX_PARTS):
        fill = _FILL.match(data, at)
        if fill is None:
            raise IndexError if at >= len(data) else corrupt("jpeg", f"no marker at byte {at}")
        marker, at = data[fill.end()], fill.end() + 1
        if marker == 0xD9:  # end of image
            return
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:
            continue
        (length,) = struct.unpack_from(">H", data, at)
        if length < 2:
            raise corrupt("jpeg", f"a segment of length {length} at byte {at}")
        yield marker, at + 2, at + length
        at += length
        if marker == 0xDA:  # start of scan: its data follows
            found = _AFTER_SCAN.search(data, at)
            at = found.start() if found else len(data)
    raise corrupt("jpeg", f"more than {_MAX_PARTS} segments")


def plain_tiff(data: bytes, header: Header) -> bytes:
    """Return the TIFF with tags changed so that OpenCV gives its pixels as they are stored.

    It applies the orientation even when told not to, and multiplies colours by alpha unless that is said to
    have been done. It allocates as many rows as a strip claims, though the image has fewer.
    """
    order = _order(data)
    tags, _ = _directory(data)
    wanted = {_ORIENTATION: 1, _EXTRA_SAMPLES: 1, _ROWS_PER_STRIP: header.height}  # 1: upright; 1: associated alpha
    patched = bytearray(data)
    for tag, value in wanted.items():
        if tag not in tags:
            continue
        kind, at = tags[tag]
        try:
            if tag != _ROWS_PER_STRIP or struct.unpack_from(order + kind, data, at)[0] > value:
                struct.pack_into(order + kind, patched, at, value)
        except (struct.error, IndexError, OverflowError):
            raise corrupt("tiff", f"a tag's value at byte {at}, in a file of {len(data)} bytes") from None
    return bytes(patched)


def _jpeg(data: bytes) -> Header:
    frame, orientation, coding = None, None, 0
    for marker, at, end in jpeg_segments(data):
        if marker == 0xDA:
            break
        if marker in _JPEG_OTHER_FRAMES:
            raise ImageError("unreadable", "unsupported_format", "lossless or hierarchical JPEG; expected lossy")
        if marker in JPEG_FRAMES and frame is None:
            frame, coding = struct.unpack_from(">BHHB", data, at), marker
        elif marker == 0xE1 and orientation is None and data[at : at + 6] == b"Exif\0\0":
            orientation = _exif_orientation(data[at + 6 : end])
    if frame is None:
        raise corrupt("jpeg", "no frame header before the first scan")
    bits, height, width, channels = frame
    if bits != 8:
        raise ImageError("unreadable", "unsupported_format", f"JPEG of {bits} bits a sample; expected 8")
    if channels not in (1, 3, 4):
        raise ImageError("unreadable", "unsupported_format", f"JPEG of {channels} channels; expected 1, 3 or 4")
    return Header(
        kind="jpeg",
        width=width,
        height=height,
        bits=bits,
        channels=channels,
        orientation=orientation or 1,
        unchecked="arithmetic coding" if coding in _JPEG_ARITHMETIC else None,
    )


def _png(data: bytes) -> Header:
    length, name, width, height, bits, colour = struct.unpack_from(">I4sIIBB", data, 8)
    channels = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}.get(colour)
    if name != b"IHDR" or length != 13 or channels is None:
        raise corrupt("png", f"first chunk {name!r} of {length} bytes, colour type {colour}")
    orientation, animated, at, num_chunks = 1, False, 8, 0
    while at + 8 <= len(data) and name != b"IEND":
        length, name = struct.unpack_from(">I4s", data, at)
        num_chunks += 1
        if at + 8 + length > len(data) or num_chunks > _MAX_CHUNKS:  # OpenCV allocates what a chunk claims
            raise corrupt("png", f"chunk {num_chunks} of {length} bytes, in a file of {len(data)} bytes")
        if name == b"eXIf":
            orientation = _exif_orientation(data[at + 8 : at + 8 + length])
        elif name == b"acTL" and length >= 4:
            animated = bool(struct.unpack_from(">I", data, at + 8)[0] > 1)
        at += 12 + length
    return Header(
        kind="png",
        width=width,
        height=height,
        bits=bits,
        channels=channels,
        orientation=orientation,
        animated=animated,
    )


def _webp(data: bytes) -> Header:
    name = data[12:16]
    if name == b"VP8X":
        flags = data[20]
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
        data[29]  # IndexError where the size is cut off
        alpha, animated = bool(flags & 0x10), bool(flags & 0x02)
        orientation = _webp_orientation(data) if flags & 0x08 else 1
        channels = 4 if alpha else 3
        return Header(
            kind="webp",
            width=width,
            height=height,
            bits=8,
            channels=channels,
            orientation=orientation,
            animated=animated,
        )
    if name == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        if data[23:26] != b"\x9d\x01\x2a":
            raise corrupt("webp", "no start code in the VP8 frame")
        return Header(kind="webp", width=width & 0x3FFF, height=height & 0x3FFF, bits=8, channels=3)
    if name == b"VP8L":
        signature, packed = struct.unpack_from("<BI", data, 20)
        if signature != 0x2F:
            raise corrupt("webp", "no signature in the VP8L stream")
        channels = 4 if packed >> 28 & 1 else 3
        return Header(
            kind="webp", width=(packed & 0x3FFF) + 1, height=(packed >> 14 & 0x3FFF) + 1, bits=8, channels=channels
        )
    raise corrupt("webp", f"first chunk {name!r}; expected VP8, VP8L or VP8X")


def _webp_orientation(data: bytes) -> int:
    at = 12
    for _ in range(_MAX_PARTS):
        if at + 8 > len(data):
            break
        name, length = struct.unpack_from("<4sI", data, at)
        if name == b"EXIF":
            return _exif_orientation(data[at + 8 : at + 8 + length].removeprefix(b"Exif\0\0"))
        at += 8 + length + length % 2
    return 1


def _gif(data: bytes) -> Header:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at, frames, inside = 13 + _gif_table(flags), 0, False
    for _ in range(_MAX_PARTS):  # a file whose first frame has more blocks passes for a still picture
        if at + 9 >= len(data) or frames > 1:
            break
        if inside:  # a chain of sub-blocks, each led by its length; 0 ends it
            inside, at = data[at] > 0, at + 1 + data[at]
        elif data[at] == 0x2C:  # an image: place, table, code size, then sub-blocks
            inside, frames, at = True, frames + 1, at + 11 + _gif_table(data[at + 9])
        elif data[at] == 0x21:  # an extension: label, then sub-blocks
            inside, at = True, at + 2
        else:
            break
    return Header(kind="gif", width=width, height=height, bits=8, channels=3, animated=frames > 1)


def _gif_table(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _bmp(data: bytes) -> Header:
    (size,) = struct.unpack_from("<I", data, 14)
    if size == 12:
        width, height, _, depth = struct.unpack_from("<HHHH", data, 18)
    elif size >= 40:
        width, height, _, depth = struct.unpack_from("<iiHH", data, 18)  # a negative height: top row first
    else:
        raise corrupt("bmp", f"an info header of {size} bytes")
    return Header(kind="bmp", width=width, height=abs(height), bits=8, channels=4 if depth == 32 else 3)


def _tiff(data: bytes) -> Header:
    order = _order(data)
    tags, more = _directory(data)

    def value(tag: int, default: int) -> int:
        if tag not in tags:
            return default
        kind, at = tags[tag]
        return int(struct.unpack_from(order + kind, data, at)[0])

    bits = value(258, 1)
    if bits > 16:
        raise ImageError("unreadable", "unsupported_format", f"TIFF of {bits} bits a sample; expected at most 16")
    return Header(
        kind="tiff",
        width=value(256, 0),
        height=value(257, 0),
        bits=bits,
        channels=value(277, 1),
        orientation=_sane(value(_ORIENTATION, 1)),
        animated=more,
        unchecked="compressed TIFF" if value(_COMPRESSION, 1) != 1 else None,
        tile_pixels=value(_TILE_WIDTH, 0) * value(_TILE_LENGTH, 0),
    )


def _exif_orientation(exif: bytes) -> int:
    """Return the orientation in a block of EXIF, or 1: damaged metadata never costs an image."""
    try:
        tags, _ = _directory(exif)
        kind, at = tags[_ORIENTATION]
        return _sane(struct.unpack_from(_order(exif) + kind, exif, at)[0])
    except (struct.error, IndexError, OverflowError, KeyError):
        return 1


def _sane(orientation: int) -> int:
    return orientation if 1 <= orientation <= 8 else 1


def _order(tiff: bytes) -> str:
    return ">" if tiff[:2] == b"MM" else "<"


def _directory(tiff: bytes) -> tuple[dict[int, tuple[str, int]], bool]:
    """Return the first directory, as struct format and byte offset by tag, and whether another follows.

    Reads classic and BigTIFF. Only tags with whole numbers are returned.
    """
    order = _order(tiff)
    big = struct.unpack_from(order + "H", tiff, 2)[0] == 43
    word, short, entry, room = ("Q", "Q", 20, 8) if big else ("I", "H", 12, 4)
    (at,) = struct.unpack_from(order + word, tiff, 8 if big else 4)
    (count,) = struct.unpack_from(order + short, tiff, at)
    at += struct.calcsize(short)
    tags: dict[int, tuple[str, int]] = {}
    for index in range(min(count, _MAX_PARTS)):
        here = at + entry * index
        tag, kind, num = struct.unpack_from(order + "HH" + word, tiff, here)
        if kind not in _NUMBERS:
            continue
        inline = struct.calcsize(_NUMBERS[kind]) * num <= room
        place = here + entry - room
        tags.setdefault(tag, (_NUMBERS[kind], place if inline else struct.unpack_from(order + word, tiff, place)[0]))
    end = at + entry * count
    more = end + room <= len(tiff) and struct.unpack_from(order + word, tiff, end)[0] != 0
    return tags, more


_MAGIC = {
    b"\xff\xd8\xff": "jpeg",
    b"\x89PNG\r\n\x1a\n": "png",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
    b"BM": "bmp",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"II+\0": "tiff",
    b"MM\0+": "tiff",
}
_PARSERS: dict[str, Callable[[bytes], Header]] = {
    "jpeg": _jpeg,
    "png": _png,
    "webp": _webp,
    "gif": _gif,
    "bmp": _bmp,
    "tiff": _tiff,
}
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda a: cv2.flip(a, 1),
    3: lambda a: cv2.rotate(a, cv2.ROTATE_180),
    4: lambda a: cv2.flip(a, 0),
    5: lambda a: cv2.transpose(a),
    6: lambda a: cv2.rotate(a, cv2.ROTATE_90_CLOCKWISE),
    7: lambda a: cv2.transpose(cv2.rotate(a, cv2.ROTATE_180)),
    8: lambda a: cv2.rotate(a, cv2.ROTATE_90_COUNTERCLOCKWISE),
}
