"""Verbs on checkpoints: inspect, list, random."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from annotator.cli.options import Endpoint, Json, Profile, make_storage
from annotator.errors import JobError
from annotator.show import show

app = typer.Typer(no_args_is_help=True, help="Look at checkpoints, make random ones.")


@app.command("inspect")
def inspect(
    file: str,
    task: Annotated[Optional[str], typer.Option(help="if the tensors don't tell")] = None,  # noqa: UP045
    num_heads: Annotated[Optional[int], typer.Option(help="if the tensors don't tell")] = None,  # noqa: UP045
    patch_padding: Annotated[Optional[int], typer.Option(help="if the tensors don't tell")] = None,  # noqa: UP045
    input: Annotated[Optional[str], typer.Option(metavar="HxW", help="if the tensors don't tell")] = None,  # noqa: UP045
    endpoint_url: Endpoint = None,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """Say what a checkpoint is: task, size, classes, patch padding, dtype, digest, licence."""
    from annotator.models import inspect_checkpoint

    info = inspect_checkpoint(
        file,
        task=task,
        num_heads=num_heads,
        patch_padding=patch_padding,
        input_size=None if input is None else _height_width(input),
        storage=make_storage(endpoint_url, profile),
    )
    show(info, json)


@app.command("list")
def list(folder: str, endpoint_url: Endpoint = None, profile: Profile = None, json: Json = False) -> None:
    """List the checkpoints below a sapiens_host/ or sapiens_lite_host/ folder."""
    from annotator.models import list_checkpoints

    show(list_checkpoints(folder, storage=make_storage(endpoint_url, profile)), json)


@app.command("random")
def random(
    out: Annotated[str, typer.Argument(metavar="OUT.safetensors")],
    task: Annotated[str, typer.Option()],
    embed: Annotated[int, typer.Option(min=1, help="width of the tokens")] = 64,
    layers: Annotated[int, typer.Option(min=1)] = 2,
    heads: Annotated[int, typer.Option(min=1)] = 4,
    input: Annotated[str, typer.Option(metavar="HxW", help="the network's input, height x width")] = "64x48",
    channels: Annotated[Optional[int], typer.Option(help="classes or keypoints; default as released")] = None,  # noqa: UP045
    seed: Annotated[int, typer.Option()] = 0,
    json: Json = False,
) -> None:
    """Make a checkpoint of any shape with random weights, marked so for good. Its labels mean nothing."""
    from annotator.models import random_checkpoint

    info = random_checkpoint(
        out,
        task=task,
        embed_dim=embed,
        num_layers=layers,
        num_heads=heads,
        input_hw=_height_width(input),
        seed=seed,
        channels=channels,
    )
    show(info, json)


def _height_width(text: str) -> tuple[int, int]:
    try:
        height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise JobError(f"--input {text}: expected HEIGHTxWIDTH, such as 1024x768") from None
    return height, width
