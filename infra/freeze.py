"""Print the pins of everything installed here, in the form of constraints.txt.

A pin that does not install on every Python that annotator supports carries a marker, so that the other
versions resolve it within the ranges of pyproject.toml. `torch==2.13.0+cpu` is written as `torch==2.13.0`:
which build of torch fits the machine is for the machine to say.
"""

from __future__ import annotations

import sys
from importlib.metadata import distributions

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
NOT_PINNED = {"annotator", "pip", "setuptools", "wheel"}

HEADER = """\
# What annotator is tested with: `make setup` installs with `-c constraints.txt`, so that a new release of a
# dependency changes nothing until someone has tried it. Written by `make pins`; do not edit by hand.
"""


def pins() -> list[str]:
    """Return one line a distribution, sorted by name."""
    found = {}
    for dist in distributions():
        name = canonicalize_name(dist.metadata["Name"])
        if name not in NOT_PINNED:
            supported = SpecifierSet(dist.metadata["Requires-Python"] or "")
            found[name] = f"{name}=={Version(dist.version).public}{_marker(supported)}"
    return [found[name] for name in sorted(found)]


def _marker(supported: SpecifierSet) -> str:
    fits = [python for python in PYTHONS if f"{python}.99" in supported]
    return "" if fits == list(PYTHONS) or not fits else f' ; python_version >= "{fits[0]}"'


if __name__ == "__main__":
    sys.stdout.write(HEADER + "\n".join(pins()) + "\n")
