"""The train step, the loop that runs it, checkpoints, and one thin file per command."""
