"""What a model is worth: figures with intervals, the foundation asked without training, the table and the report."""
