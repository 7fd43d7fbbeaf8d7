"""Images and their labels side by side, for people to look at: a contact sheet (PNG, JPEG) or a page (HTML)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.compute as pc

from annotator.errors import InvalidInputError, OutputError
from annotator.labels.look import GREY, PICTURE_SIDE, Column, Shown, look, resize
from annotator.labels.page import make_page
from annotator.storage import Storage

WIDTH = 2000  # pixels of a sheet, at most
MAX_TILE_WIDTH = PICTURE_SIDE
GAP = 8
LINE = 24  # height of a line of text
_SWATCH = 14

_INK, _PAPER = (40, 40, 40), (255, 255, 255)
_FONT, _SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.5
_SUFFIXES = (".png", ".jpg", ".jpeg", ".html", ".htm")


def preview(
    output: str,
    path: str | Path,
    *,
    limit: int = 24,
    where: str | pc.Expression | None = None,
    storage: Storage | None = None,
) -> Path:
    """Draw the first `limit` labelled images that match `where`, and return the path; its suffix says as what.

    A contact sheet (.png, .jpg) has one row an image: the original, then each task's label, and a legend. A page
    (.html) has the same with scores and a filter box, in one file that any browser opens without a network.
    `where` is a filter on the columns of one task, or on those of several: `"seg.confidence > 0.9"`.
    Original images are read again; one that can't be, or a row without a label, is a grey tile that says why.
    Raises OutputError if the output has no such label or the file can't be written, InvalidInputError for another
    suffix, or if no task has where's columns.
    """
    target = Path(path)
    if target.suffix.lower() not in _SUFFIXES:
        raise InvalidInputError(f"{target}: unknown suffix; expected {', '.join(_SUFFIXES)}")
    columns, shown = look(output, limit=limit, where=where, storage=storage)
    if target.suffix.lower() in (".html", ".htm"):
        data = make_page(output, columns, shown, where=None if where is None else str(where)).encode()
    else:
        data = _make_sheet(columns, shown, ".png" if target.suffix.lower() == ".png" else ".jpg")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    except OSError as err:
        raise OutputError(f"{target}: can't be written ({err.strerror}); name another file") from None
    return target


def _make_sheet(columns: Sequence[Column], shown: Iterable[Shown], kind: str) -> bytes:
    width = min(MAX_TILE_WIDTH, (WIDTH - GAP) // (1 + len(columns)) - GAP)
    strips = [_header(["image", *(column.title for column in columns)], width)]
    strips += [_strip(image, columns, width) for image in shown]
    sheet = np.vstack([*strips, _legend(columns, strips[0].shape[1])])
    done, encoded = cv2.imencode(kind, cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    assert done, f"cv2 could not encode a {kind}"
    return bytes(encoded.tobytes())


def _strip(image: Shown, columns: Sequence[Column], width: int) -> np.ndarray:
    """Return one row of the sheet: the original and a tile a task, captions below."""
    box_hw, fit_hw = _sizes(image.size_yx, width)
    picture = image.picture if isinstance(image.picture, str) else resize(image.picture, fit_hw)
    contents = [picture, *(column.draw(image.labels[column.task.name], picture, fit_hw) for column in columns)]
    captions = [image.name, *(_caption(image.labels[column.task.name]) for column in columns)]
    if all(isinstance(content, str) for content in contents):
        box_hw = 4 * LINE, width
    canvas = _canvas(len(contents), box_hw[0] + LINE + GAP, width)
    for i, (content, caption) in enumerate(zip(contents, captions, strict=True)):
        left = GAP + i * (width + GAP)
        canvas[: box_hw[0], left : left + width] = _tile(content, box_hw)
        _write(canvas, caption, left, box_hw[0] + LINE - 6, width)
    return canvas


def _caption(label: dict[str, Any] | str) -> str:
    """Return what a label says in a few words: how sure it is, or how many people it has."""
    if isinstance(label, str):
        return ""
    if label.get("confidence") is not None:
        return f"confidence {label['confidence']:.2f}"
    people = label.get("people")
    if not people:
        return str(label["status"])
    scores = [person["bbox_score"] for person in people if person["bbox_score"] is not None]
    found = f"{len(people)} person" if len(people) == 1 else f"{len(people)} people"
    return f"{found}, best box {max(scores):.2f}" if scores else found


def _legend(columns: Sequence[Column], width: int) -> np.ndarray:
    """Return what colours mean: a line a task, and the names of its classes on their colours."""
    lines: list[list[tuple[str, tuple[int, int, int] | None]]] = []
    at = width
    for column in columns:
        lines.append([(f"{column.title}: {column.how_drawn}", None)])
        at = width
        for entry in column.classes:
            needed = _SWATCH + GAP + _text_width(entry["name"]) + 2 * GAP
            if at + needed > width:
                lines.append([])
                at = GAP
            lines[-1].append((entry["name"], tuple(entry["color_rgb"])))
            at += needed
    canvas = np.full((GAP + LINE * len(lines), width, 3), _PAPER, np.uint8)
    for number, line in enumerate(lines):
        left, baseline = GAP, LINE * (number + 1) - 6
        for text, colour in line:
            if colour is not None:
                canvas[baseline - _SWATCH + 3 : baseline + 3, left : left + _SWATCH] = colour
                left += _SWATCH + GAP
            _write(canvas, text, left, baseline, width - left - GAP)
            left += _text_width(text) + 2 * GAP
    return canvas


def _header(titles: Sequence[str], width: int) -> np.ndarray:
    canvas = _canvas(len(titles), LINE + GAP, width)
    for i, title in enumerate(titles):
        _write(canvas, title, GAP + i * (width + GAP), LINE, width)
    return canvas


def _canvas(num_tiles: int, height: int, width: int) -> np.ndarray:
    return np.full((height, GAP + num_tiles * (width + GAP), 3), _PAPER, np.uint8)


def _sizes(image_yx: tuple[int, int], width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return height and width of the tile, and of the image in it. Very tall ones are narrower than the tile."""
    ratio = image_yx[0] / image_yx[1]
    box_hw = round(width * min(max(ratio, 1 / 4), 4 / 3)), width
    scale = min(box_hw[0] / image_yx[0], box_hw[1] / image_yx[1])
    return box_hw, (max(1, round(image_yx[0] * scale)), max(1, round(image_yx[1] * scale)))


def _tile(content: np.ndarray | str, box_hw: tuple[int, int]) -> np.ndarray:
    """Return the picture in the middle of a grey tile, or the text on it."""
    tile = np.full((*box_hw, 3), GREY, np.uint8)
    if isinstance(content, str):
        inner = box_hw[1] - 2 * GAP
        for i, line in enumerate(_wrap(content, inner)[: max(1, (box_hw[0] - GAP) // LINE)], start=1):
            _write(tile, line, GAP, GAP + LINE * i - 6, inner)
        return tile
    height, width = content.shape[:2]
    top, left = (box_hw[0] - height) // 2, (box_hw[1] - width) // 2
    tile[top : top + height, left : left + width] = content
    return tile


def _write(canvas: np.ndarray, text: str, left: int, baseline: int, width: int) -> None:
    """Write one line of text in place, shortened to the width."""
    text = _printable(text)
    while len(text) > 4 and _text_width(text) > width:
        text = text[: len(text) - 4] + "..."
    cv2.putText(canvas, text, (left, baseline), _FONT, _SCALE, _INK, 1, cv2.LINE_AA)


def _wrap(text: str, width: int) -> list[str]:
    """Return the text in lines of at most this many pixels, long words cut."""
    lines = [""]
    for word in _printable(text).split():
        while _text_width(word) > width:
            cut = next(i for i in range(len(word), 0, -1) if i == 1 or _text_width(word[:i]) <= width)
            lines, word = [*lines, word[:cut]], word[cut:]
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if _text_width(longer) <= width else [*lines, word]
    return [line for line in lines if line]


def _text_width(text: str) -> int:
    return int(cv2.getTextSize(text, _FONT, _SCALE, 1)[0][0])


def _printable(text: str) -> str:
    """Return the text in the characters that cv2 can draw."""
    return text.encode("ascii", "replace").decode().replace("\n", " ")
