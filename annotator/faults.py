"""What a fault of storage means: passing, missing, forbidden, or for good; and `retry`, which goes by that.

Exceptions are told apart by S3 error code, errno and class name, so no storage SDK is imported.
"""

from __future__ import annotations

import errno
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from annotator.errors import (
    AccessError,
    AnnotatorError,
    CredentialsError,
    NotFoundError,
    OutputError,
    StorageError,
    TransientStorageError,
)

T = TypeVar("T")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 8.0

_TRANSIENT_ERRNO = {
    errno.EAGAIN, errno.EBUSY, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EINTR, errno.EIO,
    errno.EPIPE, errno.ESTALE, errno.ETIMEDOUT,
}  # fmt: skip
_NO_LINK_ERRNO = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK}

# https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html; numbers stand for replies without a body
_TRANSIENT_CODES = {
    "BadDigest", "BandwidthLimitExceeded", "ConditionalRequestConflict", "IncompleteBody", "InternalError",
    "OperationAborted", "RequestLimitExceeded", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling",
    "ThrottlingException", "TooManyRequests", "XAmzContentSHA256Mismatch",
}  # fmt: skip
_TRANSIENT_HTTP = {408, 409, 425, 429, 500, 502, 503, 504}
_CREDENTIALS_CODES = {
    "ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "RequestExpired", "RequestTimeTooSkewed",
    "SignatureDoesNotMatch", "TokenRefreshRequired",
}  # fmt: skip
_CREDENTIALS_ERRORS = {  # of botocore; they share no base class
    "CredentialRetrievalError", "InvalidConfigError", "NoAuthTokenError", "NoCredentialsError",
    "PartialCredentialsError", "ProfileNotFound", "SSOError", "TokenRetrievalError",
}  # fmt: skip
_PASSING_ERRORS = {  # of botocore, aiohttp, urllib3, asyncio, fsspec: the connection, not the request, failed
    "ClientError", "ConnectionError", "FSTimeoutError", "HTTPClientError", "IncompleteRead", "IncompleteReadError",
    "ResponseParserError", "ResponseStreamingError", "TimeoutError",
}  # fmt: skip


class ExistsError(StorageError):
    """412: the condition of a request does not hold."""


class OutOfRangeError(StorageError):
    """416: the range starts at or after the object's end."""


RETRIED = "retried"
met: Counter[str] = Counter()
"""Faults that calls of this process met, by class of error, each try counted; RETRIED: how many were tried again."""


def retry(call: Callable[[], T], uri: str, attempts: int) -> T:
    """Return call(), tried again while it fails in passing; errors become annotator's own."""
    for attempt in range(attempts):
        try:
            return call()
        except AnnotatorError as err:
            error: AnnotatorError = err
        except Exception as err:
            known = translate(err, uri)
            if known is None:
                raise
            error = known
        met[type(error).__name__] += 1
        if not isinstance(error, TransientStorageError):
            raise error from None  # the cause's text may hold what redaction cut
        if attempt + 1 < attempts:
            met[RETRIED] += 1
            pause = min(_FIRST_PAUSE_S * 2**attempt, _LONGEST_PAUSE_S)
            time.sleep(pause * random.uniform(0.5, 1.5))  # jitter: workers must not come back all at once
    tries = f"{attempts} attempts" if attempts > 1 else "1 attempt"
    raise TransientStorageError(f"{error} (after {tries})") from None


def translate(error: Exception, uri: str) -> StorageError | OutputError | None:
    """Return annotator's error for a fault met while uri was read or written; None if it is none of storage's."""
    reply = _reply(error)
    if reply is not None:
        return _from_reply(reply, uri)
    names = {cls.__name__ for cls in type(error).__mro__}
    what = f"{uri}: {_line(error)}"
    if names & _CREDENTIALS_ERRORS:
        return CredentialsError(f"{what}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or storage.profile")
    if names & _PASSING_ERRORS:
        return TransientStorageError(what)
    if isinstance(error, OSError):
        return _from_errno(error, uri)
    if "BotoCoreError" in names or isinstance(error, ValueError):  # a bucket's name, a NUL or half a character
        return StorageError(what)
    return None


def _reply(error: BaseException | None) -> dict[str, object] | None:
    """Return S3's reply behind an exception; s3fs wraps it once."""
    for candidate in (error, getattr(error, "__cause__", None)):
        reply = getattr(candidate, "response", None)
        if isinstance(reply, dict) and "Error" in reply:
            return reply
    return None


def _from_reply(reply: dict[str, object], uri: str) -> StorageError:
    error = reply["Error"] if isinstance(reply["Error"], dict) else {}
    meta = reply.get("ResponseMetadata")
    code, text = str(error.get("Code", "")), " ".join(str(error.get("Message") or "").split())[:300]
    http = int(meta.get("HTTPStatusCode", 0)) if isinstance(meta, dict) else 0
    http = http or (int(code) if code.isdigit() else 0)
    what = f"{uri}: {code} {text}".rstrip()
    if code in _CREDENTIALS_CODES:
        return CredentialsError(f"{what}; renew or correct the credentials, then run again")
    if code in _TRANSIENT_CODES or (http in _TRANSIENT_HTTP and code != "NotImplemented"):
        return TransientStorageError(what)
    if http in (401, 403):
        return AccessError(f"{what}; the credentials in use may not do this")
    if http == 404:
        return NotFoundError(f"{uri}: no such bucket" if code == "NoSuchBucket" else f"{uri}: no such object")
    if http == 412:
        return ExistsError(what)
    if http == 416:
        return OutOfRangeError(what)
    if http == 501:
        return StorageError(f"{what}; the server lacks what a commit needs (PutObject with If-None-Match)")
    if http in (301, 307, 308) or code == "AuthorizationHeaderMalformed":
        return StorageError(f"{what}; the bucket is in another region, set storage.region")
    return StorageError(what)


def _from_errno(error: OSError, uri: str) -> StorageError:
    number = error.errno
    if number in (errno.ENOENT, errno.ENOTDIR):
        return NotFoundError(f"{uri}: no such file or folder")
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return AccessError(f"{uri}: {error.strerror}; change who may read or write there, then run again")
    if number in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"{uri}: the disk is full ({error.strerror}); free space, then run again")
    if number in _TRANSIENT_ERRNO or number is None:
        return TransientStorageError(f"{uri}: {error.strerror or _line(error)}")
    return StorageError(f"{uri}: {error.strerror or _line(error)}")


def no_hard_link(error: OSError, path: str) -> OutputError | None:
    """Return the refusal of a filesystem that can't link files, None if the error says something else."""
    if error.errno not in _NO_LINK_ERRNO:
        return None
    why = (
        "another filesystem than its _annotator/tmp"
        if error.errno == errno.EXDEV
        else "a filesystem without hard links"
    )
    return OutputError(
        f"{path}: lies on {why} ({error.strerror}), and a label file is created by a hard link so that it is never "
        "half written; use a local disk, NFS or S3 as output"
    )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
