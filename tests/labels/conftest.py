"""One clean output for all tests that only read it."""

from __future__ import annotations

import pytest

from tests.labels.make_output import Output, make_output


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Output:
    """A complete output: 47 images in two manifest files, 4 shards, three tasks, every status somewhere."""
    statuses = {3: "unreadable", 5: "rejected", 6: "no_person", 33: "failed"}
    return make_output(str(tmp_path_factory.mktemp("clean")), status=lambda _task, row: statuses.get(row, "ok"))
