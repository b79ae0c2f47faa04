"""Scaling studies: plan, run, fit."""
