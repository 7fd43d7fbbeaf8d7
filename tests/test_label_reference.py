"""The reference of labels has every column of every task, with unit and meaning, as the schemas have them."""

from __future__ import annotations

import pytest

from annotator.envelope import ENVELOPE
from annotator.schemas import example_schema
from annotator.tasks import task_names
from infra.label_reference import PAGE, SHARED, updated


def test_the_tables_of_columns_are_those_of_the_schemas() -> None:
    text = PAGE.read_text(encoding="ascii")
    assert updated(text) == text, "a column changed: python infra/label_reference.py"


@pytest.mark.parametrize("task", [SHARED, *task_names()])
def test_each_task_has_its_table(task: str) -> None:
    text = PAGE.read_text(encoding="ascii")
    assert text.count(f"<!-- columns: {task} -->") == 1
    assert updated(text.replace("| `status` |", "| `state` |")) == text


@pytest.mark.parametrize("task", task_names())
def test_every_column_says_what_it_means(task: str) -> None:
    """Those within people, too."""
    fields = list(example_schema(task))
    inner = [child for field in fields if field.name == "people" for child in field.type.value_type]
    assert [field.name for field in (*fields, *inner) if not (field.metadata or {}).get(b"description")] == []
    assert fields[: len(ENVELOPE)] == list(ENVELOPE)
