"""One-line bugs, each with the test that must find it: `make mutants` plants them one at a time."""
