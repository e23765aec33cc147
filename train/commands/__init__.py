"""The commands: flags, one call, what is printed. Only `train/cli.py` imports them, by name."""
