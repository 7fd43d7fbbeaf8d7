"""A page of images and their labels: one HTML file, complete in itself, for any browser, online or not.

Why a template (2026-11): ids, uris and error texts come from strangers' manifests. jinja2 escapes every one of them,
and a content security policy lets the page run its own script alone and load nothing, whatever a text holds.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

import cv2
import numpy as np

from annotator.envelope import Status
from annotator.labels.look import Column, Shown, resize
from annotator.tasks.pose import DRAWN_SCORE

_THUMB = 400  # pixels of a thumbnail's longer side
_JPEG_QUALITY = 80
_TOP_CLASSES = 8
_MAX_PEOPLE = 5


def make_page(output: str, columns: Sequence[Column], shown: Iterable[Shown], *, where: str | None) -> str:
    """Return the page: a card an image with thumbnails, status and scores, a filter box, and what colours mean."""
    import jinja2

    folder = resources.files("annotator.labels")
    script = folder.joinpath("page.js").read_text(encoding="ascii")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(folder.joinpath("page.html").read_text(encoding="ascii"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return template.render(
        output=output,
        where=where,
        columns=columns,
        cards=[_card(image, columns) for image in shown],
        script=script,
        script_digest=digest,
        style=folder.joinpath("page.css").read_text(encoding="ascii"),
    )


def _card(image: Shown, columns: Sequence[Column]) -> dict[str, Any]:
    """Return what the template shows of one image."""
    height, width = image.size_yx
    scale = min(1, _THUMB / max(height, width))
    thumb_hw = max(1, round(height * scale)), max(1, round(width * scale))
    picture = image.picture if isinstance(image.picture, str) else resize(image.picture, thumb_hw)
    labels = [(column, image.labels[column.task.name]) for column in columns]
    tiles = [_tile("image", picture, thumb_hw)]
    tiles += [_tile(c.task.name, c.draw(label, picture, thumb_hw), thumb_hw, label, c) for c, label in labels]
    is_missing = all(tile["data"] is None for tile in tiles)
    first = next(iter(image.rows), {})
    statuses = sorted({row["status"] for row in image.rows})
    names = [name for column, label in labels if not isinstance(label, str) for name in _classes(label, column)]
    texts = [image.name, first.get("image_id"), first.get("uri"), *(row["error"] for row in image.rows)]
    return {
        "name": image.name,
        "place": f"{image.shard.key} row {image.row}",
        "image_id": first.get("image_id"),
        "uri": first.get("uri"),
        "size": f"{first['width']} x {first['height']}" if first.get("width") else None,
        "statuses": statuses,
        # of a row that is not ok the tile says why
        "notes": sorted({row["error"] for row in image.rows if row["error"] and row["status"] == Status.OK.value}),
        "missing": tiles[0]["reason"] if is_missing else None,
        "tiles": [] if is_missing else tiles,
        "words": " ".join(str(text) for text in (*texts, *statuses, *names) if text).lower(),
    }


def _tile(
    title: str,
    content: np.ndarray | str,
    thumb_hw: tuple[int, int],
    label: dict[str, Any] | str = "",
    column: Column | None = None,
) -> dict[str, Any]:
    """Return what the template shows of one picture: its bytes or the reason why there are none, and its scores."""
    row = {} if isinstance(label, str) else label
    return {
        "title": title,
        "status": row.get("status", ""),
        "facts": _facts(row),
        "shares": _shares(row, column) if column is not None else [],
        "data": None if isinstance(content, str) else _jpeg(content),
        "reason": content if isinstance(content, str) else None,
        "height": thumb_hw[0],
        "width": thumb_hw[1],
    }


def _jpeg(picture: np.ndarray) -> str:
    """Return the picture as a JPEG in base 64."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    done, encoded = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), quality)
    assert done, "cv2 could not encode a .jpg"
    return base64.b64encode(encoded.tobytes()).decode()


def _facts(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a label says in few words: its own columns that are one number, its size, its people."""
    shared = {"row", "width", "height", "map_width", "map_height"}
    facts = [
        (name, f"{value:.4g}")
        for name, value in row.items()
        if name not in shared and isinstance(value, (int, float)) and not isinstance(value, bool)
    ]
    if row.get("map_width"):
        facts.append(("map", f"{row['map_width']} x {row['map_height']}"))
    people = row.get("people") or ()
    facts += [(f"person {number}", _person(person)) for number, person in enumerate(people[:_MAX_PEOPLE], start=1)]
    return facts if len(people) <= _MAX_PEOPLE else [*facts, ("and", f"{len(people) - _MAX_PEOPLE} more")]


def _person(person: Mapping[str, Any]) -> str:
    parts = []
    if person.get("bbox_score") is not None:
        parts.append(f"box {person['bbox_score']:.2f}")
    if scores := person.get("keypoint_scores"):
        seen = sum(score >= DRAWN_SCORE for score in scores)
        parts.append(f"{seen} of {len(scores)} keypoints")
    return ", ".join([*parts, *([str(person["error"])] if person.get("error") else [])]) or "found"


def _classes(row: Mapping[str, Any], column: Column) -> list[str]:
    """Return the names of all classes that a map has."""
    counts = row.get("class_pixels") or ()
    return [entry["name"] for entry, count in zip(column.classes, counts, strict=False) if count]


def _shares(row: Mapping[str, Any], column: Column) -> list[dict[str, Any]]:
    """Return the classes that cover most of a map, with their share in percent and colour."""
    counts = row.get("class_pixels")
    if not counts or not column.classes:
        return []
    total = sum(counts) or 1
    best = sorted(range(len(counts)), key=lambda i: -counts[i])[:_TOP_CLASSES]
    return [
        {
            "name": column.classes[i]["name"],
            "percent": f"{100 * counts[i] / total:.1f}",
            "colour": "#{:02x}{:02x}{:02x}".format(*column.classes[i]["color_rgb"]),
        }
        for i in best
        if counts[i]
    ]
