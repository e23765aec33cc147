"""Pre-training configs: the default plus what differs."""
