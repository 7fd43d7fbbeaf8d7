"""Where an image may be read from: what a manifest may name, and what becomes of rows that name more."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import annotator
from annotator.errors import ImageError, JobError, StorageError
from annotator.job import Job, Sources
from annotator.preflight import preflight
from annotator.stages.sources import Places, admit, check_sample, make_places
from tests.running.make import make_job, write_images, write_manifest
from tests.worker.support import label_rows

S3_AND_FILE = frozenset({"s3", "file"})


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A manifest's folder, a root, and a file beside them; links of all sorts."""
    for name in ("manifest/in/a.jpg", "corpus/b.jpg", "corpus-b/c.jpg", "secret.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "manifest" / "file_out.jpg").symlink_to("../secret.txt")
    (tmp_path / "manifest" / "folder_out").symlink_to("..")
    (tmp_path / "manifest" / "to_root.jpg").symlink_to("../corpus/b.jpg")
    (tmp_path / "manifest" / "within.jpg").symlink_to("in/a.jpg")
    (tmp_path / "manifest" / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "manifest" / "nowhere_out.jpg").symlink_to("../missing.jpg")
    (tmp_path / "link_to_root").symlink_to("corpus")
    (tmp_path / "back").symlink_to("manifest")
    return tmp_path


def outcome(uri: str, places: Places) -> str:
    """Return what is read, or the class of the refusal."""
    try:
        return admit(uri, places)
    except ImageError as err:
        assert err.status == "rejected"
        return err.error_class
    except StorageError:
        return "StorageError"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("{tree}/manifest/in/a.jpg", "{tree}/manifest/in/a.jpg"),
        ("file://{tree}/manifest/in/a.jpg", "{tree}/manifest/in/a.jpg"),
        ("{tree}/manifest/within.jpg", "{tree}/manifest/in/a.jpg"),
        ("{tree}/manifest/to_root.jpg", "{tree}/corpus/b.jpg"),
        ("{tree}/corpus/b.jpg", "{tree}/corpus/b.jpg"),
        ("{tree}/link_to_root/b.jpg", "{tree}/corpus/b.jpg"),
        ("{tree}/back/in/a.jpg", "{tree}/manifest/in/a.jpg"),
        ("{tree}/manifest/missing.jpg", "{tree}/manifest/missing.jpg"),
        ("{tree}/manifest/../corpus/b.jpg", "{tree}/corpus/b.jpg"),
        ("{tree}/manifest/../secret.txt", "outside_roots"),
        ("{tree}/manifest/file_out.jpg", "outside_roots"),
        ("{tree}/manifest/folder_out/secret.txt", "outside_roots"),
        ("{tree}/manifest/folder_out/manifest/in/a.jpg", "{tree}/manifest/in/a.jpg"),
        ("{tree}/manifest/nowhere_out.jpg", "outside_roots"),
        ("{tree}/corpus-b/c.jpg", "outside_roots"),
        ("{tree}/missing.jpg", "outside_roots"),
        ("{tree}/manifest", "outside_roots"),
        ("file:///etc/passwd", "outside_roots"),
        ("FILE:///etc/passwd", "outside_roots"),
        ("file:///%65tc/passwd", "outside_roots"),
        ("file://localhost/etc/passwd", "outside_roots"),
        ("/proc/self/environ", "outside_roots"),
        ("/dev/zero", "outside_roots"),
        ("file://server/share/a.jpg", "StorageError"),
        ("{tree}/manifest/loop.jpg", "StorageError"),
        ("{tree}/manifest/a\0b.jpg", "StorageError"),
        ("s3://bucket/key", "s3://bucket/key"),
        ("http://a.example/x", "scheme_not_allowed"),
        ("HTTPS://a.example/x", "scheme_not_allowed"),
        ("ftp://a.example/x", "scheme_not_allowed"),
        ("gopher://a.example/x", "scheme_not_allowed"),
        ("github://owner:repo@/x", "scheme_not_allowed"),
        ("simplecache::s3://a/b", "scheme_not_allowed"),
    ],
)
def test_what_is_read_for_a_uri(uri: str, expected: str, tree: Path) -> None:
    places = make_places(Sources(roots=(f"{tree}/link_to_root",)), f"{tree}/manifest")
    if uri.startswith("simplecache"):
        expected = "outside_roots"  # no scheme: a plain path, of a file called so
    assert outcome(uri.format(tree=tree), places) == expected.format(tree=tree)


def test_the_folder_of_a_manifest_that_is_one_file_is_the_one_it_lies_in(tree: Path) -> None:
    (tree / "manifest" / "m.parquet").touch()
    places = make_places(Sources(), f"{tree}/manifest/m.parquet")
    assert places.roots == (str(tree / "manifest"),)


def test_a_manifest_on_s3_allows_no_local_file_of_itself(tree: Path) -> None:
    places = make_places(Sources(), "s3://bucket/manifest")
    assert outcome(f"{tree}/corpus/b.jpg", places) == "outside_roots"
    assert outcome("s3://other/key", places) == "s3://other/key"


def test_only_named_kinds_are_read(tree: Path) -> None:
    places = make_places(Sources(schemes=("https",)), f"{tree}/manifest")
    assert outcome("https://a.example/x", places) == "https://a.example/x"
    for uri in ("http://a.example/x", "s3://b/k", "s3a://b/k", f"{tree}/manifest/in/a.jpg"):
        assert outcome(uri, places) == "scheme_not_allowed"


def test_a_refusal_says_what_to_set(tree: Path) -> None:
    places = make_places(Sources(), f"{tree}/manifest")
    for uri, said in (
        ("http://a.example/x?sig=hidden", "http://a.example/x: the job reads file, s3; add http to sources.schemes"),
        ("ftp://u:hidden@a.example/x", "ftp://a.example/x: images are read from s3, file, http, https only"),
        (f"{tree}/manifest/file_out.jpg", f"is a link to {tree}/secret.txt, which lies outside"),
        (f"{tree}/corpus/b.jpg", f"{tree}/corpus/b.jpg lies outside of the manifest's folder and of sources.roots"),
    ):
        with pytest.raises(ImageError) as caught:
            admit(uri, places)
        assert said in str(caught.value)
        assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("root", ["s3://bucket/x", "http://a/b", ""])
def test_a_root_is_a_local_folder(root: str) -> None:
    with pytest.raises(JobError, match=r"sources\.roots: .* is no local folder"):
        annotator.load_job(None, {"manifest": "m", "output": "o", "tasks": {"seg": {}}, "sources.roots": [root]})


def test_an_unknown_kind_of_uri_can_not_be_named() -> None:
    with pytest.raises(JobError, match=r"sources\.schemes"):
        annotator.load_job(None, {"manifest": "m", "output": "o", "tasks": {"seg": {}}, "sources.schemes": ["ftp"]})


# -- in a job -------------------------------------------------------------------------------------


def test_rows_that_name_too_much_are_rejected_and_their_neighbours_are_labelled(
    tmp_path: Path, tiny_checkpoints: dict[str, Path]
) -> None:
    job = make_job(tmp_path, tiny_checkpoints, count=2, tasks=("seg",))
    (tmp_path / "secret.jpg").write_bytes((tmp_path / "images" / "image-0000.jpg").read_bytes())
    (tmp_path / "images" / "link.jpg").symlink_to("../secret.jpg")
    names = ["image-0000.jpg", "../secret.jpg", "link.jpg", "image-0001.png"]
    uris = [*(f"../images/{name}" for name in names), "/etc/passwd", "https://a.example/x?sig=hidden"]
    write_manifest(tmp_path / "manifest", uris)
    rows = label_rows(job)
    assert [(row["status"], row["error_class"]) for row in rows] == [
        ("ok", None),
        ("rejected", "outside_roots"),
        ("rejected", "outside_roots"),
        ("ok", None),
        ("rejected", "outside_roots"),
        ("rejected", "scheme_not_allowed"),
    ]
    assert "hidden" not in str(rows)


def test_what_may_be_read_can_be_widened_between_runs(tmp_path: Path, tiny_checkpoints: dict[str, Path]) -> None:
    """It is no part of the fingerprint, as no label depends on it; rows that are committed stay as they are."""
    job = make_job(tmp_path, tiny_checkpoints, count=7, tasks=("seg",))
    annotator.run(job, ray=False, limit=5)
    wider = job.model_copy(update={"sources": Sources(schemes=("s3", "file", "https"), roots=("/", str(tmp_path)))})
    assert annotator.run(wider, ray=False).images == 2
    assert annotator.verify(job.output).ok


def test_a_manifest_none_of_whose_images_may_be_read_is_refused_naming_their_folder(
    tmp_path: Path, tiny_checkpoints: dict[str, Path]
) -> None:
    job = make_job(tmp_path, tiny_checkpoints, count=7, tasks=("seg",), sources=Sources())
    with pytest.raises(JobError, match=f"--root {tmp_path}/images, or sources: {{roots: \\[{tmp_path}/images\\]}}"):
        preflight(job)
    assert not (tmp_path / "labels-out").exists()


def test_a_root_may_be_relative_to_where_the_command_is_typed(
    tmp_path: Path, tiny_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = make_job(tmp_path, tiny_checkpoints, count=2, tasks=("seg",), sources=Sources(roots=("images",)))
    assert preflight(job).job.sources.roots == (f"{tmp_path}/images",)


def test_one_row_that_may_be_read_is_enough_to_go_on(tree: Path) -> None:
    """Else whoever slips one row in could end the job."""
    places = make_places(Sources(), f"{tree}/manifest")
    refused = [f"{tree}/corpus/{i}.jpg" for i in range(99)]
    check_sample([*refused, "s3://bucket/key"], places, "m")
    check_sample([], places, "m")
    with pytest.raises(JobError, match=f"lie in {tree}/corpus, outside"):
        check_sample(refused, places, "m")
    with pytest.raises(JobError, match="add https to sources"):
        check_sample(["https://a.example/x"], places, "m")


def test_images_that_share_no_folder_are_answered_with_one_of_theirs(tree: Path) -> None:
    places = make_places(Sources(), f"{tree}/manifest")
    with pytest.raises(JobError, match=f"--root {tree}/corpus,"):
        check_sample([f"{tree}/corpus/b.jpg", "/etc/passwd"], places, "m")


def test_embedded_pictures_need_no_root_whatever_their_path_says(
    tmp_path: Path, tiny_checkpoints: dict[str, Path]
) -> None:
    job = make_job(tmp_path, tiny_checkpoints, count=1, tasks=("seg",), sources=Sources())
    data = (tmp_path / "images" / "image-0000.jpg").read_bytes()
    (tmp_path / "manifest" / "part-0.parquet").unlink()
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = pa.array([{"bytes": data, "path": "/etc/passwd"}, {"bytes": None, "path": "/etc/passwd"}])
    pq.write_table(pa.table({"image": images}), tmp_path / "manifest" / "a.parquet")
    assert [row["error_class"] for row in label_rows(job)] == [None, "outside_roots"]


def test_a_sample_reads_what_its_manifest_could(tmp_path: Path, tiny_checkpoints: dict[str, Path]) -> None:
    """The sample's manifest lies elsewhere: the folder of the old one goes with it, and no more."""
    names = write_images(tmp_path / "corpus" / "images", 3)
    write_manifest(tmp_path / "corpus", [*(f"images/{name}" for name in names), "/etc/passwd"])
    job = Job(
        manifest=str(tmp_path / "corpus"),
        output=str(tmp_path / "out"),
        tasks={"seg": {"checkpoint": str(tiny_checkpoints["seg"])}},
    )
    rows = label_rows(annotator.sample(job, 10))
    assert [row["error_class"] for row in rows] == [None, None, None, "outside_roots"]


def test_a_build_names_the_root_that_a_job_needs(tmp_path: Path) -> None:
    write_images(tmp_path / "photos" / "a", 2)
    write_images(tmp_path / "photos" / "a-b", 2)
    write_images(tmp_path / "more", 1)
    built = annotator.build_manifest(str(tmp_path / "photos"), str(tmp_path / "m"))
    assert built.root == str(tmp_path / "photos")
    assert annotator.append_manifest(str(tmp_path / "more"), str(tmp_path / "m")).root == str(tmp_path / "more")
    within = annotator.build_manifest(str(tmp_path / "photos" / "a"), str(tmp_path / "photos" / "a" / "m"))
    assert within.root == str(tmp_path / "photos" / "a")
    listed = tmp_path / "list.txt"
    listed.write_text("https://a.example/x?b=1\ns3://bucket/key\n")
    remote = annotator.build_manifest(str(listed), str(tmp_path / "remote"))
    assert (remote.images, remote.root) == (2, None)
    assert annotator.append_manifest(str(listed), str(tmp_path / "remote")).duplicates == 2


def test_the_link_is_followed_when_it_is_read_not_when_it_was_listed(tree: Path) -> None:
    """A link that came to point elsewhere is judged by where it points now, and what was judged is opened."""
    places = make_places(Sources(), f"{tree}/manifest")
    link = tree / "manifest" / "within.jpg"
    assert admit(str(link), places) == f"{tree}/manifest/in/a.jpg"
    link.unlink()
    os.symlink("../secret.txt", link)
    assert outcome(str(link), places) == "outside_roots"
