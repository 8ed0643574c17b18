"""Noise reuse: PES that keeps a perturbation for several windows (GPES), or a whole episode (NRES)."""

from __future__ import annotations

from inner_tasks import UnrolledProblem
from meta_train.estimators.base import Estimator
from meta_train.estimators.pes import pes


def gpes(
    problem: UnrolledProblem, *, sigma: float, truncation: int, perturbation_period: int, chunk: int = 1
) -> Estimator:
    """Generalised PES: a new perturbation every `perturbation_period` steps.

    ``g = xi (L(+) - L(-)) / (2 sigma^2 K)``, where xi is the sum of the perturbations *drawn* since the
    episode began. A period of K steps is PES, one of T steps is NRES.

    - Bias: none, as for PES: the gradient of the loss smoothed by perturbations that last a period.
    - Variance: falls with the period (Li et al., Theorem 6), least for T.
    - Memory: two inner states and two copies of theta, whatever T and K.
    - Cost per update: 2 K inner steps.

    Args:
      problem: what is unrolled.
      sigma: standard deviation of the perturbations.
      truncation: K, steps per window; it need not divide T.
      perturbation_period: steps for which a perturbation is kept, a multiple of K (T and more: to the end
        of the episode). It is counted from where a particle starts.
      chunk: particles unrolled at once: 1, or 2 and more for both members together.

    Returns:
      An estimator that carries a ``Pair``.

    Raises:
      UserError: the period is no multiple of K.

    Source: Li, Harrison, Sohl-Dickstein, Smith, Metz, "Variance-Reduced Gradient Estimation via
    Noise-Reuse in Online Evolution Strategies", NeurIPS 2023.
    """
    return pes(
        problem, sigma=sigma, truncation=truncation, chunk=chunk, perturbation_period=perturbation_period
    )


def nres(problem: UnrolledProblem, *, sigma: float, truncation: int, chunk: int = 1) -> Estimator:
    """Noise-reuse evolution strategies: one perturbation for a whole episode.

    ``g = epsilon (L(+) - L(-)) / (2 sigma^2 K)``, with the episode's epsilon: GPES with a period of T. With
    all particles in step it is ES-Single (Vicol, "Low-Variance Gradient Estimation in Unrolled
    Computation Graphs with ES-Single", ICML 2023).

    - Bias: none: the gradient of the loss smoothed by a perturbation that lasts the episode.
    - Variance: that of full ES, whatever the number of windows.
    - Memory: two inner states and two copies of theta, whatever T and K.
    - Cost per update: 2 K inner steps.

    Args:
      As ``gpes``.

    Source: Li, Harrison, Sohl-Dickstein, Smith, Metz, NeurIPS 2023.
    """
    return gpes(problem, sigma=sigma, truncation=truncation, perturbation_period=problem.horizon, chunk=chunk)
