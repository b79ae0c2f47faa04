"""Prompts to meshes."""
