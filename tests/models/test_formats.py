"""Every kind of checkpoint file gives the same tensors, and none gets to run code."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from annotator.errors import CheckpointError
from annotator.models.checkpoint import inspect_checkpoint, load_model
from annotator.models.formats import detect_format, read_weights
from annotator.models.model import Model
from tests.models.support import GOLDENS, noise, run, save_pth, tiny, tiny_state

pytestmark = pytest.mark.slow

TOLD: dict[str, Any] = {"num_heads": 2, "patch_padding": 0}


class Traced(torch.nn.Module):
    """A model with the buffers that released TorchScript files carry in front."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.data_preprocessor = torch.nn.Module()
        self.data_preprocessor.register_buffer("mean", torch.ones(3, 1, 1))
        self.data_preprocessor.register_buffer("std", torch.ones(3, 1, 1))
        self.backbone = model.backbone
        self.decode_head = model.get_submodule("decode_head")

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.decode_head(self.backbone(inputs))
        return out


def traced(model: Model, path: Path, dtype: torch.dtype = torch.float32) -> str:
    """Write a TorchScript file as the released ones were made: batch 1, one input size."""
    module = Traced(model).to(dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", "Converting a tensor to a Python boolean", Warning)
        script = torch.jit.trace(module, torch.zeros(1, 3, 64, 48, dtype=dtype))
        script.save(str(path))
    return str(path)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return load_model(tiny(tmp_path / "tiny.safetensors", "seg").uri)


def same(found: Model, expected: Model) -> bool:
    """Whether two models hold the same weights under the same names."""
    ours, theirs = found.state_dict(), expected.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.parametrize("wrap", ["flat", "state_dict", "module", "legacy"])
def test_pth_loads_plain_wrapped_prefixed_and_in_the_old_container(wrap: str, model: Model, tmp_path: Path) -> None:
    tensors: Any = dict(model.state_dict())
    path = tmp_path / "x.pth"
    if wrap == "module":
        tensors = {f"module.{n}": t for n, t in tensors.items()}
    if wrap in ("module", "state_dict"):
        tensors = {"meta": {"epoch": 3}, "message_hub": {}, "state_dict": tensors}
    torch.save(tensors, path, _use_new_zipfile_serialization=wrap != "legacy")
    assert detect_format(path) == "pth"
    assert same(load_model(str(path), **TOLD), model)


def test_backbone_without_prefix_loads(tmp_path: Path) -> None:
    tensors = {n.removeprefix("backbone."): t for n, t in tiny_state(tmp_path, None).items()}
    model = load_model(save_pth(tmp_path / "x_clean.pth", tensors), **TOLD)
    assert model.config.task is None
    assert run(model, noise(2, 3, 64, 48)).shape == (2, 16, 4, 3)


def test_uncleaned_pretraining_file_loads_its_backbone(tmp_path: Path) -> None:
    tensors = tiny_state(tmp_path, None, input_hw=(64, 64))
    tensors["backbone.pos_embed"] = torch.cat([torch.zeros(1, 1, 16), tensors["backbone.pos_embed"]], 1)
    tensors |= {"backbone.cls_token": torch.zeros(1, 1, 16), "neck.mask_token": torch.zeros(1, 1, 8)}
    model = load_model(save_pth(tmp_path / "epoch_1.pth", {"state_dict": tensors}), **TOLD)
    assert model.config.input_hw == (64, 64)


@pytest.mark.parametrize("old, new", [(b"numpy._core.multiarray", b"numpy.core.multiarray"), (b"", b"")])
def test_released_pose_pickles_load_under_the_names_of_either_numpy(old: bytes, new: bytes, tmp_path: Path) -> None:
    path = tmp_path / "pose.pth"
    with zipfile.ZipFile(GOLDENS / "pose17_configdict.pth") as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, data.replace(old, new) if name.endswith("data.pkl") else data)
    weights = read_weights(path)
    assert len(weights.tensors) == 37 and weights.tensors["head.final_layer.weight"].shape == (17, 24, 1, 1)


@pytest.mark.parametrize("suffix", [".pt2", ".bin"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torchscript_weights_are_taken_out_and_run_on_our_code(
    suffix: str, dtype: torch.dtype, model: Model, tmp_path: Path
) -> None:
    expected = {n: t.to(dtype).float() for n, t in model.state_dict().items()}
    images = noise(3, 3, 64, 48)
    before = run(model, images)
    uri = traced(model, tmp_path / f"x_torchscript{suffix}", dtype)
    loaded = load_model(uri, **TOLD)
    assert inspect_checkpoint(uri, **TOLD).format == "torchscript"
    assert inspect_checkpoint(uri, **TOLD).dtype == str(dtype).removeprefix("torch.")
    assert all(torch.equal(t, expected[n]) for n, t in loaded.state_dict().items())
    if dtype == torch.float32:
        assert torch.equal(run(loaded, images), before)


@pytest.mark.parametrize("layout", ["new", "torch 2.3"])
def test_export_archives_give_their_weights(layout: str, model: Model, tmp_path: Path) -> None:
    path = tmp_path / "x_bfloat16.pt2"
    expected = {n: t.clone() for n, t in model.state_dict().items()}
    if layout == "new":
        program = torch.export.export(Traced(model), (torch.zeros(1, 3, 64, 48),))
        torch.export.save(program, path)
    else:
        torch.save(dict(model.state_dict()), tmp_path / "state.pt")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("serialized_exported_program.json", "{}")
            archive.write(tmp_path / "state.pt", "serialized_state_dict.pt")
    assert detect_format(path) == "torch-export"
    loaded = load_model(str(path), **TOLD)
    assert all(torch.equal(t, expected[n]) for n, t in loaded.state_dict().items())


def test_export_archive_of_an_unknown_layout_names_the_file_to_get_instead(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt2", "w") as archive:
        archive.writestr("x/archive_format", "pt2")
    with pytest.raises(CheckpointError, match=r"get the \.pth or the _torchscript\.pt2 file"):
        read_weights(tmp_path / "x.pt2")


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.witness),)


@pytest.mark.parametrize("container", ["zip", "legacy", "bare pickle", "torchscript", "export"])
def test_pickle_that_wants_to_run_code_is_refused_and_does_not_run(container: str, tmp_path: Path) -> None:
    path, witness = tmp_path / "x.pth", tmp_path / "it-ran"
    data = {"state_dict": {"a": torch.zeros(1)}, "meta": Hostile(witness)}
    if container == "bare pickle":
        path.write_bytes(pickle.dumps(Hostile(witness), protocol=2))
    elif container == "torchscript":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", pickle.dumps(Hostile(witness), protocol=2))
            archive.writestr("x/constants.pkl", b"")
    elif container == "export":
        torch.save(data, tmp_path / "inner.pt")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("serialized_exported_program.json", "{}")
            archive.write(tmp_path / "inner.pt", "serialized_state_dict.pt")
    else:
        torch.save(data, path, _use_new_zipfile_serialization=container == "zip")
    with pytest.raises(CheckpointError) as caught:
        read_weights(path)
    assert not witness.exists()
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    if container != "bare pickle":  # torch refuses that before it looks at what it wants to call
        assert "mkdir" in str(caught.value) and "refused" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"<!doctype html>", "is no weights"),
        (b"PK\x03\x04 cut short", "cut short"),
        (struct.pack("<Q", 99) + b"{", "is no weights"),
        (struct.pack("<Q", 2) + b"{!", "damaged safetensors"),
        (b"\x80\x02garbage", "not a pickle of tensors"),
    ],
)
def test_other_files_are_named_for_what_they_are(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_weights(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("keep", [0.2, 0.6, 0.99])
def test_file_cut_short_is_damaged_whatever_its_format(keep: float, model: Model, tmp_path: Path) -> None:
    torch.save(dict(model.state_dict()), tmp_path / "a.pth")
    save_file({n: t.clone() for n, t in model.state_dict().items()}, tmp_path / "a.safetensors")
    for path in (tmp_path / "a.pth", tmp_path / "a.safetensors", Path(traced(model, tmp_path / "a.pt2"))):
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * keep)])
        with pytest.raises(CheckpointError, match=r"copy it again|download the file again"):
            read_weights(path)


def test_entries_that_are_no_tensors_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="entry 'epoch' is a int; expected tensors only"):
        read_weights(Path(save_pth(tmp_path / "x.pth", {"a": torch.zeros(1), "epoch": 3})))
    with pytest.raises(CheckpointError, match="holds no tensors"):
        read_weights(Path(save_pth(tmp_path / "y.pth", {"state_dict": {}})))
    with pytest.raises(CheckpointError, match="holds a list"):
        read_weights(Path(save_pth(tmp_path / "z.pth", [torch.zeros(1)])))


def test_loaded_weights_do_not_hang_on_the_file(tmp_path: Path) -> None:
    """A file overwritten later must not change a running model: weights are copied out of the mapping."""
    path = Path(save_pth(tmp_path / "x.pth", tiny_state(tmp_path)))
    model = load_model(str(path), **TOLD)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")  # torch, of a flipped version byte
@pytest.mark.parametrize("kind", ["pth", "legacy", "safetensors", "torchscript"])
def test_flipped_bytes_never_give_another_error(kind: str, model: Model, tmp_path: Path) -> None:
    """Where names and shapes are written, one byte changed: the file is read, or refused as a checkpoint."""
    path = tmp_path / "x"
    if kind == "torchscript":
        traced(model, path)
    elif kind == "safetensors":
        save_file({n: t.clone() for n, t in model.state_dict().items()}, path)
    else:
        torch.save(dict(model.state_dict()), path, _use_new_zipfile_serialization=kind == "pth")
    data = path.read_bytes()
    rng = random.Random(0)
    starts = [data.find(b"data.pkl"), len(data) - 2000] if kind in ("pth", "torchscript") else [0]
    for _ in range(100):
        damaged = bytearray(data)
        damaged[rng.choice(starts) + rng.randrange(2000)] = rng.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(CheckpointError):
            read_weights(path)
