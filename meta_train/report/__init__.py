"""Evaluation of optimizers: training runs, the comparison with tuned baselines, its tables and pictures."""
