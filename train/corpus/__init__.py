"""What a pre-training run reads: stores, rows, sources."""
