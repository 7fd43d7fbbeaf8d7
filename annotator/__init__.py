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
    from annotator.checkup import doctor
    from annotator.job import Job, load_job
    from annotator.labels.bad_rows import bad_rows, export_bad_rows
    from annotator.labels.compact import compact
    from annotator.labels.export import export
    from annotator.labels.find import find_label
    from annotator.labels.join import join
    from annotator.labels.last_job import last_job
    from annotator.labels.maps import load_map, load_maps
    from annotator.labels.preview import preview
    from annotator.labels.query import connect, query, save_query
    from annotator.labels.status import status
    from annotator.labels.tables import open_labels
    from annotator.labels.verify import verify
    from annotator.manifest_build import append_manifest, build_manifest, update_manifest
    from annotator.manifest_check import check_manifest
    from annotator.manifest_sample import sample
    from annotator.mannequin.corpus import make_images
    from annotator.mannequin.evaluate import label_accuracy
    from annotator.mannequin.weights import copy_weights
    from annotator.pipeline import plan, run
    from annotator.preflight import check
    from annotator.retrying import retry
    from annotator.schemas import schema
    from annotator.submit import submit_job

__version__ = "0.1.0"

_HOME = {
    "Job": "annotator.job",
    "append_manifest": "annotator.manifest_build",
    "bad_rows": "annotator.labels.bad_rows",
    "build_manifest": "annotator.manifest_build",
    "check": "annotator.preflight",
    "check_manifest": "annotator.manifest_check",
    "compact": "annotator.labels.compact",
    "connect": "annotator.labels.query",
    "doctor": "annotator.checkup",
    "export": "annotator.labels.export",
    "export_bad_rows": "annotator.labels.bad_rows",
    "copy_weights": "annotator.mannequin.weights",
    "find_label": "annotator.labels.find",
    "join": "annotator.labels.join",
    "last_job": "annotator.labels.last_job",
    "label_accuracy": "annotator.mannequin.evaluate",
    "load_job": "annotator.job",
    "load_map": "annotator.labels.maps",
    "load_maps": "annotator.labels.maps",
    "make_images": "annotator.mannequin.corpus",
    "open_labels": "annotator.labels.tables",
    "plan": "annotator.pipeline",
    "preview": "annotator.labels.preview",
    "query": "annotator.labels.query",
    "retry": "annotator.retrying",
    "run": "annotator.pipeline",
    "sample": "annotator.manifest_sample",
    "save_query": "annotator.labels.query",
    "schema": "annotator.schemas",
    "status": "annotator.labels.status",
    "submit_job": "annotator.submit",
    "update_manifest": "annotator.manifest_build",
    "verify": "annotator.labels.verify",
}

__all__ = [
    "Job",
    "append_manifest",
    "bad_rows",
    "build_manifest",
    "check",
    "check_manifest",
    "compact",
    "connect",
    "copy_weights",
    "doctor",
    "export",
    "export_bad_rows",
    "find_label",
    "join",
    "last_job",
    "label_accuracy",
    "load_job",
    "load_map",
    "load_maps",
    "make_images",
    "open_labels",
    "plan",
    "preview",
    "query",
    "retry",
    "run",
    "sample",
    "save_query",
    "schema",
    "status",
    "submit_job",
    "update_manifest",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
