"""The least that must be done for seg, depth and normal maps of a folder of JPEGs, when the network is free.

    python -m tests.bench.bare_loop CORPUS OUT [--images N]      prints CPU seconds an image

One process, one thread: read, decode, resize to the network's input, encode each map as PNG, write them as Parquet.
No limits, no damage, no rows for bad images, no atomic commit, no resume, no batches, no report.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg

from annotator import png
from annotator.tasks.seg import COLOURS
from tests.bench.null_labels import INPUT_HW, labels

SHARD_ROWS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    paths = sorted(args.corpus.rglob("*.jpg"))[: args.images]
    pixels = simplejpeg.decode_jpeg(paths[0].read_bytes(), "RGB")
    maps = labels(pixels.shape[:2])
    start = time.process_time()
    for first in range(0, len(paths), SHARD_ROWS):
        run_shard(paths[first : first + SHARD_ROWS], maps, args.out, f"{first:06d}.parquet")
    print((time.process_time() - start) / len(paths))


def run_shard(paths: list[Path], maps: dict[str, np.ndarray], out: Path, name: str) -> None:
    """Do one shard, and write one file a task."""
    found: dict[str, list[bytes]] = {task: [] for task in maps}
    for path in paths:
        pixels_YXC = simplejpeg.decode_jpeg(path.read_bytes(), "RGB", strict=True)
        cv2.resize(pixels_YXC, INPUT_HW[::-1], interpolation=cv2.INTER_LINEAR)
        found["seg"].append(png.encode(maps["seg"], palette=COLOURS[:28]))
        found["depth"].append(png.encode(maps["depth"]))
        found["normal"].append(png.encode(maps["normal"]))
    for task, encoded in found.items():
        (out / task).mkdir(parents=True, exist_ok=True)
        table = pa.table({"row": range(len(encoded)), "map": encoded})
        pq.write_table(table, out / task / name, compression="NONE", use_dictionary=False, write_statistics=False)


if __name__ == "__main__":
    main()
