"""A decoder in a process of its own, which may crash, hang or swell, and says what became of each file.

Run as a module it is that process: on stdin a length of 4 bytes and the file, on stdout a line of JSON.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import resource
import select
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

COMMAND = (sys.executable, "-m", "tests.hostile.decoder")

MAX_PIXELS = 2_000_000
"""`limits.max_pixels` here: mutants that claim more are refused, so that the time goes into decoding."""

MAX_EXTRA_BYTES = 128 * 2**20
"""Address space that decoding one file may add; 2 megapixels take 48 MB in the worst case known: 16 bits, 4 channels,
one strip, all three copies alive."""

_PERTURB = -6  # mallopt's M_PERTURB in glibc's malloc.h: fresh memory is filled with a byte


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one file.

    what     "ok", "ok, noted", "<status> <error class>", or a finding: "escaped", "wrong", "crashed", "hung", "swollen"
    details  of a finding, for people
    seconds  from handing it over until the answer
    """

    what: str
    details: str = ""
    seconds: float = 0.0

    @property
    def is_finding(self) -> bool:
        return self.what in ("escaped", "wrong", "crashed", "hung", "swollen")


class Decoder:
    """One child process, replaced when a file has ended it."""

    def __init__(self, timeout_s: float = 5.0, command: Sequence[str] = COMMAND) -> None:
        self._timeout_s = timeout_s
        self._command = command
        self._child: subprocess.Popen[bytes] | None = None

    def __call__(self, data: bytes) -> Outcome:
        """Return what became of the file; never raises for what the file does."""
        child = self._child = self._child or self._start()
        assert child.stdin is not None and child.stdout is not None
        start = time.monotonic()
        try:
            child.stdin.write(struct.pack(">I", len(data)) + data)
            child.stdin.flush()
        except BrokenPipeError:
            return self._ended("crashed", f"exit code {child.wait()}")
        ready, _, _ = select.select([child.stdout], [], [], self._timeout_s)
        if not ready:
            return self._ended("hung", f"no answer in {self._timeout_s:g} s")
        line = child.stdout.readline()
        if not line:
            return self._ended("crashed", f"exit code {child.wait()}")
        outcome = Outcome(**json.loads(line), seconds=time.monotonic() - start)
        if outcome.what == "swollen":  # its peak only grows, so the next file needs another child
            self.close()
        return outcome

    def _start(self) -> subprocess.Popen[bytes]:
        path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
        child = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
            cwd=ROOT,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        return child

    def _ended(self, what: str, details: str) -> Outcome:
        self.close()
        return Outcome(what=what, details=details)

    def close(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()


def judge(data: bytes) -> dict[str, Any]:
    """Return what becomes of a file in this process: exact, exact again in other memory, and at a reduced scale."""
    import numpy as np

    from annotator.errors import ImageError
    from annotator.job import Limits
    from annotator.stages.decode import decode

    limits, digests = Limits(max_pixels=MAX_PIXELS), []
    try:
        for fill in (0x11, 0xEE):
            ctypes.CDLL(None).mallopt(_PERTURB, fill)
            image = decode(data, limits, mode="exact", min_hw=(16, 16))
            pixels_YXC = image.pixels_YXC
            if pixels_YXC.shape != (image.height, image.width, 3) or pixels_YXC.dtype != np.uint8:
                return {"what": "wrong", "details": f"{pixels_YXC.shape} {pixels_YXC.dtype} for {image.width}"}
            digests.append(hashlib.sha256(pixels_YXC.tobytes()).digest())
        if digests[0] != digests[1]:
            return {"what": "wrong", "details": f"pixels of memory that nothing was written to; note: {image.note}"}
        if data[:2] == b"\xff\xd8":
            small = decode(data, limits, mode="fast", min_hw=(16, 16))
            if (small.height, small.width) != (image.height, image.width) or small.pixels_YXC.ndim != 3:
                return {"what": "wrong", "details": f"fast: {small.pixels_YXC.shape} for {small.width}"}
        return {"what": "ok, noted" if image.note else "ok"}
    except ImageError as err:
        return {"what": f"{err.status} {err.error_class}"}
    except BaseException:
        return {"what": "escaped", "details": traceback.format_exc()}


def peak_bytes() -> int:
    """Return the most address space that this process ever had."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmPeak"))


def serve() -> None:
    """Answer files until stdin ends."""
    from tests.pixels.pictures import one_of_each_kind

    for data in one_of_each_kind().values():  # loads every library, so that their memory counts for nobody's
        judge(data)
    allowed = peak_bytes() + MAX_EXTRA_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (allowed + 2**30, allowed + 2**30))  # spares the machine
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while head := sys.stdin.buffer.read(4):
        (length,) = struct.unpack(">I", head)
        outcome = judge(sys.stdin.buffer.read(length))
        peak = peak_bytes()
        if peak > allowed and outcome["what"] not in ("escaped", "wrong"):
            outcome = {"what": "swollen", "details": f"{(peak - allowed + MAX_EXTRA_BYTES) >> 20} MiB; {outcome}"}
        sys.stdout.write(json.dumps(outcome) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
