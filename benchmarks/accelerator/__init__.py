"""What one GPU or TPU machine does: products, training, decoding, checkpoints, fine-tuning, equal and resumed runs."""
