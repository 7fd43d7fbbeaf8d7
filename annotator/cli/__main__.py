"""`python -m annotator.cli`, for where the script is not on the path."""

from __future__ import annotations

from annotator.cli import main

main()
