"""Estimators of meta-gradients, one algorithm per file.

To add one, write it in a file here and add it to ``ESTIMATORS``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from inner_tasks import UnrolledProblem
from learned_opt._src.errors import UserError, choices
from learned_opt._src.modules import find_in_module
from meta_train.estimators.analytic_pes import analytic_pes
from meta_train.estimators.base import Estimator, Info
from meta_train.estimators.full_es import full_es
from meta_train.estimators.mean import mean_of
from meta_train.estimators.noise_reuse import gpes, nres
from meta_train.estimators.pes import pes
from meta_train.estimators.rtrl import rtrl
from meta_train.estimators.tbptt import bptt, tbptt
from meta_train.estimators.truncated_es import truncated_es
from meta_train.estimators.uoro import uoro


class Method(NamedTuple):
    """A named estimator, and the settings that a user may choose for it."""

    make: Callable[..., Estimator]  # (problem, **settings) -> estimator
    settings: tuple[str, ...] = ("sigma", "truncation")  # the fields of ``EstimatorConfig`` that `make` takes
    particles: int = 2  # in one unit: 2 for an antithetic pair (whose `make` also takes `chunk`), or 1


def _pes(problem: UnrolledProblem, *, analytic: bool = False, **settings: Any) -> Estimator:
    """PES with or without the control variate, under one name on the command line."""
    return (analytic_pes if analytic else pes)(problem, **settings)


ESTIMATORS = {
    "pes": Method(_pes, ("sigma", "truncation", "analytic")),
    "nres": Method(nres),
    "gpes": Method(gpes, ("sigma", "truncation", "perturbation_period")),
    "full-es": Method(full_es, ("sigma",)),
    "truncated-es": Method(truncated_es),
    "tbptt": Method(tbptt, ("truncation",), particles=1),
    "bptt": Method(bptt, (), particles=1),
    "rtrl": Method(rtrl, ("truncation",), particles=1),
    "uoro": Method(uoro, ("truncation",), particles=1),
}


def find_estimator(name: str) -> Method:
    """The estimator called `name`.

    Args:
      name: one of ``ESTIMATORS``; or ``module:name`` for your own `Method`, whose module is imported.

    Raises:
      UserError: there is no estimator of that name, or the module cannot be imported.
    """
    if ":" in name:
        method = find_in_module(name, "estimator")
        if not isinstance(method, Method):
            raise UserError(f"estimator '{name}' is not a Method; see docs/adding-an-estimator.md")
        return method
    if name not in ESTIMATORS:
        raise UserError(f"unknown estimator '{name}'; {choices(name, ESTIMATORS)}")
    return ESTIMATORS[name]


__all__ = [
    "ESTIMATORS",
    "Estimator",
    "Info",
    "Method",
    "analytic_pes",
    "bptt",
    "find_estimator",
    "full_es",
    "gpes",
    "mean_of",
    "nres",
    "pes",
    "rtrl",
    "tbptt",
    "truncated_es",
    "uoro",
]
