"""Scaling laws: NumPy and SciPy alone."""
