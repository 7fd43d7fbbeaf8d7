"""Verbs that label: run, plan."""

from __future__ import annotations

import sys
from typing import Annotated, Optional

import typer

import annotator
from annotator.cli.options import (
    INTERRUPTED_EXIT,
    Images,
    JobFile,
    Json,
    Limit,
    ManifestUri,
    OutputUri,
    Set,
    Tasks,
    make_job,
)
from annotator.show import show
from annotator.storage import Storage
from annotator.watch import counting, terminal_watcher

app = typer.Typer()


@app.command()
def run(
    job: JobFile = None,
    manifest: ManifestUri = None,
    images: Images = None,
    output: OutputUri = None,
    task: Tasks = [],  # noqa: B006
    set_: Set = [],  # noqa: B006
    limit: Limit = None,
    sample: Annotated[Optional[int], typer.Option(min=1, help="N random images, into an output of their own")] = None,  # noqa: UP045
    ray: Annotated[bool, typer.Option("--ray/--no-ray", help="workers on Ray, or one in this process")] = True,
    address: Annotated[Optional[str], typer.Option(help="of a running Ray cluster")] = None,  # noqa: UP045
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress")] = False,
    json: Json = False,
) -> None:
    """Label what the output lacks. Run it again to go on; run it a third time: nothing to do."""
    wanted = make_job(job, manifest, output, task, set_, images=images)
    if images is not None:
        with counting("images found") as progress:
            annotator.update_manifest(images, wanted.manifest, Storage(options=wanted.storage), progress=progress)
    if sample is not None:
        wanted = annotator.sample(wanted, sample)
    try:
        report = annotator.run(wanted, ray=ray, address=address, limit=limit, watcher=terminal_watcher(quiet=quiet))
    except KeyboardInterrupt:
        print("interrupted; what is finished is committed, run again to go on", file=sys.stderr)
        raise typer.Exit(INTERRUPTED_EXIT) from None
    show(report, json)


@app.command()
def plan(
    job: JobFile = None,
    manifest: ManifestUri = None,
    output: OutputUri = None,
    task: Tasks = [],  # noqa: B006
    set_: Set = [],  # noqa: B006
    limit: Limit = None,
    json: Json = False,
) -> None:
    """Say what a run would do, without doing it."""
    show(annotator.plan(make_job(job, manifest, output, task, set_), limit=limit), json)
