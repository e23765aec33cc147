"""Injects every fault that a run must survive: `make faults` runs all of them, the test suite a short form."""

# Before any module imports JAX: all processes must compile alike, or their parameters differ in the last bits.
from tests import conftest as conftest
