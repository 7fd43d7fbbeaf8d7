"""Verbs for a cluster: submit, doctor, jobs list, jobs status, jobs logs, jobs cancel."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

import annotator
from annotator.cli.options import JobFile, Json, Limit, Log, Set, exit_on_problems, make_job
from annotator.show import show

Address = Annotated[
    str,
    typer.Option(envvar="RAY_API_SERVER_ADDRESS", metavar="URL", help="of the cluster's job server, http://HEAD:8265"),
]
Auth = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(envvar="RAY_AUTH_MODE", metavar="token|disabled", help="how the cluster is guarded"),
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="as `submit` printed it")]

app = typer.Typer()
jobs_app = typer.Typer(no_args_is_help=True, help="Follow and stop what was submitted to a cluster.")


@app.command()
def submit(
    job: Annotated[Path, typer.Argument(metavar="JOB.YAML", help="a job file")],
    address: Address,
    set_: Set = [],  # noqa: B006
    limit: Limit = None,
    log: Log = None,
    auth: Auth = None,
    json: Json = False,
) -> None:
    """Have a Ray cluster label what the output lacks; print the job's id and what to type next."""
    wanted = make_job(job, None, None, [], set_)
    show(annotator.submit_job(wanted, address=address, auth=auth, limit=limit, log=log), json)


@app.command()
def doctor(
    job: JobFile = None,
    address: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="ADDRESS", help="http://HEAD:8265, from anywhere; auto, on a machine of the cluster"),
    ] = None,
    set_: Set = [],  # noqa: B006
    auth: Auth = None,
    json: Json = False,
) -> None:
    """Examine a cluster, or this machine, and what it may do with a job's storage. Exit 7 if a job would fail."""
    wanted = make_job(job, None, None, [], set_) if job is not None else None
    checkup = annotator.doctor(wanted, address=address, auth=auth)
    show(checkup, json)
    exit_on_problems(checkup)


@jobs_app.command("list")
def list_(address: Address, auth: Auth = None, json: Json = False) -> None:
    """List what annotator submitted to a cluster, the latest first."""
    from annotator.submit import list_jobs

    show(list_jobs(address=address, auth=auth), json)


@jobs_app.command()
def status(id: JobId, address: Address, auth: Auth = None, json: Json = False) -> None:
    """Say how a job is."""
    from annotator.submit import job_state

    show(job_state(id, address=address, auth=auth), json)


@jobs_app.command()
def logs(
    id: JobId,
    address: Address,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on until the job is over")] = False,
    auth: Auth = None,
) -> None:
    """Print what a job's driver has printed."""
    from annotator.submit import follow_job_logs, job_logs

    if not follow:
        sys.stdout.write(job_logs(id, address=address, auth=auth))
        return
    state = follow_job_logs(id, lambda text: print(text, end="", flush=True), address=address, auth=auth)
    print(f"{id}: {state.status}", file=sys.stderr)


@jobs_app.command()
def cancel(id: JobId, address: Address, auth: Auth = None, json: Json = False) -> None:
    """Stop a job as Ctrl-C would, and wait for its end. What it finished is committed: submit it again to go on."""
    from annotator.submit import cancel_job

    show(cancel_job(id, address=address, auth=auth), json)
