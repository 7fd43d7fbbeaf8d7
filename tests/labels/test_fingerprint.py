"""A task's record is pinned once; whoever would make other labels is refused and told which field differs."""

from __future__ import annotations

import base64
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from safetensors.torch import save_file

import annotator
from annotator.envelope import ENVELOPE
from annotator.errors import FingerprintMismatchError, OutputError
from annotator.fingerprint import TaskRecord, make_record, pin_record, read_task_records, schema_problem
from annotator.job import Job, Sources
from annotator.models import load_network, random_checkpoint
from annotator.models.config import CONFIG_KEY
from annotator.preflight import preflight
from annotator.storage import Storage
from annotator.tasks import load_task
from tests.labels.make_output import make_records

STORAGE = Storage()


def record(config: dict[str, Any] | None = None, kept: tuple[pa.Field, ...] = (), **options: Any) -> TaskRecord:
    task = load_task("depth")
    return make_record(
        task,
        task.options(checkpoint="depth.safetensors", **options),
        config={"embed_dim": 32, "input_hw": (64, 48), "channels": 1, **(config or {})},
        weights={"sha256": "5eed" * 16, "random": True},
        dtype="float32",
        decode="exact",
        kept=kept,
        needs={},
    )


def test_a_record_comes_back_from_storage_as_it_was(tmp_path: Path) -> None:
    made = record(kept=(pa.field("license", pa.string()),))
    assert pin_record(STORAGE, str(tmp_path), made) == made
    assert read_task_records(STORAGE, str(tmp_path)) == {"depth": made}
    assert made.schema.names[: len(ENVELOPE) + 1] == [*(f.name for f in ENVELOPE), "license"]
    assert made.file_schema.equals(made.schema)
    assert json.loads(made.file_schema.metadata[b"annotator"]) == made.header


def test_an_output_without_records_has_none(tmp_path: Path) -> None:
    assert read_task_records(STORAGE, str(tmp_path)) == {}


def test_the_same_settings_give_the_same_digest() -> None:
    assert record().fingerprint_digest == record().fingerprint_digest
    assert re.fullmatch("[0-9a-f]{64}", record().fingerprint_digest)


def test_what_does_not_change_labels_is_no_part_of_it() -> None:
    """Where the checkpoint lies, and how its architecture was found out, change no label."""
    other = make_records(("depth",))["depth"]
    task = load_task("depth")
    again = make_record(
        task,
        task.options(checkpoint="elsewhere.pth", num_heads=4),
        config={"task": "depth", "embed_dim": 32, "input_hw": [64, 48], "channels": 1},
        weights={"sha256": "5eed" * 16, "random": False},
        dtype="float32",
        decode="exact",
        kept=(),
        needs={},
    )
    assert again == other


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (record(config={"embed_dim": 64}), "model.embed_dim = 32, this job has 64"),
        (record(config={"input_hw": (128, 96)}), r"model.input_hw = [64, 48], this job has [128, 96]"),
        (record(config={"registers": 4}), "model.registers = nothing, this job has 4"),
        (record(label_size="head"), "options.label_size = image, this job has head"),
        (record(kept=(pa.field("license", pa.string()),)), 'keep_columns = [], this job has ["license"]'),
        (replace(record(), fingerprint={**record().fingerprint, "dtype": "bfloat16"}), "dtype = float32"),
        (make_records(("depth",), sha256="0bad" * 16)["depth"], "weights.sha256 = 5eed"),
    ],
)
def test_the_first_field_that_differs_is_named_with_both_values(tmp_path: Path, other: TaskRecord, told: str) -> None:
    pin_record(STORAGE, str(tmp_path), record())
    with pytest.raises(FingerprintMismatchError, match=re.escape(told)) as caught:
        pin_record(STORAGE, str(tmp_path), other)
    assert "use another output folder, or the settings of the first run" in str(caught.value)
    assert caught.value.exit_code == 3
    assert read_task_records(STORAGE, str(tmp_path)) == {"depth": record()}


def test_a_kept_column_of_another_type_is_named(tmp_path: Path) -> None:
    pin_record(STORAGE, str(tmp_path), record(kept=(pa.field("year", pa.int32()),)))
    with pytest.raises(FingerprintMismatchError, match="the type of column year = int32, this job has string"):
        pin_record(STORAGE, str(tmp_path), record(kept=(pa.field("year", pa.string()),)))


def test_another_wording_of_the_meaning_is_no_other_label(tmp_path: Path) -> None:
    """The record in storage stays as it is, and later label files carry that one."""
    first = pin_record(STORAGE, str(tmp_path), record())
    reworded = replace(record(), meaning={"what": "said otherwise in a later version"})
    assert pin_record(STORAGE, str(tmp_path), reworded) == first


def test_a_task_that_needs_another_is_bound_to_its_fingerprint(tmp_path: Path) -> None:
    one = make_records(("seg", "depth"), sha256="5eed" * 16)
    task = load_task("depth")
    options = task.options.model_validate({"checkpoint": "depth.safetensors", "background": "zero"})
    assert task.needs(options) == ("seg",)

    def with_seg(seg: TaskRecord) -> TaskRecord:
        weights = {"sha256": "5eed" * 16, "random": False}
        config = {"channels": 1}
        needs = {"seg": seg.fingerprint_digest}
        return make_record(
            task, options, config=config, weights=weights, dtype="float32", decode="exact", kept=(), needs=needs
        )

    other_seg = make_records(("seg",), sha256="0bad" * 16)["seg"]
    pin_record(STORAGE, str(tmp_path), with_seg(one["seg"]))
    with pytest.raises(FingerprintMismatchError, match=r"needs\.seg = "):
        pin_record(STORAGE, str(tmp_path), with_seg(other_seg))


def test_of_many_drivers_at_once_all_get_the_same_record(tmp_path: Path) -> None:
    candidates = [replace(record(), meaning={"what": str(i)}) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        pinned = list(pool.map(lambda r: pin_record(STORAGE, str(tmp_path), r), candidates))
    assert {p.meaning["what"] for p in pinned} == {read_task_records(STORAGE, str(tmp_path))["depth"].meaning["what"]}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"task": "depth"}', '{"schema": "AAAA"}'])
def test_a_damaged_record_is_refused(tmp_path: Path, text: str) -> None:
    pin_record(STORAGE, str(tmp_path), record())
    path = tmp_path / "_annotator" / "tasks" / "depth.json"
    path.write_text(text)
    with pytest.raises(OutputError, match="not a task record"):
        read_task_records(STORAGE, str(tmp_path))


def test_a_record_whose_schema_is_damaged_is_refused(tmp_path: Path) -> None:
    pin_record(STORAGE, str(tmp_path), record())
    path = tmp_path / "_annotator" / "tasks" / "depth.json"
    data = json.loads(path.read_text())
    schema = bytearray(base64.b64decode(data["schema"]))
    schema[8] ^= 0xFF  # where the flatbuffer's root lies, behind a marker and a length
    path.write_text(json.dumps({**data, "schema": base64.b64encode(schema).decode()}))
    with pytest.raises(OutputError, match="not a task record \\(OSError\\)"):
        read_task_records(STORAGE, str(tmp_path))


def test_an_edited_fingerprint_is_refused(tmp_path: Path) -> None:
    pin_record(STORAGE, str(tmp_path), record())
    path = tmp_path / "_annotator" / "tasks" / "depth.json"
    path.write_text(path.read_text().replace("float32", "bfloat16"))
    with pytest.raises(OutputError, match="was edited"):
        read_task_records(STORAGE, str(tmp_path))


def test_a_schema_problem_names_found_and_expected() -> None:
    schema = pa.schema([("a", pa.int32()), ("b", pa.string())])
    assert schema_problem(schema, schema) is None
    assert schema_problem(schema.remove(1), schema) == "column 2 is nothing, expected b"
    assert schema_problem(schema.set(0, pa.field("a", pa.int64())), schema) == (
        "the type of column a is int64, expected int32"
    )


def test_labels_carry_the_licence_of_their_own_weights(tmp_path: Path, photos: list[Path]) -> None:
    """Weights that state one, those that annotator brings and random ones; else it is that of what Meta released."""
    annotator.build_manifest(str(photos[0].parent), str(tmp_path / "manifest"))
    stated = annotator.copy_weights(tmp_path / "weights").checkpoints
    random = tmp_path / "random.safetensors"
    random_checkpoint(random, task="depth", embed_dim=32, num_layers=2, num_heads=4, input_hw=(64, 48), seed=0)
    silent = load_network(stated["pose"], task="pose")
    save_file(silent.state_dict(), tmp_path / "silent.safetensors", {CONFIG_KEY: json.dumps(silent.config.to_dict())})
    checkpoints = {**stated, "depth": str(random), "pose": str(tmp_path / "silent.safetensors")}
    tasks: dict[str, dict[str, Any]] = {task: {"checkpoint": path} for task, path in checkpoints.items()}
    tasks["pose"]["boxes"] = "person"
    roots = (str(photos[0].parent),)
    job = Job(
        manifest=str(tmp_path / "manifest"), output=str(tmp_path / "out"), tasks=tasks, sources=Sources(roots=roots)
    )
    first = preflight(job).records
    licences = {task: record.meaning["licence"] for task, record in first.items()}
    assert licences.pop("depth") == "none (random weights)"
    assert "CC BY-NC 4.0" in licences.pop("pose")
    assert set(licences.values()) == {"Apache-2.0"}
    assert preflight(job).records == first
