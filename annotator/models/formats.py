"""Checkpoint files to named tensors, without running any code from them, and memory-mapped.

    .pth          torch.load(weights_only=True); the metadata of the released pose files is let through as
                  inert stand-ins (fact sheet 2.3)
    .safetensors  safetensors
    TorchScript   its data.pkl is read by an unpickler that knows tensors and nothing else
    torch.export  the weights stored beside the program

Why TorchScript isn't loaded with torch.jit.load (2026-11): that runs the archive's own __setstate__ code,
holds all weights in memory, and is deprecated. Files are told apart by their content, never by their name.
"""

from __future__ import annotations

import _codecs
import collections
import json
import mmap
import pickle
import re
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from annotator.errors import CheckpointError

_ZIP = b"PK\x03\x04"
_DAMAGE = (  # what parsers raise over bytes that make no sense
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
_SAFE_LOCK = threading.Lock()  # torch's list of safe globals belongs to the process
_EXPORT_DTYPES = {6: torch.float16, 7: torch.float32, 8: torch.float64, 13: torch.bfloat16}  # serde schema ScalarType
_STORAGE_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """The tensors of one file, mapped from disk where the format allows, and its safetensors metadata."""

    tensors: dict[str, Tensor]
    format: str
    metadata: Mapping[str, str]


def read_weights(path: Path) -> Weights:
    """Read the named tensors of a checkpoint file.

    Prefix `module.` is cut and `data_preprocessor.*` (mean and std of exported files) left out.
    Raises CheckpointError for a missing, damaged or unknown file, and for a pickle that wants more than tensors.
    """
    kind = detect_format(path)
    metadata: Mapping[str, str] = {}
    try:
        if kind == "safetensors":
            tensors, metadata = _read_safetensors(path)
        elif kind == "torchscript":
            tensors = _read_torchscript(path)
        elif kind == "torch-export":
            tensors = _read_export(path)
        else:
            tensors = _read_pth(path)
    except pickle.UnpicklingError as err:
        raise CheckpointError(_refusal(path, str(err))) from None
    except _DAMAGE as err:
        raise CheckpointError(f"{path}: damaged {kind} file ({_one_line(err)}); copy it again") from err
    return Weights(tensors=_clean(path, tensors), format=kind, metadata=metadata)


def detect_format(path: Path) -> str:
    """Return pth, safetensors, torchscript or torch-export, from the file's first bytes or zip directory.

    Raises CheckpointError when it is none of them.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as err:
        raise CheckpointError(f"{path}: can't be read ({err.strerror}); expected a checkpoint file") from None
    if head.startswith(_ZIP):
        return _detect_zip(path)
    if len(head) > 8 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= size - 8:
        return "safetensors"
    if head.startswith(b"\x80"):
        return "pth"
    found = "is a Git LFS pointer, not the weights" if head.startswith(b"version https://git-lfs") else "is no weights"
    found = "is empty" if not head else found
    raise CheckpointError(f"{path}: {found}; expected .pth, .safetensors or TorchScript .pt2; download the file again")


def _detect_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except _DAMAGE:
        raise CheckpointError(f"{path}: damaged zip archive, cut short perhaps; copy it again") from None
    inner = {n.partition("/")[2] for n in names} | set(names)
    if "constants.pkl" in inner and "data.pkl" in inner:
        return "torchscript"
    if inner & {"serialized_exported_program.json", "models/model.json", "archive_format"}:
        return "torch-export"
    if "data.pkl" in inner:
        return "pth"
    raise CheckpointError(f"{path}: a zip archive without weights; expected .pth, .safetensors or TorchScript .pt2")


def _clean(path: Path, tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    cleaned = {}
    for raw, tensor in tensors.items():
        name = str(raw).removeprefix("module.")
        if name.startswith("data_preprocessor."):
            continue
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{path}: entry {name!r} is a {type(tensor).__name__}; expected tensors only")
        cleaned[name] = tensor.detach()
    if not cleaned:
        raise CheckpointError(f"{path}: holds no tensors; expected a model's state dict")
    return cleaned


# --- safetensors -------------------------------------------------------------------------------------------------


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    with safe_open(str(path), framework="pt", device="cpu") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


# --- .pth --------------------------------------------------------------------------------------------------------


class _Ignored(dict):  # type: ignore[type-arg]
    """Stands in for mmengine's ConfigDict: takes anything, keeps nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass


def _harmless_globals() -> list[Any]:
    """What the metadata of the released pose files names besides tensors: all build plain values (fact sheet 2.3)."""
    reconstruct = np.zeros(0).__reduce__()[0]
    dtypes = {type(np.dtype(code)) for code in ("u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "?", "U1", "S1")}
    return [
        (_Ignored, "mmengine.config.config.ConfigDict"),
        (reconstruct, "numpy.core.multiarray._reconstruct"),  # the name written by numpy 1
        (reconstruct, "numpy._core.multiarray._reconstruct"),  # and by numpy 2
        (_codecs.encode, "_codecs.encode"),
        np.ndarray,
        np.dtype,
        *dtypes,
    ]


def _load_tensors(source: Any, *, mapped: bool) -> dict[str, Any]:
    with _SAFE_LOCK, torch.serialization.safe_globals(_harmless_globals()):
        data = torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    inner = data.get("state_dict", data) if isinstance(data, Mapping) else None
    if not isinstance(inner, Mapping):
        raise ValueError(f"holds a {type(data).__name__}, not named tensors")
    return dict(inner)


def _read_pth(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        mapped = file.read(len(_ZIP)) == _ZIP  # the old container can't be mapped
    return _load_tensors(str(path), mapped=mapped)


def _refusal(path: Path, message: str) -> str:
    if match := re.search(r"GLOBAL (\S+)", message):
        return (
            f"{path}: refused, its pickle asks for {match[1]}, which weights don't need; expected tensors only; "
            "get the file from its publisher, as .safetensors if there is one"
        )
    return f"{path}: not a pickle of tensors ({_one_line(message)}); get the file from its publisher again"


def _one_line(err: object) -> str:
    text = " ".join(str(err).split())
    return text if len(text) <= 200 else f"{text[:200]}..."


# --- TorchScript ---------------------------------------------------------------------------------------------------


class _ScriptObject:
    """A TorchScript module read as plain attributes."""

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {})


def _first(value: Any, *_: Any) -> Any:
    return value


class _ScriptUnpickler(pickle.Unpickler):
    """Unpickles a TorchScript module tree; every name outside tensors and containers is refused."""

    def __init__(self, file: Any, storage: Callable[[str, str, int], Tensor]) -> None:
        super().__init__(file)
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__."):
            return _ScriptObject
        if module == "torch" and name in _STORAGE_DTYPES:
            return name
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return _view
        if module == "collections" and name == "OrderedDict":
            return collections.OrderedDict
        if module == "torch.jit._pickle":  # typed lists and type tags: the value comes first
            return _first
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not a tensor")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype_name, key, _, count = pid
        return self._storage(dtype_name, key, count)


def _view(flat: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return flat.as_strided(size, stride, flat.storage_offset() + offset)


def _read_torchscript(path: Path) -> dict[str, Tensor]:
    with zipfile.ZipFile(path) as archive:
        mapped = _MappedZip(path, archive)
        root = next(n for n in archive.namelist() if n.rpartition("/")[2] == "data.pkl").removesuffix("data.pkl")

        def storage(dtype_name: str, key: str, count: int) -> Tensor:
            return mapped.flat(f"{root}data/{key}", _STORAGE_DTYPES[dtype_name], count)

        with archive.open(f"{root}data.pkl") as file:
            module = _ScriptUnpickler(file, storage).load()
    return dict(_walk(module, ""))


def _walk(module: Any, prefix: str) -> list[tuple[str, Tensor]]:
    found: list[tuple[str, Tensor]] = []
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            found.append((prefix + name, value))
        elif isinstance(value, _ScriptObject):
            found += _walk(value, f"{prefix}{name}.")
    return found


class _MappedZip:
    """The stored members of a zip archive, mapped into memory copy-on-write and never read as a whole."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def flat(self, member: str, dtype: torch.dtype, count: int) -> Tensor:
        """Return the first `count` elements of a member as a flat tensor over the mapping."""
        info = self._archive.getinfo(member)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size < count * dtype.itemsize:
            raise ValueError(f"member {member} is compressed or short")
        if count == 0:
            return torch.empty(0, dtype=dtype)
        name_len, extra_len = struct.unpack("<HH", self._map[info.header_offset + 26 : info.header_offset + 30])
        start = info.header_offset + 30 + name_len + extra_len  # the local header's own lengths differ from the index
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=start)


# --- torch.export --------------------------------------------------------------------------------------------------


def _read_export(path: Path) -> dict[str, Any]:
    """Read the weights of a torch.export archive, of torch 2.3 (the released ones) or of the present layout."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if old := [n for n in names if n.rpartition("/")[2] == "serialized_state_dict.pt"]:
            with archive.open(old[0]) as file:
                return _load_tensors(file, mapped=False)
        if new := [n for n in names if re.search(r"(^|/)data/weights/[^/]*weights_config\.json$", n)]:
            return _read_exported(_MappedZip(path, archive), new[0].rpartition("/")[0], archive.read(new[0]))
    raise CheckpointError(
        f"{path}: a torch.export archive whose weights aren't stored in a known way; "
        "get the .pth or the _torchscript.pt2 file of the same model instead"
    )


def _read_exported(mapped: _MappedZip, folder: str, config: bytes) -> dict[str, Tensor]:
    tensors = {}
    for name, entry in json.loads(config)["config"].items():
        meta = entry["tensor_meta"]
        if entry["use_pickle"] or meta["dtype"] not in _EXPORT_DTYPES:
            continue  # nothing that a model of ours has; if it were, it will be named as missing
        size, stride = (tuple(int(n["as_int"]) for n in meta[key]) for key in ("sizes", "strides"))
        start = int(meta["storage_offset"]["as_int"])
        count = start + 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        flat = mapped.flat(f"{folder}/{entry['path_name']}", _EXPORT_DTYPES[meta["dtype"]], count)
        tensors[name] = _view(flat, start, size, stride)
    return tensors
