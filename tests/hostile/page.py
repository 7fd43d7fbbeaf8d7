"""What docs/reference/input.md says becomes of each kind of odd file: the tests hold the code to this page."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "input.md"


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """A row of the page's tables; `said` is what `error` of the label row says word for word, or null."""

    status: str
    error_class: str | None
    said: str | None


def expectations() -> dict[str, Expected]:
    """Return the rows `| kind | the files | status | error_class | said |` by kind."""
    rows = re.findall(r"^\| `(\w+)` \|[^|]+\| (\w+) \| (?:`(\w+)`)? ?\|(?: (.*?))? ?\|$", PAGE.read_text("utf-8"), re.M)
    found = {kind: Expected(status=s, error_class=c or None, said=said or None) for kind, s, c, said in rows}
    assert len(found) == len(rows), "a kind is listed twice"
    return found
