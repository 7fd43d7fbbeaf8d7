"""`annotator errors` and `annotator retry` as people type them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.compute as pc
import yaml

import annotator
from tests.running.command import Cli, cli, is_one_line
from tests.running.make import is_whole, make_job, table
from tests.running.spoiled import EMPTY, MISSING, Corpus, corpus, labelled

__all__ = ["cli", "corpus", "labelled"]


def test_limits_may_differ_so_that_what_they_rejected_can_be_labelled(
    cli: Cli, tmp_path: Path, tiny_checkpoints: dict[str, Path]
) -> None:
    job = make_job(tmp_path, tiny_checkpoints, 7, tasks=("seg",), limits={"max_pixels": 2000})
    annotator.run(job, ray=False)
    rejected = pc.sum(pc.equal(table(job.output, "seg")["status"], "rejected")).as_py()
    told = cli("errors", job.output, "--json")
    assert [(g["task"], g["status"], g["error_class"], g["rows"]) for g in told.json["groups"]] == [
        ("seg", "rejected", "too_many_pixels", rejected)
    ]
    words = ("retry", job.output, "--error", "too_many_pixels", "--no-ray", "--quiet", "--json")
    told = cli(*words, "--set", "limits.max_pixels=1000000")
    assert (told.code, told.json["images"], told.json["statuses"]) == (0, rejected, {"seg": {"ok": rejected}})
    assert cli("errors", job.output).out == "no bad row\n"
    assert cli(*words).json["rounds"] == 0
    assert is_whole(job)


def test_a_retry_says_what_it_did_and_status_shows_it(cli: Cli, corpus: Corpus, tmp_path: Path) -> None:
    corpus.restore(MISSING)
    told = cli("retry", corpus.job.output, "--error", "not_found, empty", "--no-ray")
    assert told.code == 0
    assert "5 images tried again" in told.out
    assert "6 of 10 label rows mended; still bad: empty 4" in told.out
    assert "retry of not_found, empty: done" in cli("status", corpus.job.output).out
    records = [json.loads(p.read_text()) for p in sorted(Path(corpus.job.output, "_annotator", "runs").iterdir())]
    assert [record["retried"] for record in records] == [[], ["not_found", "empty"]]
    corpus.restore(EMPTY)
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(corpus.job.model_dump(mode="json", exclude_defaults=True)))
    words = ("--error", "empty", "--task", "seg", "--job", path, "--no-ray", "--quiet")
    assert "2 of 2 label rows mended; still bad: none" in cli("retry", corpus.job.output, *words).out


def test_wrong_words_get_one_line(cli: Cli, corpus: Corpus) -> None:
    for words in (
        ("retry", corpus.job.output),
        ("retry", corpus.job.output, "--error", "empty", "--set", "limits.max_pixel=1"),
        ("retry", str(corpus.images), "--error", "empty"),
        ("errors", str(corpus.images)),
        ("errors", corpus.job.output, "--task", "pose"),
        ("errors", corpus.job.output, "--export", str(corpus.images)),
    ):
        told = cli(*words)
        assert (told.code, is_one_line(told.err)) == (2, True), words


def test_the_images_of_bad_rows_are_a_manifest_that_run_takes(cli: Cli, corpus: Corpus, tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    told = cli("errors", corpus.job.output, "--export", folder, "--error", "not_found")
    assert told.code == 0 and f"--root {corpus.images}" in told.out
    corpus.restore(MISSING)
    seg = corpus.job.tasks["seg"]["checkpoint"]
    words = ("--manifest", folder, "--root", corpus.images, "--output", tmp_path / "again", "--task", f"seg={seg}")
    assert cli("run", *words, "--no-ray", "--quiet").code == 0
    found = table(tmp_path / "again", "seg")
    assert sorted(str(uri).rsplit("/", 1)[-1] for uri in found["uri"].to_pylist()) == sorted(MISSING)
    assert set(found["status"].to_pylist()) == {"ok"}
