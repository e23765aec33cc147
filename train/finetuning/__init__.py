"""Fine-tuning on labeled rows, and the comparison with baselines."""
