"""Secrets never reach a message, and what is no secret stays readable."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotator.errors import StorageError, redact


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:S3CRET@host/a.jpg", "https://host/a.jpg"),
        ("https://S3CRET@host/a.jpg", "https://host/a.jpg"),
        ("https://key:S3C/RET@host/a.png", "https://host/a.png"),
        ("s3://AKIA:S3CRET@bucket/key: not found", "s3://bucket/key: not found"),
        ("https://host/a.jpg?X-Amz-Signature=S3CRET: timed out", "https://host/a.jpg timed out"),
        ("'https://host/it is a.png?sig=S3CRET' failed", "'https://host/it is a.png failed"),
        ("s3://bucket/a.jpg?X-Amz-Signature=S3CRET", "s3://bucket/a.jpg"),
        ("s3://bucket/what?.jpg", "s3://bucket/what?.jpg"),
        ("http://host:8080/@user/a.jpg", "http://host:8080/@user/a.jpg"),
        ("/folder/what?a=b.jpg", "/folder/what?a=b.jpg"),
        ("is it https://host/a.jpg ? yes", "is it https://host/a.jpg ? yes"),
    ],
)
def test_user_info_and_queries_are_cut(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert str(StorageError(text)) == shown


TEXT = st.text(st.characters(codec="ascii", exclude_characters="\n@?#/:"), min_size=1).filter(str.strip)


@given(
    host=st.from_regex(r"[a-z]{1,8}", fullmatch=True), path=TEXT, secret=st.from_regex(r"S3CRET\w{1,8}", fullmatch=True)
)
def test_no_secret_survives_in_a_uri(host: str, path: str, secret: str) -> None:
    for uri in (
        f"https://{host}/{path}?sig={secret}",
        f"https://u:{secret}@{host}/{path}",
        f"s3://{host}/{path}?k={secret}",
    ):
        assert secret not in redact(f"cannot read {uri}: gone")
