"""Text and labelled rows in, fixed-shape NumPy batches out; knows neither `model` nor `train`."""
