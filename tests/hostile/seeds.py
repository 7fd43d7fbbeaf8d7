"""What fuzzing begins with: small sound pictures of every kind that is read, coded in every way at hand."""

from __future__ import annotations

from functools import cache

from tests.hostile import kinds
from tests.pixels.pictures import one_of_each_kind


@cache
def seed_files() -> dict[str, list[bytes]]:
    """Return small files by the kind that their first bytes announce."""
    from annotator.images import sniff

    odd = {**kinds.colours(), **kinds.pages(), **kinds.turns(), "jpeg_no_end": kinds.damage()["jpeg_no_end"]}
    files = [*one_of_each_kind().values(), *(data for some in odd.values() for data in some)]
    found: dict[str, list[bytes]] = {}
    for data in files:
        found.setdefault(str(sniff(data)), []).append(data)
    return found
