"""Turns text and labeled rows into fixed-shape NumPy batches; imports neither `model` nor `train`."""
