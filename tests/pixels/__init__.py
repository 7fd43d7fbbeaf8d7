"""Tests of reading pictures, of geometry, and of the dense tasks."""
