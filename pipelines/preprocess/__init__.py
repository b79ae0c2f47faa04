"""Meshes to a dataset of shards."""
