"""Verbs that measure: bench decode."""

from __future__ import annotations

from typing import Annotated

import typer

from annotator.cli.options import PROBLEMS_EXIT, Json
from annotator.show import show

app = typer.Typer(no_args_is_help=True, help="Measure parts of the engine on this machine.")


@app.command("decode")
def decode(
    people: Annotated[int, typer.Option(min=1, help="heatmaps of so many people at once")] = 8,
    keypoints: Annotated[int, typer.Option(help="17, 133 or 308")] = 308,
    json: Json = False,
) -> None:
    """Time the decoding of heatmaps against the reference algorithm, person by person. Exit 7 if numbers differ."""
    from annotator.bench.decode import bench_decode

    result = bench_decode(people=people, keypoints=keypoints)
    if json:
        show(result, json)
    else:
        print(result.table())
    if not result.same:
        raise typer.Exit(PROBLEMS_EXIT)
