"""Checkpoint formats, one module each."""
