"""Learning theta: a population of estimators, and the outer loop that moves theta."""
