"""The experiments of the PES paper, one a file.

To add one: write it in a file here, and name it in ``EXPERIMENTS``.
"""

from __future__ import annotations

from meta_train.experiments import influence_balancing, regularisation, toy_regression, variance
from meta_train.experiments.base import Experiment

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        influence_balancing.EXPERIMENT,
        toy_regression.EXPERIMENT,
        regularisation.EXPERIMENT,
        variance.EXPERIMENT,
    )
}

__all__ = ["EXPERIMENTS", "Experiment"]
