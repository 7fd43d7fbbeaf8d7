"""Tests, each named as the claim that it holds to."""
