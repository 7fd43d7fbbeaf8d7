"""Reads of S3 objects by obstore, where it is installed: half to a tenth of the CPU of s3fs (docs/benchmarks.md).

Only what succeeds is taken from here. Anything else (a fault, a missing object, a key that obstore would spell in
another way, no credentials) is None, and `storage` asks again by s3fs, whose errors are told apart and retried.
So both ways give the same bytes and the same errors; an object that can't be read costs one request more.

Why credentials come from botocore (2026-11): it knows profiles, SSO and roles, and s3fs uses it too.
"""

from __future__ import annotations

import importlib.util
import re
import threading
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from typing import Any, cast

from annotator.job import StorageOptions

_PLAIN_KEY = re.compile(r"(?!/)(?:(?:/|^)(?!\.{1,2}(?:/|$))[A-Za-z0-9._=@-]+)+")
"""Keys that mean the same to everybody; obstore encodes or drops some characters of others."""

_PATIENCE = 20
"""Misses beyond the hits after which a bucket is left to s3fs: it is in another region, say."""

_CREDENTIALS_FOR = timedelta(minutes=5)
_AWS = re.compile(r"https://[\w.-]+\.amazonaws\.com(?:\.cn)?/?")


def fast_get(
    options: StorageOptions, timeout_s: float, bucket: str, key: str, start: int, length: int | None, pid: int
) -> Any:
    """Return an object's bytes from `start` on, or `length` of them, by one GET; None if that did not go smoothly.

    `pid` is this process's id: connections do not survive a fork.
    """
    if not is_installed() or not _PLAIN_KEY.fullmatch(key):
        return None
    return _bucket(options, timeout_s, bucket, pid).get(key, start, length)


@lru_cache(maxsize=1)
def is_installed() -> bool:
    """Return whether obstore is there: the extra `fast-io`."""
    return importlib.util.find_spec("obstore") is not None


class _Bucket:
    """One bucket by obstore; gives up on it when it fails more often than not."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._balance = _PATIENCE
        self._lock = threading.Lock()

    def get(self, key: str, start: int, length: int | None) -> bytes | None:
        if self._store is None or self._balance <= 0:
            return None
        import obstore

        try:
            options: Any = {"range": {"offset": start} if length is None else (start, start + length)}
            options = options if start or length is not None else {}
            data = bytes(obstore.get(self._store, key, options=options).bytes())
        except Exception:  # whatever it is, s3fs is asked next and says it better
            with self._lock:
                self._balance -= 1
            return None
        with self._lock:
            self._balance = min(self._balance + 1, _PATIENCE)
        return data


@lru_cache(maxsize=16)
def _bucket(options: StorageOptions, timeout_s: float, bucket: str, pid: int) -> _Bucket:
    return _Bucket(_make_store(options, timeout_s, bucket))


def _make_store(options: StorageOptions, timeout_s: float, bucket: str) -> Any:
    """Return obstore's store for a bucket, None if botocore knows no credentials or no endpoint."""
    import botocore.session
    from botocore.exceptions import BotoCoreError
    from obstore.store import S3Store

    try:
        session = botocore.session.Session(profile=options.profile)
        client = session.create_client("s3", region_name=options.region, endpoint_url=options.endpoint_url)
        credentials = session.get_credentials()
    except (BotoCoreError, ValueError):
        return None
    if credentials is None:
        return None
    endpoint = client.meta.endpoint_url
    settings: dict[str, Any] = {"region": client.meta.region_name or "us-east-1"}
    if not _AWS.fullmatch(endpoint):
        settings |= {"endpoint": endpoint, "virtual_hosted_style_request": False}

    def provide() -> dict[str, Any]:
        found = credentials.get_frozen_credentials()  # botocore renews them when they are about to expire
        return {
            "access_key_id": found.access_key,
            "secret_access_key": found.secret_key,
            "token": found.token,
            "expires_at": datetime.now(timezone.utc) + _CREDENTIALS_FOR,
        }

    return S3Store(
        bucket,
        **settings,
        client_options={"timeout": timedelta(seconds=timeout_s), "allow_http": True},
        retry_config={"max_retries": 0},
        credential_provider=cast(Any, provide),
    )
