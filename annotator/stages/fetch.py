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
from annotator.job import Job
from annotator.stages.sources import admit, make_places
from annotator.storage import Storage


class Fetcher:
    """Reads the pictures of a job's manifest; safe for threads. Close it."""

    def __init__(self, job: Job) -> None:
        self._limits = job.limits
        self._storage = Storage(options=job.storage, attempts=job.limits.attempts, timeout_s=job.limits.fetch_timeout_s)
        self._places = make_places(job.sources, job.manifest)
        self._http = None
        if self._places.schemes & {"http", "https"}:
            from annotator.stages.http import Http  # loads aiohttp, which few jobs need

            self._http = Http(job.limits, self._places.schemes)

    def close(self) -> None:
        if self._http is not None:
            self._http.close()

    def __call__(self, row: Row) -> bytes:
        """Return the encoded picture of a row: the embedded bytes, else its uri read with one request.

        Raises ImageError: `rejected` (scheme_not_allowed, outside_roots, address_not_allowed, redirect_not_allowed,
        too_many_bytes) or `unreadable` (no_source, not_found, forbidden, fetch_failed; `fetch_timeout` is
        transient). Raises CredentialsError as it is: it is not the image's fault.
        """
        data = row.data if row.data is not None else self._read(row.uri)
        if len(data) > self._limits.max_bytes:
            raise ImageError(
                Status.REJECTED.value,
                "too_many_bytes",
                f"more than limits.max_bytes = {int(self._limits.max_bytes)} bytes; raise the limit to label it",
            )
        return data

    def _read(self, uri: str | None) -> bytes:
        unreadable = Status.UNREADABLE.value
        if uri is None:
            raise ImageError(unreadable, "no_source", "the manifest row has neither a uri nor embedded bytes")
        length = int(self._limits.max_bytes) + 1
        try:
            admitted = admit(uri, self._places, attempts=self._limits.attempts)
            if self._http is not None and admitted.lower().startswith(("http://", "https://")):
                return self._http.read(admitted, length=length)
            return self._storage.read(admitted, length=length)
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
