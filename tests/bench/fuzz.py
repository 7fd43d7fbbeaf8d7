"""Decode mutated pictures in a process of its own; count what becomes of them, keep what finds a fault.

    python -m tests.bench.fuzz --count 100000 --seed 1 [--seconds 360] [--keep FOLDER]

File i of a seed is always the same: `--only 4711` decodes that one alone. Ends with 1 if anything was found: a crash,
an answer that took more than 5 s, an exception that is no ImageError, wrong or uninitialised pixels, too much memory.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

from tests.hostile.decoder import Decoder, Outcome
from tests.hostile.mutate import mutate
from tests.hostile.seeds import seed_files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--keep", type=Path, help="folder for files that find a fault")
    parser.add_argument("--only", type=int, help="decode this file of the seed alone")
    args = parser.parse_args()
    numbers = range(args.count) if args.only is None else range(args.only, args.only + 1)
    found, slowest, start = 0, 0.0, time.monotonic()
    counts: dict[str, Counter[str]] = {}
    with Decoder() as decoder:
        for number in numbers:
            if time.monotonic() - start > args.seconds:
                break
            kind, data = make_file(args.seed, number)
            outcome = decoder(data)
            counts.setdefault(kind, Counter())[outcome.what] += 1
            slowest = max(slowest, outcome.seconds)
            if outcome.is_finding or args.only is not None:
                found += outcome.is_finding
                report(args.keep, args.seed, number, data, outcome)
    seconds = time.monotonic() - start
    total = sum(sum(counter.values()) for counter in counts.values())
    print(f"{total} files of seed {args.seed} in {seconds:.0f} s, slowest {slowest:.2f} s, findings {found}\n")
    print(table(counts))
    sys.exit(found > 0)


def make_file(seed: int, number: int) -> tuple[str, bytes]:
    """Return the kind that a file began as, and the file."""
    random = Random(f"{seed}/{number}")
    seeds = seed_files()
    kind = random.choice(sorted(seeds))
    others = [data for files in seeds.values() for data in files]
    return kind, mutate(random.choice(seeds[kind]), others, random)


def report(keep: Path | None, seed: int, number: int, data: bytes, outcome: Outcome) -> None:
    """Print what was found, and keep the file."""
    print(f"file {number}, {len(data)} bytes: {outcome.what}; {outcome.details}", flush=True)
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"{seed}-{number}-{outcome.what.split()[0]}.bin").write_bytes(data)


def table(counts: dict[str, Counter[str]]) -> str:
    """Return outcomes by kind as a Markdown table."""
    kinds = sorted(counts)
    whats = sorted({what for counter in counts.values() for what in counter}, key=lambda w: (not w.startswith("ok"), w))
    rows = [["outcome", *kinds, "all"], ["---"] * (len(kinds) + 2)]
    for what in whats:
        numbers = [counts[kind][what] for kind in kinds]
        rows.append([what, *(str(n) for n in numbers), str(sum(numbers))])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    main()
