"""Training on a CPU beside transformers, MaxText and nanoGPT."""
