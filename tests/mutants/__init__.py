"""One-line faults of the real code, each with the test that must see it: `make mutants` plants them one at a time."""
