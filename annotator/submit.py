"""Jobs on a cluster, by Ray's job server: submit from a laptop, follow, cancel.

What travels is the job (a file of data, which holds no secret) and a wheel of this package. Credentials do not: the
cluster's machines have their own. The driver then runs on the cluster's head, as if it had been typed there.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import yaml

import annotator
from annotator.errors import IncompleteRunError, JobError, redact
from annotator.job import Job, Released
from annotator.logs import LogForm
from annotator.storage import normalize
from annotator.tasks import resolve
from annotator.wheel import build_wheel, package_digest

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

AUTH_MODES = ("token", "disabled")

STOP_WAIT_S = 30
"""How long a driver may take to end once it is told to; Ray's own 3 s are short for a last record to S3."""

_CONNECT_S = 10.0
_POLL_S = 0.5
_OURS = "annotator"  # the metadata key by which jobs of ours are told from others
_ENDED = ("STOPPED", "SUCCEEDED", "FAILED")


@dataclass(frozen=True, kw_only=True, slots=True)
class Submitted:
    """A job that the cluster took. `package` is the version of this package that went with it."""

    id: str
    address: str
    package: str

    @property
    def commands(self) -> tuple[str, ...]:
        """What to type next: follow it, ask how it is, stop it."""
        verbs = ("logs -f", "status", "cancel")
        return tuple(f"annotator jobs {verb} {self.id} --address {self.address}" for verb in verbs)


@dataclass(frozen=True, kw_only=True, slots=True)
class JobState:
    """What the cluster says of a job.

    status    PENDING | RUNNING | STOPPED | SUCCEEDED | FAILED
    package   the version of this package that it runs
    message   the last that is known of it: of a job that failed, the last line it printed
    """

    id: str
    status: str
    started: str | None
    ended: str | None
    exit_code: int | None
    output: str
    package: str
    message: str

    @property
    def is_over(self) -> bool:
        return self.status in _ENDED


@dataclass(frozen=True, kw_only=True, slots=True)
class Jobs:
    """What a cluster knows of jobs of ours, the latest first."""

    jobs: tuple[JobState, ...]


def submit_job(
    job: Job, *, address: str, auth: str | None = None, limit: int | None = None, log: LogForm | None = None
) -> Submitted:
    """Have a cluster label what the job's output lacks; return at once.

    address   of the job server, http://HEAD:8265
    auth      token | disabled: how the cluster is guarded; default RAY_AUTH_MODE, else disabled. A token comes from
              RAY_AUTH_TOKEN, from the file that RAY_AUTH_TOKEN_PATH names, or from ~/.ray/auth_token
    limit     as for `run`
    log       a line a shard in its log, instead of progress

    Local paths are made absolute here and must mean the same on every node. Raises JobError when the cluster can't
    be reached or refuses.
    """
    options = {"limit": limit, "log": log and log.value}
    extra = "".join(f" --{name} {value}" for name, value in options.items() if value is not None)
    return start(f"run job.yaml --address auto{extra}", job, address=address, auth=auth)


def start(command: str, job: Job | None, *, address: str, auth: str | None = None) -> Submitted:
    """Run a command of this package on the cluster's head, with `job` as job.yaml in its working folder."""
    with _answers(address, auth) as client, tempfile.TemporaryDirectory() as folder:
        there = Path(folder, "job")
        there.mkdir()
        if job is not None:
            (there / "job.yaml").write_text(_job_text(job), encoding="utf-8")
        version = f"{annotator.__version__}+{package_digest()}"
        submission_id = client.submit_job(
            submission_id=f"annotator-{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}",
            entrypoint=f"exec python -m annotator.cli {command}",
            runtime_env={
                "working_dir": str(there),
                "py_modules": [str(build_wheel(Path(folder)))],
                # as Ctrl-C: Ray's own handler of SIGTERM would end the driver before its last record is written
                "env_vars": {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
            },
            metadata={_OURS: version, "output": "" if job is None else normalize(job.output)},
        )
    return Submitted(id=submission_id, address=address, package=version)


def list_jobs(*, address: str, auth: str | None = None) -> Jobs:
    """Return what the cluster knows of jobs that annotator submitted, the latest first."""
    with _answers(address, auth) as client:
        jobs = [job for job in client.list_jobs() if _OURS in (job.metadata or {})]
    return Jobs(jobs=tuple(_state(job) for job in sorted(jobs, key=lambda job: -(job.start_time or 0))))


def job_state(job_id: str, *, address: str, auth: str | None = None) -> JobState:
    """Return what the cluster says of one job. Raises JobError if it has none of this id."""
    with _answers(address, auth, job_id) as client:
        return _state(client.get_job_info(job_id))


def job_logs(job_id: str, *, address: str, auth: str | None = None) -> str:
    """Return all that a job's driver has printed so far."""
    with _answers(address, auth, job_id) as client:
        return str(client.get_job_logs(job_id))


def follow_job_logs(job_id: str, say: Callable[[str], object], *, address: str, auth: str | None = None) -> JobState:
    """Hand `say` what a job's driver has printed and prints, until the job is over; return its last state."""

    async def follow(lines: AsyncIterator[str]) -> None:
        async for text in lines:
            say(text)

    with _answers(address, auth, job_id) as client:
        client.get_job_info(job_id)  # an id that is not known would be told with a traceback
        asyncio.run(follow(client.tail_job_logs(job_id)))
        return _state(client.get_job_info(job_id))


def cancel_job(job_id: str, *, address: str, auth: str | None = None) -> JobState:
    """Tell a job to end, as Ctrl-C would, wait for it and return its last state; what it finished is committed."""
    with _answers(address, auth, job_id) as client:
        client.stop_job(job_id)
    return wait_for_job(job_id, address=address, auth=auth, timeout_s=2 * STOP_WAIT_S)


def wait_for_job(job_id: str, *, address: str, auth: str | None = None, timeout_s: float) -> JobState:
    """Return the job's state once it is over. Raises IncompleteRunError when it is not after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not (state := job_state(job_id, address=address, auth=auth)).is_over:
        if time.monotonic() > deadline:
            raise IncompleteRunError(f"{job_id}: still {state.status} after {timeout_s:.0f} s; ask again in a while")
        time.sleep(_POLL_S)
    return state


def _job_text(job: Job) -> str:
    """Return the job as YAML, with uris that mean the same in another folder. Raises JobError if it holds a secret."""
    tasks: dict[str, dict[str, Any]] = {}
    for name, (_, options) in resolve(job).items():
        found = options.checkpoint
        if isinstance(found, Released):
            checkpoint: object = found.model_dump(mode="json", exclude_none=True) | {"root": normalize(found.root)}
        else:
            checkpoint = normalize(found)
        tasks[name] = {**job.tasks[name], "checkpoint": checkpoint}
    data = job.model_dump(mode="json", exclude_defaults=True)
    data |= {"manifest": normalize(job.manifest), "output": normalize(job.output), "tasks": tasks}
    if job.sources.roots:
        data["sources"]["roots"] = [normalize(root) for root in job.sources.roots]
    text = yaml.safe_dump(data, sort_keys=False)
    if redact(text) != text:
        raise JobError("the job names a uri with user info or a query string; it would be copied to the cluster")
    return text


def _state(job: JobDetails) -> JobState:
    def when(milliseconds: int | None) -> str | None:
        if not milliseconds:
            return None
        return f"{datetime.fromtimestamp(milliseconds / 1000, timezone.utc):%Y-%m-%dT%H:%M:%SZ}"

    metadata = job.metadata or {}
    lines = [line for line in str(job.message or "").splitlines() if line.strip()]
    return JobState(
        id=str(job.submission_id),
        status=str(getattr(job.status, "value", job.status)),
        started=when(job.start_time),
        ended=when(job.end_time),
        exit_code=job.driver_exit_code,
        output=metadata.get("output", ""),
        package=metadata.get(_OURS, ""),
        message=redact(lines[-1]) if lines else "",
    )


# -- the job server -------------------------------------------------------------------------------


@contextmanager
def _answers(address: str, auth: str | None, job_id: str | None = None) -> Iterator[JobSubmissionClient]:
    """Yield a client of the job server; what it raises becomes a JobError of one line."""
    address = address.rstrip("/")
    headers = _headers(auth or os.environ.get("RAY_AUTH_MODE") or "disabled")
    _check_reach(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in ("_private.runtime_env.packaging", "dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk"):
        logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)  # after the import, which sets levels of its own
    try:
        yield JobSubmissionClient(address, headers=headers)
    except AuthenticationError as err:
        raise JobError(
            f"{address}: {_line(err)}; say --auth token (or RAY_AUTH_MODE=token) and give the cluster's own token: "
            "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token"
        ) from None
    except (RuntimeError, OSError) as err:  # requests' and aiohttp's errors are OSErrors
        text = _line(err)
        if job_id is not None and ("404" in text or "does not exist" in text):
            raise JobError(f"{address}: no job {job_id}; see annotator jobs list --address {address}") from None
        raise JobError(f"{address}: {text}") from None


def _headers(auth: str) -> dict[str, str]:
    """Return what authenticates us. Raises JobError for an unknown mode and for a token that is nowhere."""
    if auth not in AUTH_MODES:
        raise JobError(f"--auth {auth}: expected {' or '.join(AUTH_MODES)}")
    if auth == "disabled":
        return {}
    token = os.environ.get("RAY_AUTH_TOKEN")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        token = (token or path.read_text(encoding="ascii")).strip()
    except (OSError, UnicodeDecodeError) as err:
        raise JobError(f"--auth token: RAY_AUTH_TOKEN is not set, and {path} can't be read ({err})") from None
    return {"Authorization": f"Bearer {token}"}


def _check_reach(address: str) -> None:
    """Refuse an address where nothing listens; Ray's client itself would wait without a bound."""
    try:
        url = urlsplit(address)
        port = url.port or (443 if url.scheme == "https" else 80)
    except ValueError as err:
        raise JobError(f"--address {address}: {err}") from None
    if url.scheme not in ("http", "https") or not url.hostname:
        raise JobError(f"--address {address}: expected a Ray job server, such as http://head:8265")
    try:
        socket.create_connection((url.hostname, port), timeout=_CONNECT_S).close()
    except OSError as err:
        raise JobError(f"--address {address}: nobody answers ({err}); is the Ray head up, its dashboard on?") from None


def _line(err: BaseException) -> str:
    return " ".join(str(err).split())[:400]
