"""A Hugging Face dataset folder: Parquet files, a configuration a task, and a dataset card.

`datasets.load_dataset(folder, "seg")` reads it, and `huggingface-cli upload` publishes the folder as it is. Its files
have the columns, types and metadata of label files, rows of every status.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from annotator.envelope import ENVELOPE, IMAGE, label_schema
from annotator.fingerprint import TaskRecord
from annotator.labels.export.core import Done, Export, Format, Part, flatten, write_whole
from annotator.labels.export.maps import described, map_column, stored_png
from annotator.stages.encode import LabelWriter
from annotator.tars import with_maps_type

_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "n>1B")

_LIMITS = {
    "seg": "Classes are parts of people's bodies and clothes, not people: two people who touch are one region. "
    "`confidence` ranks images of one model; it is not calibrated.",
    "depth": "Depth is relative and per image: larger is farther, the unit is not metres, and two images can't be "
    "compared by value. It means something on people only; the background is unconstrained.",
    "normal": "Normals mean something on people only; the background is unconstrained. Their axes are X right, Y up, "
    "Z towards the camera, inferred and not stated by the authors of the model.",
    "pose": "Keypoints are where the model's heatmap peaks, seen or not: a score is the peak, not COCO's visibility. "
    "One that is missing is NaN with score 0.",
    "person": "Boxes are a detector's answers above a threshold: people are missed, and some boxes hold nobody.",
}
"""What labels of a task do not mean, in short; docs/explanation/what-labels-mean.md has more."""


def _choose(records: Mapping[str, TaskRecord]) -> list[str]:
    return list(records)


def _write(job: Export, part: Part, tables: Iterator[pa.Table], folder: Path) -> list[str]:
    names = {task: f"data/{task}/{part.name}.parquet" for task in job.records}
    with ExitStack() as stack:
        writers = {}
        for task, record in job.records.items():
            (folder / names[task]).parent.mkdir(parents=True)
            writers[task] = stack.enter_context(LabelWriter(folder / names[task], _schema(record)))
        for table in tables:
            for task, writer in writers.items():
                record = job.records[task]
                rows = flatten(table, task).select(record.schema.names)
                writer.copy(_whole(job, rows, task, map_column(record)).cast(_schema(record)))
    return [names[task] for task, writer in writers.items() if writer.rows]


def _schema(record: TaskRecord) -> pa.Schema:
    """Return the schema of label files with maps as pictures, wherever the output keeps them."""
    fields = [f.with_type(with_maps_type(f.type)) for f in list(record.schema)[len(ENVELOPE) :]]
    return label_schema(fields, record=record.header)


def _whole(job: Export, table: pa.Table, task: str, column: str | None) -> pa.Table:
    """Return the rows with maps as bytes, whatever the store holds: a folder that is copied must not miss any."""
    if column is None:
        return table
    struct = table[column].combine_chunks()
    if not struct.field("path").is_valid().to_numpy(zero_copy_only=False).any():
        return table
    values = [
        None if row[column] is None else {"bytes": stored_png(job, {task: row}, task, column), "path": None}
        for row in table.select([column]).to_pylist()
    ]
    return table.set_column(table.schema.get_field_index(column), column, pa.array(values, IMAGE))


# -- card ----------------------------------------------------------------------------------------


def _finish(job: Export, parts: Mapping[str, Done]) -> None:
    write_whole(job.out / "README.md", _card(job, parts).encode())


def _card(job: Export, parts: Mapping[str, Done]) -> str:
    images = sum(done.images for done in parts.values())
    configs = [{"config_name": task, "data_files": f"data/{task}/*.parquet"} for task in job.records if images]
    head = {
        "license": "other",
        "license_name": "see-below",
        "pretty_name": "Labels of people made with annotator",
        "tags": ["annotator", "sapiens", *job.records],
        "size_categories": [size_category(images)],
        "configs": configs,
    }
    where = f", those that pass `{job.where}`" if job.where else ""
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False).strip(),
        "---",
        "",
        "# Labels of people",
        "",
        f"Labels of {images} images{where}, made by models, not by people. Pictures themselves are not in here: `uri` "
        "says where each was read. `shard` and `row` join the tasks.",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        f'rows = load_dataset("this folder or its name on the Hub", "{next(iter(job.records))}")',
        "```",
        "",
        "Labels were made by machine: they are not ground truth. The licence of the weights, below, holds for what is "
        "made with them; rights in the pictures are their owners'.",
    ]
    for task, meaning in described(job).items():
        lines += ["", f"## {task}", "", *_section(job.records[task], meaning, parts)]
    return "\n".join(lines) + "\n"


def size_category(images: int) -> str:
    """Return the Hub's word for so many rows."""
    return _SIZES[max(0, min(len(str(images)) - 3, len(_SIZES) - 1))]


def _section(record: TaskRecord, meaning: Mapping[str, Any], parts: Mapping[str, Done]) -> Iterator[str]:
    task = record.task
    statuses: Counter[str] = Counter()
    for done in parts.values():
        statuses.update(done.counts[task])
    model = ", ".join(f"{key} {value}" for key, value in meaning["model"].items())
    if record.is_random:
        yield "**These weights are RANDOM, never trained: the labels mean nothing.**\n"
    yield f"{str(meaning['what']).capitalize()}."
    yield ""
    yield f"* Model: {model}; weights with SHA-256 `{meaning['weights']['sha256']}`, run in "
    yield f"  {record.fingerprint['dtype']} by annotator, task version {record.fingerprint['task_version']}."
    yield f"* Licence: {meaning.get('licence', 'unknown')}."
    counts = ", ".join(f"{status} {count}" for status, count in sorted(statuses.items())) or "none"
    yield f"* Rows by status: {counts}."
    yield f"* Limits: {_LIMITS.get(task, 'ask whoever made the model.')}"
    if "classes" in meaning:
        yield "* Taxonomy, by id: " + ", ".join(f"{c['id']} {c['name']}" for c in meaning["classes"]) + "."
    if "keypoints" in meaning:
        yield f"* Taxonomy, {meaning['keypoint_set']}, in order: " + ", ".join(meaning["keypoints"]) + "."
    yield ""
    yield "| column | type | meaning |"
    yield "|---|---|---|"
    for column in _schema(record):
        metadata = {k.decode(): v.decode() for k, v in (column.metadata or {}).items()}
        unit = f" ({metadata['unit']})" if "unit" in metadata else ""
        text = metadata.get("description", "kept from the manifest").replace("|", "\\|")
        yield f"| `{column.name}` | {str(column.type).replace('|', '/')[:60]} | {text}{unit} |"


FORMAT = Format(name="huggingface", choose=_choose, write=_write, finish=_finish)
