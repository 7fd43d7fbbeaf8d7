"""The doctor: whether a cluster, or this machine, can run a job, before anything is started on it."""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from annotator.errors import AnnotatorError, IncompleteRunError
from annotator.job import Job
from annotator.machine import Machine, examine, probe_uri
from annotator.manifest import first_uris, pin_manifest
from annotator.manifest_check import Finding
from annotator.session import ray_session
from annotator.storage import Storage, normalize
from annotator.submit import cancel_job, job_logs, start, wait_for_job

if TYPE_CHECKING:
    from ray import ObjectRef

STORAGE_NODES = 16
"""Machines at most that try the job's storage, chosen by chance: a large cluster must not flood a bucket."""

ANSWER_S = 90.0
"""How long a machine may take to answer: it may have to install our wheel and to start a process first."""

JOB_S = 300.0
"""How long the whole visit may take when it goes by way of the job server."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkup:
    """What the doctor found: each machine, the driver's first, and what stands in the way (a warning does not).

    gpus       of the whole cluster, as Ray counts them
    exclusive  whether of `tries` to create one object exactly one won; None where none was made
    """

    machines: tuple[Machine, ...]
    problems: tuple[Finding, ...]
    gpus: float
    tries: int
    exclusive: bool | None

    @property
    def ok(self) -> bool:
        return all(finding.warning for finding in self.problems)


def doctor(job: Job | None = None, *, address: str | None = None, auth: str | None = None) -> Checkup:
    """Examine the machines of a cluster, or this one, and for a job what they may do with its storage.

    address   http://HEAD:8265: by the job server, from anywhere; `auto` or HEAD:6379: from a machine of the cluster;
              None: this machine alone
    auth      token | disabled, for a job server; see `submit_job`

    Of a job it leaves one small object in `OUTPUT/_annotator/probes/`. Raises JobError when the cluster can't be
    reached, IncompleteRunError when it doesn't answer.
    """
    if address is not None and address.startswith(("http://", "https://")):
        return _by_job_server(job, address, auth)
    probe = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
    uri = probe_uri(job, probe) if job is not None else None
    image, problems = _first_image(job)
    here = examine(job, uri, image)
    if any(finding.kind == "manifest" for finding in here.problems):
        problems = []  # it is the same, seen twice
    if address is None:
        return _conclude(job, here, (), problems, gpus=float(len(here.gpus)))
    with ray_session(address):
        import ray

        others, silent = _examine_nodes(job, uri, image)
        resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        problems += silent + _check_resources(job, resources, here)
    return _conclude(job, here, others, problems, gpus=sum(r.get("GPU", 0.0) for r in resources))


def _first_image(job: Job | None) -> tuple[str | None, list[Finding]]:
    """Return the uri of the manifest's first image, where there is one."""
    if job is None:
        return None, []
    storage = Storage(options=job.storage)
    try:
        manifest = pin_manifest(job.model_copy(update={"manifest": normalize(job.manifest)}), storage, write=False)
        uris = first_uris(storage, manifest, 1)
    except AnnotatorError as err:
        return None, [Finding(kind="manifest", where="driver", message=str(err))]
    return (uris[0] if uris and not uris[0].startswith(("http://", "https://")) else None), []


def _examine_nodes(job: Job | None, probe: str | None, image: str | None) -> tuple[list[Machine], list[Finding]]:
    """Return what each other node of the cluster brings, and a finding for each that gave no answer."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    own = ray.get_runtime_context().get_node_id()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != own]
    visit = ray.remote(num_cpus=0, max_retries=0)(examine)
    asked: dict[ObjectRef[Machine], str] = {}
    for count, node in enumerate(secrets.SystemRandom().sample(nodes, len(nodes))):
        near = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        arguments = (job, probe, image) if count < STORAGE_NODES else ()
        asked[visit.options(scheduling_strategy=near).remote(*arguments)] = node["NodeManagerHostname"]
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S) if asked else ([], [])
    machines, silent = [], []
    for ref, host in asked.items():
        try:
            if ref not in answered:
                raise IncompleteRunError(f"no answer within {ANSWER_S:.0f} s")
            machines.append(ray.get(ref))
        except (RayError, IncompleteRunError) as err:
            text = " ".join(str(err).split())[-300:]
            silent.append(Finding(kind="node", where=host, message=f"could not be examined: {text}"))
    return machines, silent


def _check_resources(job: Job | None, nodes: Sequence[Mapping[str, float]], here: Machine) -> list[Finding]:
    """Return what the job wants of a node and no node has."""
    most = max((node.get("GPU", 0.0) for node in nodes), default=0.0)
    if job is None:
        return []
    if job.gpus_per_worker is None:
        if not most or here.gpus:
            return []
        message = "the cluster has GPUs and the driver's machine none, so the job would label on CPUs; set "
        return [_warning("gpu", "job", message + "gpus_per_worker: 1, or 0 if that is meant")]
    if job.gpus_per_worker > most:
        message = f"a worker wants {job.gpus_per_worker:g} GPU and no node has more than {most:g}; "
        return [Finding(kind="gpu", where="cluster", message=message + "add GPU nodes, or set gpus_per_worker: 0")]
    return []


def _conclude(
    job: Job | None, here: Machine, others: Sequence[Machine], problems: Sequence[Finding], *, gpus: float
) -> Checkup:
    machines = (here, *others)
    found = [*problems, *(finding for machine in machines for finding in machine.problems)]
    for kind, versions in (
        ("python", [".".join(machine.python.split(".")[:2]) for machine in machines]),
        ("ray", [machine.ray for machine in machines]),
        ("annotator", [machine.annotator for machine in machines]),
    ):
        odd = next((m.host for m, version in zip(machines, versions, strict=True) if version != versions[0]), None)
        if odd is not None:
            counts = ", ".join(f"{version} on {count}" for version, count in Counter(versions).most_common())
            message = f"machines differ ({counts}; the first that does is {odd}); use one image for all"
            found.append(Finding(kind=kind, where="cluster", message=message))
    tries, created = sum(machine.tries for machine in machines), sum(machine.created for machine in machines)
    if created > 1 or (tries and not created):
        found.append(Finding(kind="output", where="cluster", message=_not_exclusive(created, tries)))
    exclusive = created == 1 if tries else None
    return Checkup(machines=machines, gpus=gpus, tries=tries, exclusive=exclusive, problems=tuple(found))


def _not_exclusive(created: int, tries: int) -> str:
    if created > 1:
        return (
            f"of {tries} tries to create one object {created} won; either the machines don't share this folder, or "
            "its server ignores If-None-Match; two workers would overwrite each other's labels"
        )
    return f"of {tries} tries to create a new object none won; the server refuses If-None-Match, or answers late"


def _warning(kind: str, where: str, message: str) -> Finding:
    return Finding(kind=kind, where=where, message=message, warning=True)


# -- by way of the job server ---------------------------------------------------------------------


def _by_job_server(job: Job | None, address: str, auth: str | None) -> Checkup:
    """Let the cluster's head examine the cluster; what it prints is the answer."""
    command = "doctor --address auto --json" + ("" if job is None else " job.yaml")
    submitted = start(command, job, address=address, auth=auth)
    try:
        wait_for_job(submitted.id, address=address, auth=auth, timeout_s=JOB_S)
    except (KeyboardInterrupt, IncompleteRunError):
        cancel_job(submitted.id, address=address, auth=auth)
        raise
    logs = job_logs(submitted.id, address=address, auth=auth)
    _, brace, answer = logs.partition("\n{\n")
    try:
        found, _ = json.JSONDecoder().raw_decode(brace.strip() + answer)  # what else is printed stands around it
    except ValueError:
        text = " ".join(logs.splitlines()[-1:])
        raise IncompleteRunError(f"{address}: the cluster could not examine itself: {text}") from None
    return TypeAdapter(Checkup).validate_python(found)
