"""The job that an output was labelled with last, as its run recorded it."""

from __future__ import annotations

import json

from annotator.errors import JobError, OutputError
from annotator.job import Job, parse
from annotator.storage import Storage, join, normalize


def last_job(output: str, storage: Storage | None = None) -> Job:
    """Return the job of an output's newest run, every default filled in as that run had it.

    Raises OutputError where no run left a record, or one that this version can't read: then name a job file.
    """
    storage = storage or Storage()
    output = normalize(output)
    folder = join(output, "_annotator", "runs")
    uris = [info.uri for info in storage.list(folder) if info.uri.endswith(".json")]
    if not uris:
        raise OutputError(f"{output}: no run left its job in {folder}; name the job file that made these labels")
    newest = uris[-1]  # their names begin with the time
    try:
        data = json.loads(storage.read(newest))["job"]
        return parse(Job, data, newest).model_copy(update={"output": output})
    except (ValueError, KeyError, TypeError, JobError) as err:
        text = " ".join(str(err).split())[:200]
        raise OutputError(
            f"{newest}: holds no job to go by ({text}); name the job file that made these labels"
        ) from None
