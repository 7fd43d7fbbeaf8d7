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
    Log,
    ManifestUri,
    OutputUri,
    Root,
    Set,
    Tasks,
    make_job,
)
from annotator.logs import log_to_stderr
from annotator.show import show
from annotator.storage import Storage
from annotator.watch import counting, doing, terminal_watcher

app = typer.Typer()

OnRay = Annotated[bool, typer.Option("--ray/--no-ray", help="workers on Ray, or one in this process")]
Address = Annotated[Optional[str], typer.Option(help="of a running Ray cluster")]  # noqa: UP045
Price = Annotated[Optional[float], typer.Option("--price-per-gpu-hour", min=0, help="to work out the cost from")]  # noqa: UP045


@app.command()
def run(
    job: JobFile = None,
    manifest: ManifestUri = None,
    images: Images = None,
    root: Root = [],  # noqa: B006
    output: OutputUri = None,
    task: Tasks = [],  # noqa: B006
    set_: Set = [],  # noqa: B006
    limit: Limit = None,
    sample: Annotated[Optional[int], typer.Option(min=1, help="N random images, into an output of their own")] = None,  # noqa: UP045
    ray: OnRay = True,
    address: Address = None,
    price: Price = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress")] = False,
    log: Log = None,
    json: Json = False,
) -> None:
    """Label what the output lacks. Run it again to go on; run it a third time: nothing to do."""
    wanted = make_job(job, manifest, output, task, set_, images=images, roots=root)
    if images is not None:
        with counting("images found") as progress:
            annotator.update_manifest(images, wanted.manifest, Storage(options=wanted.storage), progress=progress)
    if sample is not None:
        wanted = annotator.sample(wanted, sample)
    if log is not None:
        log_to_stderr(log)
    watcher = terminal_watcher(quiet=quiet or log is not None)
    try:
        report = annotator.run(wanted, ray=ray, address=address, limit=limit, watcher=watcher, price_per_gpu_hour=price)
    except KeyboardInterrupt:
        print("interrupted; what is finished is committed, run again to go on", file=sys.stderr)
        raise typer.Exit(INTERRUPTED_EXIT) from None
    show(report, json)


@app.command()
def plan(
    job: JobFile = None,
    manifest: ManifestUri = None,
    root: Root = [],  # noqa: B006
    output: OutputUri = None,
    task: Tasks = [],  # noqa: B006
    set_: Set = [],  # noqa: B006
    limit: Limit = None,
    probe: Annotated[Optional[int], typer.Option(help="label N random rows to foretell cost")] = None,  # noqa: UP045
    price: Price = None,
    ray: OnRay = True,
    address: Address = None,
    json: Json = False,
) -> None:
    """Say what a run would do, without doing it; with --probe also what it would cost."""
    wanted = make_job(job, manifest, output, task, set_, roots=root)
    with doing(f"labelling {probe} images to see what they cost" if probe else None):
        planned = annotator.plan(wanted, limit=limit, probe=probe, price_per_gpu_hour=price, ray=ray, address=address)
    show(planned, json)
