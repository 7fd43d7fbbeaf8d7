"""The house stands: imports only go down, fences hold, files stay small, and importing costs nothing.

The floors are those of docs/design.md. A module that is on no floor fails here: give it one.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "annotator"

# In `annotator.`; a package holds all that is in it.
FLOORS = {
    6: "__init__ cli show schemas submit checkup machine wheel",
    5: "pipeline retrying rounds preflight probing cluster session pool metrics logs report pace watch bench mannequin",
    4: "worker summary stages labels",
    3: "tasks dense people fingerprint",
    2: "models manifest manifest_build manifest_check manifest_rows manifest_sample footer where forecast planning "
    "shards tars",
    1: "job storage fast_get faults local images geometry crop keypoints png estimate errors envelope",
}

FENCES = {
    "ray": ["annotator.pipeline", "annotator.cluster", "annotator.session", "annotator.submit", "annotator.checkup",
            "annotator.metrics", "annotator.bench"],
    "torch": ["annotator.models", "annotator.tasks", "annotator.stages.device", "annotator.stages.networks",
              "annotator.stages.trial", "annotator.stages.memory",
              "annotator.worker",
              "annotator.geometry", "annotator.bench", "annotator.mannequin"],
    "aiohttp": ["annotator.stages.http"],
    **{sdk: ["annotator.storage"] for sdk in ("fsspec", "s3fs", "aiobotocore", "boto3")},
    **{sdk: ["annotator.storage", "annotator.fast_get"] for sdk in ("botocore", "obstore")},
}  # fmt: skip

# Of the modules that may use torch, these must not do so when they are imported: planning and status load them.
LAZY_TORCH = ["annotator.tasks", "annotator.geometry", "annotator.models.config", "annotator.models.__init__"]

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50  # its docstring not counted
TOP_LEVEL = {
    "annotator", "jobs", "schemas", "tests", "infra", "notebooks", "docs", "pyproject.toml", "constraints.txt",
    "Makefile", "README.md", "LICENSE", "CHANGELOG.md", ".ci", ".gitignore", ".pre-commit-config.yaml",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Import:
    """One import statement. `runs` says when: at "import" of the module, at a "call", or for "types" only."""

    source: str
    target: str
    line: int
    runs: str

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.target}"


def modules() -> dict[str, Path]:
    """Return every module of the package by dotted name; a package's own file is `name.__init__`, but the top's."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found["annotator" if name == "annotator.__init__" else name] = path
    return found


def imports(source: str, path: Path) -> list[Import]:
    found: list[Import] = []

    def visit(node: ast.AST, runs: str) -> None:
        for target in _targets(node, path):
            found.append(Import(source=source, target=target, line=getattr(node, "lineno", 0), runs=runs))
        for child in ast.iter_child_nodes(node):
            visit(child, _when(node, child, runs))

    visit(ast.parse(path.read_text(encoding="utf-8")), "import")
    return found


def _when(node: ast.AST, child: ast.AST, runs: str) -> str:
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and child in node.body:
        return "types"
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return "types" if runs == "types" else "call"
    return runs


def _targets(node: ast.AST, path: Path) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (_file_of(alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            folder = path.parents[node.level - 1].relative_to(ROOT)
            base = ".".join([*folder.parts, *([base] if base else [])])
        for (
            alias
        ) in node.names:  # `from annotator import plan` names a module, `from annotator.planning import x` does not
            inner = f"{base}.{alias.name}"
            yield _file_of(inner if _file_of(inner) in modules() else base)


def _file_of(name: str) -> str:
    is_package = name != "annotator" and (ROOT / Path(*name.split(".")) / "__init__.py").exists()
    return f"{name}.__init__" if name.startswith("annotator") and is_package else name


def floor(module: str) -> int | None:
    """Return the floor that a module of ours stands on; None for others, and for one that is on no floor."""
    part = "__init__" if module == "annotator" else module.split(".")[1] if module.startswith("annotator.") else ""
    return next((number for number, names in FLOORS.items() if part in names.split()), None)


def _within(module: str, name: str) -> bool:
    return module == name or module.startswith(name + ".")


ALL = {name: imports(name, path) for name, path in modules().items()}
EVERY = [i for found in ALL.values() for i in found]


def test_every_module_is_on_a_floor() -> None:
    assert [name for name in ALL if floor(name) is None] == []


def test_every_folder_of_code_is_a_package() -> None:
    """Else the installed package would lack it."""
    assert [p.parent.name for p in PACKAGE.rglob("*.py") if not (p.parent / "__init__.py").exists()] == []


def test_imports_only_go_down() -> None:
    ups = [i for i in EVERY if (floor(i.target) or 0) > (floor(i.source) or 0)]
    assert [str(i) for i in ups] == []


def test_every_import_of_ours_names_a_module_that_exists() -> None:
    ours = [i for i in EVERY if i.target.split(".")[0] == "annotator"]
    assert [str(i) for i in ours if i.target not in ALL] == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name: {i.target for i in found if i.target in ALL and i.runs != "types"} for name, found in ALL.items()}
    assert _circle(graph) is None


def _circle(graph: dict[str, set[str]]) -> list[str] | None:
    done: set[str] = set()

    def search(node: str, trail: list[str]) -> list[str] | None:
        if node in trail:
            return [*trail[trail.index(node) :], node]
        if node in done:
            return None
        for target in sorted(graph[node]):
            if found := search(target, [*trail, node]):
                return found
        done.add(node)
        return None

    return next((found for name in graph if (found := search(name, []))), None)


def test_a_circle_would_be_found() -> None:
    assert _circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert _circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


@pytest.mark.parametrize("library", FENCES)
def test_a_library_is_used_only_behind_its_fence(library: str) -> None:
    """torch and ray may be named for type checkers anywhere."""
    users = [i for i in EVERY if i.target.split(".")[0] == library]
    over = [i for i in users if not any(_within(i.source, name) for name in FENCES[library])]
    assert [str(i) for i in over if not (i.runs == "types" and library in {"torch", "ray"})] == []


def test_what_planning_loads_does_not_load_torch() -> None:
    early = [i for i in EVERY if i.target.split(".")[0] == "torch" and i.runs == "import"]
    assert [str(i) for i in early if any(_within(i.source, name) for name in LAZY_TORCH)] == []


def _python(code: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_annotator_takes_a_blink_and_loads_neither_torch_nor_ray() -> None:
    """CPU seconds of the import alone, best of three: machines are shared."""
    code = (
        "import sys, time; start = time.process_time(); import annotator; print(time.process_time() - start);"
        "assert not {'torch', 'ray'} & set(sys.modules)"
    )
    assert min(float(_python(code)) for _ in range(3)) < 0.3


@pytest.mark.parametrize("module", ["cli", "planning", "manifest", "tasks", "models", "fingerprint", "stages.decode"])
def test_what_answers_quickly_loads_neither_torch_nor_ray(module: str) -> None:
    _python(f"import sys, annotator.{module}; assert not {{'torch', 'ray'}} & set(sys.modules)")


def test_every_exported_name_is_there_and_documented() -> None:
    import annotator

    assert [name for name in annotator.__all__ if not getattr(annotator, name).__doc__] == []


def test_no_exported_function_is_hidden_by_a_module_of_its_name() -> None:
    """Importing a module `annotator.plan` would set `annotator.plan` to it; users must still get the function."""
    loaded = "; ".join(f"import {name}" for name in ALL if name.count(".") == 1 and "__" not in name)
    code = f"{loaded}; import annotator; print([n for n in annotator.__all__ if not callable(getattr(annotator, n))])"
    assert _python(code).strip() == "[]"


def _tracked() -> list[Path]:
    """Return the files that a commit would hold; skips where there is no git."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_the_top_level_is_fixed() -> None:
    assert {p.relative_to(ROOT).parts[0] for p in _tracked()} - TOP_LEVEL == set()


def _text_files() -> Iterator[tuple[str, str]]:
    for path in _tracked():
        data = path.read_bytes()
        if b"\0" not in data[:8192] and path.suffix not in {".jpg", ".png"}:
            yield str(path.relative_to(ROOT)), data.decode("utf-8")


def test_text_is_ascii() -> None:
    assert [name for name, text in _text_files() if not text.isascii()] == []


def test_no_file_names_a_place_on_this_machine() -> None:
    places = [str(ROOT), str(Path.home()) + "/", "/".join(["", "work", "main"]), "/".join(["", "work", "shared"])]
    pattern = re.compile("|".join(rf"(?<![\w.]){re.escape(place)}" for place in places))
    assert [name for name, text in _text_files() if pattern.search(text)] == []


def test_files_stay_small() -> None:
    code = [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "infra").rglob("*.py")]
    lines = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in code}
    assert {name: n for name, n in lines.items() if n > MAX_FILE_LINES} == {}


def test_functions_stay_small() -> None:
    over = {}
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _length(node) > MAX_FUNCTION_LINES:
                over[f"{name}.{node.name}"] = _length(node)
    assert over == {}


def _length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = node.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = (first.end_lineno or 0) - first.lineno + 1 if is_docstring else 0
    return (node.end_lineno or 0) - node.lineno + 1 - docstring


def test_no_error_is_swallowed_unseen() -> None:
    """A bare `except:`, or a broad one that does nothing with what it caught."""
    found = []
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler) and _swallows(node):
                found.append(f"{name}:{node.lineno}")
    assert found == []


def _swallows(node: ast.ExceptHandler) -> bool:
    if node.type is None:
        return True
    broad = {"Exception", "BaseException"} & {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)}
    return bool(broad) and all(isinstance(part, ast.Pass | ast.Continue) for part in node.body)


def test_an_image_is_installed_as_the_makefile_installs() -> None:
    text = (ROOT / "infra" / "docker" / "Dockerfile").read_text(encoding="ascii")
    assert "make setup" in text
    assert re.findall(r"pip3? install|python3? -m (?:pip|venv)", text) == []
