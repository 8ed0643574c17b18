"""How good an optimizer is: training runs, the comparison with tuned baselines, its tables and pictures."""
