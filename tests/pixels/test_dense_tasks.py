"""Segmentation, depth and normals: the reference's numbers, and what becomes of them in a row."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from annotator import png
from annotator.errors import ImageError, JobError
from annotator.geometry import Geometry, resize_to_label, stretch
from annotator.job import parse
from annotator.models.runtime import normalise
from annotator.tasks import Arrays, load_task, seg

GOLDENS = Path(__file__).parent.parent / "goldens" / "pixels"
CHANNELS = {"seg": 28, "depth": 1, "normal": 3}
IMAGE_YX, INPUT_HW = (100, 83), (64, 48)


def golden(task: str) -> dict[str, np.ndarray]:
    """Return arrays that Meta's own modules gave, cut from the shared v1 fixtures to the first image.

    output: the head's; full_output: its channels `full_channels` after the two-step resize to `ori_shape`;
    full_argmax: over all channels; preproc_*: a BGR image (C, H, W) before and after normalisation.
    """
    with np.load(GOLDENS / f"{task}.npz") as stored:
        return dict(stored)


def module_of(task: str) -> Any:
    return importlib.import_module(f"annotator.tasks.{task}")


def options_of(task: str, **options: Any) -> Any:
    return parse(load_task(task).options, {"checkpoint": "none", **options}, task)


def decoded(task: str, output: torch.Tensor, *, image_yx: tuple[int, int] = IMAGE_YX, **options: Any) -> Arrays:
    """Return the label arrays of a head's output, as the worker hands them to `encode`."""
    checked = options_of(task, **options)
    geometry = Geometry(image_yx, INPUT_HW, checked.label_size, checked.max_label_pixels)
    return {k: v.numpy() for k, v in load_task(task).decode(output[None], [geometry], checked)[0].items()}


def row_of(task: str, arrays: Arrays, needed: dict[str, Arrays] | None = None, **options: Any) -> dict[str, Any]:
    needs = {name: [found] for name, found in (needed or {}).items()}
    return load_task(task).encode([arrays], (0, 0), options_of(task, **options), needs)


def random_output(task: str, seed: int = 0) -> torch.Tensor:
    return torch.randn(CHANNELS[task], 32, 24, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("task", CHANNELS)
def test_resized_output_equals_the_reference(task: str) -> None:
    stored = golden(task)
    geometry = Geometry(tuple(stored["ori_shape"].tolist()), tuple(stored["input_hw"].tolist()))
    resized = resize_to_label(torch.from_numpy(stored["output"]), geometry)[stored["full_channels"]]
    np.testing.assert_allclose(resized.numpy(), stored["full_output"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("task", CHANNELS)
def test_network_input_equals_the_reference(task: str) -> None:
    """An image of the input's own size goes through stretch unchanged."""
    stored = golden(task)
    rgb_YXC = np.ascontiguousarray(stored["preproc_in_bgr_u8"][::-1].transpose(1, 2, 0))
    batch = torch.from_numpy(stretch(rgb_YXC, rgb_YXC.shape[:2]))[None]
    found = normalise(batch, torch.float32)[0].numpy()
    np.testing.assert_allclose(found, stored["preproc_out"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("group", [1, 5 * 8300, 2**26])
def test_seg_classes_equal_the_reference(group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many classes are held at once; only where two classes all but tie may the ids differ."""
    monkeypatch.setattr(seg, "_NUMBERS_AT_ONCE", group)
    stored = golden("seg")
    output = torch.from_numpy(stored["output"])
    arrays = decoded("seg", output)
    top = resize_to_label(output, Geometry(IMAGE_YX, INPUT_HW)).topk(2, dim=0).values
    tie = (top[0] - top[1] < 1e-5).numpy()
    assert tie.mean() < 0.001
    np.testing.assert_array_equal(arrays["mask"][~tie], stored["full_argmax"][~tie])
    np.testing.assert_array_equal(arrays["class_pixels"], np.bincount(arrays["mask"].ravel(), minlength=28))


@pytest.mark.parametrize("group", [1, 2**26])
def test_seg_confidence_is_the_mean_probability_over_the_person(group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seg, "_NUMBERS_AT_ONCE", group)
    output = random_output("seg")
    arrays = decoded("seg", output)
    top, ids = resize_to_label(output, Geometry(IMAGE_YX, INPUT_HW)).softmax(dim=0).max(dim=0)
    assert float(arrays["confidence"]) == pytest.approx(float(top[ids > 0].mean()), rel=1e-5)


def test_seg_without_a_person_has_no_confidence() -> None:
    output = torch.zeros(28, 32, 24)
    output[0] = 5
    row = row_of("seg", decoded("seg", output))
    assert row["confidence"] is None
    assert row["class_pixels"] == [8300] + [0] * 27


def test_seg_row_is_a_palette_png_of_class_ids() -> None:
    arrays = decoded("seg", random_output("seg"))
    row = row_of("seg", arrays)
    assert (row["map_width"], row["map_height"]) == (83, 100)
    assert row["mask"]["path"] is None
    assert png.size_and_kind(row["mask"]["bytes"]) == (83, 100, 8, 3)
    ids = seg.load(row)
    np.testing.assert_array_equal(ids, arrays["mask"])
    np.testing.assert_array_equal(seg.paint(ids)[ids == 2], np.broadcast_to((128, 200, 255), ((ids == 2).sum(), 3)))


def test_depth_is_right_to_half_a_step() -> None:
    output = random_output("depth")
    expected = resize_to_label(output, Geometry(IMAGE_YX, INPUT_HW))[0].numpy()
    row = row_of("depth", decoded("depth", output))
    found = load_task("depth").load(row)
    assert found.dtype == np.float32
    step = (expected.max() - expected.min()) / 65534
    assert row["depth_scale"] == pytest.approx(step, rel=1e-5)
    assert np.abs(found - expected).max() <= step / 2 * 1.02
    stored = png.decode(row["depth"]["bytes"])
    assert stored.dtype == np.uint16
    assert (stored.min(), stored.max()) == (1, 65535)


@pytest.mark.parametrize("value", [0.0, -3.5, 1e6])
def test_flat_depth_keeps_its_value(value: float) -> None:
    found = load_task("depth").load(row_of("depth", decoded("depth", torch.full((1, 32, 24), value))))
    np.testing.assert_allclose(found, value, atol=1e-6)


@pytest.mark.parametrize(("bits", "limit"), [(8, 1 / 255), (16, 1 / 65535)])
def test_normals_equal_the_reference_to_half_a_level(bits: int, limit: float) -> None:
    """Resized first, then divided by (length + 1e-5); half a level is 1 / levels of the range -1 to 1."""
    stored = golden("normal")
    unit_CYX = stored["full_output"] / (np.linalg.norm(stored["full_output"], axis=0) + 1e-5)
    expected = unit_CYX.transpose(1, 2, 0)
    row = row_of("normal", decoded("normal", torch.from_numpy(stored["output"]), bits=bits), bits=bits)
    assert png.size_and_kind(row["normal"]["bytes"])[2:] == (bits, 2)
    found = load_task("normal").load(row)
    assert np.abs(found - expected).max() <= limit * 1.02
    assert np.abs(np.linalg.norm(found, axis=2) - np.linalg.norm(expected, axis=2)).max() < 2 * limit


def test_no_unit_normal_is_stored_as_none() -> None:
    """The one nearest to (-1, -1, -1) is (-1, -1, -1) / sqrt 3, stored as 54."""
    arrays = decoded("normal", -torch.ones(3, 32, 24))
    assert (arrays["normal"] == 54).all()


@pytest.mark.parametrize("task", ["depth", "normal"])
def test_background_zero_cuts_away_what_seg_calls_background(task: str) -> None:
    """Seg's map has another size here, and class 0 on its left half."""
    mask = np.zeros((64, 48), np.uint8)
    mask[:, 24:] = 7
    assert load_task(task).needs(options_of(task, background="zero")) == ("seg",)
    assert load_task(task).needs(options_of(task)) == ()
    arrays = decoded(task, random_output(task), background="zero", label_size="input")
    row = row_of(task, arrays, {"seg": {"mask": mask}}, background="zero", label_size="input")
    found = load_task(task).load(row)
    assert np.isnan(found[:, :24]).all() and np.isfinite(found[:, 24:]).all()
    bigger = row_of(task, decoded(task, random_output(task)), {"seg": {"mask": mask}}, background="zero")
    share = np.isnan(load_task(task).load(bigger)).mean()
    assert share == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("task", CHANNELS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_output_that_is_not_finite_fails_that_image(task: str, value: float) -> None:
    output = random_output(task)
    output[0, 3, 4] = value
    with pytest.raises(ImageError) as caught:
        row_of(task, decoded(task, output))
    assert (caught.value.status, caught.value.error_class) == ("failed", "not_finite")


@pytest.mark.parametrize("task", CHANNELS)
def test_rows_fit_the_declared_columns(task: str) -> None:
    fields = load_task(task).fields(options_of(task), CHANNELS[task])
    row = row_of(task, decoded(task, random_output(task)))
    assert set(row) == {f.name for f in fields}
    table = pa.Table.from_pylist([row, dict.fromkeys(row)], schema=pa.schema(fields))
    assert table.num_rows == 2 and all((f.metadata or {}).get(b"description") for f in fields)
    again = load_task(task).load(table.to_pylist()[0])
    np.testing.assert_array_equal(again, load_task(task).load(row))


@pytest.mark.parametrize("task", CHANNELS)
def test_a_row_without_a_map_is_a_type_error(task: str) -> None:
    with pytest.raises(TypeError):
        load_task(task).load({"mask": None, "depth": None, "normal": None})


@pytest.mark.parametrize("task", CHANNELS)
def test_meaning_is_json_and_names_the_licence(task: str) -> None:
    meaning = load_task(task).meaning(options_of(task), CHANNELS[task])
    assert json.loads(json.dumps(meaning)) == meaning
    assert "CC BY-NC 4.0" in meaning["licence"]


def test_axes_of_normals_are_stated_as_inferred() -> None:
    axes = load_task("normal").meaning(options_of("normal"), 3)["axes"]
    assert axes == {"frame": "camera", "directions": "X right, Y up, Z towards the camera", "inferred": True}


def test_taxonomy_has_the_released_names_for_28_channels_and_generic_ones_else() -> None:
    classes = load_task("seg").meaning(options_of("seg"), 28)["classes"]
    assert classes[3] == {"id": 3, "name": "Hair", "color_rgb": [255, 0, 109]}
    assert [c["name"] for c in load_task("seg").meaning(options_of("seg"), 2)["classes"]] == ["class_0", "class_1"]


@pytest.mark.parametrize(
    ("task", "good", "bad"), [("seg", (2, 28, 256), (0, 1, 257)), ("depth", (1,), (3,)), ("normal", (3,), (1,))]
)
def test_head_of_another_task_is_refused(task: str, good: tuple[int, ...], bad: tuple[int, ...]) -> None:
    check = load_task(task).channels
    assert [check(c) for c in good] == [None] * len(good)
    assert all(isinstance(check(c), str) for c in bad)


@pytest.mark.parametrize("task", CHANNELS)
def test_every_value_changing_option_exists(task: str) -> None:
    elsewhere = {"checkpoint", "num_heads", "patch_padding", "input_size"}  # in the fingerprint as weights and model
    own = set(load_task(task).options.model_fields) - elsewhere - {"dense"}  # says where maps lie, not what they are
    assert set(load_task(task).values) == own


@pytest.mark.parametrize(
    ("task", "option"),
    [
        ("seg", {"label_size": "huge"}),
        ("normal", {"bits": 12}),
        ("depth", {"background": "black"}),
        ("seg", {"bits": 8}),
    ],
)
def test_senseless_options_are_refused(task: str, option: dict[str, Any]) -> None:
    with pytest.raises(JobError, match=next(iter(option))):
        options_of(task, **option)


@pytest.mark.parametrize("task", CHANNELS)
def test_paint_gives_a_picture_of_every_map(task: str) -> None:
    label = load_task(task).load(row_of(task, decoded(task, random_output(task))))
    painted = module_of(task).paint(label)
    assert painted.shape == (*IMAGE_YX, 3) and painted.dtype == np.uint8 and painted.std() > 5
    if task == "seg":
        return
    label[:50] = np.nan
    assert len(np.unique(module_of(task).paint(label)[:50])) == 1
    label[:] = np.nan
    assert len(np.unique(module_of(task).paint(label))) == 1


def test_near_is_painted_brighter_than_far() -> None:
    depth = np.broadcast_to(np.linspace(0, 1, 100, dtype=np.float32), (10, 100))
    bright = module_of("depth").paint(depth).sum(axis=2)[0].astype(int)
    assert (np.diff(bright) <= 0).mean() > 0.9 and bright[0] > bright[-1] + 400


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"bits": 16}])
@pytest.mark.parametrize("task", CHANNELS)
def test_gpu_gives_the_labels_that_the_cpu_gives(task: str, options: dict[str, Any]) -> None:
    """Sums run in another order there, so a class may differ at a tie and a number by one level."""
    options = options if task == "normal" else {}
    checked = options_of(task, **options)
    geometry = Geometry(IMAGE_YX, INPUT_HW, checked.label_size, checked.max_label_pixels)
    on_gpu = load_task(task).decode(random_output(task).cuda()[None], [geometry], checked)[0]
    expected = decoded(task, random_output(task), **options)
    for name, array in expected.items():
        assert on_gpu[name].is_cuda
        found = on_gpu[name].cpu().numpy()
        assert found.dtype == array.dtype and found.shape == array.shape
        if name == "mask":
            assert (found != array).mean() < 0.001
        elif name != "class_pixels":
            np.testing.assert_allclose(found.astype(np.float64), array.astype(np.float64), rtol=1e-5, atol=1)
