"""Ray and MLflow are used here and nowhere else; one room per stage, and a room imports only the rooms above it
(tests/test_layering.py).
"""
