"""Verbs that write labels once more: export, compact."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Optional

import typer

import annotator
from annotator.cli.options import INTERRUPTED_EXIT, Endpoint, Json, Profile, make_storage
from annotator.labels.export import FormatName
from annotator.show import show
from annotator.watch import measuring

app = typer.Typer()

Names = Annotated[list[str], typer.Option("--task", metavar="NAME", help="labels of this task; default: all that fit")]


@contextmanager
def stoppable() -> Iterator[None]:
    """Turn Ctrl-C into a line and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted; what is finished stays, the same command goes on", file=sys.stderr)
        raise typer.Exit(INTERRUPTED_EXIT) from None


@app.command()
def export(
    output: str,
    format: Annotated[FormatName, typer.Argument(metavar="FORMAT", help="what to write; see the reference")],
    out: Annotated[str, typer.Option("--out", help="local folder: new, or with this very export, to go on")],
    task: Names = [],  # noqa: B006
    where: Annotated[Optional[str], typer.Option(help="filter on label columns")] = None,  # noqa: UP045
    endpoint_url: Endpoint = None,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """Write labels for other tools: COCO, WebDataset, PNG files, Hugging Face, a manifest. Again, to go on."""
    storage = make_storage(endpoint_url, profile)
    with stoppable(), measuring("images") as progress:
        done = annotator.export(output, out, format, tasks=task, where=where, storage=storage, progress=progress)
    show(done, json)


@app.command()
def compact(
    output: str,
    task: Annotated[list[str], typer.Option("--task", metavar="NAME", help="only labels of this task")] = [],  # noqa: B006
    endpoint_url: Endpoint = None,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """Copy small label files into few large ones, sorted by image_id, which readers then use. Again, to update."""
    storage = make_storage(endpoint_url, profile)
    with stoppable(), measuring("label files") as progress:
        done = annotator.compact(output, tasks=task, storage=storage, progress=progress)
    show(done, json)
