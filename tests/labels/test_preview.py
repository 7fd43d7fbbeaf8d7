"""A contact sheet shows image and maps side by side, and says so where it can't."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from annotator.errors import InvalidInputError, OutputError
from annotator.job import StorageOptions
from annotator.labels.look import look
from annotator.labels.preview import GAP, LINE, MAX_TILE_WIDTH, WIDTH, _caption, preview
from annotator.storage import Storage
from annotator.tasks import seg
from tests.labels.make_output import CHANNELS, make_output

GREY = 205
BLUE = (20, 40, 220)  # RGB


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three plain blue pictures of 360 x 480 pixels, in the manifest's folder."""
    folder = tmp_path / "manifest" / "pictures"
    folder.mkdir(parents=True)
    for i in range(3):
        cv2.imwrite(str(folder / f"{i}.png"), np.full((360, 480, 3), BLUE[::-1], np.uint8))
    return folder


def read(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))


def tile(sheet: np.ndarray, row: int, column: int, height: int = 360, width: int = MAX_TILE_WIDTH) -> np.ndarray:
    """Return a tile of a sheet whose tiles all have this size."""
    top = LINE + GAP + row * (height + LINE + GAP)
    left = GAP + column * (width + GAP)
    return sheet[top : top + height, left : left + width]


def is_grey(pixels: np.ndarray) -> bool:
    """Return whether the tile is a grey one: most of it, for there is text on it."""
    return bool((pixels == GREY).all(axis=-1).mean() > 0.9)


def test_the_original_is_drawn_as_it_is_and_classes_half_over_it(tmp_path: Path, pictures: Path) -> None:
    """One class all over: each pixel is the mean of blue and of that class's colour, rounded."""
    output = make_output(str(tmp_path), tasks=("seg",), rows=(3,), uri=lambda _file, row: str(pictures / f"{row}.png"))
    sheet = read(preview(output.uri, tmp_path / "sheet.png"))
    assert sheet.shape[1:] == (GAP + 2 * (MAX_TILE_WIDTH + GAP), 3)
    two = read(preview(output.uri, tmp_path / "two.png", limit=2))
    assert sheet.shape[0] - two.shape[0] == 360 + LINE + GAP
    assert (tile(sheet, 1, 0) == BLUE).all()
    painted = seg.paint(np.zeros((1, 1), np.uint8))[0, 0].astype(float)
    corner = tile(sheet, 0, 1)[2:8, 2:8].reshape(-1, 3).mean(axis=0)  # class 0 in the first pixel of image 0
    assert np.abs(corner - (painted + BLUE) / 2).max() <= 1


def test_a_map_of_other_proportions_covers_the_whole_image(tmp_path: Path, pictures: Path) -> None:
    """Maps of 12 x 9 pixels over an image of 360 x 480: no grey margin in their tiles."""
    output = make_output(str(tmp_path), tasks=("depth",), rows=(1,), uri=lambda _file, _row: str(pictures / "0.png"))
    sheet = read(preview(output.uri, tmp_path / "sheet.png"))
    assert not (tile(sheet, 0, 1) == GREY).all(axis=-1).any()


def test_missing_and_bad_images_are_grey_tiles(tmp_path: Path, pictures: Path) -> None:
    """Row 0 is fine, 1 has no label, the file of 2 is gone, 3 is text."""
    (pictures / "2.png").unlink()
    (pictures / "3.png").write_text("not a picture")
    output = make_output(
        str(tmp_path),
        tasks=("depth",),
        rows=(4,),
        uri=lambda _file, row: str(pictures / f"{row}.png"),
        status=lambda _task, row: "no_person" if row == 1 else "ok",
    )
    path = preview(output.uri, tmp_path / "sheet.png", where="row < 2")
    sheet = read(path)
    assert (tile(sheet, 1, 0) == BLUE).all() and is_grey(tile(sheet, 1, 1))
    assert not is_grey(tile(sheet, 0, 1))
    gone = read(preview(output.uri, path, where="row >= 2"))
    for row in range(2):
        # the map's own proportions, 12 x 9: as tall as a tile may be
        assert is_grey(tile(gone, row, 0, height=640)) and not is_grey(tile(gone, row, 1, height=640))


def test_a_row_without_anything_to_draw_is_a_low_strip(tmp_path: Path) -> None:
    output = make_output(str(tmp_path), tasks=("depth",), rows=(1,), status=lambda _task, _row: "unreadable")
    sheet = read(preview(output.uri, tmp_path / "sheet.png"))
    legend = GAP + LINE
    assert sheet.shape[0] == LINE + GAP + 4 * LINE + LINE + GAP + legend


def test_classes_have_a_legend_in_their_colours(tmp_path: Path, pictures: Path) -> None:
    output = make_output(str(tmp_path), tasks=("seg",), rows=(1,), uri=lambda _file, _row: str(pictures / "0.png"))
    sheet = read(preview(output.uri, tmp_path / "sheet.png"))
    legend = sheet[LINE + GAP + 360 + LINE + GAP :].reshape(-1, 3)
    colours = {tuple(int(c) for c in colour) for colour in np.unique(legend, axis=0)}
    assert {colour for _, colour in seg.GOLIATH} <= colours


@pytest.mark.parametrize(
    ("label", "caption"),
    [
        ("not labelled yet", ""),  # the tile says so
        ({"status": "ok"}, "ok"),
        ({"status": "ok", "confidence": 0.876}, "confidence 0.88"),
        ({"status": "no_person", "people": []}, "no_person"),
        ({"status": "ok", "people": [{"bbox_score": 0.5}, {"bbox_score": 0.75}]}, "2 people, best box 0.75"),
        ({"status": "ok", "people": [{"bbox_score": None}]}, "1 person"),  # a whole frame has no score
    ],
)
def test_a_caption_says_how_sure_a_label_is(label: dict[str, Any] | str, caption: str) -> None:
    assert _caption(label) == caption


def test_tasks_stand_in_the_same_order_on_every_sheet(tmp_path: Path) -> None:
    """People, then what their pixels are."""
    output = make_output(str(tmp_path), tasks=("depth", "normal", "seg"), rows=(1,))
    columns, _ = look(output.uri, limit=1, where=None, storage=None)
    assert [column.task.name for column in columns] == ["seg", "depth", "normal"]


def test_a_sheet_is_no_wider_than_a_screen(tmp_path: Path, pictures: Path) -> None:
    output = make_output(
        str(tmp_path), tasks=tuple(CHANNELS), rows=(1,), uri=lambda _file, _row: str(pictures / "0.png")
    )
    assert read(preview(output.uri, tmp_path / "sheet.png")).shape[1] <= WIDTH


def test_embedded_pictures_are_read_from_the_manifest(tmp_path: Path, pictures: Path) -> None:
    data = (pictures / "0.png").read_bytes()
    output = make_output(
        str(tmp_path), tasks=("depth",), rows=(2,), uri=lambda _file, _row: None, embed=lambda _file, _row: data
    )
    assert (tile(read(preview(output.uri, tmp_path / "sheet.png")), 1, 0) == BLUE).all()


def test_relative_uris_are_found(tmp_path: Path, pictures: Path) -> None:
    output = make_output(str(tmp_path), tasks=("depth",), rows=(1,), uri=lambda _file, _row: "pictures/0.png")
    assert (tile(read(preview(output.uri, tmp_path / "sheet.png")), 0, 0) == BLUE).all()


def test_limit_and_where_choose_the_images(tmp_path: Path, pictures: Path) -> None:
    """`confidence` is a column of seg alone; the other tasks' maps of the same images are drawn beside it."""
    output = make_output(
        str(tmp_path), tasks=("depth", "seg"), rows=(3,), uri=lambda _file, row: str(pictures / f"{row}.png")
    )
    path = preview(output.uri, tmp_path / "new" / "sheet.png", limit=2, where="confidence > 0.5 and row > 0")
    one = preview(output.uri, tmp_path / "one.png", limit=1, where="row > 0")
    assert read(path).shape[0] - read(one).shape[0] == 360 + LINE + GAP
    several = preview(output.uri, path, where="seg.confidence > 0.5 and depth.depth_scale == 0.5 and row == 2")
    assert read(several).shape == read(one).shape
    with pytest.raises(InvalidInputError, match=r"columns are .*seg\.confidence"):
        preview(output.uri, path, where="seg.size > 3")
    with pytest.raises(InvalidInputError, match="size"):
        preview(output.uri, path, where="size > 3")
    with pytest.raises(OutputError, match="no label to draw matches"):
        preview(output.uri, path, where="row > 1000")


def test_a_task_that_has_not_come_so_far_is_drawn_as_such(tmp_path: Path, pictures: Path) -> None:
    output = make_output(
        str(tmp_path),
        tasks=("depth", "seg"),
        rows=(1,),
        skip=[("depth", 0)],
        uri=lambda _file, _row: str(pictures / "0.png"),
    )
    sheet = read(preview(output.uri, tmp_path / "sheet.png"))
    assert is_grey(tile(sheet, 0, 2)) and not is_grey(tile(sheet, 0, 1))  # seg stands before depth


def test_an_output_without_labels_is_refused(tmp_path: Path) -> None:
    output = make_output(str(tmp_path), tasks=("seg",), rows=(1,), skip=[("seg", 0)])
    with pytest.raises(OutputError, match="no label to draw"):
        preview(output.uri, tmp_path / "sheet.png")
    with pytest.raises(OutputError):
        preview(str(tmp_path / "elsewhere"), tmp_path / "sheet.png")


@pytest.mark.s3
def test_a_sheet_is_drawn_from_s3(tmp_path: Path, pictures: Path, moto_s3: StorageOptions, s3_bucket: str) -> None:
    storage = Storage(options=moto_s3)
    storage.replace((pictures / "0.png").read_bytes(), f"{s3_bucket}/manifest/p.png", output=s3_bucket)
    output = make_output(s3_bucket, storage, tasks=("normal",), rows=(1,), uri=lambda _file, _row: "p.png")
    sheet = read(preview(output.uri, tmp_path / "sheet.png", storage=storage))
    assert (tile(sheet, 0, 0) == BLUE).all() and not is_grey(tile(sheet, 0, 1))
