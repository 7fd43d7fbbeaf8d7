"""The same work as the reference's demo scripts do it, with a network that is free; the baseline of bench_engine.

    python -m tests.bench.demo_script CORPUS OUT [--images N]      prints CPU seconds an image

Written from a description of what those scripts do (sapiens-v1.md, section 9, with 3 and 4), not from their code:
one pass over all images for each of seg, depth and normal; per image OpenCV decoding, a stretch to 1024x768, float32
normalisation on the CPU; batches of one fixed size, the last padded with zeros; the raw output as float32 on the host;
there upsampling to the image's size, then argmax or normalisation, .npy files and a picture of input and result.

Kind to the baseline: one process, so that nothing is pickled from one to another, and no copy from a device.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from annotator.tasks.seg import COLOURS
from tests.bench.null_labels import INPUT_HW, outputs

BATCH = 8
MEAN_RGB, STD_RGB = (123.5, 116.5, 103.5), (58.5, 57.0, 57.5)  # sapiens-v1.md 3, "lite"
GREY = 100  # background of pictures: sapiens-v1.md 4.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    paths = sorted(args.corpus.rglob("*.jpg"))[: args.images]
    raw = outputs()
    start = time.process_time()
    with torch.inference_mode():
        for task, save in (("seg", save_seg), ("depth", save_depth), ("normal", save_normal)):
            (args.out / task).mkdir(parents=True, exist_ok=True)
            for batch in batches(paths):
                output_BChw = forward(raw[task], batch).cpu()
                for (path, picture_YXC, _), output_Chw in zip(batch, output_BChw, strict=False):
                    save(args.out, path.stem, picture_YXC, output_Chw)
    print((time.process_time() - start) / len(paths))


def batches(paths: list[Path]) -> Iterator[list[tuple[Path, np.ndarray, Tensor]]]:
    """Yield path, picture (BGR) and normalised input of so many images at a time."""
    for first in range(0, len(paths), BATCH):
        batch = []
        for path in paths[first : first + BATCH]:
            picture_YXC = cv2.imread(str(path))
            resized_HWC = cv2.resize(picture_YXC, INPUT_HW[::-1], interpolation=cv2.INTER_LINEAR)
            input_CHW = torch.from_numpy(resized_HWC.transpose(2, 0, 1)[[2, 1, 0]]).float()
            mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (MEAN_RGB, STD_RGB))
            batch.append((path, picture_YXC, (input_CHW - mean) / std))
        yield batch


def forward(raw_1Chw: Tensor, batch: list[tuple[Path, np.ndarray, Tensor]]) -> Tensor:
    """Return the null network's output of a batch, padded with zeros to the fixed size."""
    inputs_BCHW = torch.stack([image for _, _, image in batch])
    padding = BATCH - len(batch)
    if padding:
        inputs_BCHW = F.pad(inputs_BCHW, (0, 0, 0, 0, 0, 0, 0, padding))
    return raw_1Chw.expand(len(inputs_BCHW), -1, -1, -1)


def save_seg(out: Path, name: str, picture_YXC: np.ndarray, output_Chw: Tensor) -> None:
    logits_CYX = upsample(output_Chw, picture_YXC)
    ids_YX = logits_CYX.argmax(dim=0).numpy()
    np.save(out / "seg" / f"{name}.npy", ids_YX > 0)
    np.save(out / "seg" / f"{name}_seg.npy", ids_YX)
    colours_YXC = COLOURS[:, ::-1][ids_YX]
    blend_YXC = cv2.addWeighted(picture_YXC, 0.5, np.ascontiguousarray(colours_YXC), 0.5, 0)
    cv2.imwrite(str(out / "seg" / f"{name}.jpg"), np.concatenate([picture_YXC, blend_YXC], axis=1))


def save_depth(out: Path, name: str, picture_YXC: np.ndarray, output_Chw: Tensor) -> None:
    depth_YX = upsample(output_Chw, picture_YXC)[0].numpy()
    np.save(out / "depth" / f"{name}.npy", depth_YX)
    mask_YX = np.load(out / "seg" / f"{name}.npy")
    inside = depth_YX[mask_YX]
    near_YX = np.zeros_like(depth_YX)
    near_YX[mask_YX] = 1 - (inside - inside.min()) / (inside.max() - inside.min())
    shown_YXC = cv2.applyColorMap((near_YX * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    shown_YXC[~mask_YX] = GREY
    across_YX = cv2.Sobel(depth_YX, cv2.CV_32F, 1, 0, ksize=7)
    down_YX = cv2.Sobel(depth_YX, cv2.CV_32F, 0, 1, ksize=7)
    normal_YXC = np.dstack([-across_YX, -down_YX, np.ones_like(depth_YX)])
    normal_YXC /= np.linalg.norm(normal_YXC, axis=2, keepdims=True)
    panel_YXC = ((normal_YXC + 1) / 2 * 255).astype(np.uint8)[..., ::-1]
    cv2.imwrite(str(out / "depth" / f"{name}.jpg"), np.concatenate([picture_YXC, shown_YXC, panel_YXC], axis=1))


def save_normal(out: Path, name: str, picture_YXC: np.ndarray, output_Chw: Tensor) -> None:
    normal_YXC = upsample(output_Chw, picture_YXC).permute(1, 2, 0).numpy()
    normal_YXC = normal_YXC / (np.linalg.norm(normal_YXC, axis=2, keepdims=True) + 1e-5)
    np.save(out / "normal" / f"{name}.npy", normal_YXC)
    shown_YXC = ((normal_YXC + 1) / 2 * 255).astype(np.uint8)[..., ::-1]
    cv2.imwrite(str(out / "normal" / f"{name}.jpg"), np.concatenate([picture_YXC, shown_YXC], axis=1))


def upsample(output_Chw: Tensor, picture_YXC: np.ndarray) -> Tensor:
    """Return the output at the picture's size, bilinear (sapiens-v1.md 4.1, "lite")."""
    return F.interpolate(output_Chw[None], size=picture_YXC.shape[:2], mode="bilinear", align_corners=False)[0]


if __name__ == "__main__":
    main()
