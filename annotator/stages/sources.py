"""Where an image may be read from: a manifest is written by others, and a worker could reach more than they should.

S3 has no list of its own here: what its uris reach is what the credentials reach.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from annotator.errors import ImageError, JobError, StorageError, redact
from annotator.faults import retry
from annotator.job import Sources
from annotator.local import resolve
from annotator.manifest import local_folder
from annotator.storage import normalize

KINDS = ("s3", "file", "http", "https")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Kinds of uris that are read, and the local folders that images may lie in, links resolved."""

    schemes: frozenset[str]
    roots: tuple[str, ...]


def make_places(sources: Sources, manifest: str) -> Places:
    """Return what the rows of this manifest (absolute, a file or a folder) may name: its own folder, and the roots."""
    folders = (*map(normalize, sources.roots), local_folder(manifest))
    return Places(
        schemes=frozenset(sources.schemes), roots=tuple(os.path.realpath(folder) for folder in folders if folder)
    )


def scheme_of(uri: str) -> str:
    """Return the kind of uri in small letters; `file` for plain paths, `s3` for its other names."""
    match = _SCHEME.match(uri)
    scheme = match[1].lower() if match else "file"
    return "s3" if scheme in ("s3a", "s3n") else scheme


def admit(uri: str, places: Places, *, attempts: int = 1) -> str:
    """Return what to read for a row's uri: a local path with its links resolved, any other uri as it is.

    Raises ImageError `rejected` (scheme_not_allowed, outside_roots); StorageError if the path can't be followed.
    """
    scheme = scheme_of(uri)
    if scheme not in KINDS:
        raise ImageError(
            "rejected", "scheme_not_allowed", f"{redact(uri)}: images are read from {', '.join(KINDS)} only"
        )
    if scheme not in places.schemes:
        allowed = ", ".join(sorted(places.schemes))
        raise ImageError(
            "rejected", "scheme_not_allowed", f"{redact(uri)}: the job reads {allowed}; add {scheme} to sources.schemes"
        )
    if scheme != "file":
        return uri
    named = normalize(uri)
    path = retry(lambda: resolve(named), named, attempts)
    if not any(path.startswith(root.rstrip("/") + "/") for root in places.roots):
        link = "" if path == named else f" is a link to {path}, which"
        raise ImageError(
            "rejected",
            "outside_roots",
            f"{named}{link} lies outside of the manifest's folder and of sources.roots; add its folder",
        )
    return path


def check_sample(uris: Sequence[str], places: Places, manifest: str) -> None:
    """Raise JobError if none of a manifest's first rows may be read: a corpus of rejected rows helps nobody.

    One that may be is enough: a job must not end over rows that somebody slipped in.
    """
    refusals: dict[str, ImageError] = {}
    for uri in uris:
        try:
            admit(uri, places)
            return
        except StorageError:
            return  # the row's own trouble
        except ImageError as err:
            refusals[uri] = err
    outside = [uri for uri, err in refusals.items() if err.error_class == "outside_roots"]
    if outside:
        folder = _common_folder([resolve(normalize(uri)) for uri in outside])
        raise JobError(
            f"{manifest}: its images lie in {folder}, outside of the manifest's folder; "
            f"if they may be read, name it: --root {shlex.quote(folder)}, or sources: {{roots: [{folder}]}} in the job"
        )
    if refusals:
        raise JobError(f"{manifest}: no image may be read: {next(iter(refusals.values()))}")


def _common_folder(paths: Sequence[str]) -> str:
    """Return the folder that all these files lie under, or that of the first if they share none."""
    folders = [os.path.dirname(path) for path in paths]
    folder = os.path.commonpath(folders)
    return folder if folder != "/" else folders[0]
