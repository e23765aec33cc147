"""A run directory: its record, lock, parameters, history and results."""
