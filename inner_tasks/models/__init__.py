"""Models of Flax Linen, Flax NNX and Equinox, and plain functions, as pure functions; one kind a file."""
