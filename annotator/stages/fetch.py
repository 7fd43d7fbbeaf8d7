"""Fetch: one row's encoded bytes, or the reason why there are none."""

from __future__ import annotations

from annotator.envelope import Row, Status
from annotator.errors import (
    AccessError,
    CredentialsError,
    ImageError,
    NotFoundError,
    StorageError,
    TransientStorageError,
)
from annotator.job import Limits
from annotator.storage import Storage


def fetch(row: Row, storage: Storage, limits: Limits) -> bytes:
    """Return the encoded picture of a row: the embedded bytes, else its uri read with one ranged request.

    Raises ImageError: `unreadable` (no_source, not_found, forbidden, fetch_failed; `fetch_timeout` is
    transient) or `rejected` (too_many_bytes). Raises CredentialsError as it is: it is not the image's fault.
    """
    data = row.data if row.data is not None else _read(row.uri, storage, limits)
    if len(data) > limits.max_bytes:
        raise ImageError(
            Status.REJECTED.value,
            "too_many_bytes",
            f"more than limits.max_bytes = {int(limits.max_bytes)} bytes; raise the limit to label it",
        )
    return data


def _read(uri: str | None, storage: Storage, limits: Limits) -> bytes:
    unreadable = Status.UNREADABLE.value
    if uri is None:
        raise ImageError(unreadable, "no_source", "the manifest row has neither a uri nor embedded bytes")
    try:
        return storage.read(uri, length=int(limits.max_bytes) + 1)
    except CredentialsError:
        raise
    except TransientStorageError as err:
        raise ImageError(unreadable, "fetch_timeout", str(err), transient=True) from err
    except NotFoundError as err:
        raise ImageError(unreadable, "not_found", str(err)) from err
    except AccessError as err:
        raise ImageError(unreadable, "forbidden", str(err)) from err
    except StorageError as err:
        raise ImageError(unreadable, "fetch_failed", str(err)) from err
