"""Verbs of the demo: make-images, weights, accuracy."""

from __future__ import annotations

from typing import Annotated

import typer

import annotator
from annotator.cli.options import Json
from annotator.show import show

app = typer.Typer(no_args_is_help=True, help="Pictures whose truth is known, and how right labels of them are.")


@app.command("make-images")
def make_images(
    out: Annotated[str, typer.Option("--out", help="a new or empty folder")],
    count: Annotated[int, typer.Option(min=1, help="how many pictures")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="equal seeds give equal pictures")] = 0,
    json: Json = False,
) -> None:
    """Make pictures of mannequins, a manifest of them, and a table of what is true of them."""
    show(annotator.make_images(count, seed, out), json)


@app.command("weights")
def weights(out: Annotated[str, typer.Option("--out", help="folder for the files")], json: Json = False) -> None:
    """Copy the small models that know mannequins, one checkpoint file a task, where jobs can name them."""
    show(annotator.copy_weights(out), json)


@app.command("accuracy")
def accuracy(
    output: Annotated[str, typer.Argument(help="of a run over the folder's manifest")],
    truth: Annotated[str, typer.Option("--truth", help="folder that make-images wrote")],
    json: Json = False,
) -> None:
    """Measure how right the labels of such pictures are."""
    show(annotator.label_accuracy(output, truth), json)
