"""A line a shard, for logs of long runs: who did what where. Off unless somebody asks.

    logging.getLogger("annotator.shards").setLevel(logging.INFO)     Python's own logging
    annotator run job.yaml --log json                                JSON lines on standard error

A line holds names, counts and seconds; of images nothing, and of errors what labels hold of them: redacted text.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone
from enum import Enum
from typing import Any

from annotator.summary import Summary


class LogForm(str, Enum):
    """How a line is written."""

    TEXT = "text"
    JSON = "json"


SHARDS = logging.getLogger("annotator.shards")


def log_shard(run_id: str, summary: Summary) -> None:
    """Log what became of a shard: at INFO, or at WARNING if it was put off."""
    level = logging.INFO if summary.done else logging.WARNING
    if not SHARDS.isEnabledFor(level):
        return
    statuses: dict[str, int] = {}
    for by_status in summary.statuses.values():
        for status, rows in by_status.items():
            statuses[status] = statuses.get(status, 0) + rows
    fields: dict[str, Any] = {
        "run": run_id,
        "shard": summary.shard.key,
        "node": summary.node,
        "outcome": "done" if summary.created else "existed" if summary.done else "deferred",
        "images": summary.rows,
        **statuses,
        "seconds": round(summary.seconds, 3),
    }
    if summary.deferred is not None:
        fields["why"] = summary.deferred
    SHARDS.log(level, "%s", " ".join(f"{k}={_word(v)}" for k, v in fields.items()), extra={"fields": fields})


def log_to_stderr(form: LogForm) -> None:
    """Print a line a shard on standard error, in words or as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _Json() if form is LogForm.JSON else logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    )
    SHARDS.handlers = [handler]
    SHARDS.propagate = False
    SHARDS.setLevel(logging.INFO)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = f"{datetime.fromtimestamp(record.created, timezone.utc):%Y-%m-%dT%H:%M:%S.%fZ}"
        return json.dumps({"time": time, "level": record.levelname, **getattr(record, "fields", {})})


def _word(value: object) -> str:
    text = str(value)
    return json.dumps(text) if " " in text else text
