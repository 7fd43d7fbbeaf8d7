"""Hostile, damaged and odd pictures: what becomes of each, and that its neighbours do not notice."""
