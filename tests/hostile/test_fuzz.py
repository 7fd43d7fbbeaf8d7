"""Random damage finds no crash, no hang, no exception but ours, no wrong size, no unwritten or endless memory.

A short look; `python -m tests.bench.fuzz` is the long one, docs/reliability.md what it found.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.bench import fuzz
from tests.hostile.decoder import Decoder
from tests.hostile.mutate import mutate
from tests.hostile.seeds import seed_files

SEEDS = seed_files()
ALL = [data for files in SEEDS.values() for data in files]


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder() as one:
        yield one


@pytest.mark.parametrize("kind", SEEDS)
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), random=st.randoms(use_true_random=False))
def test_a_mutated_file_gives_an_image_or_an_error(
    kind: str, decoder: Decoder, data: st.DataObject, random: Random
) -> None:
    outcome = decoder(mutate(data.draw(st.sampled_from(SEEDS[kind])), ALL, random))
    assert not outcome.is_finding, outcome


def test_the_long_run_makes_the_same_file_for_the_same_number() -> None:
    made = [fuzz.make_file(7, number) for number in range(50)]
    assert made == [fuzz.make_file(7, number) for number in range(50)]
    assert len({data for _, data in made}) > 45


def child(body: str) -> list[str]:
    """Return the command of a child that answers each file by running `body`."""
    start = "import os, sys, time; print('ready', flush=True)"
    loop = f"while sys.stdin.buffer.read(4): sys.stdin.buffer.read(1); {body}"
    return [sys.executable, "-c", f"{start}\n{loop}"]


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("os.kill(os.getpid(), 11)", "crashed"),
        ("sys.exit(0)", "crashed"),
        ("time.sleep(60)", "hung"),
        ('print(\'{"what": "swollen"}\', flush=True)', "swollen"),
    ],
)
def test_a_file_that_ends_the_child_is_a_finding_and_the_next_gets_a_new_child(body: str, what: str) -> None:
    with Decoder(timeout_s=0.5, command=child(body)) as doomed:
        assert [doomed(b"x").what for _ in range(2)] == [what, what]
        assert doomed(b"x").is_finding


def test_what_the_child_must_find_it_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception of any kind, a wrong size, and pixels that nobody wrote."""
    import numpy as np

    from annotator.stages import decode as module
    from annotator.stages.decode import Image
    from tests.hostile.decoder import judge

    def image(height: int) -> Image:
        return Image(pixels_YXC=np.empty((2000, 2000, 3), np.uint8), width=2000, height=height, note=None)

    def fail() -> Image:
        raise KeyError("ours")

    for stand_in, what in ((lambda: image(1999), "wrong"), (lambda: image(2000), "wrong"), (fail, "escaped")):
        monkeypatch.setattr(module, "decode", lambda *_, stand_in=stand_in, **__: stand_in())
        assert judge(b"x")["what"] == what
