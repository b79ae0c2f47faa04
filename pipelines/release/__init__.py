"""Weights and data to give away."""
