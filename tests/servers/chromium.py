"""A real browser for the tests: Debian's Chromium, installed if need be and if we may; nothing of it is our own."""

from __future__ import annotations

import os
import shutil
import subprocess

PACKAGES = ("chromium", "fonts-dejavu-core")
NAMES = ("chromium", "chromium-browser", "google-chrome")

OPTIONS = [
    "--no-sandbox",  # tests may run as root, where Chromium's own sandbox does not start
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]

_INSTALL_S = 300.0


class NotInstallableError(Exception):
    """There is no Chromium and it can't be installed on this machine; the message says why."""


def install() -> str:
    """Return the path of Chromium, installed with apt-get if it is missing."""
    if found := _find():
        return found
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise NotInstallableError("only root with apt-get may install it; as root: apt-get install chromium")
    options = ["-qq", "-o", "DPkg::Lock::Timeout=60", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20"]
    for words in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        try:
            subprocess.run(
                ["apt-get", *options, *words],
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_INSTALL_S,
                check=True,
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as err:
            raise NotInstallableError(f"apt-get {words[0]} failed: {err}") from None
    if found := _find():
        return found
    raise NotInstallableError("apt-get installed it, and it is not on the path")


def _find() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)
