"""Proof from storage alone that every manifest row is in exactly one label file, once, for each task.

A label file's place names its rows. So when every expected file exists, nothing else lies under `labels/`,
and each file holds exactly the rows of its place, no row is missing and none is there twice: duplicates
need no check across files, and memory stays bounded whatever the size of the output.

What can be wrong is listed in `findings.KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable

from annotator.envelope import dense_of
from annotator.errors import OutputError
from annotator.fingerprint import read_task_records
from annotator.labels.check_tars import TarListing, UnusedTars
from annotator.labels.children import check_files
from annotator.labels.findings import Ledger, VerifyReport
from annotator.labels.relabel import Draw, relabel
from annotator.labels.scan import label_files
from annotator.manifest import read_pins
from annotator.storage import Storage, normalize
from annotator.tasks import load_task


def verify(
    output: str,
    storage: Storage | None = None,
    *,
    deep: bool = False,
    sample: int = 0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Read every byte of every label, maps in tar files included, and return what is wrong.

    deep      decode every map, and hold every label to what its task promises: sizes, classes, lengths, boxes
    sample    label so many rows anew, drawn by chance from all that are labelled, and compare; `seed` draws others
    progress  is told after each file how many were read, and how many a complete output has

    Safe beside a run: shards that are not done yet are missing. Memory: a few files of at most scan.WHOLE_BYTES.
    Raises OutputError if the folder is not an output, StorageError if storage stays away; with `sample` also
    CheckpointError when the weights are gone or are others.
    """
    storage = storage or Storage()
    output = normalize(output)
    manifest = read_pins(output, storage)
    records = read_task_records(storage, output)
    if not records:
        raise OutputError(f"{output}: holds no labels yet; run the job first")
    for task in records if deep else ():
        load_task(task)  # a task of one's own that is not installed here is told before hours of reading
    ledger = Ledger(manifest, records)
    draw = Draw(sample, seed)
    files = label_files(storage, output, manifest, records, ledger.add)
    has_tars = any(dense_of(record.schema) == "tar" for record in records.values())
    tars = TarListing(storage, output) if has_tars else None
    for done, (file, result) in enumerate(check_files(storage, files, deep=deep), start=1):
        task = file.record.task
        ledger.see(task, file.shard, len(result.rows), result.statuses)
        for kind, message in result.problems:
            ledger.add(kind, file.info.uri, message, task=task)
        if tars is not None:
            tars.see(task, file.shard, None if result.problems else result.tars)
        if not result.problems:
            draw.add(task, file.shard, result.rows)
        if progress is not None:
            progress(done, ledger.shards_expected * len(records))
    ledger.add_missing(output)
    drawn = draw.rows()
    compared = relabel(storage, output, records, drawn, ledger.add) if drawn else ()
    return ledger.report(output, compared, tars.unused() if tars is not None else UnusedTars())
