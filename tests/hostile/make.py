"""Files that no encoder at hand writes: bombs, rare JPEGs, hand-made TIFFs, other kinds' first bytes."""

from __future__ import annotations

import base64
import gzip
import struct
import zlib
from collections.abc import Iterable

import numpy as np
from PIL import Image

from tests.pixels.pictures import photo, save

# -- PNG -----------------------------------------------------------------------------------------


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, *, bits: int = 8, colour: int = 0, data: bytes = b"", end: bool = True) -> bytes:
    """Return a PNG with this header and compressed data, whether they fit or not."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    body = png_chunk(b"IDAT", data) if data else b""
    return b"\x89PNG\r\n\x1a\n" + header + body + (png_chunk(b"IEND", b"") if end else b"")


def png_resized(data: bytes, width: int, height: int) -> bytes:
    """Return a PNG whose header, checksum included, claims another size."""
    header = struct.pack(">II", width, height) + data[24:29]
    return data[:8] + png_chunk(b"IHDR", header) + data[33:]


def png_interlaced(pixels_YXC: np.ndarray) -> bytes:
    """Return RGB pixels as an interlaced PNG. Source: PNG specification, 8.2: seven passes."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [pixels_YXC[y::dy, x::dx] for y, x, dy, dx in passes]
    rows = b"".join(b"\0" + row.tobytes() for part in parts if part.size for row in part)
    height, width = pixels_YXC.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def png_bomb(side: int) -> bytes:
    """Return a sound black PNG of side x side pixels, 8 bits of gray, in a thousandth of so many bytes.

    Compressed zeros are a repetition of the same block, so the largest bomb is made in no time. The checksum of n
    zeros (Adler-32): 1 in the lower half, n modulo 65521 in the upper.
    """
    rows = max(r for r in range(1, min(side, 100) + 1) if side % r == 0)
    packer = zlib.compressobj(9)
    start = packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(rows * (side + 1))) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = (side * (side + 1) % 65521) << 16 | 1
    return png(side, side, data=start + block * (side // rows) + b"\x03\0" + struct.pack(">I", checksum))


# -- JPEG ----------------------------------------------------------------------------------------


def jpeg_segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def flat_jpeg(
    *, bits: int = 8, frame: int = 0xC1, sampling: Iterable[tuple[int, int]] = ((1, 1),), side: int = 32
) -> bytes:
    """Return a sound JPEG of mid gray whose every block is the two bits 00: no difference, end of block.

    `sampling` holds the horizontal and vertical factors of each component. Source: T.81, annexes B and F.
    """
    factors = list(sampling)
    across, down = max(h for h, _ in factors), max(v for _, v in factors)
    num_blocks = -(-side // (8 * across)) * -(-side // (8 * down)) * sum(h * v for h, v in factors)
    quantiser = jpeg_segment(0xDB, b"\0" + b"\1" * 64)
    components = b"".join(bytes([i + 1, h << 4 | v, 0]) for i, (h, v) in enumerate(factors))
    header = jpeg_segment(frame, struct.pack(">BHHB", bits, side, side, len(factors)) + components)
    # one code a table, `0`: of no difference for DC, of end of block for AC
    codes = b"".join(jpeg_segment(0xC4, bytes([table, 1]) + bytes(15) + b"\0") for table in (0x00, 0x10))
    chosen = b"".join(bytes([i + 1, 0]) for i in range(len(factors)))
    scan = jpeg_segment(0xDA, bytes([len(factors)]) + chosen + b"\0\x3f\0")
    padding = (1 << -(2 * num_blocks) % 8) - 1
    blocks = bytearray(-(-2 * num_blocks // 8))
    blocks[-1] |= padding
    return b"\xff\xd8" + quantiser + header + codes + scan + bytes(blocks) + b"\xff\xd9"


def jpeg_ycck() -> bytes:
    """Return `photo()` as a print shop stores it: YCCK, with Adobe's marker that says so.

    Pillow writes four channels as they are, inverted, and marks them CMYK; so it is handed Y, Cb, Cr and K.
    """
    ycc = np.asarray(Image.fromarray(photo()).convert("YCbCr"))
    inverted = 255 - np.dstack([ycc, np.full(ycc.shape[:2], 255, np.uint8)])
    data = save(inverted, "JPEG", mode="CMYK", quality=98, subsampling=0)
    at = data.index(b"Adobe") + 11
    assert data[at] == 0  # transform: 0 CMYK, 2 YCCK
    return data[:at] + b"\2" + data[at + 1 :]


def jpeg_arithmetic() -> bytes:
    """Return a 16x16 photograph with arithmetic coding, by `jpegtran -arithmetic` of libjpeg-turbo 2.1.5."""
    return base64.b64decode(ARITHMETIC)


def jpeg_scans(data: bytes) -> list[int]:
    """Return where each scan of a JPEG without a thumbnail begins."""
    found, at = [], data.find(b"\xff\xda")
    while at >= 0:
        found.append(at)
        at = data.find(b"\xff\xda", at + 2)
    return found


ARITHMETIC = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1RV19i"
    "Z2hnPk1xeXBkeFxlZ2P/2wBDARESEhgVGC8aGi9jQjhCY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2Nj"
    "Y2NjY2NjY2P/yQARCAAQABADAREAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD7PR1waAFO24UiA+iIPIZI5LgtFfGe"
    "JxPvPwO1HL3j3yjOk8YOBhJqf616pvDjjd0FPBj/2Q=="
)


# -- TIFF ----------------------------------------------------------------------------------------

SHORT, LONG, SLONG = 3, 4, 9


def tiff(width: int, height: int, data: bytes, *, more: Iterable[tuple[int, int, int]] = ()) -> bytes:
    """Return a gray TIFF of deflated `data` in one strip, or in one tile if `more` has the tags of tiles.

    `more` holds tag, type and value; those that it repeats come first.
    """
    extra = list(more)
    tiled = any(tag == 322 for tag, _, _ in extra)
    place, count = (324, 325) if tiled else (273, 279)
    tags = [(256, LONG, width), (257, LONG, height), (258, SHORT, 8), (259, SHORT, 8), (262, SHORT, 1), (277, SHORT, 1)]
    tags += [] if tiled else [(278, LONG, height)]
    start = 8 + 2 + 12 * (len(tags) + len(extra) + 2) + 4
    tags = sorted([*extra, *tags, (place, LONG, start), (count, LONG, len(data))], key=lambda tag: tag[0])
    entries = b"".join(struct.pack("<HHI", tag, kind, 1) + _value(kind, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def _value(kind: int, value: int) -> bytes:
    return struct.pack("<HH", value, 0) if kind == SHORT else struct.pack("<I", value)


def tiff_big_endian(pixels_YXC: np.ndarray) -> bytes:
    """Return RGB pixels as a Motorola TIFF, uncompressed."""
    height, width = pixels_YXC.shape[:2]
    tags = [(256, LONG, width), (257, LONG, height), (258, SHORT, 3), (259, SHORT, 1), (262, SHORT, 2)]
    tags += [(273, LONG, 0), (277, SHORT, 3), (278, LONG, height), (279, LONG, pixels_YXC.size)]
    bits = 8 + 2 + 12 * len(tags) + 4
    entries = b""
    for tag, kind, value in tags:
        if tag == 258:  # three values do not fit in an entry: where they are
            entries += struct.pack(">HHII", tag, kind, 3, bits)
        else:
            value = bits + 6 if tag == 273 else value
            entries += struct.pack(">HHI", tag, kind, 1)
            entries += struct.pack(">HH", value, 0) if kind == SHORT else struct.pack(">I", value)
    start = b"MM\0*" + struct.pack(">IH", 8, len(tags))
    return start + entries + bytes(4) + struct.pack(">HHH", 8, 8, 8) + pixels_YXC.tobytes()


# -- orientation ---------------------------------------------------------------------------------


def turned_back(pixels_YXC: np.ndarray, orientation: int) -> np.ndarray:
    """Return the pixels as a camera stores them that says `orientation`.

    Source: EXIF 2.32, tag 274, which names where row 0 and column 0 lie: 6 is right side and top, and so on.
    """
    turned = pixels_YXC.transpose(1, 0, 2) if orientation >= 5 else pixels_YXC
    flip_rows, flip_columns = orientation in (3, 4, 6, 7), orientation in (2, 3, 7, 8)
    return turned[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


# -- other kinds ---------------------------------------------------------------------------------


def bmff(brand: bytes) -> bytes:
    """Return the beginning of an ISO media file (HEIC, AVIF, MP4): a brand box and a box of zeros."""
    return struct.pack(">I4s4sI4s", 20, b"ftyp", brand, 0, b"mif1") + struct.pack(">I4s", 1000, b"mdat") + bytes(992)


def other_kinds() -> dict[str, bytes]:
    """Return files of kinds that are not read: whole ones where Pillow writes them, else their first bytes."""
    return {
        "heic": bmff(b"heic"),
        "avif": save(photo(), "AVIF"),
        "mp4": bmff(b"isom"),
        "jpeg2000": save(photo(), "JPEG2000"),
        "jpeg_xl": b"\xff\x0a" + bytes(500),
        "ico": save(photo((32, 32)), "ICO"),
        "ppm": save(photo(), "PPM"),
        "tga": save(photo(), "TGA"),
        "psd": b"8BPS\0\1" + bytes(500),
        "exr": b"\x76\x2f\x31\x01\x02" + bytes(500),
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="61" height="47"/>',
        "pdf": save(photo(), "PDF"),
        "gzip": gzip.compress(save(photo(), "JPEG"), mtime=0),
    }
