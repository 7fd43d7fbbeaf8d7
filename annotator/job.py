"""The job: everything that a run is told, checked before any work starts.

A job is data (YAML, or keyword arguments); pydantic checks it, refuses unknown keys and names the nearest
known one. The options of a task are that task's business: a job carries them as they are, and
`annotator.tasks.resolve` checks them against the task's own model.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError, field_validator, model_validator

from annotator.errors import JobError, redact

M = TypeVar("M", bound="Options")


def _no_secrets(uri: str) -> str:
    if redact(uri) != uri:
        raise ValueError("must not hold user info or a query string; credentials come from the environment")
    return uri


class Options(BaseModel):
    """Base of everything a user sets: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Limits(Options):
    """What one image may cost; beyond it the image becomes a row that says so."""

    max_bytes: ByteSize = Field(default=ByteSize(64 * 2**20), gt=0, description="size of an encoded image")
    max_pixels: int = Field(default=100_000_000, gt=0, description="width times height, read from the header")
    max_side: int = Field(default=65_500, gt=0, description="longest side in pixels, read from the header")
    fetch_timeout_s: float = Field(default=30.0, gt=0, description="for one attempt to fetch an image")
    attempts: int = Field(default=4, ge=1, le=20, description="attempts at a passing fault before it counts")


class Sources(Options):
    """Where the manifest's rows may be read from. Whoever writes a manifest is not trusted with more."""

    schemes: tuple[Literal["s3", "file", "http", "https"], ...] = Field(
        default=("s3", "file"), min_length=1, description="kinds of uris that are read; plain paths are `file`"
    )
    roots: tuple[str, ...] = Field(
        default=(), description="local folders that images may lie in, besides the manifest's own"
    )

    @field_validator("roots")
    @classmethod
    def _local(cls, roots: tuple[str, ...]) -> tuple[str, ...]:
        for root in roots:
            if not root or "://" in root:
                raise ValueError(
                    f"{redact(root)!r} is no local folder; what may be read on S3 is up to the credentials"
                )
        return roots


class StorageOptions(Options):
    """How S3 is reached. Never keys: those come from the environment, a profile or the machine's role."""

    endpoint_url: str | None = Field(default=None, description="of an S3-compatible server; default AWS")
    profile: str | None = Field(default=None, description="profile of the AWS configuration files")
    region: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_secrets(cls, data: Any) -> Any:
        words = ("key", "secret", "token", "password")
        found = [k for k in data if any(w in str(k).lower() for w in words)] if isinstance(data, Mapping) else []
        if found:
            raise ValueError(
                f"{found[0]!r} looks like a secret, and a job file must not hold any; "
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, or name a profile"
            )
        return data

    @field_validator("endpoint_url")
    @classmethod
    def _no_user_info(cls, url: str | None) -> str | None:
        return url if url is None else _no_secrets(url)


class WorkerRange(Options):
    """A pool that grows and shrinks with the cluster."""

    min: int = Field(ge=1)
    max: int = Field(ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> WorkerRange:
        if self.min > self.max:
            raise ValueError(f"min is {self.min} and max is {self.max}; min must not be above max")
        return self


class Released(Options):
    """A released checkpoint, by what it is, in a folder laid out as the models' documentation says."""

    root: str = Field(description="a sapiens_host or sapiens_lite_host folder")
    size: Literal["0.3b", "0.6b", "1b", "2b"] | None = Field(default=None, description="the detector has none")
    keypoints: Literal[17, 133, 308] | None = Field(default=None, description="for pose")


class TaskOptions(Options):
    """What every task takes; each task adds its own."""

    checkpoint: str | Released = Field(description="weights: .pth, .safetensors or TorchScript .pt2; local or s3://")
    num_heads: int | None = Field(default=None, ge=1, description="attention heads, where the file can't tell")
    patch_padding: Literal[0, 2] | None = Field(default=None, description="patch padding, where the file can't tell")
    input_size: tuple[int, int] | None = Field(
        default=None, description="height, width of the network's input, where the file can't tell"
    )

    @field_validator("checkpoint")
    @classmethod
    def _no_secret_uri(cls, checkpoint: str | Released) -> str | Released:
        _no_secrets(checkpoint if isinstance(checkpoint, str) else checkpoint.root)
        return checkpoint


class Job(Options):
    """One labelling job. `output` is where labels go and all there is to know about how far it got."""

    manifest: str = Field(description="a Parquet file or a folder of them; local or s3://")
    output: str = Field(description="folder for labels; local or s3://")
    tasks: dict[str, dict[str, Any]] = Field(min_length=1, description="options by task name")
    where: str | None = Field(default=None, description="filter on manifest columns; fixed by the first run")
    keep_columns: tuple[str, ...] = Field(default=(), description="manifest columns copied into every label row")
    shard_rows: int = Field(default=128, ge=1, le=65536, description="rows a shard; fixed by the first run")
    workers: Annotated[int, Field(ge=1)] | Literal["auto"] | WorkerRange = "auto"
    gpus_per_worker: float | None = Field(default=None, ge=0, description="default: 1 where there is a GPU, else 0")
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    dtype: Literal["bfloat16", "float32"] | None = Field(default=None, description="default: bfloat16 on a GPU")
    compile: Literal["auto", "off", "max"] = "auto"
    deterministic: bool = Field(default=False, description="the same bytes from every run, at some cost in speed")
    decode: Literal["exact", "fast"] = Field(default="exact", description="fast: JPEGs decoded at a reduced scale")
    limits: Limits = Limits()
    sources: Sources = Sources()
    failure_budget: float = Field(default=1.0, ge=0, le=1, description="share of bad rows at which a run stops")
    storage: StorageOptions = StorageOptions()
    spool_dir: str | None = Field(default=None, description="folder for label files until they are committed")

    @field_validator("manifest", "output")
    @classmethod
    def _no_secret_uri(cls, uri: str) -> str:
        return _no_secrets(uri)

    @field_validator("gpus_per_worker")
    @classmethod
    def _share_or_whole(cls, gpus: float | None) -> float | None:
        if gpus is not None and gpus > 1 and gpus != int(gpus):
            raise ValueError(f"{gpus:g}; expected a share of one GPU, such as 0.5, or a whole number of them")
        return gpus


def parse(model: type[M], data: Mapping[str, Any], where: str) -> M:
    """Build an options model, or raise a JobError of one line a problem.

    `where` names the place for the message ("job.yaml", "tasks.seg"). An unknown key is answered with
    the nearest known one.
    """
    try:
        return model.model_validate(dict(data))
    except ValidationError as err:
        raise JobError("; ".join(_explain(model, e, where) for e in err.errors())) from None


def _explain(model: type[BaseModel], error: Any, where: str) -> str:
    path = ".".join(str(p) for p in error["loc"])
    if error["type"] != "extra_forbidden":
        message = str(error["msg"]).removeprefix("Value error, ")
        return f"{where}: {path}: {message}" if path else f"{where}: {message}"
    owner = model
    for part in error["loc"][:-1]:
        inner = owner.model_fields[part].annotation if part in owner.model_fields else None
        owner = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else owner
    known = sorted(owner.model_fields)
    near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
    return f"{where}: unknown key {path!r}; {hint}"


def load_job(path: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> Job:
    """Return the job of a YAML file, or of nothing, with overrides such as {"limits.attempts": 2} applied.

    Raises JobError for a missing file, bad YAML, an unknown key or a bad value.
    """
    data = read_job_file(Path(path)) if path is not None else {}
    for dotted, value in (overrides or {}).items():
        set_key(data, dotted, value)
    return parse(Job, data, str(path) if path is not None else "job")


def with_overrides(job: Job, overrides: Mapping[str, Any]) -> Job:
    """Return the job with overrides such as {"limits.max_pixels": 10**8}. Raises JobError for what makes no sense."""
    data = job.model_dump(mode="json")
    for dotted, value in overrides.items():
        set_key(data, dotted, value)
    return parse(Job, data, "job")


def read_job_file(path: Path) -> dict[str, Any]:
    """Return the keys of a job file, unchecked. Raises JobError if it is missing or no mapping in YAML."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise JobError(f"{path}: no such job file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as err:
        raise JobError(f"{path}: not readable as YAML: {_what_is_wrong(err)}") from None
    if not isinstance(data, dict):
        raise JobError(f"{path}: expected a mapping of keys such as manifest, output and tasks")
    return data


def _what_is_wrong(err: Exception) -> str:
    """Return the message without the text that YAML quotes: a file that is refused may hold a secret."""
    if isinstance(err, yaml.MarkedYAMLError) and err.problem_mark is not None:
        problem = re.sub("'[^']*'", "'...'", err.problem or "")
        return f"line {err.problem_mark.line + 1}, column {err.problem_mark.column + 1}: {problem}"
    return " ".join(str(err).split())


def set_key(data: dict[str, Any], dotted: str, value: Any) -> None:
    """Set `a.b.c` in a nested dict in place, making the levels that are missing."""
    *parents, last = dotted.split(".")
    for part in parents:
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise JobError(f"--set {dotted}: {part!r} holds a value, not a mapping")
    data[last] = value
