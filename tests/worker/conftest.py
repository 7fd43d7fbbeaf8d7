"""Fixtures of the worker's tests."""

from tests.worker.support import faults, seen

__all__ = ["faults", "seen"]
