"""Verbs on manifests: build, append, check."""

from __future__ import annotations

from typing import Annotated

import typer

import annotator
from annotator.cli.options import Endpoint, Json, Profile, exit_on_problems, make_storage
from annotator.show import show
from annotator.watch import counting

app = typer.Typer(no_args_is_help=True, help="Make and check manifests.")


@app.command("build")
def build(
    source: Annotated[str, typer.Argument(help="folder of images, text list, or CSV with a uri column")],
    out: Annotated[str, typer.Option("--out", help="folder for the manifest")],
    rows_per_file: Annotated[int, typer.Option(min=1)] = 1_000_000,
    endpoint_url: Endpoint = None,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """Make a manifest of all images below a folder or in a list."""
    storage = make_storage(endpoint_url, profile)
    with counting("images") as progress:
        built = annotator.build_manifest(source, out, storage, rows_per_file=rows_per_file, progress=progress)
    show(built, json)


@app.command("append")
def append(
    source: Annotated[str, typer.Argument(help="folder of images, text list, or CSV with a uri column")],
    out: Annotated[str, typer.Option("--out", help="folder of an existing manifest")],
    rows_per_file: Annotated[int, typer.Option(min=1)] = 1_000_000,
    endpoint_url: Endpoint = None,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """Add the images that the manifest does not have yet, in new files."""
    storage = make_storage(endpoint_url, profile)
    with counting("images") as progress:
        added = annotator.append_manifest(source, out, storage, rows_per_file=rows_per_file, progress=progress)
    show(added, json)


@app.command("check")
def check(manifest: str, endpoint_url: Endpoint = None, profile: Profile = None, json: Json = False) -> None:
    """Look for what would go wrong with a manifest. Exit 7 if something would."""
    report = annotator.check_manifest(manifest, make_storage(endpoint_url, profile))
    show(report, json)
    exit_on_problems(report)
