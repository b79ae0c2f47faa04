"""Evaluations: how good a tokenizer or generator is."""
