"""Verbs that use labels: query, preview."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

import annotator
from annotator.cli.options import Endpoint, Json, Profile, make_storage
from annotator.show import show

app = typer.Typer()

Where = Annotated[Optional[str], typer.Option(help="filter on label columns")]  # noqa: UP045


@app.command()
def query(
    output: str,
    sql: Annotated[str, typer.Argument(metavar="SQL", help="one SELECT over the tasks, manifest and persons")],
    out: Annotated[Optional[Path], typer.Option("--out", help="write .parquet, .csv or .json instead")] = None,  # noqa: UP045
    format: Annotated[
        Optional[Literal["parquet", "csv", "json"]],  # noqa: UP045
        typer.Option(help="of --out; default by its suffix"),
    ] = None,
    endpoint_url: Endpoint = None,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """Ask SQL of the labels: one view a task, `manifest`, and `persons` with a row a person."""
    storage = make_storage(endpoint_url, profile)
    if out is None:
        show(annotator.query(output, sql, storage=storage), json)
    else:
        rows = annotator.save_query(output, sql, out, format=format, storage=storage)
        print(f"{rows} rows in {out}", file=sys.stderr)


@app.command()
def preview(
    output: str,
    out: Annotated[Path, typer.Option("--out", help="the .png, .jpg or .html to write")] = Path("preview.png"),
    limit: Annotated[int, typer.Option(min=1, help="how many images")] = 24,
    where: Where = None,
    endpoint_url: Endpoint = None,
    profile: Profile = None,
) -> None:
    """Draw images and their labels side by side: a PNG contact sheet, or a page for any browser."""
    print(annotator.preview(output, out, limit=limit, where=where, storage=make_storage(endpoint_url, profile)))
