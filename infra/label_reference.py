"""Write the tables of columns in docs/reference/labels.md from the schemas; the prose around them stays.

    python infra/label_reference.py      after a task's columns have changed

A table stands between `<!-- columns: seg -->` and `<!-- end -->`; `every task` are the columns that all share.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from annotator.envelope import ENVELOPE, IMAGE
from annotator.schemas import example_schema

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "labels.md"
SHARED = "every task"

_TABLE = re.compile(r"(<!-- columns: ([\w ]+) -->\n).*?(<!-- end -->)", re.S)


def updated(text: str) -> str:
    """Return the page with its tables written anew."""
    return _TABLE.sub(lambda match: match[1] + _table(match[2]) + match[3], text)


def _table(task: str) -> str:
    fields = list(ENVELOPE) if task == SHARED else list(example_schema(task))[len(ENVELOPE) :]
    lines = ["| column | type | unit | meaning |", "|---|---|---|---|"]
    return "\n".join([*lines, *(line for field in fields for line in _lines(field, ""))]) + "\n"


def _lines(field: pa.Field, prefix: str) -> Iterator[str]:
    meta = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
    meaning = [meta.get("description", ""), *(f"{key}: {meta[key]}" for key in ("encoding", "frame") if key in meta)]
    name = f"{prefix}{field.name}"
    text = "; ".join(filter(None, meaning)).replace("|", "or")
    yield f"| `{name}` | {_type(field.type)} | {meta.get('unit', '')} | {text} |"
    if pa.types.is_list(field.type) and pa.types.is_struct(field.type.value_type):
        for child in field.type.value_type:
            yield from _lines(child, f"{name}.")


def _type(dtype: pa.DataType) -> str:
    if dtype == IMAGE:
        return "struct of bytes, path"
    if pa.types.is_fixed_size_list(dtype):
        return f"{dtype.list_size} x {_type(dtype.value_type)}"
    if pa.types.is_list(dtype):
        return f"list of {_type(dtype.value_type)}"
    if pa.types.is_dictionary(dtype):
        return f"dictionary of {_type(dtype.value_type)}"
    if pa.types.is_struct(dtype):
        return "struct"
    return {"float": "float32"}.get(str(dtype), str(dtype))


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text(encoding="ascii")), encoding="ascii")
