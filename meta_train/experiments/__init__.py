"""The experiments of the PES paper, one a file.

To add one: write it in a file here, and name it in ``EXPERIMENTS``.
"""

from __future__ import annotations

from meta_train.experiments import influence_balancing
from meta_train.experiments.base import Experiment

EXPERIMENTS: dict[str, Experiment] = {
    module.EXPERIMENT.name: module.EXPERIMENT for module in (influence_balancing,)
}

__all__ = ["EXPERIMENTS", "Experiment"]
