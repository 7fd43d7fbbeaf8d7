"""Verbs that read an output: status, verify, preview."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

import annotator
from annotator.cli.options import Endpoint, Json, Profile, exit_on_problems, make_storage
from annotator.show import show

app = typer.Typer()


@app.command()
def status(output: str, endpoint_url: Endpoint = None, profile: Profile = None, json: Json = False) -> None:
    """Say how far an output got, from any machine, during a run or after."""
    show(annotator.status(output, make_storage(endpoint_url, profile)), json)


@app.command()
def verify(output: str, endpoint_url: Endpoint = None, profile: Profile = None, json: Json = False) -> None:
    """Prove from storage alone that every manifest row is labelled exactly once. Exit 7 if not."""
    report = annotator.verify(output, make_storage(endpoint_url, profile))
    show(report, json)
    exit_on_problems(report)


@app.command()
def preview(
    output: str,
    out: Annotated[Path, typer.Option("--out", help="the PNG to write")] = Path("preview.png"),
    limit: Annotated[int, typer.Option(min=1, help="how many images")] = 24,
    where: Annotated[Optional[str], typer.Option(help="filter on label columns")] = None,  # noqa: UP045
    endpoint_url: Endpoint = None,
    profile: Profile = None,
) -> None:
    """Draw images and their labels side by side as one PNG contact sheet."""
    print(annotator.contact_sheet(output, out, limit=limit, where=where, storage=make_storage(endpoint_url, profile)))


@app.command()
def schema(what: Annotated[str, typer.Argument(help="job, or a task's name")] = "job") -> None:
    """Print the JSON schema of a job, or a task's label columns."""
    show(annotator.schema(what), json=True)
