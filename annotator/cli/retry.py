"""Verbs on bad rows: errors, retry."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

import annotator
from annotator.cli.options import INTERRUPTED_EXIT, Endpoint, Json, Profile, Set, make_storage, parse_sets
from annotator.errors import JobError
from annotator.job import Job, load_job, with_overrides
from annotator.show import show
from annotator.watch import counting, terminal_watcher

app = typer.Typer()

Names = Annotated[list[str], typer.Option("--task", metavar="NAME", help="only labels of this task")]
Classes = Annotated[list[str], typer.Option("--error", metavar="CLASS,...", help="error classes")]


@app.command()
def errors(
    output: str,
    task: Names = [],  # noqa: B006
    error: Classes = [],  # noqa: B006
    export: Annotated[Optional[str], typer.Option("--export", help="folder for a manifest of their images")] = None,  # noqa: UP045
    endpoint_url: Endpoint = None,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """Count bad rows by kind, with examples; or write their images as a manifest."""
    storage = make_storage(endpoint_url, profile)
    if export is not None:
        exported = annotator.export_bad_rows(output, export, tasks=task, errors=_split(error), storage=storage)
        show(exported, json)
        return
    with counting("label files") as progress:
        found = annotator.bad_rows(output, tasks=task, errors=_split(error), storage=storage, progress=progress)
    show(found, json)


@app.command()
def retry(
    output: str,
    error: Classes = [],  # noqa: B006
    task: Names = [],  # noqa: B006
    job: Annotated[Optional[Path], typer.Option("--job", help="a job file; default: the latest run's job")] = None,  # noqa: UP045
    set_: Set = [],  # noqa: B006
    ray: Annotated[bool, typer.Option("--ray/--no-ray", help="workers on Ray, or one in this process")] = True,
    address: Annotated[Optional[str], typer.Option(help="of a running Ray cluster")] = None,  # noqa: UP045
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress")] = False,
    endpoint_url: Endpoint = None,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """Label rows with these errors again, and only those; good rows stay as they are."""
    if not _split(error):
        raise JobError(f"--error: name the classes to try again; `annotator errors {output}` lists them")
    wanted = _job(output, job, set_, endpoint_url, profile)
    watcher = terminal_watcher(quiet=quiet)
    try:
        report = annotator.retry(
            output, _split(error), tasks=task, job=wanted, ray=ray, address=address, watcher=watcher
        )
    except KeyboardInterrupt:
        print("interrupted; what is mended stays, retry again to go on", file=sys.stderr)
        raise typer.Exit(INTERRUPTED_EXIT) from None
    show(report, json)


def _job(output: str, path: Path | None, sets: list[str], endpoint_url: str | None, profile: str | None) -> Job:
    """Return the job of the file, or of the output's latest run; options win."""
    overrides = parse_sets(sets)
    overrides |= {"storage.endpoint_url": endpoint_url} if endpoint_url is not None else {}
    overrides |= {"storage.profile": profile} if profile is not None else {}
    if path is not None:
        return load_job(path, overrides)
    return with_overrides(annotator.last_job(output, make_storage(endpoint_url, profile)), overrides)


def _split(values: list[str]) -> list[str]:
    return [part.strip() for value in values for part in value.split(",") if part.strip()]
