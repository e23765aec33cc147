"""Checkpoints: saved, verified, restored."""
