"""The experiments of the PES paper, one per file.

To add one, write it in a file here and add it to ``EXPERIMENTS``.
"""

from __future__ import annotations

from meta_train.experiments import (
    control,
    cost,
    influence_balancing,
    learned_optimizer,
    many_hyperparameters,
    mnist_schedule,
    regularisation,
    toy_regression,
    variance,
)
from meta_train.experiments.base import Experiment

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        influence_balancing.EXPERIMENT,
        toy_regression.EXPERIMENT,
        regularisation.EXPERIMENT,
        variance.EXPERIMENT,
        cost.EXPERIMENT,
        mnist_schedule.EXPERIMENT,
        many_hyperparameters.EXPERIMENT,
        learned_optimizer.EXPERIMENT,
        control.EXPERIMENT,
    )
}

__all__ = ["EXPERIMENTS", "Experiment"]
