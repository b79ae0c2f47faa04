"""A page and an HTTP API for a generator."""
