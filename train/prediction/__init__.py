"""Predictions for rows without labels: `load(RUN)` for Python, `predict_file` for files."""

from train.prediction.task_model import TaskModel, load

__all__ = ["TaskModel", "load"]
