"""The plan is the manifest minus what is committed, whatever the sizes are."""

from __future__ import annotations

import random
import tracemalloc

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from annotator.manifest import Manifest, PinnedFile
from annotator.planning import make_plan
from annotator.shards import Shard, cut, label_uri, make_file_key, parse_label_uri

ROWS = st.lists(st.integers(0, 400), min_size=0, max_size=5)


def manifest_of(rows: list[int], shard_rows: int) -> Manifest:
    files = tuple(
        PinnedFile(
            key=make_file_key(f"{n}.parquet"), uri=f"/m/{n}.parquet", size=1, etag=None, rows=r, footer_digest=""
        )
        for n, r in enumerate(rows)
    )
    return Manifest(root="/m", shard_rows=shard_rows, where=None, files=files)


def nothing(task: str, file_key: str) -> set[Shard]:
    return set()


@given(ROWS, st.integers(1, 150))
def test_shards_tile_every_file_exactly(rows: list[int], shard_rows: int) -> None:
    manifest = manifest_of(rows, shard_rows)
    plan = make_plan(manifest, ("seg",), nothing)
    found: dict[str, list[int]] = {file.key: [] for file in manifest.files}
    for shard in sorted(plan.shards("seed")):
        assert 0 < shard.end - shard.first <= shard_rows
        found[shard.file_key] += range(shard.first, shard.end)
    assert found == {file.key: list(range(file.rows)) for file in manifest.files}
    assert (plan.total, plan.rows_total, plan.rows_left) == (len(plan), sum(rows), sum(rows))


@given(ROWS, st.integers(1, 150), st.data())
def test_left_is_what_some_task_lacks(rows: list[int], shard_rows: int, data: st.DataObject) -> None:
    manifest = manifest_of(rows, shard_rows)
    every = [shard for file in manifest.files for shard in cut(file.key, file.rows, shard_rows)]
    subsets = st.sets(st.sampled_from(every)) if every else st.just(set[Shard]())
    done = {task: data.draw(subsets) for task in ("seg", "depth")}
    plan = make_plan(manifest, ("seg", "depth"), lambda t, k: {s for s in done[t] if s.file_key == k})
    left = set(every) - (done["seg"] & done["depth"])
    assert set(plan.shards("x")) == left
    assert (len(plan), plan.total, plan.is_done) == (len(left), len(every), not left)
    assert plan.rows_left == sum(shard.end - shard.first for shard in left)


@given(ROWS, st.integers(1, 150), st.text())
def test_the_order_is_a_permutation_and_depends_on_the_seed_alone(rows: list[int], shard_rows: int, seed: str) -> None:
    plan = make_plan(manifest_of(rows, shard_rows), ("seg",), nothing)
    order = list(plan.shards(seed))
    assert order == list(plan.shards(seed))
    assert sorted(order) == sorted(plan.shards("another"))
    assert list(plan.shards(seed, limit=3)) == order[:3]


def test_two_seeds_give_two_orders() -> None:
    plan = make_plan(manifest_of([1000], 1), ("seg",), nothing)
    assert list(plan.shards("a")) != list(plan.shards("b")) != sorted(plan.shards("b"))


@given(ROWS, st.integers(1, 150), st.integers(0, 2500), st.randoms(use_true_random=False))
def test_within_keeps_what_is_left_of_the_shards_that_hold_the_first_rows(
    rows: list[int], shard_rows: int, wanted: int, chance: random.Random
) -> None:
    """Shards done already count: asking for the same first rows twice leaves nothing the second time."""
    manifest = manifest_of(rows, shard_rows)
    shards = [s for file in manifest.files for s in cut(file.key, file.rows, shard_rows)]
    done = {s for s in shards if chance.random() < 0.3}
    plan = make_plan(manifest, ("seg",), lambda task, key: {s for s in done if s.file_key == key}).within(wanted)
    starts = np.cumsum([0, *(s.end - s.first for s in shards)])
    expected = [s for s, start in zip(shards, starts, strict=False) if start < wanted and s not in done]
    assert sorted(plan.shards("any")) == sorted(expected)
    assert plan.rows_left == sum(s.end - s.first for s in expected)


@given(ROWS, st.integers(1, 150), st.integers(0, 2500))
def test_rows_that_are_left_are_those_of_the_shards_that_are_left(
    rows: list[int], shard_rows: int, within: int
) -> None:
    plan = make_plan(manifest_of(rows, shard_rows), ("seg",), nothing).within(within)
    expected = [(s.file_key, row) for s in sorted(plan.shards("x")) for row in range(s.first, s.end)]
    files = plan.manifest.files
    found = [(file.key, row) for i, file in enumerate(files) for row in plan.rows_in(i).tolist()]
    assert sorted(found) == sorted(expected)
    assert plan.rows_by_file().tolist() == [sum(key == file.key for key, _ in found) for file in files]


def test_label_files_of_another_cut_do_not_count() -> None:
    manifest = manifest_of([100], 10)
    key = manifest.files[0].key
    strange = {Shard(key, 0, 20), Shard(key, 5, 15), Shard(key, 100, 110), Shard("other", 0, 10), Shard(key, 90, 110)}
    assert len(make_plan(manifest, ("seg",), lambda t, k: strange)) == 10


def test_ten_million_shards_plan_in_bounded_memory() -> None:
    """12 bytes a shard: 120 MB held, and no more than some copies of it on the way."""
    manifest = manifest_of([64_000_000] * 20, 128)
    tracemalloc.start()
    plan = make_plan(manifest, ("seg",), nothing)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(plan) == 10_000_000
    assert plan.file_index.nbytes + plan.first.nbytes == 120_000_000
    assert peak < 500e6
    assert len(list(plan.shards("x", limit=5))) == 5


@given(st.text(st.characters(codec="utf-8"), min_size=1), st.integers(0, 10**11), st.integers(1, 70_000))
def test_a_label_uri_gives_its_shard_back(path: str, first: int, size: int) -> None:
    shard = Shard(make_file_key(path), first, first + size)
    for output in ("/out", "s3://bucket/out"):
        assert parse_label_uri(output, "seg", label_uri(output, "seg", shard)) == shard
        assert parse_label_uri(output, "depth", label_uri(output, "seg", shard)) is None


def test_file_keys_are_fixed_for_ever() -> None:
    """Label files of existing outputs are found by them."""
    assert make_file_key("part-00000.parquet") == "part-00000-dd32721c"
    assert make_file_key("a/\u00e9t\u00e9 2.PARQUET") != make_file_key("b/\u00e9t\u00e9 2.PARQUET")
    keys = {make_file_key(f"{n}/part.parquet") for n in range(20_000)}
    assert len(keys) > 19_990 and np.all([len(key) < 60 for key in keys])
