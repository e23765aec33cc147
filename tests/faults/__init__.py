"""Injects every fault that a run must survive: `make faults` runs all of them, the test suite a short form."""
