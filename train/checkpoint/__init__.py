"""Checkpoints of a run: saving, verifying, restoring."""
