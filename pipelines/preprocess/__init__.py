"""Meshes to shards."""
