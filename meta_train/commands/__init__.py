"""The commands `meta-train`, `learned-opt` and `pes-paper`."""
