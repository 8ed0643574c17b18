"""A run from start to finish: its configuration, folder, checkpoints, log and progress."""
