"""A run from start to finish: its configuration, its folder, and what it saves, logs and shows."""
