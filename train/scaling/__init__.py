"""Scaling laws: a sweep of small runs and the law fitted to them."""
