"""Bad rows labelled again: what is mended equals what an undisturbed run gives, and all else stays bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import annotator
from annotator import worker
from annotator.errors import FingerprintMismatchError, ImageError, IncompleteRunError, JobError, OutputError
from annotator.models import random_checkpoint
from annotator.report import Report
from annotator.storage import Storage
from tests.running.make import file_bytes, is_whole, make_job, table
from tests.running.spoiled import EMPTY, MISSING, TASKS, Corpus, corpus, labelled, rows_of

__all__ = ["corpus", "labelled"]


def test_after_a_retry_the_files_are_those_of_a_run_that_met_no_trouble(corpus: Corpus) -> None:
    corpus.restore([*MISSING, *EMPTY])
    report = corpus.retry("not_found", "empty")
    assert (report.state, report.images, report.shards, report.errors) == ("done", 5, 2, {})
    assert report.statuses == {task: {"ok": 5} for task in TASKS}
    assert corpus.differing(corpus.undisturbed) == []
    assert is_whole(corpus.job)


def test_only_rows_of_the_classes_asked_for_change(corpus: Corpus) -> None:
    """Every other row equals what it was, the PNG of its map byte for byte."""
    before = {task: rows_of(corpus.job, task, MISSING, others=True) for task in TASKS}
    corpus.restore([*MISSING, *EMPTY])
    corpus.retry("not_found")
    for task in TASKS:
        assert rows_of(corpus.job, task, MISSING, others=True) == before[task]
        assert {row["status"] for row in rows_of(corpus.job, task, MISSING)} == {"ok"}
        assert {row["error_class"] for row in rows_of(corpus.job, task, EMPTY)} == {"empty"}
    assert is_whole(corpus.job)


def test_only_labels_of_the_tasks_asked_for_change(corpus: Corpus) -> None:
    before = file_bytes(corpus.job.output, ("seg",))
    corpus.restore([*MISSING, *EMPTY])
    corpus.retry("not_found", "empty", tasks=["depth"])
    expected = {name: data for name, data in corpus.undisturbed.items() if name.startswith("labels/depth")}
    assert corpus.differing(before | expected) == []


def test_a_replaced_file_is_laid_out_as_a_new_one(corpus: Corpus) -> None:
    def layout(path: Path) -> Any:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        return file.schema_arrow.metadata, file.schema_arrow, groups

    paths = sorted(Path(corpus.job.output, "labels").rglob("*.parquet"))
    before = [layout(path) for path in paths]
    corpus.restore(MISSING)
    corpus.retry("not_found")
    assert [layout(path) for path in paths] == before


def test_a_row_that_fails_again_says_why_and_doing_it_twice_changes_nothing(corpus: Corpus) -> None:
    corpus.restore(EMPTY)
    (corpus.images / MISSING[0]).write_bytes(b"no picture at all")
    report = corpus.retry("not_found", "empty")
    assert report.statuses["seg"] == {"ok": 2, "unreadable": 3}
    assert report.errors == {"not_found": 4, "unsupported_format": 2}  # of two tasks
    [row] = rows_of(corpus.job, "seg", MISSING[:1])
    assert (row["status"], row["error_class"], row["mask"]) == ("unreadable", "unsupported_format", None)
    paths = sorted(Path(corpus.job.output, "labels").rglob("*.parquet"))
    before = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in paths]
    again = corpus.retry("not_found", "empty")
    assert (again.images, again.shards, again.errors) == (2, 0, {"not_found": 4})
    assert [(path.stat().st_ino, path.stat().st_mtime_ns) for path in paths] == before
    assert is_whole(corpus.job)


def test_what_no_row_has_is_nothing_to_do(corpus: Corpus) -> None:
    before = corpus.files()
    report = corpus.retry("fetch_timeout")
    assert (report.state, report.rounds, report.images) == ("done", 0, 0)
    assert corpus.differing(before) == []


# -- beside others ---------------------------------------------------------------------------------


@pytest.fixture
def first_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Return a function that has something done just before the first label file is replaced."""
    real = Storage.replace_if

    def arrange(what: Callable[[], object]) -> None:
        def replace_if(self: Storage, *args: Any, **options: Any) -> bool:
            monkeypatch.setattr(Storage, "replace_if", real)
            what()
            return real(self, *args, **options)

        monkeypatch.setattr(Storage, "replace_if", replace_if)

    return arrange


def test_two_retries_at_once_lose_nothing_of_each_other(
    corpus: Corpus, first_time: Callable[[Callable[[], object]], None]
) -> None:
    """The second one mends other rows of the very files that the first has read and is about to replace."""
    corpus.restore([*MISSING, *EMPTY])
    first_time(lambda: corpus.retry("empty"))
    assert corpus.retry("not_found").errors == {}
    assert corpus.differing(corpus.undisturbed) == []


def test_two_retries_of_the_same_rows_both_end_well(
    corpus: Corpus, first_time: Callable[[Callable[[], object]], None]
) -> None:
    corpus.restore([*MISSING, *EMPTY])
    reports: list[Report] = []
    first_time(lambda: reports.append(corpus.retry("not_found", "empty")))
    reports.append(corpus.retry("not_found", "empty"))
    assert [report.state for report in reports] == ["done", "done"]
    assert corpus.differing(corpus.undisturbed) == []


def test_a_row_that_another_retry_mended_is_not_made_bad_again(
    corpus: Corpus, first_time: Callable[[Callable[[], object]], None]
) -> None:
    """The first one could not read the pictures; they are back when the second one comes."""

    def other() -> None:
        corpus.restore(MISSING)
        corpus.retry("not_found")

    (corpus.images / MISSING[0]).write_bytes(b"no picture at all")  # its row will differ, so its file is replaced
    first_time(other)
    corpus.retry("not_found")
    assert {row["status"] for row in rows_of(corpus.job, "seg", MISSING)} == {"ok"}
    assert is_whole(corpus.job)


def test_a_run_beside_it_creates_what_is_missing_and_touches_nothing_else(
    corpus: Corpus, first_time: Callable[[Callable[[], object]], None]
) -> None:
    """A label file is deleted and labelled anew amid the retry, as somebody might do by hand."""
    corpus.restore([*MISSING, *EMPTY])

    def other() -> None:
        for task in TASKS:
            sorted(Path(corpus.job.output, "labels", task).rglob("*.parquet"))[2].unlink()
        annotator.run(corpus.job, ray=False)

    first_time(other)
    corpus.retry("not_found", "empty")
    assert corpus.differing(corpus.undisturbed) == []


def test_a_file_that_others_replace_all_the_time_is_left_in_bounded_time(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    from annotator import rounds

    turns: list[object] = []

    def never(self: Storage, *args: object, **options: object) -> bool:
        turns.append(args)
        return False

    monkeypatch.setattr(rounds, "PATIENCE_S", 0.0)
    monkeypatch.setattr(Storage, "replace_if", never)
    before = corpus.files()
    corpus.restore(MISSING)
    with pytest.raises(IncompleteRunError, match=r"shards are left as they were: .* was replaced \d+ times by others"):
        corpus.retry("not_found", tasks=["seg"])
    assert len(turns) < 200
    assert corpus.differing(before) == []


# -- what is refused -------------------------------------------------------------------------------


def test_another_fingerprint_is_refused_so_labels_cannot_get_mixed(corpus: Corpus) -> None:
    before = corpus.files()
    corpus.restore(MISSING)
    with pytest.raises(FingerprintMismatchError, match="decode"):
        corpus.retry("not_found", job=corpus.job.model_copy(update={"decode": "fast"}))
    with pytest.raises(JobError, match=r"not .*labels-out"):
        corpus.retry("not_found", job=corpus.job.model_copy(update={"output": "/elsewhere"}))
    with pytest.raises(JobError, match="rows of depth, which the job does not label"):
        corpus.retry("not_found", job=corpus.job.model_copy(update={"tasks": {"seg": corpus.job.tasks["seg"]}}))
    with pytest.raises(OutputError, match="no pose labels; it has depth, seg"):
        corpus.retry("not_found", tasks=["pose"])
    with pytest.raises(JobError, match="name the error classes"):
        corpus.retry()
    assert corpus.differing(before) == []


def test_an_output_without_a_readable_record_asks_for_the_job(corpus: Corpus) -> None:
    runs = Path(corpus.job.output, "_annotator", "runs")
    newest = max(runs.iterdir())
    newest.write_text("{}")
    with pytest.raises(OutputError, match="name the job file"):
        corpus.retry("not_found")
    newest.unlink()
    with pytest.raises(OutputError, match=r"no run left its job .* name the job file"):
        corpus.retry("not_found")
    corpus.restore([*MISSING, *EMPTY])
    corpus.retry("not_found", "empty", job=corpus.job)
    assert corpus.differing(corpus.undisturbed) == []


def test_damage_is_not_written_anew_with_good_checksums(corpus: Corpus) -> None:
    """One bit of a good row's map is flipped; the shard stays as it is, and the others are mended."""
    path = sorted(Path(corpus.job.output, "labels", "seg").rglob("*.parquet"))[0]
    png = next(bytes(row["mask"]["bytes"]) for row in table(corpus.job.output, "seg").to_pylist() if row["mask"])
    data = bytearray(path.read_bytes())
    data[bytes(data).index(png) + len(png) // 2] ^= 0x10
    path.write_bytes(bytes(data))
    corpus.restore([*MISSING, *EMPTY])
    with pytest.raises(IncompleteRunError, match=r"1 shards are left as they were: .* damaged .*annotator verify"):
        corpus.retry("not_found", "empty", tasks=["seg"])
    assert path.read_bytes() == bytes(data)
    files = corpus.files()
    others = [name for name in files if name.startswith("labels/seg/") and not path.as_posix().endswith(name)]
    assert others and [name for name in others if files[name] != corpus.undisturbed[name]] == []


def test_a_file_that_was_cut_short_is_told_of_whatever_is_asked_for(corpus: Corpus) -> None:
    path = sorted(Path(corpus.job.output, "labels", "seg").rglob("*.parquet"))[1]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(IncompleteRunError, match=r"1 shards are left as they were: .* damaged .*annotator verify"):
        corpus.retry("fetch_timeout")


def test_what_crashed_its_decoder_is_decoded_in_a_process_of_its_own(
    tmp_path: Path, tiny_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise ImageError("unreadable", "decoder_crashed", "the decoder ended with code -11")

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("decoded in the worker")

    job = make_job(tmp_path, tiny_checkpoints, 2, tasks=("seg",))
    monkeypatch.setattr(worker, "decode", crash)
    annotator.run(job, ray=False)
    monkeypatch.setattr(worker, "decode", forbidden)
    assert annotator.retry(job.output, ["decoder_crashed"], ray=False).statuses == {"seg": {"ok": 2}}


def test_people_that_a_pose_needs_are_found_again_and_only_asked_for_labels_are_replaced(tmp_path: Path) -> None:
    checkpoints = {name: tmp_path / f"{name}.safetensors" for name in ("person", "pose", "seg")}
    for name, path in checkpoints.items():
        channels = 17 if name == "pose" else None
        random_checkpoint(
            path, task=name, embed_dim=32, num_layers=1, num_heads=4, input_hw=(64, 48), channels=channels, seed=1
        )
    job = make_job(tmp_path, checkpoints, 6, tasks=tuple(checkpoints), shard_rows=3)
    job = job.model_copy(update={"tasks": {**job.tasks, "pose": {**job.tasks["pose"], "boxes": "person"}}})
    whole = job.model_copy(update={"output": str(tmp_path / "undisturbed")})
    annotator.run(whole, ray=False)
    undisturbed = file_bytes(whole.output, tuple(checkpoints))
    (tmp_path / "images" / MISSING[0]).rename(tmp_path / "away")
    annotator.run(job, ray=False)
    before = file_bytes(job.output, tuple(checkpoints))
    (tmp_path / "away").rename(tmp_path / "images" / MISSING[0])
    annotator.retry(job.output, ["not_found"], tasks=["pose"], ray=False)
    changed = {name: data for name, data in undisturbed.items() if "/pose/" in name}
    assert file_bytes(job.output, tuple(checkpoints)) == before | changed
    assert annotator.retry(job.output, ["not_found"], ray=False).statuses.keys() == {"person", "seg"}
    assert file_bytes(job.output, tuple(checkpoints)) == undisturbed


@pytest.mark.ray
def test_workers_on_ray_mend_the_same_rows(corpus: Corpus) -> None:
    corpus.restore([*MISSING, *EMPTY])
    job = corpus.job.model_copy(update={"workers": 1})
    report = annotator.retry(job.output, ["not_found", "empty"], job=job)
    assert (report.state, report.images, report.shards) == ("done", 5, 2)
    assert corpus.differing(corpus.undisturbed) == []
