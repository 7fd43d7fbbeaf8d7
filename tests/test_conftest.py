"""The shared fixtures keep their promises."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from annotator.job import StorageOptions


@pytest.mark.s3
def test_a_bucket_is_there_and_empty_with_credentials_set(s3_bucket: str, moto_s3: StorageOptions) -> None:
    import boto3

    client = boto3.client("s3", endpoint_url=moto_s3.endpoint_url)
    try:
        assert client.list_objects_v2(Bucket=s3_bucket.removeprefix("s3://"))["KeyCount"] == 0
    finally:
        client.close()


def test_a_test_without_s3_sees_no_credentials() -> None:
    assert not {"AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_ENDPOINT_URL"} & set(os.environ)


def test_at_least_eight_photographs_are_shipped_each_small(photos: list[Path]) -> None:
    assert len(photos) >= 8
    assert max(p.stat().st_size for p in photos) < 150_000


def test_every_photograph_is_listed_with_its_source(photos: list[Path]) -> None:
    listed = (photos[0].parent / "README.md").read_text(encoding="ascii")
    assert [p.name for p in photos if f"`{p.name}`" not in listed] == []
