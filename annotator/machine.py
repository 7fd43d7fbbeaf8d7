"""What one machine brings for a job: versions, GPUs, what it may do in storage, free disk. No Ray in here."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import annotator
from annotator.cluster import CALLS_PER_WORKER
from annotator.errors import AnnotatorError
from annotator.job import Job, Released
from annotator.manifest import manifest_files
from annotator.manifest_check import Finding
from annotator.models.cache import cache_folder
from annotator.models.zoo import find_checkpoint
from annotator.storage import Storage, is_local, join, normalize
from annotator.tasks import load_task, resolve
from annotator.wheel import package_digest

_ATTEMPTS, _TIMEOUT_S = 2, 10.0  # a doctor says what it sees within seconds; a run is more patient
_TOOL_TIMEOUT_S = 60.0
_PROBE = b"annotator doctor tried here whether an object can be created only once\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What was found on one machine.

    host       its name
    annotator  version and digest of the code; `folder`: where that lies
    gpus       name, memory and driver of each, as nvidia-smi has them
    cuda       whether torch can use them; None where there is none
    free       bytes free for checkpoints, and for label files until they are committed
    tries      how often it tried to create the probe; `created`: how many of these made it
    problems   what would keep a worker here from labelling, in the order in which it was looked for
    """

    host: str
    python: str
    ray: str
    torch: str
    annotator: str
    folder: str
    cpus: int
    gpus: tuple[str, ...]
    cuda: bool | None
    free: tuple[int, int]
    tries: int = 0
    created: int = 0
    problems: tuple[Finding, ...] = ()


def examine(job: Job | None = None, probe: str | None = None, image: str | None = None) -> Machine:
    """Return what this machine brings, and for a job what it may do with the job's storage.

    probe   name of an object in the output, fresh for each visit of the doctor: this machine tries to create it
            twice at once
    image   uri of one of the job's images, to be read
    """
    host = socket.gethostname()
    problems: list[Finding] = []

    def look(kind: str, check: Callable[[], list[str]]) -> None:
        try:
            messages = check()
        except AnnotatorError as err:
            messages = [str(err)]
        problems.extend(Finding(kind=kind, where=host, message=message) for message in messages)

    wins: list[bool] = []
    cache = None
    try:
        cache = cache_folder("checkpoints")
    except AnnotatorError as err:
        problems.append(Finding(kind="disk", where=host, message=str(err)))
    gpus = _gpus()
    cuda = _cuda_works() if gpus else None
    if gpus and not cuda:
        problems.append(
            Finding(kind="gpu", where=host, message="torch can't use the GPU; install a CUDA build of torch")
        )
    if job is not None:
        storage = Storage(options=job.storage, attempts=_ATTEMPTS, timeout_s=_TIMEOUT_S)
        output = normalize(job.output)
        look("manifest", lambda: _read_manifest(storage, normalize(job.manifest)))
        if image is not None:
            look("image", lambda: _read_image(storage, image))
        weights: dict[str, int] = {}
        look("checkpoint", lambda: _find_weights(job, storage, weights))
        if cache is not None:
            look("disk", lambda: _check_disk(job, cache, weights))
        if probe is not None:
            look("output", lambda: _probe_output(storage, output, probe, wins))
    return Machine(
        host=host,
        python=platform.python_version(),
        ray=_version("ray"),
        torch=_version("torch"),
        annotator=f"{annotator.__version__}+{package_digest()}",
        folder=str(Path(annotator.__file__).parent),
        cpus=os.cpu_count() or 1,
        gpus=gpus,
        cuda=cuda,
        free=(0 if cache is None else _free(cache), _free(_spool(job))),
        tries=len(wins),
        created=sum(wins),
        problems=tuple(problems),
    )


def probe_uri(job: Job, name: str) -> str:
    """Return where in the output the object lies that the doctor's visit `name` tries to create."""
    return join(normalize(job.output), "_annotator", "probes", name)


def _read_manifest(storage: Storage, root: str) -> list[str]:
    _, info = manifest_files(root, storage)[0]
    return [] if storage.read(info.uri, length=4) == b"PAR1" else [f"{info.uri}: is no Parquet file"]


def _read_image(storage: Storage, uri: str) -> list[str]:
    return [] if storage.read(uri, length=1) else [f"{uri}: the manifest's first image is empty"]


def _find_weights(job: Job, storage: Storage, found: dict[str, int]) -> list[str]:
    """Put the size of each remote checkpoint into `found`; return what is wrong with any."""
    problems = []
    for name, (_, options) in resolve(job).items():
        try:
            where = options.checkpoint
            if isinstance(where, Released):
                where = find_checkpoint(
                    where.root, task=name, size=where.size, keypoints=where.keypoints, storage=storage
                )
            uri = normalize(where)
            size = storage.info(uri).size
            storage.read(uri, length=1)
        except AnnotatorError as err:
            problems.append(f"tasks.{name}: {err}")
        else:
            if not is_local(uri):
                found[uri] = size
    return problems


def _check_disk(job: Job, cache: Path, weights: dict[str, int]) -> list[str]:
    row_bytes = sum(load_task(name).row_bytes for name in job.tasks)
    spool = CALLS_PER_WORKER * job.shard_rows * row_bytes
    wanted = ((cache, "checkpoints", sum(weights.values())), (_spool(job), "label files of a worker", spool))
    return [
        f"{folder}: {_free(folder) / 1e9:.1f} GB free, and {what} may take {count / 1e9:.1f} GB"
        for folder, what, count in wanted
        if count > _free(folder)
    ]


def _probe_output(storage: Storage, output: str, uri: str, wins: list[bool]) -> list[str]:
    """Create the object twice at once, read it, list it; put into `wins` which try made it."""
    with ThreadPoolExecutor(2) as pool:
        tries = [pool.submit(storage.create, _PROBE, uri, output=output) for _ in range(2)]
        wins.extend(future.result() for future in tries)
    problems = []
    if storage.read(uri) != _PROBE:
        problems.append(f"{uri}: reads otherwise than it was written")
    if all(info.uri != uri for info in storage.list(uri.rpartition("/")[0])):
        problems.append(f"{uri}: was just created and is not listed")
    return problems


def _spool(job: Job | None) -> Path:
    return Path((job.spool_dir if job is not None else None) or tempfile.gettempdir())


def _free(folder: Path) -> int:
    """Return free bytes of the disk that the folder is, or will be, on."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _gpus() -> tuple[str, ...]:
    """Return a line for each NVIDIA GPU; asks the driver, as Ray hides GPUs from what claims none."""
    if not Path("/dev/nvidiactl").exists():
        return ()
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TOOL_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError) as err:
        return (f"nvidia-smi failed: {err}",)
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip())


def _cuda_works() -> bool:
    """Return whether torch finds a GPU, in a process that sees them all."""
    env = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    try:
        done = subprocess.run([sys.executable, "-c", code], env=env, timeout=_TOOL_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
