"""Verbs that measure: bench, bench encode, bench decode, bench drift."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from annotator.cli.options import PROBLEMS_EXIT, Json, Set, parse_sets
from annotator.show import show

app = typer.Typer(help="Measure the engine, or parts of it, on this machine.")

Tasks = Annotated[list[str], typer.Option("--task", metavar="NAME[=CHECKPOINT]", help="default seg, depth, normal")]
Model = Annotated[
    list[str],
    typer.Option("--model", help="tiny, small, 0.3b, 0.6b, 1b, 2b, or null, which costs nothing; several in turn"),
]
Image = Annotated[list[str], typer.Option("--image", metavar="WxH", help="size of the pictures; several in turn")]


@app.callback(invoke_without_command=True)
def engine(
    context: typer.Context,
    task: Tasks = [],  # noqa: B006
    model: Model = [],  # noqa: B006
    image: Image = ["1024x768"],  # noqa: B006
    images: Annotated[Optional[int], typer.Option(min=1, help="how many pictures; default by the model")] = None,  # noqa: UP045
    shard_rows: Annotated[Optional[int], typer.Option(min=1, help="pictures a shard; default a 16th of them")] = None,  # noqa: UP045
    batch: Annotated[Optional[int], typer.Option(min=1, help="images a batch")] = None,  # noqa: UP045
    dtype: Annotated[Optional[str], typer.Option(help="bfloat16 or float32")] = None,  # noqa: UP045
    set_: Set = [],  # noqa: B006
    ray: Annotated[bool, typer.Option("--ray/--no-ray", help="the whole job on Ray, or in one process")] = True,
    json: Json = False,
) -> None:
    """Compare the whole job with the worker alone and with forward passes alone, on the same device."""
    if context.invoked_subcommand is not None:
        return
    from annotator.bench.engine import bench_engine
    from annotator.bench.setup import make_setups

    job = {"batch_size": batch or "auto", "dtype": dtype, **parse_sets(set_)}
    results = []
    for setup in make_setups(task, models=model, sizes=image, images=images, shard_rows=shard_rows, job=job):
        results.append(bench_engine(setup, ray=ray))
        if not json:
            print(f"{results[-1].table()}\n", flush=True)
    if json:
        show(results, json)


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


@app.command("encode")
def encode(
    repeats: Annotated[int, typer.Option(min=1, help="the median of so many is taken")] = 5,
    noisy: Annotated[bool, typer.Option("--noisy", help="maps full of noise, the worst case")] = False,
    json: Json = False,
) -> None:
    """Time the PNG encoding of one image's maps against OpenCV's default. Exit 7 if it is not exact."""
    from annotator.bench.encode import bench_encode

    result = bench_encode(repeats=repeats, noisy=noisy)
    if json:
        show(result, json)
    else:
        print(result.table())
    if not result.exact:
        raise typer.Exit(PROBLEMS_EXIT)


@app.command("drift")
def drift(
    task: Tasks = [],  # noqa: B006
    model: Annotated[str, typer.Option(help="size of the models that are made: tiny, small, 0.3b, 1b ...")] = "small",
    pictures: Annotated[Optional[str], typer.Option(help="a local folder of images, instead of made ones")] = None,  # noqa: UP045
    images: Annotated[int, typer.Option(min=1, help="so many pictures")] = 4,
    image: Annotated[str, typer.Option(metavar="WxH", help="size of the pictures that are made")] = "3000x2200",
    compiled: Annotated[bool, typer.Option("--compiled/--not-compiled", help="compile as well")] = True,
    json: Json = False,
) -> None:
    """Compare labels in bfloat16, compiled, and decoded fast with float32. Exit 7 if one is beyond its task's limit."""
    from annotator.bench.drift import bench_drift, read_pictures, table
    from annotator.bench.setup import TASKS, parse_size, parse_tasks

    names, checkpoints = parse_tasks(task or (*TASKS, "pose"))
    found = bench_drift(
        names,
        checkpoints,
        model=model,
        images=images,
        image_wh=parse_size(image),
        pictures=read_pictures(pictures, images) if pictures else (),
        compiled=compiled,
    )
    if json:
        show(found, json)
    else:
        print(table(found))
    if not all(one.ok for one in found):
        raise typer.Exit(PROBLEMS_EXIT)
