"""The tasks a model can be fine-tuned for, one per file; `task.py` has their base class."""
