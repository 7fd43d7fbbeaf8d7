"""A real S3 server for the tests: Ceph's RADOS gateway, from Debian's packages, alone on this machine.

    python -m tests.servers.rgw       start one, say how to reach it, stop it at Ctrl-C

One monitor, one object store in memory and one gateway, all on loopback, on free ports, in one folder. No process of it
outlives the one that started it, not even when that is killed. Where the packages are missing they are
installed, if we are root and apt has them.

What it holds is memory, and what was deleted comes back late: tests should write less than 2 GB in all.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("radosgw", "ceph-mon", "ceph-osd", "ceph-common")
PROGRAMS = ("radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "ceph", "ceph-authtool", "monmaptool", "setpriv")

ACCESS_KEY, SECRET_KEY = "testing", "testing"

INSTALL_S = 200.0
START_S = 60.0

_CONFIG = """\
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{mon_port}
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
mon allow pool size one = true
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon max pg per osd = 1000
mon data avail crit = 1
mon data avail warn = 2
osd objectstore = memstore
memstore device bytes = 4G
osd memory target = 1G
keyring = {folder}/keyring
mon data = {folder}/mon
osd data = {folder}/osd
rgw data = {folder}/rgw
run dir = {folder}/run
pid file = {folder}/run/$name.pid
admin socket = {folder}/run/$name.asok
log file = {folder}/log/$name.log
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw dns name = 127.0.0.1
rgw thread pool size = 64
# deleted objects are kept for two hours by default, and memory is what we have little of
rgw gc obj min wait = 20
rgw gc processor period = 20
rgw gc processor max time = 20
"""


class ServerError(Exception):
    """The server can't be had here; the message says why, in one line."""


class NotInstallableError(ServerError):
    """The packages are missing and can't be installed on this machine."""


@dataclass(frozen=True)
class Gateway:
    """A running server. `processes` can be killed to see what its loss does."""

    url: str
    processes: tuple[subprocess.Popen[bytes], ...]


def is_installed() -> bool:
    """Return whether all programs are there."""
    return not _missing()


def install(timeout_s: float = INSTALL_S) -> None:
    """Install the packages if they are missing. Raises NotInstallableError, saying why, where that can't be done."""
    if is_installed():
        return
    why = f"programs are missing ({', '.join(_missing())}) and "
    if shutil.which("apt-get") is None:
        raise NotInstallableError(f"{why}this machine has no apt-get; install {' '.join(PACKAGES)} by hand")
    if os.geteuid() != 0:
        raise NotInstallableError(f"{why}only root may install them; as root: apt-get install {' '.join(PACKAGES)}")
    end = time.monotonic() + timeout_s
    options = ["-qq", "-o", "DPkg::Lock::Timeout=60", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20"]
    for words in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        command = ["apt-get", *options, *words]
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        try:
            subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=max(1.0, end - time.monotonic()),
                check=True,
            )
        except subprocess.TimeoutExpired:
            raise NotInstallableError(f"{why}`apt-get {words[0]}` took more than {timeout_s:.0f} s") from None
        except subprocess.CalledProcessError as err:
            text = " ".join(err.stderr.decode(errors="replace").split())[-300:]
            raise NotInstallableError(f"{why}`apt-get {words[0]}` failed: {text}") from None
    if not is_installed():
        raise NotInstallableError(f"the packages are installed and still miss {', '.join(_missing())}")


@contextlib.contextmanager
def running() -> Iterator[Gateway]:
    """Start a server with one user, whose keys are ACCESS_KEY and SECRET_KEY; stop it and remove all traces."""
    folder = Path(tempfile.mkdtemp(prefix="rgw-"))  # short: socket paths have 107 bytes
    processes: list[subprocess.Popen[bytes]] = []
    try:
        yield _start(folder, processes)
    finally:
        for process in reversed(processes):  # there is nothing to save
            process.kill()
        for process in processes:
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path, processes: list[subprocess.Popen[bytes]]) -> Gateway:
    """Start all processes below the folder, and append each to the list at once."""
    end = time.monotonic() + START_S
    fsid, (port, mon_port) = str(uuid.uuid4()), _free_ports(2)
    for name in ("mon", "osd", "rgw", "run", "log"):
        (folder / name).mkdir()
    config, keyring = folder / "ceph.conf", folder / "keyring"
    config.write_text(_CONFIG.format(folder=folder, fsid=fsid, port=port, mon_port=mon_port))

    def call(*words: object) -> None:
        _call(folder, [str(word) for word in words], end - time.monotonic())

    def serve(*words: object) -> None:
        log = (folder / "log" / f"{words[0]}.out").open("wb")
        # the kernel kills the server when the one who started it is gone
        command = ["setpriv", "--pdeathsig", "KILL", *map(str, words), "-f", "-c", str(config)]
        with log:
            processes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder))

    monitors = folder / "monmap"
    call("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{mon_port}]", monitors)
    call("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
    admin = ["--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *"]
    call("ceph-authtool", keyring, "--gen-key", "-n", "client.admin", *admin)
    call("ceph-mon", "-c", config, "--mkfs", "-i", "a", "--monmap", monitors, "--keyring", keyring)
    serve("ceph-mon", "-i", "a")
    osd = str(uuid.uuid4())
    call("ceph", "-c", config, "osd", "new", osd)
    grants = ["mon", "allow profile osd", "osd", "allow *"]
    call("ceph", "-c", config, "auth", "get-or-create", "osd.0", *grants, "-o", folder / "osd.keyring")
    with keyring.open("a") as file:
        file.write((folder / "osd.keyring").read_text())
    call("ceph-osd", "-c", config, "-i", "0", "--mkfs", "--osd-uuid", osd)
    serve("ceph-osd", "-i", "0")
    serve("radosgw", "-n", "client.admin")
    user = ["--uid=test", "--display-name=test", f"--access-key={ACCESS_KEY}", f"--secret-key={SECRET_KEY}"]
    call("radosgw-admin", "-c", config, "user", "create", *user)
    gateway = Gateway(f"http://127.0.0.1:{port}", tuple(processes))
    _wait_until_it_answers(gateway, folder, end)
    return gateway


def _wait_until_it_answers(gateway: Gateway, folder: Path, end: float) -> None:
    while True:
        try:
            with urllib.request.urlopen(gateway.url, timeout=5):
                return
        except urllib.error.HTTPError as err:
            err.close()
            return
        except OSError:
            if gateway.processes[-1].poll() is not None or time.monotonic() > end:
                raise ServerError(f"the gateway gave no answer: {_last_words(folder)}") from None
            time.sleep(0.1)


def _call(folder: Path, command: list[str], timeout_s: float) -> None:
    environment = {**os.environ, "CEPH_CONF": str(folder / "ceph.conf")}
    try:
        done = subprocess.run(
            command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s
        )
    except (subprocess.TimeoutExpired, ValueError):
        raise ServerError(f"`{command[0]}` did not end in time: {_last_words(folder)}") from None
    if done.returncode:
        text = " ".join(done.stderr.decode(errors="replace").split())[-300:]
        raise ServerError(f"`{command[0]}` ended with {done.returncode}: {text}")


def _last_words(folder: Path) -> str:
    logs = sorted((folder / "log").iterdir(), key=lambda path: path.stat().st_mtime)
    words = [f"{path.name}: {path.read_text(errors='replace')[-200:]}" for path in logs if path.stat().st_size]
    return " ".join(" ".join(words).split()) or "no word in any log"


def _missing() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name) is None]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def main() -> None:
    """Start a server and say how to reach it."""
    try:
        install()
        with running() as gateway, contextlib.suppress(KeyboardInterrupt):
            print(f"export AWS_ENDPOINT_URL={gateway.url} AWS_DEFAULT_REGION=us-east-1")
            print(f"export AWS_ACCESS_KEY_ID={ACCESS_KEY} AWS_SECRET_ACCESS_KEY={SECRET_KEY}", flush=True)
            gateway.processes[-1].wait()
    except ServerError as err:
        print(f"no server: {err}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
