"""Full evolution strategies: whole episodes."""

from __future__ import annotations

from inner_tasks import UnrolledProblem
from meta_train.estimators.base import Estimator
from meta_train.estimators.pes import pes


def full_es(problem: UnrolledProblem, *, sigma: float, chunk: int = 1) -> Estimator:
    """Antithetic evolution strategies on whole episodes: PES with a single window, K = T.

    ``g = epsilon (L(+) - L(-)) / (2 sigma^2 T)``, with L the sum of an episode's losses.

    - Bias: none. It is the gradient of the Gaussian-smoothed loss of an episode.
    - Variance: proportional to the number of entries of theta.
    - Memory: two inner states and two copies of theta, whatever T.
    - Cost per update: 2 T inner steps, so theta moves only once per episode.

    Args:
      problem: what is unrolled.
      sigma: standard deviation of the perturbations.
      chunk: particles unrolled at once: 1, or at least 2 for both particles together.

    Source: Salimans, Ho, Chen, Sidor, Sutskever, "Evolution Strategies as a Scalable Alternative to
    Reinforcement Learning", 2017; with antithetic pairs and common random numbers.
    """
    return pes(problem, sigma=sigma, truncation=problem.horizon, chunk=chunk)
