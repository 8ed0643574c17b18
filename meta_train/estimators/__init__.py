"""Estimators of meta-gradients, one algorithm a file.

To add one: write it in a file here, and name it in ``ESTIMATORS``.
"""

from __future__ import annotations

from meta_train.estimators.base import Estimator, Info
from meta_train.estimators.pes import pes
from meta_train.estimators.truncated_es import truncated_es

ESTIMATORS = {
    "pes": pes,
    "truncated-es": truncated_es,
}

__all__ = ["ESTIMATORS", "Estimator", "Info", "pes", "truncated_es"]
