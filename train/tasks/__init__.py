"""What a head can learn: one file a task, named by `config.task.name`; `contract.py` says what such a file holds."""
