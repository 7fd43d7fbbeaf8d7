"""The documentation says what the code does: links lead somewhere, and what can be looked up is listed."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import typer

from annotator import errors
from annotator.tasks import load_task, task_names

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
REFERENCE = ROOT / "docs" / "reference"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_of_a_page_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_every_page_of_the_documentation_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    names = [str(page.relative_to(ROOT)) for page in PAGES[1:]]
    assert [name for name in names if f"]({name})" not in readme] == []


def test_every_command_is_in_the_reference() -> None:
    from annotator.cli import app

    text = (REFERENCE / "cli.md").read_text(encoding="utf-8")
    assert [command for command in _commands(app) if f"`{command}" not in text] == []


def _commands(app: typer.Typer) -> list[str]:
    own = [c.name or getattr(c.callback, "__name__", "") for c in app.registered_commands]
    groups = [(g.name, g.typer_instance) for g in app.registered_groups]
    return own + [f"{name} {command}" for name, group in groups if group for command in _commands(group)]


def test_every_error_and_exit_code_is_in_the_reference() -> None:
    text = (REFERENCE / "errors.md").read_text(encoding="utf-8")
    ours = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, errors.AnnotatorError)]
    shown = [c for c in ours if c not in (errors.AnnotatorError, errors.ImageError, errors.InvalidInputError)]
    assert [c.__name__ for c in shown if f"| `{c.__name__}` | {c.exit_code} |" not in text] == []


def test_every_error_class_of_a_row_is_in_the_reference() -> None:
    """Read from the code: ImageError(status, error_class, ...), with or without a variable for the status."""
    text = (REFERENCE / "errors.md").read_text(encoding="utf-8")
    code = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "annotator").rglob("*.py"))
    classes = set(re.findall(r"ImageError\(\s*[\w.\"]+,\s*\"(\w+)\"", code))
    assert classes, "no error class was found; is the pattern out of date?"
    assert sorted(c for c in classes if f"`{c}`" not in text) == []


@pytest.mark.parametrize("name", task_names())
def test_every_option_and_column_of_a_task_is_in_the_reference(name: str) -> None:
    task = load_task(name)
    jobs = (REFERENCE / "job.md").read_text(encoding="utf-8")
    labels = (REFERENCE / "labels.md").read_text(encoding="utf-8")
    options = task.options(checkpoint="weights.pth")
    channels = next(c for c in range(1, 500) if task.channels(c) is None)
    assert [key for key in task.options.model_fields if f"`{key}`" not in jobs] == []
    assert [f.name for f in task.fields(options, channels) if f"`{f.name}`" not in labels] == []
