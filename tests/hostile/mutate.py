"""Mutations of pictures: what bad disks, bad networks and bad people do to them."""

from __future__ import annotations

import struct
import zlib
from random import Random

MAX_BYTES = 200_000
"""Mutants are cut to this: length alone finds nothing, and costs time."""

_PNG = b"\x89PNG\r\n\x1a\n"
_NUMBERS = (
    0,
    1,
    2,
    7,
    8,
    15,
    16,
    127,
    128,
    255,
    256,
    1000,
    4095,
    32767,
    32768,
    65500,
    65535,
    2**24,
    2**31 - 1,
    2**32 - 1,
)


def mutate(data: bytes, others: list[bytes], random: Random) -> bytes:
    """Return `data` after one to six changes; a PNG's rows may be changed before they are compressed.

    Checksums of a PNG are mostly made good again.
    """
    change = _changed_inside if random.random() < 0.3 else _changed
    mutant = change(bytearray(data), random)
    if random.random() < 0.05:
        other = random.choice(others)
        mutant = mutant[: random.randint(0, len(mutant))] + other[random.randint(0, len(other)) :]
    if random.random() < 0.7:
        mutant = _with_sums(mutant)
    return bytes(mutant[:MAX_BYTES])


def _changed(data: bytearray, random: Random) -> bytearray:
    for _ in range(random.choice((1, 1, 2, 3, 6))):
        data = random.choice(_CHANGES)(data, random)
    return data


def _at(data: bytearray, random: Random) -> int:
    """Return a place in the data, in its first 200 bytes half of the time: headers are where trouble is."""
    end = min(len(data), 200) if random.random() < 0.5 else len(data)
    return random.randint(0, max(end - 1, 0))


def _flip_bits(data: bytearray, random: Random) -> bytearray:
    for _ in range(random.randint(1, 8)):
        if data:
            data[_at(data, random)] ^= 1 << random.randint(0, 7)
    return data


def _set_byte(data: bytearray, random: Random) -> bytearray:
    if data:
        data[_at(data, random)] = random.choice((0, 1, 127, 128, 255, random.randint(0, 255)))
    return data


def _set_number(data: bytearray, random: Random) -> bytearray:
    at, size, value = _at(data, random), random.choice((2, 4)), random.choice(_NUMBERS)
    body = (value % (1 << 8 * size)).to_bytes(size, random.choice(("little", "big")))
    return data[:at] + body + data[at + size :]


def _cut(data: bytearray, random: Random) -> bytearray:
    return data[: random.randint(0, len(data))]


def _drop(data: bytearray, random: Random) -> bytearray:
    at = _at(data, random)
    return data[:at] + data[at + random.randint(1, 64) :]


def _insert(data: bytearray, random: Random) -> bytearray:
    at = _at(data, random)
    return data[:at] + bytearray(random.getrandbits(8) for _ in range(random.randint(1, 64))) + data[at:]


def _blank(data: bytearray, random: Random) -> bytearray:
    at, size = _at(data, random), random.randint(1, 500)
    blank = bytes([random.choice((0, 255))]) * min(size, len(data) - at)
    return data[:at] + blank + data[at + len(blank) :]


def _duplicate(data: bytearray, random: Random) -> bytearray:
    at = _at(data, random)
    chunk = data[at : at + random.randint(1, 300)]
    to = random.choice((at, _at(data, random)))
    times: int = random.choice((1, 1, 2, 50))
    return data[:to] + chunk * times + data[to:]


def _move(data: bytearray, random: Random) -> bytearray:
    at, size = _at(data, random), random.randint(1, 300)
    chunk = data[at : at + size]
    rest = data[:at] + data[at + size :]
    to = _at(rest, random)
    return rest[:to] + chunk + rest[to:]


_CHANGES = (_flip_bits, _set_byte, _set_number, _cut, _drop, _insert, _blank, _duplicate, _move)


def _changed_inside(data: bytearray, random: Random) -> bytearray:
    """Return a PNG whose rows were changed before they were compressed; of other kinds, the file changed."""
    first = data.find(b"IDAT") - 4
    if data[:8] != _PNG or first < 0:
        return _changed(data, random)
    packed, at = b"", first
    while data[at + 4 : at + 8] == b"IDAT":
        (length,) = struct.unpack_from(">I", data, at)
        packed, at = packed + data[at + 8 : at + 8 + length], at + 12 + length
    rows = zlib.compress(_changed(bytearray(zlib.decompress(packed)), random))
    header = _changed(data[24:29], random)[:5] if random.random() < 0.2 else data[24:29]  # bits, colour, interlacing
    return data[:24] + header + data[29:first] + struct.pack(">I4s", len(rows), b"IDAT") + rows + bytes(4) + data[at:]


def _with_sums(data: bytearray) -> bytearray:
    """Return a PNG with the checksums that its chunks call for, so that damage gets further; others as they are."""
    if data[:8] != _PNG:
        return data
    at = 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            break
        struct.pack_into(">I", data, end, zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return data
