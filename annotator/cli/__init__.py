"""The command line: each verb parses, calls one Python function, prints what it gives.

Exit codes are those of `annotator.errors`: 0 done, 2 wrong input, 3 the output belongs to another job,
4 storage, 5 shards left over, 6 over the failure budget, 7 `verify` or `manifest check` found something,
130 interrupted.
"""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer

import annotator
from annotator.cli import bench, cluster, demo, export, labels, manifest, models, query, retry, run
from annotator.errors import AnnotatorError

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Label image corpora with Sapiens models, every row accounted for exactly once.",
)
for verbs in (run, retry, labels, query, export, cluster):
    app.add_typer(verbs.app)
app.add_typer(manifest.app, name="manifest")
app.add_typer(models.app, name="models")
app.add_typer(bench.app, name="bench")
app.add_typer(demo.app, name="demo")
app.add_typer(cluster.jobs_app, name="jobs")


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


def main() -> None:
    """Run the command line; errors of ours become one line on standard error and an exit code."""
    # Docker, Kubernetes, Slurm and Ray's jobs stop a process with it: it must end as Ctrl-C does
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except AnnotatorError as err:
        print(f"error: {err}", file=sys.stderr)
        sys.exit(err.exit_code)
    except BrokenPipeError:  # the reader of our output left, as `head` does
        sys.stderr.close()
        sys.exit(1)
