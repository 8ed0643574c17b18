"""Meta-training: how theta is learned, and the commands that do it."""
