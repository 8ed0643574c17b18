"""What ``learned_opt`` is made of; its public names are in ``learned_opt`` itself."""
