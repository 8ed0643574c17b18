"""The implementation of ``learned_opt``, which exports the public names."""
