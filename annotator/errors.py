"""Errors, grouped by what the caller should do, and the redaction of what they may show.

    AnnotatorError
      InvalidInputError           fix the input; never retried                          exit 2
        JobError                  the job file, an option, a pair of options
        ManifestError             a manifest file or its columns
        CheckpointError           model weights
        TaskNotFoundError         no such task
        OutputError               the output folder is not one of ours, or can't be used
      FingerprintMismatchError    the output belongs to another job                     exit 3
      StorageError                storage failed for good, or stayed away for too long  exit 4
        TransientStorageError     throttled, timed out, reset: another try may pass
        NotFoundError             no such object
        AccessError               this object is forbidden to us
          CredentialsError        nothing is allowed: credentials missing, wrong or expired
      IncompleteRunError          shards are left over                                  exit 5
      BudgetExceededError         too many bad rows; everything good is committed       exit 6
      WorkerStalledError          a worker made no progress; it must be replaced        exit 5
      ImageError                  one image can't be labelled: becomes a row, stays inside the worker

Exit 0 is success, 1 a bug of ours, 7 `verify` found something, 130 an interrupted run.
Messages say what was found, what was expected and what to do next, and pass through `redact`.
"""

from __future__ import annotations

import re
from typing import ClassVar

_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*://"
# A password may hold a slash; "host:8080/" has a port, not a password.
_USER_INFO = re.compile(rf"(?P<scheme>{_SCHEME})(?:[^\s/@:]+:(?!\d+(?:/|\s|$))[^\s@]*@|[^\s/@]+@)")
# http(s): any query. s3 and others allow "?" in a key, so there only what reads as key=value pairs.
# A path may hold blanks and quotes: rather too much of a message is cut than too little.
_QUERY = re.compile(rf"(?P<head>https?://[^\n?]*|{_SCHEME}[^\n?]*(?=\?[\w.~%-]+=))\?\S+")


def redact(text: str) -> str:
    """Return the text with user info and query strings cut from every uri in it (DESIGN 2.7)."""
    return _QUERY.sub(r"\g<head>", _USER_INFO.sub(r"\g<scheme>", text))


class AnnotatorError(Exception):
    """Base of all errors that annotator raises on purpose; the message is redacted when built."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))


class InvalidInputError(AnnotatorError):
    """The input is wrong; the same call will fail again until it is changed."""

    exit_code = 2


class JobError(InvalidInputError):
    """A job, or two options of a job together, make no sense."""


class ManifestError(InvalidInputError):
    """A manifest file can't be read, lacks a usable column, or changed since it was pinned."""


class CheckpointError(InvalidInputError):
    """A checkpoint is missing, damaged, or of another task or architecture than asked for."""


class TaskNotFoundError(InvalidInputError):
    """No task has this name."""


class OutputError(InvalidInputError):
    """The output folder holds something else, or its filesystem lacks what a commit needs."""


class FingerprintMismatchError(AnnotatorError):
    """The output belongs to a job whose labels would differ; the message names the field."""

    exit_code = 3


class StorageError(AnnotatorError):
    """Storage answered with something that another try will not change."""

    exit_code = 4


class TransientStorageError(StorageError):
    """Storage was throttled, reset or too slow; another try may pass."""


class NotFoundError(StorageError):
    """The object or folder does not exist."""


class AccessError(StorageError):
    """Reading or writing this object is forbidden."""


class CredentialsError(AccessError):
    """The credentials are missing, wrong or expired; no object can be reached until they are renewed."""


class IncompleteRunError(AnnotatorError):
    """The run ended with shards left over; running again takes them up."""

    exit_code = 5


class WorkerStalledError(IncompleteRunError):
    """A worker made no progress for too long; its process must be replaced."""


class BudgetExceededError(AnnotatorError):
    """Bad rows are clearly beyond the failure budget; everything good is committed."""

    exit_code = 6


class ImageError(AnnotatorError):
    """One image can't be labelled. The worker turns it into a row; it never ends a run.

    `status` is the row's status, `error_class` a stable word to group by, `transient` whether the same
    image may well be readable a little later.
    """

    def __init__(self, status: str, error_class: str, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.error_class = error_class
        self.transient = transient
