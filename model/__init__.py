"""The model as pure functions; knows neither `data` nor `train`."""
