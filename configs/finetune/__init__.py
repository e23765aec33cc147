"""Fine-tuning configs: the default plus what differs."""
