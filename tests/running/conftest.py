"""Fixtures of the tests that run whole jobs."""

from tests.running.command import cli, job, job_file

__all__ = ["cli", "job", "job_file"]
