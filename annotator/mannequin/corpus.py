"""Pictures of mannequins as files, with a manifest and a table of everything that is true of them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from annotator import png
from annotator.errors import InvalidInputError, OutputError
from annotator.manifest_build import build_manifest
from annotator.mannequin.body import KEYPOINTS
from annotator.mannequin.render import Picture, render
from annotator.mannequin.scene import natural_size, sample_scene, whole_view
from annotator.tasks.normal import AXES
from annotator.tasks.seg import COLOURS, GOLIATH

TRUTH = "truth.parquet"
_LONG_SIDE = (241, 640)  # pixels, least and most
_JPEG, _TURNED = 0.6, 0.4  # shares: of JPEG files among all, of those with a rotation in EXIF
_TURNS = {3: 2, 6: 1, 8: 3}  # EXIF orientation: quarter turns to the left that the camera stored the picture with
_ROWS_AT_ONCE = 32
_MILLIMETRE = 1000.0

_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), metadata={"description": "of the picture, as in the manifest"}),
        pa.field("width", pa.int32(), metadata={"description": "after EXIF rotation", "unit": "pixel"}),
        pa.field("height", pa.int32(), metadata={"description": "after EXIF rotation", "unit": "pixel"}),
        pa.field("orientation", pa.int8(), metadata={"description": "EXIF orientation of the file, 1 upright"}),
        pa.field(
            "people",
            pa.list_(
                pa.struct(
                    [
                        pa.field("bbox_xyxy", pa.list_(pa.float32(), 4)),
                        pa.field("keypoints", pa.list_(pa.list_(pa.float32(), 3), len(KEYPOINTS))),
                    ]
                )
            ),
            metadata={
                "description": "everybody who is seen: a box round all pixels of theirs; COCO's 17 keypoints, "
                "x, y and visibility: 2 seen, 1 hidden, 0 outside the picture"
            },
        ),
        pa.field("parts", pa.binary(), metadata={"description": "8-bit palette PNG of the ids of seg's 28 classes"}),
        pa.field("depth", pa.binary(), metadata={"description": "16-bit gray PNG of millimetres, 0 where nobody is"}),
        pa.field(
            "normal",
            pa.binary(),
            metadata={"description": f"8-bit RGB PNG, stored / 255 * 2 - 1, {AXES}; (0, 0, 0) where nobody is"},
        ),
    ],
    metadata={"keypoints": ", ".join(KEYPOINTS), "classes": ", ".join(name for name, _ in GOLIATH)},
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """What was made: `images` pictures of `people` mannequins, a manifest of them, and their truth."""

    folder: str
    images: int
    people: int
    manifest: str
    truth: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """What is true of one picture, in pixels of it after EXIF rotation.

    boxes_N4       x1, y1, x2, y2
    keypoints_NK3  x, y and COCO's visibility; the centre of the top left pixel is (0, 0)
    parts_YX       uint8 class ids;  depth_YX float32 metres, 0 where nobody is
    normals_YXC    float32 unit vectors on the axes of normal labels, 0 where nobody is
    """

    uri: str
    boxes_N4: np.ndarray
    keypoints_NK3: np.ndarray
    parts_YX: np.ndarray
    depth_YX: np.ndarray
    normals_YXC: np.ndarray


def make_images(count: int, seed: int, out: str | Path) -> Made:
    """Write so many pictures of mannequins to a new or empty folder, with a manifest and their truth.

    JPEG and PNG files of many sizes, some with a rotation in EXIF. Equal seeds give equal pictures, and the first
    pictures of a larger count are those of a smaller one. No model was trained on any of them.
    Raises OutputError if the folder holds anything.
    """
    folder = Path(out).resolve()
    if folder.exists() and any(folder.iterdir()):
        raise OutputError(f"{out}: is not empty; name a new folder")
    pictures = folder / "images"
    pictures.mkdir(parents=True, exist_ok=True)
    people: int = 0
    with pq.ParquetWriter(folder / TRUTH, _SCHEMA) as writer:
        for first in range(0, count, _ROWS_AT_ONCE):
            rows: list[dict[str, Any]] = [
                _write(pictures, i, seed) for i in range(first, min(count, first + _ROWS_AT_ONCE))
            ]
            people += sum(len(row["people"]) for row in rows)
            writer.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA))
    built = build_manifest(str(pictures), str(folder / "manifest"))
    return Made(folder=str(folder), images=count, people=people, manifest=built.manifest, truth=str(folder / TRUTH))


def make_picture(seed: int, number: int) -> Picture:
    """Return one picture of the stream of a seed, always the same one."""
    rng = np.random.default_rng((seed, number, 1))  # two numbers are a training stream's: samples.py
    scene = sample_scene(rng)
    return render(scene, whole_view(scene, natural_size(scene, int(rng.integers(*_LONG_SIDE)))), rng)


def _write(folder: Path, number: int, seed: int) -> dict[str, Any]:
    """Write one picture; return its row of the truth."""
    picture = make_picture(seed, number)
    rng = np.random.default_rng((seed, number, 2))
    orientation = 1
    if rng.random() < _JPEG:
        if rng.random() < _TURNED:
            orientation = int(rng.choice(list(_TURNS)))
        stored_YXC = np.rot90(picture.pixels_YXC, _TURNS.get(orientation, 0))
        bgr_YXC = np.ascontiguousarray(stored_YXC[..., ::-1])
        _, code = cv2.imencode(".jpg", bgr_YXC, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(80, 97))])
        path, data = folder / f"{number:06d}.jpg", _with_orientation(code.tobytes(), orientation)
    else:
        path, data = folder / f"{number:06d}.png", png.encode(picture.pixels_YXC)
    path.write_bytes(data)
    return _row(str(path), orientation, picture)


def _row(uri: str, orientation: int, picture: Picture) -> dict[str, Any]:
    height, width = picture.parts_YX.shape
    nobody_YX = picture.parts_YX == 0
    normal_YXC = np.rint((picture.normals_YXC + 1) / 2 * 255).astype(np.uint8)
    normal_YXC[nobody_YX] = 0
    return {
        "uri": uri,
        "width": width,
        "height": height,
        "orientation": orientation,
        "people": [
            {"bbox_xyxy": box_4.tolist(), "keypoints": points_K3.tolist()}
            for box_4, points_K3 in zip(picture.boxes_N4, picture.keypoints_NK3, strict=True)
            if box_4[2] > 0
        ],
        "parts": png.encode(picture.parts_YX, palette=COLOURS),
        "depth": png.encode(np.rint(picture.depth_YX * _MILLIMETRE).astype(np.uint16)),
        "normal": png.encode(normal_YXC),
    }


def _with_orientation(jpeg: bytes, orientation: int) -> bytes:
    """Return the JPEG with that orientation in EXIF (EXIF 2.32, tag 274); itself for 1."""
    if orientation == 1:
        return jpeg
    tags = struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 274, 3, 1, orientation, 0, 0)
    body = b"Exif\0\0" + tags
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def read_truth(folder: str | Path) -> Iterator[Truth]:
    """Yield the truth of each picture of a folder that make_images wrote, in order.

    Raises InvalidInputError if there is none.
    """
    path = Path(folder) / TRUTH
    if not path.is_file():
        raise InvalidInputError(f"{path}: not there; name a folder that `annotator demo make-images` wrote")
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_ROWS_AT_ONCE):
            yield from (_truth(row) for row in batch.to_pylist())


def _truth(row: dict[str, Any]) -> Truth:
    people = row["people"]
    parts_YX, depth_YX, normal_YXC = (png.decode(row[name]) for name in ("parts", "depth", "normal"))
    people_YX = parts_YX > 0
    return Truth(
        uri=row["uri"],
        boxes_N4=np.array([p["bbox_xyxy"] for p in people], np.float32).reshape(-1, 4),
        keypoints_NK3=np.array([p["keypoints"] for p in people], np.float32).reshape(-1, len(KEYPOINTS), 3),
        parts_YX=parts_YX,
        depth_YX=depth_YX.astype(np.float32) / np.float32(_MILLIMETRE),
        normals_YXC=np.where(people_YX[..., None], normal_YXC.astype(np.float32) / 255 * 2 - 1, 0),
    )
