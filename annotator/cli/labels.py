"""Verbs that read an output: status, verify; and schema."""

from __future__ import annotations

from typing import Annotated

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
def verify(
    output: str,
    deep: Annotated[bool, typer.Option("--deep", help="decode every map; check sizes, classes, boxes")] = False,
    sample: Annotated[int, typer.Option(min=0, metavar="N", help="label N random rows anew, and compare")] = 0,
    seed: Annotated[int, typer.Option(help="draws other rows")] = 0,
    endpoint_url: Endpoint = None,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """Prove from storage alone that every manifest row is labelled exactly once. Exit 7 if not."""
    storage = make_storage(endpoint_url, profile)
    report = annotator.verify(output, storage, deep=deep, sample=sample, seed=seed)
    show(report, json)
    exit_on_problems(report)


@app.command()
def schema(what: Annotated[str, typer.Argument(help="job, or a task's name")] = "job") -> None:
    """Print the JSON schema of a job, or a task's label columns."""
    show(annotator.schema(what), json=True)
