"""Releases: weights, model cards and data for publication."""
