"""Scores of models: losses, likelihoods, metrics with intervals."""
