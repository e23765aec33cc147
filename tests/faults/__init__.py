"""Every fault that a run must survive, really caused: `make faults` runs all of them, `make test` their short form."""
