"""What verbs share: options, and the job, the storage and the exit code that they make."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
import yaml

import annotator
from annotator.errors import JobError
from annotator.job import Job, Sources, StorageOptions, load_job, parse, read_job_file
from annotator.logs import LogForm
from annotator.storage import Storage, is_local, join, normalize

PROBLEMS_EXIT = 7
INTERRUPTED_EXIT = 130

# typer reads these at run time, so Optional instead of "X | None" while Python 3.10 is supported
JobFile = Annotated[Optional[Path], typer.Argument(metavar="[JOB.YAML]", help="a job file")]  # noqa: UP045
Json = Annotated[bool, typer.Option("--json", help="print JSON for machines")]
Set = Annotated[list[str], typer.Option("--set", metavar="A.B=C", help="override a key of the job")]
Tasks = Annotated[list[str], typer.Option("--task", metavar="NAME=CHECKPOINT", help="a task and its weights")]
ManifestUri = Annotated[Optional[str], typer.Option("--manifest", help="a Parquet file or a folder of them")]  # noqa: UP045
OutputUri = Annotated[Optional[str], typer.Option("--output", help="where labels go")]  # noqa: UP045
Root = Annotated[list[str], typer.Option("--root", help="a local folder that images may be read from")]
Images = Annotated[Optional[str], typer.Option("--images", help="a folder or list of images; makes the manifest")]  # noqa: UP045
Limit = Annotated[Optional[int], typer.Option(min=1, help="only the first shards that hold N images")]  # noqa: UP045
Log = Annotated[
    Optional[LogForm],  # noqa: UP045
    typer.Option("--log", help="a line a shard on standard error, in words or as JSON, instead of progress"),
]
Endpoint = Annotated[Optional[str], typer.Option("--endpoint-url", help="of an S3-compatible server")]  # noqa: UP045
Profile = Annotated[Optional[str], typer.Option("--profile", help="AWS profile")]  # noqa: UP045


def make_job(
    path: Path | None,
    manifest: str | None,
    output: str | None,
    tasks: list[str],
    sets: list[str],
    *,
    images: str | None = None,
    roots: Sequence[str] = (),
) -> Job:
    """Build the job of a file and options; options win, and roots are added to those of the file."""
    job = _make_job(path, manifest, output, tasks, sets, images=images)
    if images is not None:
        roots = (*roots, *_folder_of(images, Storage(options=job.storage)))
    sources = {"schemes": job.sources.schemes, "roots": (*job.sources.roots, *roots)}
    return job.model_copy(update={"sources": parse(Sources, sources, "--root")})


def _folder_of(images: str, storage: Storage) -> tuple[str, ...]:
    """Return the local folder that was named to make a manifest of, or that of the list."""
    uri = normalize(images)
    if not is_local(uri):
        return ()
    return (os.path.dirname(uri) if storage.exists(uri) else uri,)


def _make_job(
    path: Path | None,
    manifest: str | None,
    output: str | None,
    tasks: list[str],
    sets: list[str],
    *,
    images: str | None,
) -> Job:
    if path is None and not (tasks and output and (manifest or images)):
        raise JobError("name a job file, or --manifest (or --images), --output and at least one --task")
    overrides = parse_sets(sets)
    for item in tasks:
        name, equals, checkpoint = item.partition("=")
        if not equals:
            raise JobError(f"--task {item}: expected NAME=CHECKPOINT, such as seg=/weights/seg.pth")
        overrides[f"tasks.{name}.checkpoint"] = checkpoint
    overrides |= {key: value for key, value in (("manifest", manifest), ("output", output)) if value is not None}
    if images is None:
        return load_job(path, overrides)
    if manifest is not None or (path is not None and "manifest" in read_job_file(path)):
        raise JobError("--images makes a manifest of its own, in the output; leave manifest out, or --images")
    output = output or (read_job_file(path).get("output") if path is not None else None)
    wanted = load_job(path, overrides | {"manifest": join(str(output), "manifest")})
    annotator.check(wanted)
    return wanted


def parse_sets(sets: list[str]) -> dict[str, Any]:
    """Return the overrides that `--set` asks for, by dotted key."""
    overrides: dict[str, Any] = {}
    for item in sets:
        key, equals, value = item.partition("=")
        if not equals:
            raise JobError(f"--set {item}: expected KEY=VALUE, such as limits.attempts=2")
        try:
            overrides[key] = yaml.safe_load(value)
        except yaml.YAMLError as err:
            raise JobError(f"--set {item}: not readable as YAML: {' '.join(str(err).split())}") from None
    return overrides


def make_storage(endpoint_url: str | None, profile: str | None) -> Storage:
    """Return storage as the options of a verb say."""
    return Storage(options=StorageOptions(endpoint_url=endpoint_url, profile=profile))


def exit_on_problems(report: Any) -> None:
    """End with exit code 7 when a report is not ok."""
    if not report.ok:
        raise typer.Exit(PROBLEMS_EXIT)
