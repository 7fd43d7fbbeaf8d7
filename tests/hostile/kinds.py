"""Every kind of odd file that docs/reference/input.md lists, by its name there; one or more files of each."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np

from tests.hostile import make
from tests.pixels.pictures import SIZE_YX, frames, one_of_each_kind, photo, save

TENTHS = range(1, 10)
MAX_BYTES = 4 * 2**20
"""`limits.max_bytes` of the tests; the other limits are as they come."""

HEIGHT, WIDTH = SIZE_YX
PICTURES = one_of_each_kind()
RGBA = np.dstack([photo(), photo(seed=3)[..., 0]])
PROGRESSIVE = save(photo((100, 150)), "JPEG", progressive=True)

Files = tuple[bytes, ...]


def all_kinds() -> dict[str, Files]:
    """Return the files of each kind, a few megabytes in all."""
    return {**damage(), **lies(), **limits(), **shapes(), **colours(), **pages(), **turns(), **not_read()}


def as_photo() -> dict[str, float]:
    """Return the kinds whose files all show `photo()`, upright, and how far off their pixels may be on average."""
    exact = (
        *("png_rgba", "png_interlaced", "png_after_end", "webp_alpha", "bmp_upside_down"),
        *(
            "tiff_packed",
            "tiff_alpha",
            "tiff_tall_strip",
            "tiff_big_endian",
            "png_animated",
            "webp_animated",
            "tiff_pages",
        ),
    )
    near = (
        *("jpeg_no_end", "jpeg_after_end", "jpeg_cmyk", "jpeg_ycck", "jpeg_rgb", "jpeg_subsampled", "jpeg_pictures"),
        *("tiff_jpeg", "webp_lossy", "exif_orientation", "exif_broken"),
    )
    coarse = ("png_palette", "png_palette_transparent", "gif_transparent", "gif_animated", "bmp_palette")
    return {**dict.fromkeys(exact, 0.0), **dict.fromkeys(near, 4.0), **dict.fromkeys(coarse, 16.0)}


def cut(data: bytes) -> Files:
    return tuple(data[: len(data) * tenth // 10] for tenth in TENTHS)


def overwritten(data: bytes, at: int, what: bytes) -> bytes:
    return data[:at] + what + data[at + len(what) :]


def damage() -> dict[str, Files]:
    """Return files that lost or changed bytes."""
    jpeg, png = PICTURES["jpeg"], PICTURES["png"]
    wide = save(photo((200, 300)), "JPEG", quality=90)
    noise = bytes(range(128, 256, 4))
    _, *others = make.jpeg_scans(PROGRESSIVE)
    arithmetic = make.jpeg_arithmetic()
    middle = {kind: overwritten(data, len(data) // 2, noise) for kind, data in PICTURES.items()}
    return {
        "empty": (b"",),
        "text": (b"There is no picture here.\n", b"<html><body>404 Not Found</body></html>", b"\xef\xbb\xbf\n"),
        "zeros": (bytes(10_000), b"\0"),
        "stub": (jpeg[:3], png[:8], PICTURES["webp"][:12], PICTURES["gif"][:6], b"BM", PICTURES["tiff"][:4]),
        **{f"{kind}_cut": cut(data) for kind, data in PICTURES.items()},
        "jpeg_progressive_cut": (*cut(PROGRESSIVE), *(PROGRESSIVE[:at] for at in others)),
        "jpeg_arithmetic_cut": tuple(arithmetic[:end] for end in range(len(arithmetic) - 40, len(arithmetic))),
        "png_animated_cut": cut(frames("PNG")),
        "jpeg_no_end": (jpeg[:-2], jpeg[:-1], save(photo(), "JPEG", progressive=True)[:-2]),
        "png_no_end": (png[:-12], png[:-4]),
        "gif_no_end": (PICTURES["gif"][:-1],),
        "jpeg_after_end": (jpeg + b"trailer" * 100, jpeg + bytes(5000), jpeg + b"\xff\xda" * 1000),
        "png_after_end": (png + b"trailer" * 100,),
        "jpeg_damaged": (
            overwritten(wide, len(wide) // 2, b"\xff\x9b"),
            overwritten(wide, len(wide) // 2, b"\xff\xd9"),
            overwritten(wide, len(wide) // 2, bytes(len(wide) - len(wide) // 2)),
            wide[: len(wide) // 2] + wide[len(wide) // 2 + 500 :],
        ),
        "png_damaged": (middle["png"], overwritten(png, 60, bytes([png[60] ^ 1]))),
        "png_animated_damaged": (overwritten(frames("PNG"), 500, noise),),
        "webp_damaged": (middle["webp"],),
        "gif_damaged": (middle["gif"],),
        "tiff_packed_damaged": (
            overwritten(data := save(photo(), "TIFF", compression="tiff_adobe_deflate"), len(data) // 2, noise),
            make.tiff(64, 64, zlib.compress(bytes(64 * 60))),
        ),
        "pixels_changed": (middle["bmp"], middle["tiff"]),
    }


def lies() -> dict[str, Files]:
    """Return files whose header does not tell the truth about what follows."""
    png, jpeg, bmp = PICTURES["png"], PICTURES["jpeg"], PICTURES["bmp"]
    sof = jpeg.index(b"\xff\xc0") + 5
    webp = bytearray(save(photo(), "WEBP", orientation=1))
    webp[24] += 1
    return {
        "png_larger": (
            make.png_resized(png, WIDTH, HEIGHT + 1),
            make.png_resized(png, WIDTH, 100 * HEIGHT),
            make.png_resized(png, WIDTH + 1, HEIGHT),
            make.png_resized(png, 9000, 9000),
        ),
        "png_fewer_rows": (make.png_resized(png, WIDTH, HEIGHT - 10),),
        "png_long_chunk": (overwritten(png, 33, b"\x20"), overwritten(png, len(png) - 12, b"\x20")),
        "png_no_size": (make.png_resized(png, 0, HEIGHT), make.png_resized(png, WIDTH, 0)),
        "jpeg_wrong_height": tuple(overwritten(jpeg, sof, struct.pack(">H", n)) for n in (HEIGHT - 16, 2 * HEIGHT)),
        "jpeg_no_height": (overwritten(jpeg, sof, b"\0\0"),),
        "webp_wrong_canvas": (bytes(webp),),
        "gif_larger_canvas": (overwritten(PICTURES["gif"], 6, struct.pack("<HH", 200, 100)),),
        "bmp_larger": (overwritten(bmp, 22, struct.pack("<i", 2 * HEIGHT)),),
        "tiff_bad_tag": (_tiff_with_lost_value(),),
    }


def _tiff_with_lost_value() -> bytes:
    """Return a TIFF with alpha, the tag of whose meaning (338) points behind the end of the file."""
    data = save(RGBA, "TIFF")
    at = data.index(struct.pack("<HHI", 338, make.SHORT, 1))
    return overwritten(data, at, struct.pack("<HHII", 338, make.SHORT, 100, 2**31 - 1))


def _tiff_with_rows_per_strip(rows: int) -> bytes:
    """Return a TIFF whose only strip says that it has so many rows (278), which means: all there are."""
    data = save(photo(), "TIFF")
    at = data.index(struct.pack("<HHI", 278, make.LONG, 1))
    return overwritten(data, at + 8, struct.pack("<I", rows))


def limits() -> dict[str, Files]:
    """Return files that are over a limit; each is small, or sound in all else."""
    black = zlib.compress(bytes(256))
    progressive = save(photo(), "JPEG", progressive=True)
    scan = progressive.index(b"\xff\xda")
    return {
        "bomb": (
            make.png_bomb(30_000),
            make.png(65_000, 65_000),
            make.flat_jpeg().replace(struct.pack(">HH", 32, 32), struct.pack(">HH", 65_500, 65_500)),
            overwritten(PICTURES["gif"], 6, b"\xff" * 4),
            overwritten(PICTURES["bmp"], 18, struct.pack("<ii", 2**31 - 1, -(2**31))),
            make.tiff(30_000, 30_000, black),
        ),
        "tiff_bomb": (
            make.tiff(16, 16, black, more=[(256, make.SLONG, 30_000), (257, make.SLONG, 30_000)]),
            make.tiff(16, 16, black, more=[(322, make.LONG, 15_000), (323, make.LONG, 15_000)]),
        ),
        "long_side": (save(np.zeros((65_501, 1), np.uint8), "PNG"), save(np.zeros((1, 65_501), np.uint8), "BMP")),
        "many_bytes": (PICTURES["jpeg"] + bytes(MAX_BYTES),),
        "many_scans": (
            progressive[:scan] + progressive[scan:-2] * 60 + b"\xff\xd9",
            progressive[:-2] + b"\xff\x01" * 70_000 + progressive[scan:-2] * 60 + b"\xff\xd9",
        ),
    }


def shapes() -> dict[str, Files]:
    """Return pictures of uncommon shapes."""
    dot, line = photo()[:1, :1], np.repeat(photo()[:1, :50], 200, axis=1)
    kinds = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
    upright = np.ascontiguousarray(line.transpose(1, 0, 2))
    return {
        "one_pixel": tuple(save(dot, kind) for kind in kinds),
        "thin": tuple(save(pixels, kind) for pixels in (line, upright) for kind in kinds),
    }


def colours() -> dict[str, Files]:
    """Return pictures with other than 3 channels of 8 bits, or coded in an uncommon way."""
    gray = photo()[..., 0]
    deep = gray.astype(np.uint16) << 8 | 0x34
    rare: list[list[tuple[int, int]]] = [[(2, 2), (1, 2), (2, 1)], [(3, 1), (1, 1), (1, 1)]]
    return {
        "jpeg_cmyk": (save(photo(), "JPEG", mode="CMYK", quality=98, subsampling=0),),
        "jpeg_ycck": (make.jpeg_ycck(),),
        "jpeg_rgb": (save(photo(), "JPEG", keep_rgb=True, quality=98),),
        "jpeg_subsampled": tuple(save(photo(), "JPEG", quality=95, subsampling=s) for s in (0, 1, 2)),
        "jpeg_rare_subsampling": tuple(make.flat_jpeg(sampling=s) for s in rare),
        "jpeg_progressive": (PROGRESSIVE,),
        "jpeg_arithmetic": (make.jpeg_arithmetic(),),
        "jpeg_12_bits": (make.flat_jpeg(bits=12), make.flat_jpeg(bits=12, sampling=[(2, 2), (1, 1), (1, 1)])),
        "jpeg_lossless": (make.flat_jpeg(frame=0xC3),),
        "jpeg_two_channels": (make.flat_jpeg(sampling=[(1, 1), (1, 1)]),),
        "gray": tuple(save(gray, kind) for kind in ("JPEG", "PNG", "BMP", "TIFF")),
        "one_bit": tuple(save(gray, kind, mode="1") for kind in ("PNG", "BMP", "TIFF")),
        "deep": (save(deep, "PNG"), save(deep, "TIFF")),
        "tiff_float": (save(gray.astype(np.float32), "TIFF"),),
        "png_rgba": (save(RGBA, "PNG"),),
        "png_gray_alpha": (save(RGBA, "PNG", mode="LA"),),
        "png_interlaced": (make.png_interlaced(photo()),),
        "png_palette": (save(photo(), "PNG", mode="P"),),
        "png_palette_transparent": (save(photo(), "PNG", mode="P", transparency=0),),
        "webp_alpha": (save(RGBA, "WEBP", lossless=True, exact=True),),
        "webp_lossy": (save(photo(), "WEBP", quality=90),),
        "gif_transparent": (save(photo(), "GIF", transparency=0),),
        "bmp_palette": (save(photo(), "BMP", mode="P"),),
        "bmp_upside_down": (_bmp_upside_down(),),
        "tiff_packed": tuple(
            save(photo(), "TIFF", compression=how) for how in ("tiff_lzw", "tiff_adobe_deflate", "packbits")
        ),
        "tiff_jpeg": (save(photo(), "TIFF", compression="jpeg", quality=95),),
        "tiff_alpha": (save(RGBA, "TIFF"),),
        "tiff_tall_strip": tuple(_tiff_with_rows_per_strip(rows) for rows in (2**22, 2**31 - 1, 2**32 - 1)),
        "tiff_tiled": (make.tiff(16, 16, zlib.compress(bytes(range(256))), more=[(322, 3, 16), (323, 3, 16)]),),
        "tiff_big_endian": (make.tiff_big_endian(photo()),),
    }


def _bmp_upside_down() -> bytes:
    """Return a BMP whose negative height says that its top row comes first."""
    data = save(photo()[::-1], "BMP")
    return overwritten(data, 22, struct.pack("<i", -HEIGHT))


def pages() -> dict[str, Files]:
    """Return files that hold more than one picture; `photo()` is the first."""
    return {
        "gif_animated": (frames("GIF"),),
        "webp_animated": (frames("WEBP", lossless=True),),
        "png_animated": (frames("PNG"),),
        "tiff_pages": (frames("TIFF"),),
        "jpeg_pictures": (frames("MPO", quality=95),),
    }


def turns() -> dict[str, Files]:
    """Return pictures that are to be turned before they are looked at, and such whose EXIF is broken.

    The stored pixels are turned the other way, so that upright all show `photo()`.
    """
    stored = {o: np.ascontiguousarray(make.turned_back(photo(), o)) for o in range(1, 9)}
    how: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}
    plain = save(photo(), "JPEG", quality=95, subsampling=0)
    exif = [
        b"",
        b"II",
        b"XX*\0" + bytes(20),
        b"II*\0\xff\xff\xff\xff",
        b"II*\0" + struct.pack("<IH", 8, 65535),
        b"MM\0*" + struct.pack(">IHHHII", 8, 1, 0x0112, 3, 1, 0),
        b"MM\0*" + struct.pack(">IHHHIHH", 8, 1, 0x0112, 3, 1, 9, 0),
        b"MM\0*" + struct.pack(">IHHHII", 8, 1, 0x0112, 3, 1000, 2**31),
        b"MM\0*" + struct.pack(">IHHHII", 8, 1, 0x0112, 2, 1, 6),
    ]
    return {
        "exif_orientation": tuple(
            save(stored[o], kind, orientation=o, **how.get(kind, {}))
            for kind in ("JPEG", "PNG", "WEBP", "TIFF")
            for o in range(1, 9)
        ),
        "exif_broken": tuple(plain[:2] + make.jpeg_segment(0xE1, b"Exif\0\0" + block) + plain[2:] for block in exif),
    }


def not_read() -> dict[str, Files]:
    """Return files of other kinds."""
    return {name: (data,) for name, data in make.other_kinds().items()}
