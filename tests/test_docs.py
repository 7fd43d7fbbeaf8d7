"""The documentation says what the code does: links lead somewhere, and what can be looked up is listed.

That its commands work is in test_docs_run.py.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import typer
from typer.main import get_command

import annotator
from annotator import errors
from annotator.labels.findings import KINDS
from annotator.tasks import load_task, task_names

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
REFERENCE = ROOT / "docs" / "reference"
TRUST = ROOT / "docs" / "explanation" / "how-nothing-is-lost.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_of_a_page_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_every_page_of_the_documentation_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    names = [str(page.relative_to(ROOT)) for page in PAGES[1:]]
    assert [name for name in names if f"]({name})" not in readme] == []


def test_pictures_are_small() -> None:
    pictures = [p for p in (ROOT / "docs").rglob("*") if p.suffix in {".png", ".jpg"}]
    assert pictures
    assert {p.name: p.stat().st_size for p in pictures if p.stat().st_size > 300_000} == {}


# -- the command line and Python ------------------------------------------------------------------


def _commands(app: Any, name: str = "") -> dict[str, Any]:
    """Return every command of the command line by its full name."""
    if not hasattr(app, "commands"):
        return {name: app}
    return {k: v for part, inner in app.commands.items() for k, v in _commands(inner, f"{name} {part}".strip()).items()}


def _command_line() -> dict[str, Any]:
    from annotator.cli import app

    assert isinstance(app, typer.Typer)
    return _commands(get_command(app))


def _sections(text: str) -> dict[str, str]:
    """Return the text under each `## heading`."""
    parts = re.split(r"^#{2,3} (.+)$", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("name", sorted(_command_line()))
def test_every_command_and_option_is_in_the_reference(name: str) -> None:
    sections = _sections((REFERENCE / "cli.md").read_text(encoding="utf-8"))
    assert name in list(sections)
    options = [o for p in _command_line()[name].params for o in (*p.opts, *p.secondary_opts) if o.startswith("--")]
    assert [o for o in options if o != "--help" and f"`{o}" not in sections[name]] == []


def test_no_command_or_option_is_in_the_reference_that_is_not_there() -> None:
    commands = _command_line()
    for name, text in _sections((REFERENCE / "cli.md").read_text(encoding="utf-8")).items():
        if name in commands:
            known = {o for p in commands[name].params for o in (*p.opts, *p.secondary_opts)}
            assert [o for o in re.findall(r"^\| `(--[a-z-]+)", text, re.M) if o not in known] == [], name


def test_every_exported_name_is_in_the_reference() -> None:
    text = (REFERENCE / "python.md").read_text(encoding="utf-8")
    assert [name for name in annotator.__all__ if f"`annotator.{name}" not in text] == []


# -- errors ---------------------------------------------------------------------------------------


def test_every_error_and_exit_code_is_in_the_reference() -> None:
    text = (REFERENCE / "errors.md").read_text(encoding="utf-8")
    ours = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, errors.AnnotatorError)]
    shown = [c for c in ours if c not in (errors.AnnotatorError, errors.ImageError, errors.InvalidInputError)]
    assert [c.__name__ for c in shown if f"| `{c.__name__}` | {c.exit_code} |" not in text] == []


def _row_errors() -> set[tuple[str | None, str]]:
    """Return (status, error class) of every ImageError in the code; status None where a variable holds it.

    Read from the code: ImageError(status, error_class, ...), whatever lies between the two.
    """
    code = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "annotator").rglob("*.py"))
    found = re.findall(r"ImageError\(\s*([\w.\"]+),\s*\"(\w+)\"", code)
    words = {"Status.REJECTED.value": "rejected", "Status.FAILED.value": "failed", "unreadable": "unreadable"}
    return {(status[1:-1] if status.startswith('"') else words.get(status), name) for status, name in found}


def test_every_error_class_of_a_row_is_in_the_reference_with_its_status() -> None:
    text = (REFERENCE / "errors.md").read_text(encoding="utf-8")
    found = _row_errors()
    assert len(found) > 10, "few error classes were found; is the pattern out of date?"
    listed = set(re.findall(r"^\| (\w+) \| `(\w+)` \|", text, re.M))
    assert {name for _, name in found} == {name for _, name in listed}
    assert [(status, name) for status, name in found if status is not None and (status, name) not in listed] == []


def test_every_kind_of_problem_that_verify_finds_is_in_the_reference() -> None:
    text = (REFERENCE / "errors.md").read_text(encoding="utf-8")
    assert [kind for kind, meaning in KINDS.items() if f"| `{kind}` | {meaning} |" not in text] == []


def test_every_kind_of_problem_that_manifest_check_finds_is_in_the_reference() -> None:
    code = (ROOT / "annotator" / "manifest_check.py").read_text(encoding="utf-8")
    kinds = set(re.findall(r"kind=\"(\w+)\"", code))  # Finding(kind="kind")
    text = (REFERENCE / "errors.md").read_text(encoding="utf-8")
    assert len(kinds) > 4
    assert sorted(kind for kind in kinds if f"| `{kind}` |" not in text) == []


# -- labels and files -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", task_names())
def test_every_option_and_column_of_a_task_is_in_the_reference(name: str) -> None:
    task = load_task(name)
    sections = _sections((REFERENCE / "labels.md").read_text(encoding="utf-8"))
    jobs = (REFERENCE / "job.md").read_text(encoding="utf-8")
    required = {"checkpoint": "weights.pth", **({"boxes": "person"} if "boxes" in task.options.model_fields else {})}
    channels = next(c for c in range(1, 500) if task.channels(c) is None)
    names = [n for f in task.fields(task.options.model_validate(required), channels) for n in _columns(f)]
    assert [key for key in task.options.model_fields if f"`{key}`" not in jobs] == []
    assert [column for column in names if f"`{column}`" not in sections[name]] == []


def _columns(field: pa.Field) -> list[str]:
    """Return the name of a column, and those of the fields of a list of structs (`people.bbox_xyxy`)."""
    is_list_of_structs = pa.types.is_list(field.type) and pa.types.is_struct(field.type.value_type)
    inner = [f"{field.name}.{child.name}" for child in field.type.value_type] if is_list_of_structs else []
    return [field.name, *inner]


def test_every_column_and_status_of_a_label_row_is_in_the_reference() -> None:
    from annotator.envelope import ENVELOPE, Status

    text = (REFERENCE / "labels.md").read_text(encoding="utf-8")
    names = [field.name for field in ENVELOPE] + [status.value for status in Status]
    assert [name for name in names if f"`{name}`" not in text] == []


def test_every_class_of_segmentation_is_in_the_reference() -> None:
    from annotator.tasks.seg import GOLIATH

    text = (REFERENCE / "labels.md").read_text(encoding="utf-8")
    assert [f"{i} {name}" for i, (name, _) in enumerate(GOLIATH) if f"{i} {name}" not in text] == []


def test_every_field_of_a_run_record_is_in_the_reference() -> None:
    from annotator.report import Report

    text = (REFERENCE / "files.md").read_text(encoding="utf-8")
    assert [name for name in Report(run_id="").to_dict() if f"`{name}`" not in text] == []


# -- the design, and why nothing is lost ----------------------------------------------------------


def test_every_module_is_on_its_floor_in_the_design() -> None:
    from tests.test_house import FLOORS

    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    shown: dict[int, set[str]] = {}
    for number, names in re.findall(r"^\| (\d) \w+ \| `(.+?)` \|", text, re.M):
        shown.setdefault(int(number), set()).update(names.replace("/", "").split())
    assert shown == {number: set(names.split()) for number, names in FLOORS.items()}


def test_tests_that_the_documentation_names_exist() -> None:
    """`tests/records/test_storage.py::test_create_writes_once_and_says_so`, or the file alone."""
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", TRUST.read_text(encoding="utf-8"))
    assert len(named) > 20
    for path, test in named:
        code = ROOT / path
        assert code.exists(), path
        assert not test or f"def {test}(" in code.read_text(encoding="utf-8"), f"{path}::{test}"
