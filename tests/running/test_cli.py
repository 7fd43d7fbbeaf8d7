"""The command line as a user types it, when all is well."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import annotator
from tests.running.command import Cli, Typed, is_one_line
from tests.running.make import table, write_images


def test_the_installed_command_runs_a_job_then_finds_nothing_to_do_then_verifies(job_file: Path) -> None:
    def typed(*words: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("annotator")), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=job_file.parent, check=False)
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
        return done

    first = typed("run", "job.yaml", "--no-ray")
    assert "done: 7 images" in first.stdout
    assert "round 1: 7 images in 2 shards left" in first.stderr
    again = typed("run", "job.yaml", "--no-ray")
    assert (again.stdout, again.stderr) == ("nothing to do: every image asked for has its labels\n", "")
    assert "verified: every manifest row is labelled exactly once" in typed("verify", "labels-out").stdout


def test_a_job_file_runs_and_the_second_and_third_time_has_nothing_to_do(cli: Cli, job_file: Path) -> None:
    assert "done: 7 images" in cli("run", job_file, "--no-ray").out
    for _ in range(2):  # with Ray, which is not even started
        assert cli("run", job_file) == Typed(0, "nothing to do: every image asked for has its labels\n", "")


def test_options_alone_make_a_job_and_win_over_a_file(
    cli: Cli, tmp_path: Path, job_file: Path, job: annotator.Job, tiny_checkpoints: dict[str, Path]
) -> None:
    words = ["--manifest", job.manifest, "--root", *job.sources.roots, "--task", f"seg={tiny_checkpoints['seg']}"]
    words += ["--task", f"depth={tiny_checkpoints['depth']}", "--no-ray", "--json", "--quiet"]
    alone = cli(
        "run", "--output", tmp_path / "alone", "--set", "shard_rows=3", "--set", "tasks.depth.label_size=input", *words
    )
    assert alone.json["statuses"] == {"seg": {"ok": 7}, "depth": {"ok": 7}}
    assert alone.json["shards"] == 3
    assert set(table(tmp_path / "alone", "depth")["map_width"].to_pylist()) == {48}
    both = cli("run", job_file, "--output", tmp_path / "both", "--no-ray", "--json", "--quiet")
    assert both.json["shards"] == 2
    assert not Path(job.output).exists()
    assert alone.err == both.err == ""


def test_a_folder_of_images_is_enough_and_new_ones_join_the_next_time(
    cli: Cli, tmp_path: Path, tiny_checkpoints: dict[str, Path]
) -> None:
    write_images(tmp_path / "photos" / "deep", 3)
    words = ["run", "--images", tmp_path / "photos", "--output", tmp_path / "out"]
    words += ["--task", f"seg={tiny_checkpoints['seg']}", "--no-ray"]
    assert "done: 3 images" in cli(*words).out
    assert "nothing to do" in cli(*words).out
    write_images(tmp_path / "photos" / "new", 2)
    assert "done: 2 images" in cli(*words).out
    assert table(tmp_path / "out", "seg").num_rows == 5
    assert cli("verify", tmp_path / "out").code == 0
    assert len(list((tmp_path / "out" / "manifest").iterdir())) == 2


def test_the_folder_to_name_is_told_by_the_build_and_by_the_refusal(
    cli: Cli, tmp_path: Path, tiny_checkpoints: dict[str, Path]
) -> None:
    write_images(tmp_path / "my photos", 2)
    root = f"--root '{tmp_path}/my photos'"
    assert root in cli("manifest", "build", tmp_path / "my photos", "--out", tmp_path / "m").out
    words = ["run", "--manifest", tmp_path / "m", "--output", tmp_path / "out", "--no-ray"]
    words += ["--task", f"seg={tiny_checkpoints['seg']}"]
    refused = cli(*words)
    assert refused.code == 2
    assert is_one_line(refused.err)
    assert root in refused.err
    assert "done: 2 images" in cli(*words, "--root", tmp_path / "my photos").out


def test_limit_takes_the_first_images_and_a_full_run_the_rest(cli: Cli, job_file: Path) -> None:
    assert cli("run", job_file, "--no-ray", "--limit", 3, "--json").json["images"] == 5  # a whole shard of 5
    assert cli("plan", job_file, "--limit", 3).out.startswith("nothing to do")
    assert cli("run", job_file, "--no-ray", "--json").json["images"] == 2


def test_a_sample_has_an_output_of_its_own_and_resumes(cli: Cli, job_file: Path, job: annotator.Job) -> None:
    assert "done: 3 images" in cli("run", job_file, "--no-ray", "--sample", 3).out
    assert "nothing to do" in cli("run", job_file, "--sample", 3).out
    assert not Path(job.output).exists()
    labels = table(f"{job.output}-sample-3", "seg")
    assert set(labels["status"].to_pylist()) == {"ok"}
    assert labels.num_rows == 3
    assert cli("verify", f"{job.output}-sample-3").code == 0


def test_quiet_says_nothing_but_the_result(cli: Cli, job_file: Path) -> None:
    done = cli("run", job_file, "--no-ray", "--quiet")
    assert done.err == ""
    assert "done: 7 images" in done.out


def test_bad_rows_are_told_and_are_no_failure(cli: Cli, job_file: Path, tmp_path: Path) -> None:
    (tmp_path / "images" / "image-0003.png").unlink()
    done = cli("run", job_file, "--no-ray")
    assert done.code == 0
    assert "errors: not_found 1" in done.out
    assert "1 bad rows" in done.err


def test_a_plan_says_what_a_run_would_do(cli: Cli, job_file: Path, job: annotator.Job) -> None:
    assert "7 images in 2 shards left, of 7 in 2" in cli("plan", job_file).out
    plan = cli("plan", job_file, "--json").json
    assert (plan["rows_left"], plan["rows"], plan["shards_left"], plan["shards"]) == (7, 7, 2, 2)
    assert not Path(job.output).exists()


def test_status_tells_how_far_an_output_got(cli: Cli, job_file: Path, job: annotator.Job) -> None:
    cli("run", job_file, "--no-ray", "--limit", 1)
    report = cli("status", job.output, "--json").json
    assert (report["tasks"][0]["shards"], report["tasks"][0]["shards_total"], report["done"]) == (1, 2, False)
    assert report["runs"][0]["state"] == "done"
    words = cli("status", job.output).out
    assert "1/2" in words and "5/7" in words


def test_verify_exits_7_and_says_what_and_where(cli: Cli, job_file: Path, job: annotator.Job) -> None:
    cli("run", job_file, "--no-ray")
    assert cli("verify", job.output, "--json").json["ok"] is True
    label = next(Path(job.output).rglob("labels/**/*.parquet"))
    data = bytearray(label.read_bytes())
    data[200] ^= 1
    label.write_bytes(bytes(data))
    (Path(job.output) / "labels" / "seg" / "notes.txt").write_text("mine")
    words, report = cli("verify", job.output), cli("verify", job.output, "--json")
    assert words.code == report.code == 7
    assert "NOT verified" in words.out
    assert f"checksum: {label}" in words.out and "notes.txt" in words.out
    assert (report.json["ok"], report.json["counts"]) == (False, {"checksum": 1, "foreign_file": 1})


def test_verify_exits_7_while_shards_are_missing(cli: Cli, job_file: Path, job: annotator.Job) -> None:
    cli("run", job_file, "--no-ray", "--limit", 1)
    found = cli("verify", job.output)
    assert found.code == 7
    assert "missing_shard" in found.out


def test_preview_writes_a_picture_and_says_where(cli: Cli, tmp_path: Path, job_file: Path, job: annotator.Job) -> None:
    cli("run", job_file, "--no-ray")
    sheet = tmp_path / "new" / "sheet.png"
    assert cli("preview", job.output, "--out", sheet, "--limit", 3, "--where", "width > 0").out == f"{sheet}\n"
    assert cv2.imread(str(sheet)).shape[1] > 400


def test_a_manifest_is_built_extended_and_checked(cli: Cli, tmp_path: Path) -> None:
    write_images(tmp_path / "photos", 5)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    out = tmp_path / "m"
    built = cli("manifest", "build", tmp_path / "photos", "--out", out, "--rows-per-file", 3, "--json")
    assert (built.json["images"], built.json["files"]) == (5, 2)
    write_images(tmp_path / "photos" / "more", 2)
    added = cli("manifest", "append", tmp_path / "photos", "--out", out, "--json").json
    assert (added["images"], added["files"], added["duplicates"]) == (2, 1, 5)
    assert "images: 0" in cli("manifest", "append", tmp_path / "photos", "--out", out).out
    check = cli("manifest", "check", out, "--json").json
    assert (check["rows"], check["files"], check["ok"]) == (7, 3, True)
    assert pq.read_table(out).num_rows == 7


@pytest.mark.parametrize(
    ("name", "text", "count"),
    [
        ("list.txt", "photos/image-0000.jpg\nphotos/image-0001.png\n\n", 2),
        ("list.csv", "image_id,uri\na,photos/image-0000.jpg\nb,photos/image-0001.png\n", 2),
    ],
)
def test_a_manifest_is_built_from_a_list(cli: Cli, tmp_path: Path, name: str, text: str, count: int) -> None:
    write_images(tmp_path / "photos", 2)
    (tmp_path / name).write_text(text)
    assert f"images: {count}" in cli("manifest", "build", tmp_path / name, "--out", tmp_path / "m").out
    rows = pq.read_table(tmp_path / "m").to_pylist()
    assert all(Path(row["uri"]).exists() for row in rows)


def test_a_check_that_finds_something_exits_7_and_names_it(cli: Cli, tmp_path: Path) -> None:
    pq.write_table(pa.table({"uri": ["a.jpg", "a.jpg", None]}), tmp_path / "m.parquet")
    found = cli("manifest", "check", tmp_path / "m.parquet")
    assert found.code == 7
    assert "duplicate_uri" in found.out and "null_uri" in found.out
    assert cli("manifest", "check", tmp_path / "m.parquet", "--json").json["ok"] is False


def test_a_random_checkpoint_is_made_and_says_for_good_that_it_is_random(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "seg.safetensors"
    words = ["--task", "seg", "--embed", 32, "--layers", 2, "--heads", 4, "--input", "64x48", "--seed", 0]
    assert "RANDOM" in cli("models", "random", *words, out).out
    first = out.read_bytes()
    cli("models", "random", *words, out)
    assert out.read_bytes() == first
    info = cli("models", "inspect", out, "--json").json
    assert (info["random"], info["config"]["task"], info["config"]["input_hw"]) == (True, "seg", [64, 48])
    assert {"sha256", "dtype", "licence", "format"} <= info.keys()
    text = cli("models", "inspect", out).out
    assert "patch_padding" in text and "RANDOM" in text


def test_a_folder_of_checkpoints_is_listed(cli: Cli, tmp_path: Path, tiny_checkpoints: dict[str, Path]) -> None:
    name = "sapiens_0.3b_goliath_best_goliath_mIoU_7673_epoch_194.pth"
    path = tmp_path / "sapiens_host" / "seg" / "checkpoints" / "sapiens_0.3b" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(tiny_checkpoints["seg"].read_bytes())
    listed = cli("models", "list", tmp_path / "sapiens_host", "--json").json
    assert [(entry["task"], entry["size"]) for entry in listed] == [("seg", "0.3b")]
    assert "0.3b" in cli("models", "list", tmp_path / "sapiens_host").out
    (tmp_path / "none").mkdir()
    assert cli("models", "list", tmp_path / "none").out == "nothing found\n"


@pytest.mark.parametrize("what", ["job", "seg", "depth", "normal"])
def test_a_schema_is_printed_as_python_gives_it(cli: Cli, what: str) -> None:
    assert cli("schema", what).json == annotator.schema(what)
