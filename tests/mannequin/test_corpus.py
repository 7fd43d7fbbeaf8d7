"""Pictures as files: what is written, and that the truth is of the picture as annotator reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import annotator
from annotator.errors import InvalidInputError, OutputError
from annotator.job import Limits
from annotator.mannequin.corpus import make_picture, read_truth
from annotator.mannequin.samples import TRAINING, training_rng
from annotator.stages.decode import decode
from tests.running.command import Cli, cli

__all__ = ["cli"]  # a fixture

COUNT, SEED = 16, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "mannequins"
    annotator.make_images(COUNT, SEED, folder)
    return folder


def test_the_command_makes_pictures_a_manifest_and_the_truth(cli: Cli, tmp_path: Path) -> None:
    made = cli("demo", "make-images", "--count", 3, "--seed", SEED, "--out", tmp_path / "new", "--json")
    assert made.code == 0
    assert made.json["images"] == 3 and made.json["people"] >= 3
    assert annotator.check_manifest(made.json["manifest"]).ok
    assert pq.read_table(made.json["truth"]).num_rows == 3


def test_a_folder_that_holds_something_is_left_alone(cli: Cli, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    with pytest.raises(OutputError, match="is not empty"):
        annotator.make_images(1, 0, folder)
    assert cli("demo", "make-images", "--out", folder).code == OutputError.exit_code
    assert sorted(folder.rglob("*")) == before


def test_truth_is_of_the_picture_as_annotator_decodes_it(folder: Path) -> None:
    """Turned files included: decoded upright they show what was rendered, but for what JPEG loses."""
    orientations = pq.read_table(folder / "truth.parquet")["orientation"].to_pylist()
    assert len(set(orientations)) > 1
    for number, truth in enumerate(read_truth(folder)):
        seen_YXC = decode(Path(truth.uri).read_bytes(), Limits(), mode="exact", min_hw=(1, 1)).pixels_YXC
        rendered_YXC = make_picture(SEED, number).pixels_YXC
        assert seen_YXC.shape == rendered_YXC.shape == (*truth.parts_YX.shape, 3)
        assert np.abs(seen_YXC.astype(int) - rendered_YXC).mean() < 6


def test_truth_survives_its_files(folder: Path) -> None:
    for number, truth in enumerate(read_truth(folder)):
        picture = make_picture(SEED, number)
        people_YX = picture.parts_YX > 0
        seen = picture.boxes_N4[:, 2] > 0
        assert np.array_equal(truth.parts_YX, picture.parts_YX)
        assert np.array_equal(truth.boxes_N4, picture.boxes_N4[seen])
        assert np.allclose(truth.keypoints_NK3, picture.keypoints_NK3[seen])
        assert np.abs(truth.depth_YX - picture.depth_YX).max() < 0.001
        assert np.abs(truth.normals_YXC - picture.normals_YXC)[people_YX].max() < 0.005
        assert not truth.normals_YXC[~people_YX].any()


def test_the_first_pictures_of_a_larger_corpus_are_those_of_a_smaller_one(folder: Path, tmp_path: Path) -> None:
    annotator.make_images(2, SEED, tmp_path / "two")
    for picture in sorted((tmp_path / "two" / "images").iterdir()):
        assert picture.read_bytes() == (folder / "images" / picture.name).read_bytes()


def test_no_seed_gives_the_pictures_of_training() -> None:
    made = np.random.default_rng((TRAINING, 4, 1))
    assert made.random() != training_rng(4).random()


def test_a_folder_without_truth_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="make-images"):
        list(read_truth(tmp_path))
