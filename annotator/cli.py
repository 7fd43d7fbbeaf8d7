"""The command line: each verb parses, calls one Python function, prints what it gives.

Exit codes are those of `annotator.errors`: 0 done, 2 wrong input, 3 the output belongs to another job,
4 storage, 5 shards left over, 6 over the failure budget, 7 `verify` or `manifest check` found something,
130 interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
import yaml

import annotator
from annotator.errors import AnnotatorError, JobError
from annotator.job import Job, StorageOptions, load_job, read_job_file
from annotator.show import show
from annotator.storage import Storage, join
from annotator.watch import counting, terminal_watcher

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Label image corpora with Sapiens models, every row accounted for exactly once.",
)
manifest_app = typer.Typer(no_args_is_help=True, help="Make and check manifests.")
models_app = typer.Typer(no_args_is_help=True, help="Look at checkpoints, make random ones.")
app.add_typer(manifest_app, name="manifest")
app.add_typer(models_app, name="models")
bench_app = typer.Typer(no_args_is_help=True, help="Measure parts of the engine on this machine.")
app.add_typer(bench_app, name="bench")

PROBLEMS_EXIT = 7
INTERRUPTED_EXIT = 130

# typer reads these at run time, so Optional instead of "X | None" while Python 3.10 is supported
JobFile = Annotated[Optional[Path], typer.Argument(metavar="[JOB.YAML]", help="a job file")]  # noqa: UP045
Json = Annotated[bool, typer.Option("--json", help="print JSON for machines")]
Set = Annotated[list[str], typer.Option("--set", metavar="A.B=C", help="override a key of the job")]
Tasks = Annotated[list[str], typer.Option("--task", metavar="NAME=CHECKPOINT", help="a task and its weights")]
ManifestUri = Annotated[Optional[str], typer.Option("--manifest", help="a Parquet file or a folder of them")]  # noqa: UP045
OutputUri = Annotated[Optional[str], typer.Option("--output", help="where labels go")]  # noqa: UP045
Images = Annotated[Optional[str], typer.Option("--images", help="a folder or list of images; makes the manifest")]  # noqa: UP045
Limit = Annotated[Optional[int], typer.Option(min=1, help="only the first shards that hold N images")]  # noqa: UP045
Endpoint = Annotated[Optional[str], typer.Option("--endpoint-url", help="of an S3-compatible server")]  # noqa: UP045
Profile = Annotated[Optional[str], typer.Option("--profile", help="AWS profile")]  # noqa: UP045


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="print the version", is_eager=True)] = False,
) -> None:
    if version:
        print(annotator.__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


@app.command()
def run(
    job: JobFile = None,
    manifest: ManifestUri = None,
    images: Images = None,
    output: OutputUri = None,
    task: Tasks = [],  # noqa: B006
    set_: Set = [],  # noqa: B006
    limit: Limit = None,
    sample: Annotated[Optional[int], typer.Option(min=1, help="N random images, into an output of their own")] = None,  # noqa: UP045
    ray: Annotated[bool, typer.Option("--ray/--no-ray", help="workers on Ray, or one in this process")] = True,
    address: Annotated[Optional[str], typer.Option(help="of a running Ray cluster")] = None,  # noqa: UP045
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress")] = False,
    json: Json = False,
) -> None:
    """Label what the output lacks. Run it again to go on; run it a third time: nothing to do."""
    wanted = _job(job, manifest, output, task, set_, images=images)
    if images is not None:
        with counting("images found") as progress:
            annotator.update_manifest(images, wanted.manifest, Storage(options=wanted.storage), progress=progress)
    if sample is not None:
        wanted = annotator.sample(wanted, sample)
    try:
        report = annotator.run(wanted, ray=ray, address=address, limit=limit, watcher=terminal_watcher(quiet=quiet))
    except KeyboardInterrupt:
        print("interrupted; what is finished is committed, run again to go on", file=sys.stderr)
        raise typer.Exit(INTERRUPTED_EXIT) from None
    show(report, json)


@app.command()
def plan(
    job: JobFile = None,
    manifest: ManifestUri = None,
    output: OutputUri = None,
    task: Tasks = [],  # noqa: B006
    set_: Set = [],  # noqa: B006
    limit: Limit = None,
    json: Json = False,
) -> None:
    """Say what a run would do, without doing it."""
    show(annotator.plan(_job(job, manifest, output, task, set_), limit=limit), json)


@app.command()
def status(output: str, endpoint_url: Endpoint = None, profile: Profile = None, json: Json = False) -> None:
    """Say how far an output got, from any machine, during a run or after."""
    show(annotator.status(output, _storage(endpoint_url, profile)), json)


@app.command()
def verify(output: str, endpoint_url: Endpoint = None, profile: Profile = None, json: Json = False) -> None:
    """Prove from storage alone that every manifest row is labelled exactly once. Exit 7 if not."""
    report = annotator.verify(output, _storage(endpoint_url, profile))
    show(report, json)
    _exit_on_problems(report)


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
    print(annotator.contact_sheet(output, out, limit=limit, where=where, storage=_storage(endpoint_url, profile)))


@app.command()
def schema(what: Annotated[str, typer.Argument(help="job, or a task's name")] = "job") -> None:
    """Print the JSON schema of a job, or a task's label columns."""
    show(annotator.schema(what), json=True)


@manifest_app.command("build")
def manifest_build(
    source: Annotated[str, typer.Argument(help="folder of images, text list, or CSV with a uri column")],
    out: Annotated[str, typer.Option("--out", help="folder for the manifest")],
    rows_per_file: Annotated[int, typer.Option(min=1)] = 1_000_000,
    endpoint_url: Endpoint = None,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """Make a manifest of all images below a folder or in a list."""
    storage = _storage(endpoint_url, profile)
    with counting("images") as progress:
        built = annotator.build_manifest(source, out, storage, rows_per_file=rows_per_file, progress=progress)
    show(built, json)


@manifest_app.command("append")
def manifest_append(
    source: Annotated[str, typer.Argument(help="folder of images, text list, or CSV with a uri column")],
    out: Annotated[str, typer.Option("--out", help="folder of an existing manifest")],
    rows_per_file: Annotated[int, typer.Option(min=1)] = 1_000_000,
    endpoint_url: Endpoint = None,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """Add the images that the manifest does not have yet, in new files."""
    storage = _storage(endpoint_url, profile)
    with counting("images") as progress:
        added = annotator.append_manifest(source, out, storage, rows_per_file=rows_per_file, progress=progress)
    show(added, json)


@manifest_app.command("check")
def manifest_check(manifest: str, endpoint_url: Endpoint = None, profile: Profile = None, json: Json = False) -> None:
    """Look for what would go wrong with a manifest. Exit 7 if something would."""
    report = annotator.check_manifest(manifest, _storage(endpoint_url, profile))
    show(report, json)
    _exit_on_problems(report)


@models_app.command("inspect")
def models_inspect(
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
        storage=_storage(endpoint_url, profile),
    )
    show(info, json)


@models_app.command("list")
def models_list(folder: str, endpoint_url: Endpoint = None, profile: Profile = None, json: Json = False) -> None:
    """List the checkpoints below a sapiens_host/ or sapiens_lite_host/ folder."""
    from annotator.models import list_checkpoints

    show(list_checkpoints(folder, storage=_storage(endpoint_url, profile)), json)


@models_app.command("random")
def models_random(
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


@bench_app.command("decode")
def bench_decode(
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


def main() -> None:
    """Run the command line; errors of ours become one line on standard error and an exit code."""
    try:
        app()
    except AnnotatorError as err:
        print(f"error: {err}", file=sys.stderr)
        sys.exit(err.exit_code)
    except BrokenPipeError:  # the reader of our output left, as `head` does
        sys.stderr.close()
        sys.exit(1)


def _job(
    path: Path | None,
    manifest: str | None,
    output: str | None,
    tasks: list[str],
    sets: list[str],
    *,
    images: str | None = None,
) -> Job:
    """Build the job of a file and options; options win."""
    if path is None and not (tasks and output and (manifest or images)):
        raise JobError("name a job file, or --manifest (or --images), --output and at least one --task")
    overrides: dict[str, Any] = {}
    for item in sets:
        key, equals, value = item.partition("=")
        if not equals:
            raise JobError(f"--set {item}: expected KEY=VALUE, such as limits.attempts=2")
        try:
            overrides[key] = yaml.safe_load(value)
        except yaml.YAMLError as err:
            raise JobError(f"--set {item}: not readable as YAML: {' '.join(str(err).split())}") from None
    for item in tasks:
        name, equals, checkpoint = item.partition("=")
        if not equals:
            raise JobError(f"--task {item}: expected NAME=CHECKPOINT, such as seg=/weights/seg.pth")
        overrides[f"tasks.{name}.checkpoint"] = checkpoint
    overrides |= {key: value for key, value in (("manifest", manifest), ("output", output)) if value is not None}
    if images is None:
        return load_job(path, overrides)
    if manifest is not None or (path is not None and "manifest" in read_job_file(path)):
        raise JobError("--images makes a manifest of its own, in the output; leave manifest out, or --images")
    output = output or (read_job_file(path).get("output") if path is not None else None)
    wanted = load_job(path, overrides | {"manifest": join(str(output), "manifest")})
    annotator.check(wanted)
    return wanted


def _storage(endpoint_url: str | None, profile: str | None) -> Storage:
    return Storage(options=StorageOptions(endpoint_url=endpoint_url, profile=profile))


def _height_width(text: str) -> tuple[int, int]:
    try:
        height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise JobError(f"--input {text}: expected HEIGHTxWIDTH, such as 1024x768") from None
    return height, width


def _exit_on_problems(report: Any) -> None:
    if not report.ok:
        raise typer.Exit(PROBLEMS_EXIT)


if __name__ == "__main__":
    main()
