"""Text -> token store in units, with any number of processes and the same bytes for each; see `pipeline`."""
