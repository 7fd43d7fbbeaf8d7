"""A wheel of this very package, made from its installed files: no network, no build tool, the same bytes each time.

Its version carries a digest of its content, so a cluster that has it already is not sent it again, and two people's
working copies of one release are not taken for each other. It asks for no dependencies: the cluster's image has them
(torch and Ray among them), and pip on a node must not reach for an index.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path

import annotator

_ROOT = Path(__file__).resolve().parent
_LEFT_OUT = {"__pycache__"}
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can hold: the same bytes whenever it is made


def build_wheel(folder: Path) -> Path:
    """Write the wheel into the folder, `annotator-0.1.0+<12 hex digits>-py3-none-any.whl`, and return its path."""
    files = package_files()
    version = f"{annotator.__version__}+{_digest(files)[:12]}"
    info = f"annotator-{version}.dist-info"
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: annotator\nVersion: {version}\n".encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: annotator\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = [f"{name},sha256={_base64_digest(data)},{len(data)}" for name, data in files.items()]
    files[f"{info}/RECORD"] = "".join(f"{line}\n" for line in [*record, f"{info}/RECORD,,"]).encode()
    path = folder / f"annotator-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            wheel.writestr(entry, data)
    return path


def package_files() -> dict[str, bytes]:
    """Return the files of the package by their path from its parent, sorted."""
    found = [path for path in _ROOT.rglob("*") if path.is_file() and not _LEFT_OUT & set(path.parts)]
    return {str(path.relative_to(_ROOT.parent)): path.read_bytes() for path in sorted(found)}


def package_digest() -> str:
    """Return 12 hex digits that tell this code from any other: those in the name of its wheel."""
    return _digest(package_files())[:12]


def _digest(files: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, data in files.items():
        digest.update(f"{name}\n{len(data)}\n".encode() + data)
    return digest.hexdigest()


def _base64_digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
