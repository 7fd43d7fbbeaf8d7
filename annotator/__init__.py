"""annotator: label image corpora with Sapiens models on Ray, every row accounted for exactly once.

    job = annotator.Job(manifest="manifest/", output="labels/", tasks={"seg": {"checkpoint": "seg.pth"}})
    annotator.run(job)
    annotator.verify("labels/").ok
    table = annotator.open_labels("labels/", "seg").to_table()

Importing this package loads neither torch nor Ray; names below are loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from annotator.job import Job, load_job
    from annotator.labels.preview import contact_sheet
    from annotator.labels.query import load_map, open_labels
    from annotator.labels.status import status
    from annotator.labels.verify import verify
    from annotator.manifest_build import append_manifest, build_manifest, update_manifest
    from annotator.manifest_check import check_manifest
    from annotator.manifest_sample import sample
    from annotator.pipeline import plan, run
    from annotator.preflight import check
    from annotator.schemas import schema

__version__ = "0.1.0"

_HOME = {
    "Job": "annotator.job",
    "append_manifest": "annotator.manifest_build",
    "build_manifest": "annotator.manifest_build",
    "check": "annotator.preflight",
    "check_manifest": "annotator.manifest_check",
    "contact_sheet": "annotator.labels.preview",
    "load_job": "annotator.job",
    "load_map": "annotator.labels.query",
    "open_labels": "annotator.labels.query",
    "plan": "annotator.pipeline",
    "run": "annotator.pipeline",
    "sample": "annotator.manifest_sample",
    "schema": "annotator.schemas",
    "status": "annotator.labels.status",
    "update_manifest": "annotator.manifest_build",
    "verify": "annotator.labels.verify",
}

__all__ = [
    "Job",
    "append_manifest",
    "build_manifest",
    "check",
    "check_manifest",
    "contact_sheet",
    "load_job",
    "load_map",
    "open_labels",
    "plan",
    "run",
    "sample",
    "schema",
    "status",
    "update_manifest",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
