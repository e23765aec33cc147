"""Models of transformers: one table per family for config.json (`families`) and one for the weights (`tables`)."""
